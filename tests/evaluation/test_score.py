"""Boards of scores, and result files that do not fit the truth."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from small_benchmark import GOOD, OV_TRUTH, POOR, Bench, write_items

from affectgpt.core.errors import DataError
from affectgpt.core.npz import write_npz
from affectgpt.datasets.table import get_row
from affectgpt.evaluation.lexicon import Lexicon, grouping_of
from affectgpt.evaluation.report import unknown_labels
from affectgpt.evaluation.score import RunScores, Truth, make_metric, score_items, score_run

MER, SIMS, OV = get_row("MER2023"), get_row("SIMS"), get_row("OVMERDPlus")
FIRST, SECOND = "checkpoint_000030_loss_0.600", "checkpoint_000035_loss_0.500"


@pytest.fixture
def run_scores(bench: Bench, lexicon: Lexicon) -> RunScores:
    return score_run([MER, SIMS, OV], bench.places, lexicon, draws=100)


def test_scores_by_hand(run_scores: RunScores) -> None:
    found = {(s.dataset, s.epoch): s.values for scores in run_scores.scores.values() for s in scores}
    assert found["MER2023", 30] == pytest.approx({"hit": 1})
    assert found["MER2023", 35] == pytest.approx({"hit": 1 / 3})
    assert found["SIMS", 30] == pytest.approx({"waf": 1, "acc": 1})
    assert found["SIMS", 35] == pytest.approx({"waf": 0.5, "acc": 0.5})
    assert found["OVMERDPlus", 30] == pytest.approx({"f": 0.75, "precision": 0.75, "recall": 0.75})
    assert found["OVMERDPlus", 35]["f"] == pytest.approx(1 / 15)


def test_summary_rows(run_scores: RunScores, bench: Bench, lexicon: Lexicon) -> None:
    assert run_scores.best_single == FIRST and run_scores.mean(FIRST) == (pytest.approx(2.75 / 3), 3)
    bench.add("SIMS", "run_a", SECOND, GOOD["SIMS"])
    bench.add("SIMS", "run_a", FIRST, POOR["SIMS"])
    mixed = score_run([MER, SIMS, OV], bench.places, lexicon, draws=0)
    assert {d: s.epoch for d, s in mixed.best.items()} == {"MER2023": 30, "SIMS": 35, "OVMERDPlus": 30}
    assert mixed.mean_best == pytest.approx(2.75 / 3)
    assert mixed.mean_best > mixed.mean(str(mixed.best_single))[0]


def test_a_checkpoint_on_fewer_sets_is_no_best_single(bench: Bench, lexicon: Lexicon) -> None:
    bench.add("MER2023", "run_a", "checkpoint_000040_loss_0.1", GOOD["MER2023"])
    run_scores = score_run([MER, SIMS], bench.places, lexicon, draws=0)
    assert run_scores.mean("checkpoint_000040_loss_0.1") == (1.0, 1)
    assert run_scores.best_single == FIRST


def test_intervals_hold_the_score(run_scores: RunScores) -> None:
    for scores in run_scores.scores.values():
        for score in scores:
            for key, (low, high) in score.interval.items():
                assert 0 <= low <= score.values[key] + 1e-9 and score.values[key] - 1e-9 <= high <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items.pop("m2"), r"1 samples of the test split are missing \(first: m2\)"),
        (lambda items: items.update(zz="[happy]"), r"1 names are not in the test split of MER2023 \(first: zz\)"),
        (lambda items: items.update(m1="nan"), r"1 items are NaN \(first: m1\)"),
        (lambda items: (items.pop("m1"), items.update(q="[]")), r"missing \(first: m1\); 1 names are not"),
    ],
)
def test_files_that_do_not_fit_name_what_is_wrong(bench: Bench, lexicon: Lexicon, change, message: str) -> None:
    items = dict(GOOD["MER2023"])
    change(items)
    path = bench.add("MER2023", "run_b", "checkpoint_000030_loss_0.700", items)
    before = path.read_bytes()
    with pytest.raises(DataError, match=message) as caught:
        score_run([MER], bench.places, lexicon, run="run_b", draws=0)
    assert str(path) in str(caught.value) and path.read_bytes() == before
    run_scores = score_run([MER], bench.places, lexicon, run="run_b", draws=0, allow_missing=True)
    score = run_scores.scores["MER2023"][0]
    assert score.values["hit"] == 1.0
    assert len(score.names) + score.left_out == 4
    assert score.left_out == 0 or any("left out" in note for note in run_scores.notes)


def test_left_out_samples_are_not_counted_as_wrong(bench: Bench, lexicon: Lexicon) -> None:
    items = dict(POOR["MER2023"])
    del items["m1"]  # a miss
    bench.add("MER2023", "run_b", "checkpoint_000030_loss_0.700", items)
    run_scores = score_run([MER], bench.places, lexicon, run="run_b", draws=0, allow_missing=True)
    assert run_scores.scores["MER2023"][0].values["hit"] == pytest.approx(1 / 2)


def test_arrays_of_another_kind(bench: Bench, lexicon: Lexicon) -> None:
    path = bench.folder("MER2023", "run_b") / "checkpoint_000030_loss_0.700-openset.npz"
    names = list(GOOD["MER2023"])
    for items in (np.array([0.5, np.nan, 1, 2]), np.array([["a"] * 4]), "text"):
        write_npz(path, filenames=np.array(names), fileitems=items)
        with pytest.raises(DataError, match="string array under the key fileitems"):
            score_run([MER], bench.places, lexicon, run="run_b", draws=0)
    write_npz(path, filenames=np.array(["m1", *names[:3]]), fileitems=np.array(["[happy]"] * 4))
    with pytest.raises(DataError, match="3 different"):
        score_run([MER], bench.places, lexicon, run="run_b", draws=0)


class Evil:
    """Runs a command when it is unpickled by a trusting reader."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("where", ["results", "labels"])
