"""A data set is one object, whoever described it: the table, a block of a configuration, or a user's registered row."""

from __future__ import annotations

import dataclasses

import pytest
from layouts import opened

from affectgpt.cli import check_data, score
from affectgpt.config.schema import Config, DatasetConfig, PathsConfig
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.datasets.base import open_dataset
from affectgpt.datasets.table import DATASETS, get_row
from affectgpt.processing.check import CheckOptions, check_split
from affectgpt.processing.questions import LABEL_TYPES, LabelType, question_context, render_question

BLOCK = {
    "path": "mine/a.csv", "test_path": "mine/b.csv", "task": "basic",
    "columns": {"subtitle": "said", "emotion": "mood", "valence": "v"},
    "folders": {"video": "mine/video", "audio": "mine/audio", "face": "mine/openface_face"},
}  # fmt: skip


@pytest.fixture(params=["table", "block", "registered"])
def dataset(request, make, tmp_path, monkeypatch):
    """The same clips as MER2023 has them, as a block describes them, and as a row that a user registers."""
    layout = make.layout(get_row("MER2023"), tmp_path, media=True)
    if request.param == "table":
        return opened("mer2023", tmp_path)
    if request.param == "registered":
        monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))
        DATASETS.register("MyMER")(dataclasses.replace(get_row("MER2023"), name="MyMER"))
        return opened("mymer", tmp_path)
    layout.root.rename(tmp_path / "mine")
    rows = [[n, "" if i == 1 else f"english {n}", ("happy", "sad")[i % 2], i] for i, n in enumerate(make.names)]
    for file in ("a.csv", "b.csv"):
        make.csv(tmp_path / "mine" / file, ["name", "said", "mood", "v"], rows)
    return opened("mine", tmp_path, **BLOCK)


def test_whatever_describes_it_everything_is_asked_in_the_same_way(dataset, make, tmp_path):
    assert dataset.name in ("MER2023", "mine", "MyMER") and dataset.splits == ("train", "test")
    assert dataset.task == "basic" and dataset.candidate_labels() == ["happy", "sad"]
    assert set(dataset.learnt_types) >= {"onehot_w_candidates", "onehot_wo_candidates"}
    for split in dataset.splits:
        samples = dataset.samples(split)
        assert [(s.name, s.dataset, s.labels.emotion) for s in samples] == [
            (name, dataset.name, ("happy", "sad")[i % 2]) for i, name in enumerate(make.names)
        ]
        assert [s.subtitle for s in samples][:2] == [f"english {make.names[0]}", ""]
        assert all(path.is_file() for s in samples for path in (s.video, s.audio, s.face))
        assert check_split(dataset, split=split, counts=False).problems == []
    row = dataset.scored_row({"basic": "emotion"})
    assert (row.name, row.task) == (dataset.name, "basic")
    context = question_context(dataset, dataset.learnt_types)
    assert "labels: happy,sad." in render_question("onehot_w_candidates", context)


def test_a_folder_that_is_not_there_is_one_problem(dataset, tmp_path):
    dataset.folders()["audio"].rename(tmp_path / "gone")
    problems = check_split(dataset, split="test", counts=False).problems
    assert [(p.sample, p.what, p.kind) for p in problems] == [("", "audio", "missing")]
    assert str(dataset.folders()["audio"]) in problems[0].reason
    assert check_split(dataset, split="test", counts=False, options=CheckOptions(media=("video",))).problems == []


def test_a_label_type_of_ones_own_gets_what_its_question_names(dataset, monkeypatch):
    monkeypatch.setattr(LABEL_TYPES, "_entries", dict(LABEL_TYPES._entries))
    LABEL_TYPES.register("pick")(LabelType("pick", "Which of {candidates}?", lambda labels: labels.emotion))
    assert render_question("pick", question_context(dataset, ["pick"])) == "Which of happy,sad?"


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    dataset = opened("mine", tmp_path, **BLOCK)
    with pytest.raises(DataError, match=r"a\.csv: no such file"):
        dataset.samples("train")


