"""What is missing or damaged in a data set is found by name, and counted."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from layouts import READ_ROWS, opened

from affectgpt.cli.check_data import main
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.npz import write_npz
from affectgpt.datasets.table import DATASETS, get_row
from affectgpt.processing.check import CheckOptions, check_split

ROW = get_row("SIMS")


@pytest.fixture
def layout(make, tmp_path):
    return make.layout(ROW, tmp_path, media=True)


def check(root, **options):
    options = CheckOptions(workers=2, **options)
    return check_split(opened(ROW.name, root), split="test", counts=False, options=options)


def test_a_whole_data_set(layout):
    for decode in (False, True):
        report = check(layout.dataset_root, decode=decode)
        assert report.problems == [] and report.found == 4 and report.without_audio == []
        assert report.seconds == [2.5] * 4


def test_every_fault_is_named(layout, make, tmp_path):
    root, names = layout.root, make.names
    (root / "video" / f"{names[0]}.mp4").write_bytes(b"no video")
    (root / "video" / f"{names[1]}.mp4").unlink()
    make.video(root / "video" / f"{names[2]}.mp4", sound=False)
    (root / "audio" / f"{names[0]}.wav").write_bytes(b"")
    (root / "audio" / f"{names[2]}.wav").unlink()  # its video has no sound: nothing is lost
    np.save(root / "openface_face" / f"{names[3]}.npy", np.zeros((2, 5, 5)))
    make.csv(root / ROW.subtitle_file, ["name", "english"], [[n, "x"] for n in names[:3]])
    report = check(tmp_path)
    found = {(p.sample, p.what, p.kind) for p in report.problems}
    assert found == {
        (names[0], "video", "unreadable"),
        (names[1], "video", "missing"),
        (names[0], "audio", "zero bytes"),
        (names[3], "face", "unreadable"),
        (names[3], "subtitle", "missing"),
    }
    assert all(p.sample in p.reason for p in report.problems if p.what != "subtitle")
    assert report.without_audio == [names[2]]
    assert {p.what for p in check(tmp_path, media=("audio",)).problems} == {"audio", "subtitle"}


def test_damage_behind_the_header_needs_decoding(layout, make):
    import soundfile

    wave = np.zeros(40_000, np.float32)
    wave[9] = np.nan
    soundfile.write(layout.root / "audio" / f"{make.names[1]}.wav", wave, 16000, subtype="FLOAT")
    assert check(layout.dataset_root).problems == []
    assert [(p.sample, p.what) for p in check(layout.dataset_root, decode=True).problems] == [(make.names[1], "audio")]


def test_sound_that_overflows_is_named_by_sample(layout, make, capsys):
    import soundfile

    wave = np.zeros(40_000, np.float32)
    wave[9] = 3e38
    soundfile.write(layout.root / "audio" / f"{make.names[1]}.wav", wave, 16000, subtype="FLOAT")
    soundfile.write(layout.root / "audio" / f"{make.names[2]}.wav", np.zeros(2_000), 1)
    table = layout.root / "problems.csv"
    arguments = ["--datasets", "SIMS", "--dataset-root", str(layout.dataset_root), "--splits", "test", "--any-count"]
    assert main([*arguments, "--decode", "--workers", "2", "--csv", str(table)]) == 1
    found = {row[2]: row[5] for row in list(csv.reader(table.open(newline="", encoding="utf-8")))[1:]}
    assert set(found) == {make.names[1], make.names[2]}
    assert "samples of 3e+38" in found[make.names[1]] and "a rate of 1 Hz" in found[make.names[2]]


def test_command(layout, make, tmp_path, capsys):
    arguments = ["--datasets", "SIMS", "--dataset-root", str(tmp_path), "--workers", "2"]
    assert main([*arguments, "--any-count"]) == 0
    assert "everything is there" in capsys.readouterr().out
    assert main(arguments) == 1  # four clips are not the published 457
    assert "expected 457 samples, found 4" in capsys.readouterr().out
    (layout.root / "audio" / f"{make.names[2]}.wav").unlink()
    assert main([*arguments, "--any-count", "--splits", "test", "--csv", str(tmp_path / "problems.csv")]) == 1
    with (tmp_path / "problems.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.reader(handle))
    assert [row[:5] for row in rows[1:]] == [["SIMS", "test", make.names[2], "audio", "missing"]]
    assert "1 missing" in capsys.readouterr().out


def test_absent_and_contradictory_files(tmp_path, capsys):
    assert main(["--datasets", "all", "--dataset-root", str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("no such folder") >= 12
    write_npz(tmp_path / ROW.root / ROW.label_file, other={})
    report = check(tmp_path)
    assert [(p.what, p.kind) for p in report.problems] == [("label", "unreadable")]


def test_a_label_of_one_kind_only_is_named(make, tmp_path):
    row = get_row("OVMERD")
    layout = make.layout(row, tmp_path)
    make.csv(layout.root / row.reason_file, ["name", "reason"], [[n, "x"] for n in make.names[1:]])
    report = check_split(opened("OVMERD", tmp_path), split="train", counts=False, options=CheckOptions(media=()))
    assert [(p.sample, p.what, p.kind) for p in report.problems] == [(make.names[0], "label", "missing")]


def test_own_data_sets_of_a_configuration(make, tmp_path, capsys):
    """Clips and images; a broken image shows when it is decoded, a truncated table at once."""
    from PIL import Image

    make.csv(tmp_path / "a.csv", ["name", "why"], [["x", "He is glad."], ["y", "She is sad."]])
    make.csv(tmp_path / "b.csv", ["name"], [["z"]])
    make.video(tmp_path / "v" / "x.mp4")
    make.video(tmp_path / "v" / "z.mp4")
    (tmp_path / "p").mkdir()
    for name in "xy":
        Image.effect_noise((60, 40), 50).save(tmp_path / "p" / f"{name}.png")
    damaged = (tmp_path / "p" / "y.png").read_bytes()[:-900]
    (tmp_path / "p" / "y.png").write_bytes(damaged)
    config = tmp_path / "mine.yaml"
    config.write_text(
        "datasets:\n"
        "  clips: {path: a.csv, test_path: b.csv, columns: {description: why}, folders: {video: v}}\n"
        "  pictures: {path: a.csv, columns: {caption: why}, data_type: image, folders: {image: p}}\n"
        f"paths: {{dataset_root: {tmp_path}}}\n"
    )
    assert main(["--cfg-path", str(config)]) == 1
    shown = capsys.readouterr().out
    assert "clips train y: video missing" in shown and "y.mp4: no such file" in shown and "problems: 1" in shown
    assert main(["--cfg-path", str(config), "--datasets", "pictures", "--decode"]) == 1
    assert "pictures train y: image unreadable" in capsys.readouterr().out
    assert main(["--cfg-path", str(config), "--datasets", "Clips", "--splits", "test"]) == 0
    capsys.readouterr()
    (tmp_path / "a.csv").write_text("name\n")
    assert main(["--cfg-path", str(config), "--datasets", "clips"]) == 1
    assert "no column 'why'" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="which data sets"):
        main([])


def test_records_of_face_folders_are_checked(layout, make, tmp_path, capsys):
    """The table's sets and one's own: a record that nobody understands, or that the configuration contradicts."""
    make.csv(tmp_path / "a.csv", ["name", "why"], [["x", "He is glad."]])
    make.faces(tmp_path / "f" / "x.npy")
    config = tmp_path / "mine.yaml"
    config.write_text(
        "datasets:\n"
        "  sims: {face_channels: bgr}\n"
        "  mine: {path: a.csv, columns: {description: why}, folders: {face: f}, face_channels: rgb}\n"
        f"paths: {{dataset_root: {tmp_path}}}\n"
    )
    arguments = ["--cfg-path", str(config), "--any-count"]
    records = [layout.root / "openface_face" / "crops.json", tmp_path / "f" / "crops.json"]
    for text in ('{"channels": "rgb"}', '{"channels": "bgr"}'):
        for record in records:
            record.write_text(text)
        assert main(arguments) == 1
        shown = capsys.readouterr().out
        wrong, key = (records[0], "sims") if "rgb" in text else (records[1], "mine")
        assert (
            f"{wrong} says that the face crops are stored as" in shown and f"datasets.{key}.face_channels says" in shown
        )
        assert "problems: 2" in shown if key == "sims" else "problems: 1" in shown  # train and test of SIMS
    records[0].write_text('{"channels": "blue"}')
    records[1].write_text('{"channels": "rgb"}')
    assert main(arguments) == 1
    assert "sims test: face unreadable".lower() in (shown := capsys.readouterr().out).lower()
    assert "channels is 'blue'; allowed: bgr, rgb" in shown
    assert main([*arguments, "--media", "audio"]) == 0  # nobody looks at faces
    records[0].unlink()
    assert main(arguments) == 0


def test_all_twelve_data_sets_at_once(make, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(DATASETS, "_entries", {row.name.lower(): row for row in READ_ROWS})
    for row in READ_ROWS:
        make.layout(row, tmp_path, media=True)
    assert main(["--datasets", "all", "--dataset-root", str(tmp_path), "--any-count", "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "everything is there" in shown
    assert {line.split()[0] for line in shown.splitlines() if " ok " in line} == {row.name for row in READ_ROWS}


BLOCK = {"path": "a.csv", "columns": "{ovlabel: labels, description: why}", "folders": "{}"}


def own(tmp_path, **keys: str) -> list[str]:
    """Arguments that check a block of one's own with these keys."""
    block = ", ".join(f"{key}: {value}" for key, value in {**BLOCK, **keys}.items())
    config = tmp_path / "mine.yaml"
    config.write_text(f"datasets:\n  stage: {{{block}}}\npaths: {{dataset_root: {tmp_path}}}\n")
    return ["--cfg-path", str(config)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"label_type": "hybrid"},
            r"mine.yaml:2: datasets.stage.label_type: .*Did you mean 'hybird'\? Known: .*hybird",
        ),
        ({"face_or_frame": "multiface_audio_text"}, r"mine.yaml:2: datasets.stage.face_or_frame: unknown input mode"),
        (
            {"task": "finegrained"},
            r"mine.yaml:2: datasets.stage.task: unknown metric 'finegrained'. Did you mean 'fine-grained'",
        ),
        ({"columns": "{labels: labels}"}, r"mine.yaml:2: datasets.stage.columns.labels: unknown 'labels'"),
    ],
)
def test_words_that_training_or_scoring_would_refuse(keys, message, make, tmp_path):
    make.csv(tmp_path / "a.csv", ["name", "labels", "why"], [["x", "calm", "Still."]])
    assert main(own(tmp_path)) == 0
    with pytest.raises(ConfigError, match=message):
        main(own(tmp_path, **keys))


