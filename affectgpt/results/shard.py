"""One process's share of a result file: which samples it answers, and how the shares become the file."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from affectgpt.core.files import atomic_path, locked
from affectgpt.core.journal import Journal
from affectgpt.core.runtime import logger
from affectgpt.results.files import beside, write_answers


class ResultShard:
    """Answers of one process, kept in a journal of its own beside the result file.

    Sample number i of ``names`` (in the order in which they are worked on) belongs to process ``i % world_size``.
    Whoever finishes last writes the file: nobody waits for anybody, and after a kill any number of processes may
    resume, for all journals of the same ``key`` are read.
    """

    def __init__(self, target: Path, *, names: Sequence[str], key: str, rank: int = 0, world_size: int = 1) -> None:
        self.target, self.names, self.key = target, names, key
        mine = set(names[rank::world_size])
        self._journal = Journal(self._path(rank), key=key)
        done = self._entries()
        self.pending = {name for name in mine if "answer" not in done.get(name, {})}
        self._attempts: dict[str, int] = {}
        for name in sorted(self.pending & set(done)):  # failed before: no failure until this attempt has failed too
            self._attempts[name] = done[name].get("attempt", 0) + 1
            self._journal.add(name, {"attempt": self._attempts[name]})
        if len(self.pending) < len(mine):
            logger.info("%s: %d of %d answers are there already", target, len(mine) - len(self.pending), len(mine))

    def _path(self, rank: int | str) -> Path:
        return beside(self.target, f".part{rank}.jsonl")

    def _parts(self) -> list[Path]:
        return sorted(self.target.parent.glob(self._path("*").name.replace("[", "[[]")))

    def _entries(self) -> dict[str, Any]:
        """What all processes have noted: an answer of any counts most, then the latest attempt."""
        entries: dict[str, Any] = {}
        for part in self._parts():
            for name, value in Journal.read(part, key=self.key).items():
                if name not in entries or _weight(value) > _weight(entries[name]):
                    entries[name] = value
        return entries

    def add(self, name: str, *, answer: str, flags: Sequence[str], tokens: int, **costs: float) -> None:
        """Keep one answer; ``costs``: what else it took, for the record."""
        self._journal.add(name, {"answer": answer, "flags": list(flags), "tokens": tokens, **costs})

    def fail(self, name: str, reason: str) -> None:
        """Note a sample that cannot be read; the next attempt tries it again."""
        self._journal.add(name, {"failed": reason, "attempt": self._attempts.get(name, 0)})

    def finish(self, *, dataset: str, order: Sequence[str], write_meta: Callable[[Mapping[str, Any]], None]) -> bool:
        """Write the result file if nothing lacks any more; False when other processes still work.

        ``order``: the names as the file lists them. ``write_meta`` gets name → entry of everything.
        """
        self._journal.close()
        with locked(self.target.parent):
            if self.target.exists():  # another process was the last
                return True
            entries = self._entries()
            finished = {name for name, entry in entries.items() if "answer" in entry or "failed" in entry}
            lacking = len(set(self.names) - finished)
            if lacking:
                logger.info("%s: %d answers of other processes are awaited", self.target, lacking)
                return False
            failed = {name: entries[name]["failed"] for name in order if "failed" in entries[name]}
            failed_path = beside(self.target, ".failed.csv")
            if failed:
                write_failed(failed_path, dataset, failed)
                logger.warning("%s: %d samples lack, see %s", self.target, len(failed), failed_path)
            else:
                failed_path.unlink(missing_ok=True)
            write_meta({name: entries[name] for name in order})
            write_answers(self.target, {n: entries[n]["answer"] for n in order if n not in failed})
            for part in self._parts():
                part.unlink()
        return True

    def __enter__(self) -> ResultShard:
        return self

    def __exit__(self, *exc: object) -> None:
        self._journal.close()


def _weight(entry: Mapping[str, Any]) -> tuple[bool, int, bool]:
    return "answer" in entry, entry.get("attempt", 0), "failed" in entry


def write_failed(path: Path, dataset: str, failed: Mapping[str, str]) -> None:
    """Write the table of samples without an answer: data set, sample, reason."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("dataset", "sample", "reason"))
        writer.writerows((dataset, name, reason) for name, reason in failed.items())
