"""Result files: answers in three formats, parts of several processes, finding runs and choosing checkpoints."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from small_benchmark import GOOD, POOR, Bench

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.npz import write_npz
from affectgpt.datasets.table import get_row
from affectgpt.evaluation.results import (
    CheckpointChoice,
    ResultShard,
    choose_run,
    holds_items,
    list_runs,
    read_answer_table,
    read_answers,
)
from affectgpt.evaluation.score import ScoringPaths, pick_files, score_run

MER, SIMS, OV = get_row("MER2023"), get_row("SIMS"), get_row("OVMERDPlus")


def runs_of(bench: Bench, *rows) -> dict:
    return {row.name: list_runs(bench.places.base_root, row) for row in rows}


def test_files_of_a_run_and_what_was_extracted(bench: Bench) -> None:
    files = list_runs(bench.places.base_root, SIMS)["run_a"]
    assert [file.epoch for file in files] == [30, 35]
    first = files[0]
    assert first.kinds == {"", "-openset", "-openset-sentiment"}
    assert first.has("llm", polarity=True) and not first.has("direct", polarity=True)
    assert first.extracted("llm", polarity=True).name == "checkpoint_000030_loss_0.600-openset-sentiment.npz"
    assert first.extracted("direct", polarity=False).name == "checkpoint_000030_loss_0.600-openset-direct.npz"


def test_files_being_written_and_foreign_files_are_no_results(bench: Bench) -> None:
    folder = bench.folder("MER2023", "run_a")
    (folder / ".checkpoint_000040_loss_0.1.tmp7.npz").write_bytes(b"")
    (folder / "checkpoint_000030_loss_0.600-openset.meta.json").write_text("{}")
    (bench.folder("MER2023", "empty")).mkdir()
    found = list_runs(bench.places.base_root, MER)
    assert sorted(found) == ["run_a", "run_b"] and len(found["run_a"]) == 2


def test_the_run_with_most_files_wins(bench: Bench) -> None:
    assert choose_run(runs_of(bench, MER), None) == "run_a"
    for epoch in (35, 40):
        bench.add("MER2023", "run_b", f"checkpoint_{epoch:06d}_loss_0.1", GOOD["MER2023"])
    assert choose_run(runs_of(bench, MER), None) == "run_b"
    assert choose_run(runs_of(bench, MER, SIMS), None) == "run_a"  # counted over the whole table


def test_files_without_a_dash_named_checkpoint_decide(bench: Bench) -> None:
    for number in range(5):
        bench.add("MER2023", "other_model", f"output-{number}", GOOD["MER2023"])
    assert choose_run(runs_of(bench, MER), None) == "run_a"


def test_equal_runs_are_listed(bench: Bench) -> None:
    bench.add("MER2023", "run_b", "checkpoint_000035_loss_0.7", POOR["MER2023"])
    with pytest.raises(DataError, match=r"(?s)2 runs have equally many.*--run.*run_a  \(MER2023: 2\).*run_b"):
        choose_run(runs_of(bench, MER), None)
    assert choose_run(runs_of(bench, MER), "run_b") == "run_b"


def test_a_run_by_the_beginning_of_its_name(bench: Bench) -> None:
    bench.add("MER2023", "recipe_20250110100", "checkpoint_000030_loss_0.6", GOOD["MER2023"])
    assert choose_run(runs_of(bench, MER), "recipe") == "recipe_20250110100"
    with pytest.raises(DataError, match="Did you mean 'run_b'"):
        choose_run(runs_of(bench, MER), "rum_b")


def test_one_table_is_one_run(bench: Bench) -> None:
    name, files, notes = pick_files(
        [MER, SIMS, OV], bench.places, run="run_b", choice=CheckpointChoice(), optional=True
    )
    assert name == "run_b" and list(files) == ["MER2023"] and "SIMS, OVMERDPlus" in notes[0]
    with pytest.raises(DataError, match="results-sims: no run 'run_b'; runs there: run_a"):
        pick_files([MER, SIMS], bench.places, run="run_b", choice=CheckpointChoice(), optional=False)


def test_nothing_there_says_where_it_looked(tmp_path: Path, bench: Bench) -> None:
    with pytest.raises(DataError, match=r"no result files in .*results-mer2023.*--output-root"):
        pick_files(
            [MER],
            ScoringPaths(tmp_path / "x" / "results", tmp_path),
            run=None,
            choice=CheckpointChoice(),
            optional=True,
        )


@pytest.mark.parametrize(
    ("text", "stems"),
    [
        (None, ["30", "35", "60", "other"]),
        ("30-40", ["30", "35", "other"]),  # a file not named by epoch is not filtered by epochs
        ("30-60/10", ["30", "60", "other"]),
        ("60", ["60", "other"]),
        ("35,60-70", ["35", "60", "other"]),
        ("other.npz", ["other"]),
        ("other,30", ["30", "other"]),
    ],
)
def test_choosing_checkpoints(bench: Bench, text: str | None, stems: list[str]) -> None:
    bench.add("MER2023", "run_a", "checkpoint_000060_loss_0.400", GOOD["MER2023"])
    bench.add("MER2023", "run_a", "other", GOOD["MER2023"])
    found = CheckpointChoice.parse(text).pick(list_runs(bench.places.base_root, MER)["run_a"], where="x")
    assert [str(f.epoch or f.stem) for f in found] == stems


def test_wrong_choices(bench: Bench) -> None:
    files = list_runs(bench.places.base_root, MER)["run_a"]
    with pytest.raises(DataError, match="no checkpoint in the epochs asked for; there are 30, 35"):
        CheckpointChoice.parse("1-9").pick(files, where="x")
    with pytest.raises(DataError, match=r"Did you mean 'checkpoint_000030_loss_0\.600'"):
        CheckpointChoice.parse("checkpoint_000030_loss_0.6").pick(files, where="x")
    with pytest.raises(ConfigError, match="the range is empty"):
        CheckpointChoice.parse("60-30")


def test_files_without_extraction_are_noted(bench: Bench, lexicon) -> None:
    (bench.folder("MER2023", "run_a") / "checkpoint_000035_loss_0.500-openset.npz").unlink()
    run_scores = score_run([MER], bench.places, lexicon, draws=0)
    assert run_scores.checkpoints == ["checkpoint_000030_loss_0.600"]
    assert any("1 of 2 checkpoints have no labels extracted" in note for note in run_scores.notes)
    (bench.folder("MER2023", "run_a") / "checkpoint_000030_loss_0.600-openset.npz").unlink()
    with pytest.raises(DataError, match="no labels extracted yet"):
        score_run([MER], bench.places, lexicon, draws=0)


def test_direct_labels_are_scored_where_there_are_no_others(bench: Bench, lexicon) -> None:
    folder = bench.folder("MER2023", "run_b")
    openset = folder / "checkpoint_000030_loss_0.700-openset.npz"
    openset.rename(folder / "checkpoint_000030_loss_0.700-openset-direct.npz")
    run_scores = score_run([MER], bench.places, lexicon, run="run_b", draws=0)
    assert run_scores.scores["MER2023"][0].source.name.endswith("-openset-direct.npz")


ANSWERS = {"a": 'She says "no",\nand is sad.', "b": "happy"}


def test_three_formats_give_the_same(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('answer,name\n"She says ""no"",\nand is sad.",a\nhappy,b\n', encoding="utf-8")
    (tmp_path / "x.jsonl").write_text(
        '{"name": "a", "answer": "She says \\"no\\",\\nand is sad."}\n\n{"answer": "happy", "name": "b", "time": 3}\n'
    )
    write_npz(tmp_path / "x.npz", name2reason=ANSWERS)
    for suffix in ("csv", "jsonl", "npz"):
        assert read_answer_table(tmp_path / f"x.{suffix}") == ANSWERS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "name,text\na,b\n", "no column 'answer'"),
        ("x.csv", "name,answer\na,b\na,c\n", r"line 3: sample 'a' is there twice"),
        ("x.jsonl", '{"name": "a", "answer": "b"}\n{"name": "a"', "line 2: not JSON"),
        ("x.jsonl", '{"name": "a", "answer": null}\n', "line 1: expected"),
        ("x.jsonl", '{"name": "a", "answer": "b"}\n' * 2, "line 2: sample 'a' is there twice"),
        ("x.jsonl", '{"name": "../a", "answer": "b"}\n', "not a file stem"),
        ("x.jsonl", "\n", "it holds no answer"),
        ("x.txt", "a", r"answers are read from \.csv, \.jsonl, \.npz, not from \.txt"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_answer_table(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read_answer_table(tmp_path / "absent.jsonl")


def test_files_of_labels_are_told_from_files_of_answers(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", name2reason=ANSWERS)
    write_npz(tmp_path / "y.npz", filenames=np.array(["a"]), fileitems=np.array(["[b]"]))
    assert [holds_items(tmp_path / name) for name in ("x.npz", "y.npz", "z.csv")] == [False, True, False]


def test_two_processes_make_one_file_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have no locks."""
    import fcntl

    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    target = tmp_path / "results-x" / "run" / "checkpoint_000005_loss_0.100.npz"
    target.parent.mkdir(parents=True)
    names = ["a", "b", "c"]
    shards = [ResultShard(target, names=names, key="k", rank=rank, world_size=2) for rank in range(2)]
    done = []
    for shard in shards:
        for name in sorted(shard.pending):
            shard.add(name, answer=name, flags=(), tokens=1)
        done.append(shard.finish(dataset="X", order=names, write_meta=lambda entries: json.dumps(entries)))
    assert done == [False, True] and read_answers(target) == {name: name for name in names}
