"""What is odd about an answer. Odd answers are kept, and named in the result's meta file."""

from __future__ import annotations

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
