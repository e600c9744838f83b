"""Shards of a result file: what an earlier version left, and file systems without locks."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from affectgpt.results.files import read_answers
from affectgpt.results.shard import ResultShard

NAMES = ["a", "b", "c"]


@pytest.fixture
def target(tmp_path) -> Path:
    path = tmp_path / "results-x" / "run" / "checkpoint_000005_loss_0.100.npz"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def no_locks(monkeypatch):
    """Some network file systems answer so."""
    import fcntl

    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def journal_of(target: Path, rank: int = 0) -> Path:
    return target.with_name(f"{target.stem}-answers.part{rank}.jsonl")


def finish(target: Path, key: str = "settings") -> list[dict]:
    written: list[dict] = []
    with ResultShard(target, names=NAMES, key=key) as shard:
        for name in sorted(shard.pending):
            shard.add(name, answer=f"[{name}]", flags=(), tokens=1)
        assert shard.finish(dataset="X", order=NAMES, write_meta=lambda entries: written.append(dict(entries)))
    return written


def test_two_shards_make_one_file(target, no_locks):
    shards = [ResultShard(target, names=NAMES, key="k", rank=rank, world_size=2) for rank in range(2)]
    done = []
    for shard in shards:
        for name in sorted(shard.pending):
            shard.add(name, answer=name, flags=(), tokens=1)
        done.append(shard.finish(dataset="X", order=NAMES, write_meta=lambda entries: json.dumps(entries)))
    assert done == [False, True] and read_answers(target) == {name: name for name in NAMES}
