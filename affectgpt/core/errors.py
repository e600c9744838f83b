"""Errors that a user can act on, and the "did you mean" that goes with them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AffectGPTError(Exception):
    """Something the user gave is wrong or missing. The command line prints the message without a traceback."""


class ConfigError(AffectGPTError):
    """A configuration key or value is wrong."""


class DataError(AffectGPTError):
    """A data set, sample or media file is missing, damaged or contradictory."""


class CheckpointError(AffectGPTError):
    """A checkpoint or model folder is missing, incomplete or made by another recipe."""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """A sentence that helps after an unknown name: the nearest known one, and what is known."""
    known = sorted(known)
    folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(wrong.lower(), list(folded), n=1, cutoff=0.5)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    return f"{hint} Known: {', '.join(known) or 'none'}."
