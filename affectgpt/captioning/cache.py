"""Replies that were paid for, kept for good: by clip, model and prompt hash.

``<work>/cache/<step>-<hash>.jsonl`` holds the replies of one model under one sampling; within it a reply is found by
the clip's name and the hash of the prompt as it was sent (media go by the sizes of their files). Files only grow:
another model, sampling or prompt adds to the cache, and going back finds the old replies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from affectgpt.core.journal import Journal


@dataclass(frozen=True)
class CachedReply:
    """One entry: a reply, or why there is none (``failed``) where asking again would not help."""

    text: str = ""
    failed: str | None = None
    truncated: bool = False
    prompt_tokens: int | None = None
    reply_tokens: int | None = None
    seconds: float | None = None


class ReplyCache:
    """The journal of one step under one model and sampling. A context manager; one process at a time."""

    def __init__(self, folder: Path, *, step: str, settings: Mapping[str, Any]) -> None:
        key = digest(json.dumps({"step": step, **settings}, sort_keys=True, default=str))
        self.path = folder / f"{step}-{key[:16]}.jsonl"
        self._key = key
        self._journal: Journal | None = None
        self._entries: dict[str, Any] = Journal.read(self.path, key=key)

    def get(self, name: str, prompt_hash: str) -> CachedReply | None:
        """What is kept for a clip and prompt; None when nothing is."""
        value = self._entries.get(f"{name}\t{prompt_hash}")
        return None if value is None else CachedReply(**value)

    def put(self, name: str, prompt_hash: str, kept: CachedReply) -> None:
        """Keep an entry; it is on disk when this returns."""
        if self._journal is None:
            # opened at the first reply: looking into a cache neither makes a file nor waits for another process
            self._journal = Journal(self.path, key=self._key)
            self._entries = self._journal.entries
        value = {k: v for k, v in asdict(kept).items() if v not in (None, False, "") or k == "text"}
        self._journal.add(f"{name}\t{prompt_hash}", value)

    def costs(self) -> dict[str, float]:
        """What all entries of this file cost: requests, prompt and reply tokens, seconds of requests."""
        found = [CachedReply(**value) for value in self._entries.values()]
        return {
            "requests": len(found),
            "prompt_tokens": sum(kept.prompt_tokens or 0 for kept in found),
            "reply_tokens": sum(kept.reply_tokens or 0 for kept in found),
            "seconds": sum(kept.seconds or 0.0 for kept in found),
        }

    def close(self) -> None:
        """Sync and close; the file stays."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def __enter__(self) -> ReplyCache:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def digest(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
