"""A clip as a chat, as users of transformers write it."""

from __future__ import annotations

QUESTION = "How does he feel?"


def chat(clip: dict, question: str = QUESTION) -> list[dict]:
    """One clip as a chat."""
    parts = [{"type": kind, kind: clip[kind]} for kind in ("face", "audio", "subtitle")]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
