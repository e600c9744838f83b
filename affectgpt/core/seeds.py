"""Randomness that depends on names and numbers alone."""

from __future__ import annotations

import hashlib
import random


def seeded(*parts: object) -> random.Random:
    """A random stream that depends on ``parts`` alone: not on the process, the worker or what was drawn before."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))
