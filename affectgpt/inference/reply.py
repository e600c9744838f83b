"""What comes back of a clip: an answer with its labels, a description on demand, and what is odd; or an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from affectgpt.core.errors import DataError
from affectgpt.evaluation.labels import NOT_TRAINED_FORM
from affectgpt.media.audio import FIRST_CHANNEL, NO_AUDIO_TRACK
from affectgpt.processing.prompt import SHORTENED

EMPTY = "empty"
UNFINISHED = "never_stopped"  # as long as it may be, and no stop rule met
REPEATING = "repeating"

_LONGEST_UNIT = 200  # characters
_LEAST_REPEATED = 24  # characters, all repetitions together
_LEAST_TIMES = 4


def answer_flags(answer: str, *, stopped: bool) -> tuple[str, ...]:
    """Flags of a cleaned answer; ``stopped``: whether a stop rule ended it."""
    flags = []
    if not answer:
        flags.append(EMPTY)
    if not stopped:
        flags.append(UNFINISHED)
    if repeats(answer):
        flags.append(REPEATING)
    return tuple(flags)


def repeats(text: str) -> bool:
    """Whether the text ends in the same piece again and again (a last incomplete piece does not matter)."""
    text = text.rstrip(" .\n")
    for size in range(1, min(_LONGEST_UNIT, len(text) // _LEAST_TIMES) + 1):
        span = max(_LEAST_REPEATED, size * _LEAST_TIMES)
        if span <= len(text) and text[-span:-size] == text[-span + size :]:
            return True
    return False


ODD_DESCRIPTION = "description_not_in_the_text"
TURNED = "picture_turned"
SEVERAL = "several_people"
NOTES = {
    NO_AUDIO_TRACK: "the video has no audio track; the model heard silence",
    FIRST_CHANNEL: "the sound has more than two channels; the model heard the first",
    TURNED: "faces are clearer when the picture is turned: is the video upside down or sideways?",
    SEVERAL: "several people's faces are in the picture; the answer is about one of them",
    SHORTENED: "the subtitle was too long for the prompt; its end was left out",
    EMPTY: "the answer is empty",
    UNFINISHED: "the answer never stopped and was cut at inference.max_new_tokens",
    REPEATING: "the answer repeats itself",
    NOT_TRAINED_FORM: "the answer is not of the trained form; no label could be read from it",
    ODD_DESCRIPTION: 'a description of the released models begins with "In the text", this one does not: the weights '
    "or the code may be wrong; run `affectgpt doctor`",
}


@dataclass
class Reply:
    """What the model says of one clip. ``description`` asks the second question when it is first looked at."""

    answer: str
    labels: list[str]
    question: str
    flags: tuple[str, ...] = ()
    video: str = ""
    subtitle: str = ""
    error: None = field(default=None, repr=False)  # see Unanswered
    _describe: Callable[[], Reply] | None = field(default=None, repr=False)
    _described: Reply | None = field(default=None, repr=False)

    def describe(self) -> Reply:
        """The answer to the description question, asked once (this reply itself where another question was given)."""
        if self._described is None:
            self._described = self if self._describe is None else self._describe()
        return self._described

    @property
    def description(self) -> str:
        """The text of the answer to the description question."""
        return self.describe().answer

    @property
    def notes(self) -> list[str]:
        """What is odd about the clip or the answer, in words."""
        notes = []
        for flag in self.flags:
            kind, _, which = flag.partition(": ")
            notes.append(NOTES.get(kind, kind) + (f" ({which})" if which else ""))
        return notes

    def as_dict(self) -> dict[str, Any]:
        """Video, subtitle, question, answer, labels and notes, as plain containers; the description if it was asked."""
        result: dict[str, Any] = {
            "video": self.video, "subtitle": self.subtitle, "question": self.question, "answer": self.answer,
            "labels": self.labels, "notes": self.notes,
        }  # fmt: skip
        if self._described is not None and self._described is not self:
            result["description"] = self._described.answer
            result["notes"] += [note for note in self._described.notes if note not in result["notes"]]
        return result


@dataclass(frozen=True)
class Unanswered:
    """A clip of a list that could not be answered: ``error`` says why, and whoever asks for its answer gets it raised.

    ``reply.error`` is None for those that were answered.
    """

    error: DataError
    video: str = ""
    subtitle: str = ""

    def __getattr__(self, name: str) -> Any:
        if name in ("answer", "labels", "flags", "notes", "describe", "description"):
            raise DataError(str(self.error)) from self.error
        raise AttributeError(name)

    def as_dict(self) -> dict[str, Any]:
        """Video, subtitle and the error's text."""
        return {"video": self.video, "subtitle": self.subtitle, "error": str(self.error)}
