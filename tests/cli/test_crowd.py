"""The classifiers' own command, and the two new commands' arguments, on drawn features of tiny encoders."""

from __future__ import annotations

import csv
import json

import pytest
from small_annotation import make_world

from affectgpt.cli import caption, crowd
from affectgpt.core.errors import CheckpointError, ConfigError, DataError


@pytest.fixture(scope="module")
def world(tiny_models, tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("crowd"), tiny_models, clips=24, human=300)


def run(world, command: str, *arguments: str, options: tuple[str, ...] = ()) -> int:
    more = ["--options", *options] if options else []
    return crowd.main([command, "--cfg-path", str(world.yaml), *arguments, *more])


def test_train_prints_accuracy_and_f1_and_predict_writes_votes(world, capsys, tmp_path):
    assert run(world, "train") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:3] == ["test", "split", "task"]
    rows = {line.split()[0]: line.split() for line in out[1:]}
    assert set(rows) == {"MER2023", "MELD", "SIMS"} and rows["SIMS"][1] == "valence"
    assert float(rows["MER2023"][-2]) > 60 and float(rows["MELD"][-1]) > 55  # one in six by chance
    files = sorted(p.name for p in (world.work / "crowd").iterdir())
    assert files == ["classifier_00.pt", "classifier_01.pt", "classifier_02.pt", "crowd.json"]

    table = tmp_path / "votes.csv"
    assert run(world, "predict", "--out", str(table)) == 0
    with table.open(newline="") as handle:
        votes = {row["name"]: row for row in csv.DictReader(handle)}
    assert list(votes) == list(world.truth)
    assert all(len(row["emotion_votes"].split(", ")) == 3 for row in votes.values())
    signs = {"happy": "positive", "sad": "negative", "angry": "negative", "worried": "negative"}
    right = [row["polarity"] == signs[world.truth[name]] for name, row in votes.items() if world.truth[name] in signs]
    assert len(right) == 16 and sum(right) >= 12

    assert run(world, "predict", "--dataset", "meld", "--out", str(tmp_path / "meld.csv"), "--limit", "10") == 0
    assert "MELD" in capsys.readouterr().out
    assert len((tmp_path / "meld.csv").read_text().splitlines()) == 11


def test_predicting_needs_an_ensemble(world, tmp_path):
    with pytest.raises(CheckpointError, match="affectgpt crowd train"):
        run(world, "predict", "--out", "x.csv", options=(f"captioning.crowd.folder={tmp_path}",))


def test_the_sets_must_be_named(world):
    with pytest.raises(DataError, match=r"captioning\.crowd\.sets names MER2024: .*label-6way\.npz: no such file"):
        run(world, "train", options=("captioning.crowd.sets=[MER2024]",))
    with pytest.raises(ConfigError, match=r"captioning\.crowd\.sets"):
        run(world, "train", options=("captioning.crowd.sets=[]",))


def test_nonempty_labels_from_the_command_line(world, tmp_path, capsys):
    source, target = tmp_path / "pairs.json", tmp_path / "kept.json"
    pairs = [{"a": "The person's emotional state is sad."}, {"a": "There are four red chairs in a row by the wall."}]
    source.write_text(json.dumps(pairs))
    arguments = ["--cfg-path", str(world.yaml), "--nonempty-labels", str(source)]
    assert caption.main([*arguments, "--columns", "a", "--out", str(target)]) == 0
    assert "2 pairs: 1 with emotion labels, 1 without, 0 not asked" in capsys.readouterr().out
    assert json.loads(target.read_text()) == pairs[:1]
    with pytest.raises(ConfigError, match="--columns"):
        caption.main(arguments)
    with pytest.raises(ConfigError, match="--limit is 0"):
        caption.main(["--cfg-path", str(world.yaml), "--limit", "0"])