def test_a_malicious_pickle_is_refused_by_name(bench: Bench, lexicon: Lexicon, tmp_path, where: str) -> None:
    marker = tmp_path / "ran"
    bomb = np.array([Evil(str(marker))] * 4, dtype=object)
    if where == "results":
        path = bench.folder("MER2023", "run_b") / "checkpoint_000030_loss_0.700-openset.npz"
        np.savez(path, filenames=np.array(list(GOOD["MER2023"])), fileitems=bomb)
    else:
        path = bench.root / "dataset" / MER.root / str(MER.label_file)
        np.savez(path, test1_corpus=np.array(Evil(str(marker)), dtype=object))
    with pytest.raises(DataError, match=r"refused, it asks for (posix|nt)\.system") as caught:
        score_run([MER], bench.places, lexicon, run="run_b", draws=0)
    assert str(path) in str(caught.value) and not marker.exists()
    with np.load(path, allow_pickle=True) as archive:  # the same file does run elsewhere: the test is no dud
        archive[archive.files[-1]]
    assert marker.exists()


def test_an_unpickler_that_names_more_is_refused_too(bench: Bench, lexicon: Lexicon) -> None:
    path = bench.folder("MER2023", "run_b") / "checkpoint_000030_loss_0.700-openset.npz"
    for thing in (pickle.Unpickler, json.JSONDecoder, eval, getattr):
        np.savez(path, filenames=np.array(["m1"]), fileitems=np.array([thing], dtype=object))
        with pytest.raises(DataError, match=r"refused, it asks for .*Nothing in it was run"):
            score_run([MER], bench.places, lexicon, run="run_b", draws=0)


def test_truth_of_part_of_a_split(bench: Bench, lexicon: Lexicon) -> None:
    # Without its subtitle file nothing lists the names of OV-MERD+, so a name without a truth is no error.
    (bench.root / "dataset" / OV.root / OV.subtitle_file).unlink()
    items = {**GOOD["OVMERDPlus"], "o9": "[sad]"}
    bench.add("OVMERDPlus", "run_c", "checkpoint_000030_loss_0.1", items)
    run_scores = score_run([OV], bench.places, lexicon, run="run_c", draws=0)
    assert run_scores.scores["OVMERDPlus"][0].names == list(OV_TRUTH)
    assert any("1 names of the result files are not in the test split" in note for note in run_scores.notes)


def test_names_without_a_truth_are_not_scored(bench: Bench, lexicon: Lexicon) -> None:
    row = get_row("MER2025OV")
    folder = bench.root / "dataset" / row.root
    folder.mkdir()
    (folder / str(row.label_file)).write_text("name\na\nb\nc\n")
    (folder / str(row.openset_file)).write_text("name,openset\nc,\"['sad']\"\na,\"['happy']\"\n")
    bench.add("MER2025OV", "run_a", "checkpoint_000030_loss_0.1", {"a": "[happy]", "b": "[sad]", "c": "[happy]"})
    run_scores = score_run([row], bench.places, lexicon, draws=0)
    assert run_scores.scores["MER2025OV"][0].values["f"] == pytest.approx(0.5)
    assert any("2 of 3 samples have a truth" in note for note in run_scores.notes)


def test_a_record_of_another_file_does_not_name_the_extractor(bench: Bench, lexicon: Lexicon) -> None:
    from affectgpt.evaluation.extract import DirectExtractor, extract_file

    folder, stem = bench.folder("MER2023", "run_b"), "checkpoint_000030_loss_0.700"
    extract_file(folder / f"{stem}.npz", task="basic", extractor=DirectExtractor())
    run_scores = score_run([MER], bench.places, lexicon, run="run_b", extraction="direct", draws=0)
    assert list(run_scores.extractors) == ["direct"]
    write_items(folder / f"{stem}-openset-direct.npz", GOOD["MER2023"])
    run_scores = score_run([MER], bench.places, lexicon, run="run_b", extraction="direct", draws=0)
    assert "is the record of another file" in next(iter(run_scores.extractors))


def test_data_sets_that_are_not_scored(bench: Bench) -> None:
    with pytest.raises(DataError, match=r"MERCaptionPlus is not scored \(task 'train'\)"):
        Truth.load(get_row("MERCaptionPlus"), dataset_root=bench.places.dataset_root)


def test_no_label_of_the_truth_in_a_wheel(bench: Bench, lexicon: Lexicon) -> None:
    truth = Truth(MER, {"m1": ("neutral",)}, frozenset({"m1"}), complete=True)
    metric = make_metric(MER, grouping_of(lexicon))
    with pytest.raises(DataError, match="no sample counts"):
        score_items({"m1": "[happy]"}, truth, metric, source=bench.root, checkpoint="x")


def test_unknown_labels_are_counted(bench: Bench, lexicon: Lexicon) -> None:
    bench.add("MER2023", "run_b", "checkpoint_000030_loss_0.700", {
        "m1": "[happy, Zzz]", "m2": "['zzz', \"odd\"]", "m3": "[sad]", "m4": "[]"
    })  # fmt: skip
    run_scores = score_run([MER], bench.places, lexicon, run="run_b", draws=0)
    assert unknown_labels(run_scores) == ({("zzz", "MER2023"): 2, ("odd", "MER2023"): 1}, 5)


def test_notes_on_polarity_words(run_scores: RunScores) -> None:
    assert any(note.startswith("SIMS: 1 of 10 polarity words") for note in run_scores.notes)
