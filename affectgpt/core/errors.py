"""Errors that a user can act on, and the "did you mean" that goes with them."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any

_MANY = 12  # known names that are too many to list beside a near one

# Control characters (ESC among them), marks that turn the reading direction, and halves of characters.
UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str, *, lines: bool = False) -> str:
    r"""Text of others as a terminal may show it: control characters and the like are written out as ``\u001b``.

    Unescaped, a label or an answer could move the cursor, rewrite lines above or set the window's title. ``lines``:
    line ends and tabs stay. JSON stays JSON of the same meaning.
    """
    return UNSHOWN.sub(lambda m: m[0] if lines and m[0] in "\n\t" else _SHORT.get(m[0], f"\\u{ord(m[0]):04x}"), text)


class AffectGPTError(Exception):
    """Something the user gave is wrong or missing. The command line prints the message without a traceback.

    Messages quote files, names and servers of others, so what a terminal would obey is written out.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), lines=True)


class ConfigError(AffectGPTError):
    """A configuration key or value is wrong."""


class DataError(AffectGPTError):
    """A data set, sample or media file is missing, damaged or contradictory."""


class CheckpointError(AffectGPTError):
    """A checkpoint or model folder is missing, incomplete or made by another recipe."""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """A sentence that helps after an unknown name: the nearest known one, and what is known (a long list only where
    nothing is near)."""
    known = sorted(known)
    folded = {name.lower(): name for name in known}
    stem = wrong.lower().partition(".")[0]
    begin = [name for name in folded if name.startswith(stem)] if len(stem) > 2 else []
    near = difflib.get_close_matches(wrong.lower(), list(folded), n=1, cutoff=0.7) or begin[:1]
    near = near or difflib.get_close_matches(wrong.lower(), list(folded), n=1, cutoff=0.5)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    return hint if near and len(known) > _MANY else f"{hint} Known: {', '.join(known) or 'none'}."


def shortened(value: Any, length: int = 80) -> str:
    """A value from outside for a message: what ``repr`` gives, of values of any depth and size, cut at ``length``."""
    form = reprlib.Repr()
    form.maxstring = form.maxother = length
    text = form.repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"