@pytest.mark.parametrize(
    ("name", "block", "error", "message"),
    [
        ("mien", {}, DataError, "unknown data set 'mien'"),
        ("meldd", {"ratio": 0.5}, DataError, "Did you mean 'MELD'"),
        ("mer2023", {"path": "a.csv"}, ConfigError, "datasets.mer2023: MER2023 has files of its own"),
        ("mer2023", {"task": "basic"}, ConfigError, "datasets.mer2023: MER2023 has files of its own"),
        ("ovmerdplus", {"path": "a.csv"}, ConfigError, "OVMERDPlus has files of its own"),
    ],
)
def test_what_cannot_be_opened(name, block, error, message, tmp_path):
    with pytest.raises(error, match=message):
        opened(name, tmp_path, **block)


def test_a_split_that_is_not_there_is_named_with_its_key(tmp_path):
    with pytest.raises(ConfigError, match=r"datasets\.mine: has no train split; name its file as datasets\.mine\.path"):
        opened("mine", tmp_path, **{**BLOCK, "path": None}).samples("train")
    with pytest.raises(ConfigError, match="OVMERDPlus has no training split"):
        opened("OVMERDPlus", tmp_path).samples("train")


def test_the_name_is_taken_in_any_case(tmp_path):
    config = Config(name="x", datasets={"Mine": DatasetConfig(**BLOCK)}, paths=PathsConfig(dataset_root=str(tmp_path)))
    assert open_dataset(config, "mINE").name == "Mine"
    assert score.scored_row(config, "MINE").label_file == "mine/b.csv"


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ([["x", "glad"], ["x", "sad"]], "line 3: sample 'x' is there twice"),
        ([["x", "glad"], ["../y", "sad"]], "line 3: sample name '../y'"),
    ],
)
def test_a_bad_row_is_reported_once(cells, told, make, tmp_path, capsys):
    """Both the reader of clips and that of their truth meet it."""
    make.csv(tmp_path / "b.csv", ["name", "mood"], cells)
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(
        "datasets: {mine: {test_path: b.csv, task: basic, columns: {emotion: mood}}}\n"
        f"paths: {{dataset_root: {tmp_path}}}\n"
    )
    assert check_data.main(["--cfg-path", str(yaml)]) == 1
    shown = capsys.readouterr().out
    assert shown.count(told) == 1 and "problems: 1" in shown


def test_a_configuration_can_be_given_as_its_path(make, tmp_path):
    from affectgpt import load_config, open_dataset

    make.csv(tmp_path / "mine" / "a.csv", ["name", "said", "mood", "v"], [["x", "Hi.", "glad", "1"]])
    (tmp_path / "mine.yaml").write_text(
        "datasets: {mine: {path: mine/a.csv, test_path: b.csv, columns: {emotion: mood}}}\n"
        f"paths: {{dataset_root: {tmp_path}}}\n"
    )
    dataset = open_dataset(str(tmp_path / "mine.yaml"), "mine")
    assert repr(dataset) == "<EmotionDataset mine (train, test)>"
    assert dataset.samples("train") == open_dataset(load_config(tmp_path / "mine.yaml"), "Mine").samples("train")
    assert repr(dataset) == "<EmotionDataset mine (train: 1 samples, test)>"


def test_a_folder_in_a_name_belongs_into_the_column_file(make, tmp_path):
    make.csv(tmp_path / "a.csv", ["name", "mood", "clip"], [["evening1/take1", "glad", "evening1/take1.mp4"]])
    block = {"path": "a.csv", "columns": {"emotion": "mood"}, "folders": {"video": "v", "audio": "w", "face": "f"}}
    with pytest.raises(
        DataError, match=r"give another name; a folder belongs into the column that columns\.file names"
    ):
        opened("mine", tmp_path, **block).samples("train")
    make.csv(tmp_path / "a.csv", ["name", "mood", "clip"], [["take1", "glad", "evening1/take1.mp4"]])
    block["columns"] = {"emotion": "mood", "file": "clip"}
    (sample,) = opened("mine", tmp_path, **block).samples("train")
    found = [str(path.relative_to(tmp_path)) for path in (sample.video, sample.audio, sample.face)]
    assert found == ["v/evening1/take1.mp4", "w/evening1/take1.wav", "f/evening1/take1.npy"]
