"""Questions to a multimodal LLM about a clip: the published prompts as rows, ours for labels, or a user's file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from affectgpt.core.errors import ConfigError
from affectgpt.core.names import LONGEST_NAME
from affectgpt.core.provenance import settings_hash
from affectgpt.core.registry import Registry

VIDEO, AUDIO, SUBTITLE = "video", "audio", "subtitle"
MEDIA = (VIDEO, AUDIO, SUBTITLE)  # in the order in which they are sent
PUBLISHED = "published:"
LABELS = "labels"
_PLACE = "{subtitle}"
_LARGEST_FILE = 1 << 16  # bytes


@dataclass(frozen=True)
class Prompt:
    """Pieces of text; those with ``{subtitle}`` are left out where a clip has none, or none is to be sent.

    ``media``: what goes with it unless the user says otherwise. ``frames``, ``fps`` (then at most 100 frames),
    ``temperature``, ``top_p``: with what it was used, None where that is not known. ``line_break``: what an answer's
    newlines and tabs become; the published answers have none.
    """

    name: str
    pieces: tuple[str, ...]
    media: tuple[str, ...] = MEDIA
    frames: int | None = None
    fps: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    line_break: str = " "

    def text(self, subtitle: str = "") -> str:
        """The text for one clip."""
        subtitle = subtitle.strip()
        return "".join(p.replace(_PLACE, subtitle) for p in self.pieces if subtitle or _PLACE not in p)

    @property
    def asks_subtitle(self) -> bool:
        """True if it has a place for the subtitle."""
        return any(_PLACE in piece for piece in self.pieces)

    @property
    def hash(self) -> str:
        """A hash of the pieces."""
        return settings_hash(self.pieces)

    def answer(self, reply: str) -> str:
        """A reply as it is kept: one line."""
        return self.line_break.join(filter(None, reply.replace("\t", "\n").splitlines())).strip()


PROMPTS = Registry("published prompt", any_case=True)

_FOCUS = (
    "As an expert in the field of emotions, please focus on the facial expressions, body movements, environment, "
    "subtitle content, etc., in the video "
)
_DISCERN = (
    "to discern clues related to the emotions of the individual. Please provide a detailed description and ultimately "
    "predict the emotional state of the individual in the {}."
)
_VIDEO = _FOCUS + _DISCERN.format(VIDEO)
_THIS = "Subtitle content of this video: {subtitle}; "
_SEEN, _HEARD = (VIDEO, SUBTITLE), (AUDIO, SUBTITLE)
# As the models of the paper's table 2 were asked (the scripts of SECap, OneLLM, PandaGPT and Emotion-LLaMA are not
# public). Otter decoded with three beams and mPLUG-Owl from the five likeliest tokens, which is not done here.
_ROWS = (
    Prompt("otter", (_THIS, _VIDEO), _SEEN, frames=16, line_break=""),
    Prompt("llama-vid", (_THIS, _VIDEO), _SEEN, fps=1.0, temperature=0.5, top_p=0.7, line_break=""),
    Prompt("video-llava", (_THIS, _VIDEO), _SEEN, temperature=0.1, line_break=""),
    Prompt("mplug-owl", (_THIS, _VIDEO), _SEEN, frames=4, line_break=""),
    Prompt(
        "videochat", ("Subtitle content of the video: {subtitle}; ", f"{_VIDEO} "), _SEEN,
        frames=8, temperature=1.0, line_break="",
    ),
    Prompt(
        "videochat2", ("Subtitle content of the video: {subtitle} ", f"{_VIDEO} "), _SEEN,
        frames=8, temperature=1.0, line_break="",
    ),
    Prompt(
        "chat-univi", (_THIS, f"{_FOCUS}and recognize all possible emotional states of the individual."), _SEEN,
        fps=1.0, temperature=0.2, line_break="",
    ),
    Prompt(
        "video-chatgpt",
        (
            "As an expert in the field of emotions, please focus on the facial expressions, body movements, "
            "environment, acoustic information, subtitle content, etc., in the video " + _DISCERN.format(VIDEO),
            " Subtitle content of the video: {subtitle} ",
        ),
        _SEEN, line_break="",
    ),
    Prompt(
        "qwen-audio",
        (
            "Subtitle content of the audio: {subtitle}; ",
            "As an expert in the field of emotions, please focus on the acoustic information and subtitle content in "
            "the audio " + _DISCERN.format(AUDIO),
        ),
        _HEARD, line_break="",
    ),
    Prompt(
        "salmonn",
        (
            "Subtitle content of the video: {subtitle} ",
            "Please predict the emotional state of the individual in the audio. ",
        ),
        _HEARD, line_break="",
    ),
)  # fmt: skip
for _row in _ROWS:
    PROMPTS.register(_row.name)(_row)

# Ours: an answer of the form that ``evaluate --extractor direct`` reads, so that scoring takes no second model.
_LABELS = Prompt(
    LABELS,
    (
        "What the person in this clip says: {subtitle}\n",
        "Look at the face, gestures and surroundings as far as they are shown, and listen to the voice as far as it "
        "is given. Which emotions does the person in this clip feel? Answer in exactly one sentence of this form, "
        "with as many emotion words as fit, the most certain first:\nThe person's emotional state is word, word.",
    ),
)


def find_prompt(wanted: str) -> Prompt:
    """The prompt that ``published:MODEL``, ``labels`` or the path of a text file names.

    Lines of a file that hold ``{subtitle}`` are left out where a clip has none. Raises ConfigError.
    """
    if wanted.startswith(PUBLISHED):
        return PROMPTS.get(wanted.removeprefix(PUBLISHED))
    if wanted == LABELS:
        return _LABELS
    path = Path(wanted)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ConfigError(f"--prompt {path}: more than {_LARGEST_FILE:,} bytes; is this the file with the prompt?")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--prompt {wanted}: cannot be read as a text file ({reason}). Give a file, {LABELS}, or {PUBLISHED}MODEL "
            f"with one of {', '.join(PROMPTS.names())}"
        ) from error
    lines = text.strip().splitlines(keepends=True)
    prompt = Prompt(path.stem, tuple(lines))
    if not prompt.text().strip():
        raise ConfigError(f"--prompt {path}: nothing is asked: it has no line without {_PLACE}")
    return prompt


def parse_media(text: str | None, prompt: Prompt) -> tuple[str, ...]:
    """``video,audio,subtitle`` or some of these, in canonical order; the prompt's own without a text.

    Raises ConfigError for another word, and where the prompt has no place for the subtitle that was asked for.
    """
    if text is None:
        return tuple(m for m in prompt.media if m != SUBTITLE or prompt.asks_subtitle)
    wanted = [part.strip().lower() for part in text.split(",") if part.strip()]
    if unknown := [part for part in wanted if part not in MEDIA]:
        raise ConfigError(f"--media {text}: {unknown[0]!r} is none of {', '.join(MEDIA)}")
    if not wanted:
        raise ConfigError(f"--media: name one or more of {', '.join(MEDIA)}")
    if SUBTITLE in wanted and not prompt.asks_subtitle:
        raise ConfigError(f"--media {text}: prompt {prompt.name} has no place {_PLACE} for it")
    return tuple(medium for medium in MEDIA if medium in wanted)


def default_run(model: str, prompt: Prompt, media: Sequence[str]) -> str:
    """The run's name where the user gives none: model, prompt and media, as a folder's name."""
    parts = (model.rstrip("/").rpartition("/")[2], prompt.name, "+".join(media))
    name = "_".join("".join(c if c.isalnum() or c in "+.-" else "-" for c in part) for part in parts).lstrip(".-")
    return name.encode()[: LONGEST_NAME - 100].decode("utf-8", "ignore")