def test_a_label_type_that_no_sample_teaches_is_a_problem(make, tmp_path, capsys):
    make.csv(tmp_path / "a.csv", ["name", "labels", "why"], [["x", "calm", ""], ["y", "sad", ""]])
    assert main(own(tmp_path)) == 1
    shown = capsys.readouterr().out
    assert "stage train: label_types missing: no sample of train has a label of type description" in shown
    assert main(own(tmp_path, label_type="ovlabel")) == 0


def test_labels_that_another_sign_parts_are_noted(make, tmp_path, capsys):
    rows = [["x", "calm", "A."], ["y", "neutral;calm", "B."], ["z", "sad、angry", "C."]]
    make.csv(tmp_path / "a.csv", ["name", "labels", "why"], rows)
    table = tmp_path / "problems.csv"
    assert main([*own(tmp_path), "--csv", str(table)]) == 0
    shown = capsys.readouterr().out
    told = "ovlabel 'neutral;calm' holds ';': labels are parted by commas (1 more like it)"
    assert (
        f"stage train y: label note: {told}" in shown and "everything is there; notes: 2" in shown
    )  # and no tokenizer
    assert told in table.read_text()
    assert main(own(tmp_path, path="", test_path="a.csv", task="fine-grained")) == 1
    shown = capsys.readouterr().out
    assert f"stage test y: label note: {told}" in shown
    assert "2 of 3 truths are not in the lexicon and are not scored: neutral;calm (1), sad、angry (1)" in shown
    assert "labels of stage test: calm 1, neutral;calm 1, sad、angry 1" in shown


