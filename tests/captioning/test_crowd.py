"""The classifiers: what they learn, what differs between them, how they are kept and told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from affectgpt.captioning.ensemble import (
    EMOTION,
    VALENCE,
    EnsembleClassifier,
    Head,
    LabelledSet,
    build_head,
    finished,
    load_ensemble,
    opinions,
    sets_of,
    split_scores,
    train_ensemble,
    train_one,
)
from affectgpt.config.captioning import EnsembleConfig
from affectgpt.core.errors import CheckpointError, DataError
from affectgpt.core.types import Labels, Sample

SPEC = EnsembleConfig(models=3, epochs=12, hidden=24, batch=32, sets=("A", "B", "V"), dropout=0.1, lr=3e-3)
HEADS = (
    Head("A", EMOTION, classes=("angry", "happy", "sad")),
    Head("B", EMOTION, classes=("joy", "sadness")),
    Head("V", VALENCE, scale=3.0),
)
VALENCES = {"happy": 1.0, "sad": -1.0, "angry": -0.5}
SAME = {"joy": "happy", "sadness": "sad"}


def lessons(head: Head, count: int, *, seed: int) -> LabelledSet:
    """Clips whose emotion the face shows, or the voice; where it does not show, the channel is even."""
    rng = np.random.default_rng(seed)
    prototypes = np.random.default_rng(99).normal(0, 1, (2, 4, 12))  # face and voice: three emotions and none
    names = ("angry", "happy", "sad")
    words = head.classes or names
    chosen = [words[int(i)] for i in rng.integers(len(words), size=count)]
    shown = [names.index(SAME.get(word, word)) for word in chosen]
    where = rng.integers(3, size=count)  # both, face, voice
    columns = []
    for channel, silent in ((0, 2), (1, 1)):
        index = [3 if w == silent else s for w, s in zip(where, shown, strict=True)]
        columns.append((prototypes[channel, index] + 0.4 * rng.normal(0, 1, (count, 12))).astype(np.float32))
    if head.task == EMOTION:
        targets = np.array([head.classes.index(word) for word in chosen])
    else:
        targets = np.array([VALENCES[word] for word in chosen], dtype=np.float32)
    return LabelledSet(head, [f"{head.dataset}{i}" for i in range(count)], columns[0], columns[1], targets)


@pytest.fixture(scope="module")
def sets() -> list[LabelledSet]:
    return [lessons(head, 300, seed=i) for i, head in enumerate(HEADS)]


@pytest.fixture(scope="module")
def ensemble(sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("crowd")
    return train_ensemble(SPEC, sets, folder=folder, encoders={"face": {"encoder": "x"}}), folder


def test_face_and_voice_are_both_learnt_and_both_needed(ensemble):
    models, _ = ensemble
    tests = [lessons(head, 200, seed=10 + i) for i, head in enumerate(HEADS)]
    scores = {row["set"]: row["majority"] for row in split_scores(models, tests, neutral_band=0.1)}
    assert scores["A"]["accuracy"] > 0.9 and scores["B"]["f1"] > 0.9 and scores["V"]["f1"] > 0.85
    rng = np.random.default_rng(0)
    for column in ("visual", "acoustic"):
        dealt = replace(tests[0], **{column: rng.permutation(getattr(tests[0], column))})
        (row,) = split_scores(models, [dealt], neutral_band=0.1)
        assert row["majority"]["accuracy"] < 0.8, column


def test_the_channel_that_shows_something_gets_the_weight():
    model, _ = train_one(replace(SPEC, epochs=30), [lessons(HEADS[0], 400, seed=5)], seed=1)
    test = lessons(HEADS[0], 50, seed=6)
    with torch.no_grad():
        fused, weights = model.fuse(torch.from_numpy(test.visual), torch.from_numpy(test.acoustic))
    assert fused.shape == (50, SPEC.hidden) and torch.allclose(weights.sum(dim=1), torch.ones(50))
    assert weights[:, 0].std() > 0.02  # clip by clip, not one weight for all


def test_classifiers_differ_by_seed_and_by_sets(ensemble):
    models, _ = ensemble
    known = [tuple(head.dataset for head in model.heads) for model in models]
    assert known == [("B", "V"), ("A", "V"), ("B", "V")]
    first, third = models[0].state_dict(), models[2].state_dict()
    assert any(not torch.equal(first[key], third[key]) for key in first)


@pytest.mark.parametrize(
    ("tasks", "leave_out", "expected"),
    [
        ("EEV", 1, [{1, 2}, {0, 2}, {1, 2}]),  # the only set of valence always stays
        ("EEV", 0, [{0, 1, 2}]),
        ("EV", 1, [{0, 1}]),
        ("EEEEV", 2, [{1, 3, 4}]),
        ("E", 3, [{0}]),
    ],
)
def test_which_sets_are_left_out(tasks, leave_out, expected):
    heads = [Head(str(i), EMOTION if task == "E" else VALENCE) for i, task in enumerate(tasks)]
    assert [set(sets_of(n, heads, leave_out=leave_out)) for n in range(len(expected))] == expected


def test_training_is_the_same_every_time_and_leaves_the_global_stream_alone(sets):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, _ = train_one(replace(SPEC, epochs=2), sets, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    two, _ = train_one(replace(SPEC, epochs=2), sets, seed=3)
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key])


def test_a_stopped_training_goes_on_and_a_finished_one_is_read(ensemble, sets, tmp_path):
    import shutil

    models, folder = ensemble
    part = tmp_path / "part"
    shutil.copytree(folder, part)
    (part / "classifier_01.pt").unlink()
    assert not finished(part) and finished(folder)
    kept = (part / "classifier_00.pt").stat().st_mtime_ns
    again = train_ensemble(SPEC, sets, folder=part, encoders={"face": {"encoder": "x"}})
    assert (part / "classifier_00.pt").stat().st_mtime_ns == kept
    for a, b in zip(models, again, strict=True):
        assert all(torch.equal(a.state_dict()[key], b.state_dict()[key]) for key in a.state_dict())


def test_another_ensemble_is_not_taken_for_this_one(ensemble, sets, tmp_path):
    _, folder = ensemble
    encoders = {"face": {"encoder": "x"}}
    with pytest.raises(CheckpointError, match="epochs is 12, this run has 13"):
        train_ensemble(replace(SPEC, epochs=13), sets, folder=folder, encoders=encoders)
    fewer = [replace(sets[0], names=sets[0].names[::-1]), *sets[1:]]
    with pytest.raises(CheckpointError, match="sha256"):
        train_ensemble(SPEC, fewer, folder=folder, encoders=encoders)
    with pytest.raises(CheckpointError, match=r"other features: face\.encoder"):
        load_ensemble(folder, spec=SPEC, encoders={"face": {"encoder": "y"}})
    with pytest.raises(CheckpointError, match="hidden is 24"):
        load_ensemble(folder, spec=replace(SPEC, hidden=8), encoders=encoders)
    with pytest.raises(CheckpointError, match="affectgpt crowd train"):
        load_ensemble(tmp_path, spec=SPEC, encoders=encoders)
    (tmp_path / "crowd.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load_ensemble(tmp_path, spec=SPEC, encoders=encoders)


def test_a_damaged_classifier_is_named(ensemble, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(ensemble[1], folder)
    (folder / "classifier_02.pt").write_bytes(b"PK\x03\x04nonsense")
    with pytest.raises(CheckpointError, match=r"classifier_02\.pt: damaged"):
        load_ensemble(folder, spec=SPEC, encoders={"face": {"encoder": "x"}})


def test_opinions_pool_the_heads_that_know_a_word():
    model = EnsembleClassifier(d_visual=4, d_acoustic=4, heads=HEADS, hidden=8, dropout=0.0).eval()
    rng = np.random.default_rng(0)
    visual, acoustic = (rng.normal(size=(5, 4)).astype(np.float32) for _ in range(2))
    (found,) = opinions([model], visual, acoustic)
    assert found.vocabulary == ("angry", "happy", "sad", "joy", "sadness")
    assert np.allclose(found.words[:, :3].sum(axis=1), 1) and np.allclose(found.words[:, 3:].sum(axis=1), 1)
    assert found.valence is not None and found.valence.shape == (5,)


def sample(name: str, **labels) -> Sample:
    return Sample(name=name, dataset="X", labels=Labels(**labels))


def test_heads_come_from_labels():
    words = build_head("X", [sample("a", emotion="Sad "), sample("b", emotion="happy")])
    assert words == Head("X", EMOTION, classes=("happy", "sad"))
    assert build_head("X", [sample("a", valence=-2.0), sample("b", valence=1.0)]).scale == 2.0
    for samples in ([sample("a")], [], [sample("a", valence=0.0)], [sample("a", emotion="x"), sample("b")]):
        with pytest.raises(DataError, match=r"^X: "):
            build_head("X", samples)


def test_an_ensemble_without_emotions_is_refused(sets, tmp_path):
    with pytest.raises(DataError, match="at least one"):
        train_ensemble(SPEC, sets[2:], folder=tmp_path, encoders={})
