"""Shards of a result file: what an earlier version left, and file systems without locks."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from affectgpt.results.files import read_answers
from affectgpt.results.shard import ResultShard

NAMES = ["a", "b", "c"]
# as commit 71ad866 left them when it was killed: one clip answered, one unreadable, a line torn
EARLIER = (
    '{"journal": 1, "key": "settings"}\n'
    '{"name": "a", "value": {"answer": "[calm]", "flags": ["no_audio_track"], "tokens": 3}}\n'
    '{"name": "b", "value": {"failed": "b.mp4: no such file", "attempt": 0}}\n'
    '{"name": "c", "val'
)


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


def test_answers_of_an_interrupted_run_of_an_earlier_version_are_kept(target):
    journal_of(target).write_text(EARLIER)
    with ResultShard(target, names=NAMES, key="settings") as shard:
        assert shard.pending == {"b", "c"}  # what could not be read is tried again
    [meta] = finish(target)
    assert read_answers(target) == {"a": "[calm]", "b": "[b]", "c": "[c]"}
    assert meta["a"]["flags"] == ["no_audio_track"] and not journal_of(target).exists()


def test_a_journal_of_other_settings_is_begun_again(target):
    journal_of(target).write_text(EARLIER)
    finish(target, key="other")
    assert read_answers(target) == {name: f"[{name}]" for name in NAMES}


def test_answers_are_written_where_there_are_no_locks(target, no_locks, log_lines):
    journal_of(target).write_text(EARLIER)
    finish(target)
    assert read_answers(target)["a"] == "[calm]"
    assert len([line for line in log_lines if "has no locks" in line]) == 1  # said once for a folder


def test_two_shards_make_one_file(target, no_locks):
    shards = [ResultShard(target, names=NAMES, key="k", rank=rank, world_size=2) for rank in range(2)]
    done = []
    for shard in shards:
        for name in sorted(shard.pending):
            shard.add(name, answer=name, flags=(), tokens=1)
        done.append(shard.finish(dataset="X", order=NAMES, write_meta=lambda entries: json.dumps(entries)))
    assert done == [False, True] and read_answers(target) == {name: name for name in NAMES}


def test_replies_of_an_earlier_version_are_found_and_added_to_without_locks(tmp_path, no_locks):
    from affectgpt.captioning.cache import CachedReply, ReplyCache

    settings = {"model": "m", "temperature": 0.5}
    path = ReplyCache(tmp_path, step="merge", settings=settings).path
    # the name holds the hash of step and settings; so does the first line
    from affectgpt.captioning.cache import digest

    key = digest(json.dumps({"step": "merge", **settings}, sort_keys=True, default=str))
    path.write_text(
        f'{{"journal": 1, "key": "{key}"}}\n'
        '{"name": "clip\\thash", "value": {"text": "He smiles.", "prompt_tokens": 7, "reply_tokens": 3}}\n'
    )
    with ReplyCache(tmp_path, step="merge", settings=settings) as cache:
        assert cache.get("clip", "hash") == CachedReply("He smiles.", prompt_tokens=7, reply_tokens=3)
        cache.put("clip", "other", CachedReply("She frowns."))
    with ReplyCache(tmp_path, step="merge", settings=settings) as cache:
        assert cache.get("clip", "other").text == "She frowns." and cache.costs()["requests"] == 2
