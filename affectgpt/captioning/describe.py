"""Clips to annotate, and their descriptions: by a video and an audio model, merged with the subtitle by a third."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from affectgpt.captioning.ask import Answers, Request, ask, from_file, open_asked, sampling_of
from affectgpt.config.captioning import AskConfig, CaptioningFile, InputConfig
from affectgpt.core.crops import folder_crops
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.runtime import logger
from affectgpt.core.tables import read_table
from affectgpt.core.types import VIDEO_SUFFIXES, Sample
from affectgpt.datasets.label_files import Folder
from affectgpt.media.encode import jpeg_of
from affectgpt.media.guard import Decoder
from affectgpt.textllm.base import Conversation
from affectgpt.textllm.messages import user_message


@dataclass(frozen=True)
class Clip:
    """One clip: its sample, and its Chinese subtitle where there is one."""

    sample: Sample
    chinese: str = ""

    @property
    def name(self) -> str:
        """File stem."""
        return self.sample.name


def load_clips(spec: InputConfig, *, title: str, limit: int | None = None) -> list[Clip]:
    """The clips of the input folder, at most ``limit``: those of the names file, or of the subtitle file, in its order;
    where there is neither, all videos by name.

    ``title``: their data set's name in the feature store. Raises DataError naming file, line and sample.
    """
    root = Path(spec.root)
    if not root.is_dir():
        raise DataError(
            f"captioning.input.root: {root} is not a folder; make one from raw videos (affectgpt preprocess), or set it"
        )
    videos = Folder(root / spec.video, suffixes=VIDEO_SUFFIXES)
    stems = sorted({Path(file).stem for file in videos.files if Path(file).suffix.lower() in VIDEO_SUFFIXES})
    subtitles = _subtitles(root, spec)
    if spec.names:
        names = list(read_table(root / spec.names, key="name", columns=()))
    else:
        names = stems if subtitles is None else list(subtitles)
    source = root / (spec.names or spec.subtitles or spec.video)
    if not names:
        raise DataError(f"{source}: names no clip")
    for name in names:
        if subtitles is not None and name not in subtitles:
            raise DataError(
                f"{root / spec.subtitles}: no row for clip {name!r}; add one (an empty cell means no subtitle)"
            )
    left = sorted(set(stems) - set(names))
    if left and not spec.names:
        logger.warning(
            "%s: %d videos have no row in %s and are left out (first: %s); add rows, or set "
            "captioning.input.subtitles to nothing to go without subtitles",
            root / spec.video, len(left), spec.subtitles, ", ".join(left[:3]),
        )  # fmt: skip
    audios = Folder(root / spec.audio, suffixes=(".wav",))
    faces = Folder(root / spec.face, suffixes=(".npy",))
    crops = folder_crops(root / spec.face)
    return [
        Clip(
            Sample(
                name=name, dataset=title, subtitle=subtitles[name][0] if subtitles is not None else "",
                video=videos.find(name), audio=audios.find(name), face=faces.find(name), crops=crops,
            ),
            chinese=subtitles[name][1] if subtitles is not None and spec.chinese_column else "",
        )
        for name in names[:limit]
    ]  # fmt: skip


def _subtitles(root: Path, spec: InputConfig) -> dict[str, tuple[str, ...]] | None:
    """English (and Chinese) by name; None when there are to be none."""
    if not spec.subtitles:
        return None
    columns = (spec.subtitle_column, spec.chinese_column) if spec.chinese_column else (spec.subtitle_column,)
    return read_table(root / spec.subtitles, key="name", columns=columns)


def samples(clips: Sequence[Clip]) -> list[Sample]:
    """The clips as samples."""
    return [clip.sample for clip in clips]


def work_folder(config: CaptioningFile) -> Path:
    """Folder of everything that this configuration writes."""
    return Path(config.captioning.work or Path(config.paths.output_root) / config.name)


STEP = "merge"
SLOTS = ("{audio}", "{visual}", "{subtitle}")


def render(prompt: str, *, audio: str | None, visual: str | None, subtitle: str) -> str:
    """The prompt with its clues: in its slots where it has any, else after it. None: that kind of clue is not used."""
    clues = {"{audio}": audio or "", "{visual}": visual or "", "{subtitle}": subtitle}
    if any(slot in prompt for slot in SLOTS):
        # in one pass: a clue that holds the words {visual} stays as it is
        parts: list[str] = []
        rest = prompt
        while True:
            found = [(rest.index(slot), slot) for slot in SLOTS if slot in rest]
            if not found:
                return "".join([*parts, rest])
            at, slot = min(found)
            parts += [rest[:at], clues[slot]]
            rest = rest[at + len(slot) :]
    lines = [prompt, ""]
    if audio is not None:
        lines.append(f"Acoustic clues: {audio}")
    if visual is not None:
        lines.append(f"Visual clues: {visual}")
    lines.append(f"Subtitle: {subtitle or '(nothing is said)'}")
    return "\n".join(lines)


def merge(
    clips: Sequence[Clip],
    *,
    acoustic: Answers | None,
    visual: Answers | None,
    spec: AskConfig,
    folder: Path,
    retry: bool = False,
    dry_run: bool = False,
) -> Answers:
    """Descriptions of all clips that have their clues: kept, from a file, or asked for. None: a kind is not used.

    A clip whose clue is missing is left waiting, with the reason.
    """
    if spec.client == "file":
        return from_file(STEP, spec, [clip.name for clip in clips], key="captioning.merge")
    if spec.client == "off":
        raise ConfigError("captioning.merge.client is off: descriptions come from a model, or from a file")
    used = [answers for answers in (acoustic, visual) if answers is not None]
    requests, waiting = [], {}
    for clip in clips:
        lacking = [answers.step for answers in used if clip.name not in answers.texts]
        if lacking:
            waiting[clip.name] = f"no {' and no '.join(lacking)} clue yet"
            continue
        prompt = render(
            spec.prompt,
            audio=acoustic.texts[clip.name] if acoustic else None,
            visual=visual.texts[clip.name] if visual else None,
            subtitle=clip.sample.subtitle,
        )
        requests.append(Request(clip.name, prompt, partial(_conversation, prompt)))
    with open_asked(spec, key="captioning.merge") as client:
        answers = ask(
            STEP, requests, client=client, sampling=sampling_of(spec), folder=folder, retry=retry, dry_run=dry_run
        )
    for name, reason in waiting.items():
        answers.fail(name, reason, again=True)
    return answers


def _conversation(prompt: str) -> Conversation:
    return [user_message(prompt)]


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
