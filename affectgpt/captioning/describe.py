"""Acoustic and visual clues of every clip, by an audio LLM and a video LLM (paper, section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from affectgpt.captioning.asking import Answers, Request, ask, from_file, open_asked, sampling_of
from affectgpt.captioning.clips import Clip
from affectgpt.config.captioning import AskConfig
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.media.encode import jpeg_of
from affectgpt.media.guard import Decoder
from affectgpt.textllm.base import Conversation
from affectgpt.textllm.messages import user_message

ACOUSTIC, VISUAL = "acoustic", "visual"


def describe(
    kind: str, clips: Sequence[Clip], spec: AskConfig, *, folder: Path, retry: bool = False, dry_run: bool = False
) -> Answers:
    """Clues of one kind (ACOUSTIC or VISUAL) for all clips: kept, from a file, or asked for.

    A clip whose medium is missing is a failure that names the file.
    """
    key = f"captioning.{'audio' if kind == ACOUSTIC else 'visual'}"
    names = [clip.name for clip in clips]
    if spec.client == "off":
        return Answers(kind)
    if spec.client == "file":
        return from_file(kind, spec, names, key=key)
    if spec.client != "openai":
        raise ConfigError(
            f"{key}.client: {spec.client} takes text only; use openai with a server of a multimodal model"
        )
    decoder = Decoder()
    build = _acoustic if kind == ACOUSTIC else partial(_visual, decoder=decoder, spec=spec)
    shape = "sound" if kind == ACOUSTIC else f"{spec.frames} frames of {spec.longest_side}"
    requests, missing = [], {}
    for clip in clips:
        path = clip.sample.audio if kind == ACOUSTIC else clip.sample.video
        if path is None or not path.is_file():
            missing[clip.name] = f"clip missing: {path}: no such file"
            continue
        media = f"{shape} of {path.stat().st_size} bytes"  # another file of this name is another question
        requests.append(Request(clip.name, spec.prompt, partial(build, clip, prompt=spec.prompt), media=media))
    try:
        with open_asked(spec, key=key) as client:
            answers = ask(
                kind, requests, client=client, sampling=sampling_of(spec), folder=folder, retry=retry, dry_run=dry_run
            )  # fmt: skip
    finally:
        decoder.close()
    for name, reason in missing.items():
        answers.fail(name, reason, again=True)
    return answers


def _acoustic(clip: Clip, *, prompt: str) -> Conversation:
    try:
        return [user_message(prompt, audio=clip.sample.audio)]
    except DataError as error:
        raise DataError(f"clip unreadable: {error}") from error


def _visual(clip: Clip, *, prompt: str, decoder: Decoder, spec: AskConfig) -> Conversation:
    assert clip.sample.video is not None
    try:
        frames, _ = decoder.native_frames(
            clip.sample.video, n_frames=spec.frames, start=0, count=spec.frames, longest_side=spec.longest_side
        )
    except DataError as error:
        raise DataError(f"clip unreadable: {error}") from error
    return [user_message(prompt, images=[jpeg_of(frame) for frame in frames])]