def test_a_row_of_ones_own_is_checked_without_a_configuration(make, tmp_path, monkeypatch, capsys):
    """Its file comes by --imports; a task that no metric has is named before anything is trained."""
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))
    make.csv(tmp_path / "stage" / "a.csv", ["name", "openset"], [["x", "calm"]])
    for folder in ("video", "audio", "openface_face"):
        (tmp_path / "stage" / folder).mkdir()
    (tmp_path / "stage_row.py").write_text(
        "from affectgpt.datasets.table import DATASETS, DatasetRow\n"
        "for name, task in (('Stage', 'fine-grained'), ('Wrong', 'fine-graned')):\n"
        "    DATASETS.register(name)(DatasetRow(name=name, root='stage', task=task, label_kind='csv_open', counts={},\n"
        "        label_types=('ovlabel',), splits={'train': ''}, openset_file='a.csv', subtitle_file=''))\n"
    )
    arguments = ["--imports", str(tmp_path / "stage_row.py"), "--dataset-root", str(tmp_path), "--media", "none"]
    assert main([*arguments, "--datasets", "Stage"]) == 0  # nor are there subtitles
    assert "everything is there" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"data set Wrong is not scored \(task 'fine-graned'\).*'fine-grained'"):
        main([*arguments, "--datasets", "Wrong"])
