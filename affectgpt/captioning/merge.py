"""From clues and subtitle to a description, conflicts between modalities included (paper, appendix G)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from affectgpt.captioning.asking import Answers, Request, ask, from_file, open_asked, sampling_of
from affectgpt.captioning.clips import Clip
from affectgpt.config.captioning import AskConfig
from affectgpt.core.errors import ConfigError
from affectgpt.textllm.base import Conversation
from affectgpt.textllm.messages import user_message

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
