"""Every data set's layout is read; what is wrong in a label or subtitle file is named."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from layouts import READ_ROWS as ROWS
from layouts import opened

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.npz import write_npz
from affectgpt.core.types import Labels
from affectgpt.datasets.label_files import LABEL_READERS, load_labels, load_samples
from affectgpt.datasets.table import DATASETS, MER_UNIBENCH, get_row
from affectgpt.evaluation.labels import parse_item
from affectgpt.processing.questions import question_context

PUBLISHED = {*MER_UNIBENCH, "MERCaption", "MERCaptionPlus", "OVMERD", "MER2025OV"}


def test_table_has_the_thirteen_published_rows():
    assert len(PUBLISHED) == 13 and {row.name for row in DATASETS.values()} >= PUBLISHED
    assert PUBLISHED - {row.name for row in ROWS} == {"MERCaption"}  # published without a file name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_layout(row, make, tmp_path):
    layout = make.layout(row, tmp_path)
    for split, names in layout.names.items():
        samples = load_samples(row, split=split, dataset_root=tmp_path)
        assert tuple(s.name for s in samples) == names
        assert samples[1].subtitle == "" or row.split_rule
        assert samples[0].subtitle == f"{row.subtitle_column} {names[0]}" or row.split_rule
        assert all(s.dataset == row.name for s in samples)
        assert samples[0].audio == layout.root / row.audio_dir / f"{names[0]}.wav"
        kinds = {f.name for f in dataclasses.fields(Labels) if getattr(samples[0].labels, f.name) is not None}
        expected = {
            "npz_word": {"emotion"}, "npz_index": {"emotion"}, "npz_valence": {"valence"},
            "csv_open": {"ovlabels", "description"} if row.reason_file else {"ovlabels"}, "names_only": {"ovlabels"},
        }  # fmt: skip
        assert kinds == expected[row.label_kind]
        if row.label_kind == "names_only" and split == "test":  # truth is there for two of the four
            assert [s.labels.ovlabels for s in samples] == [("happy", "calm")] * 2 + [None] * 2


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_media_paths(row, make, tmp_path):
    layout = make.layout(row, tmp_path)
    name = layout.names["test" if "test" in row.splits else "train"][0]
    wanted = {"video": layout.root / row.video_dir / (name + row.video_suffixes[-1])}
    wanted["face"] = layout.root / row.face_dir / name / f"{name}.npy"  # the folder form is accepted everywhere
    for path in wanted.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    split = "test" if "test" in row.splits else "train"
    sample = load_samples(row, split=split, dataset_root=tmp_path)[0]
    assert (sample.video, sample.face) == (wanted["video"], wanted["face"])
    (layout.root / row.face_dir / f"{name}.npy").touch()  # the flat form wins where both are there
    assert load_samples(row, split=split, dataset_root=tmp_path)[0].face.name == f"{name}.npy"
    assert load_samples(row, split=split, dataset_root=tmp_path)[0].face.parent.name == row.face_dir


def test_sessions_of_iemocap(make, tmp_path):
    row = get_row("IEMOCAPFour")
    make.layout(row, tmp_path)
    sessions = {s: {n[4] for n in load_labels(row, split=s, dataset_root=tmp_path)} for s in ("train", "test")}
    assert sessions == {"train": {"1", "2", "3", "4"}, "test": {"5"}}


def test_candidates_and_range(make, tmp_path):
    make.layout(get_row("MER2023"), tmp_path)
    make.layout(get_row("SIMS"), tmp_path)
    assert opened("MER2023", tmp_path).candidate_labels() == ["happy", "sad"]
    low, high = opened("SIMS", tmp_path).value_range()
    assert (str(low), str(high)) == ("-1.0", "1.0")
    with pytest.raises(DataError, match="no valence"):
        question_context(opened("MER2023", tmp_path), ["valence"])
    with pytest.raises(ConfigError, match="OVMERDPlus has no training split"):
        opened("OVMERDPlus", tmp_path).candidate_labels()


@pytest.mark.parametrize(
    "text, labels",
    [
        ("['happy', \"calm\"]", ("happy", "calm")),
        ("[happy, calm]", ("happy", "calm")),
        ("happy", ("happy",)),
        ("[]", ()),
        ("", ()),
        ("['self-deprecating', 'Very Happy', '']", ("self-deprecating", "Very Happy")),
        ("[[a]", ("[a",)),  # one bracket each side is taken off, no more
    ],
)
def test_label_lists(text, labels):
    assert parse_item(text) == labels


def test_without_its_subtitle_file_ovmerdplus_takes_names_from_the_labels(make, tmp_path):
    row = get_row("OVMERDPlus")
    layout = make.layout(row, tmp_path)
    (layout.root / row.subtitle_file).unlink()
    assert tuple(load_labels(row, split="test", dataset_root=tmp_path)) == make.names
    with pytest.raises(DataError, match=r"subtitle_eng\.csv: no such file"):
        load_samples(row, split="test", dataset_root=tmp_path)


def test_order_and_names_of_ovmerdplus_come_from_the_subtitles(make, tmp_path):
    row = get_row("OVMERDPlus")
    layout = make.layout(row, tmp_path)
    header, names = ["name", "sentence"], make.names
    make.csv(layout.root / row.subtitle_file, header, [[n, "x"] for n in reversed(names)])
    assert tuple(load_labels(row, split="test", dataset_root=tmp_path)) == names[::-1]
    make.csv(layout.root / row.subtitle_file, header, [[n, "x"] for n in names[1:]])
    with pytest.raises(DataError, match=r"ovlabel\.csv: label for an unknown sample 'sample_00000000'"):
        load_labels(row, split="test", dataset_root=tmp_path)
    make.csv(layout.root / row.subtitle_file, header, [[n, "x"] for n in (*names, "more")])
    with pytest.raises(DataError, match=r"ovlabel\.csv: no label for sample 'more'"):
        load_labels(row, split="test", dataset_root=tmp_path)


SUBTITLES = "transcription-engchi-polish.csv"
DAMAGE = {
    "missing column": (b"name,chinese\na,b\n", "no column 'english'"),
    "near miss": (b"name,chinese,English\na,b,c\n", "Did you mean 'English'"),
    "empty": (b"", "empty file"),
    "gbk": ("name,english\nsample_00000000,你好\n".encode("gbk"), "not UTF-8"),
    "utf-16": ("name,english\nx,1\n".encode("utf-16"), "not UTF-8"),
    "slash": (b"name,english\n../../etc/passwd,1\n", "line 2: sample name '../../etc/passwd'"),
    "backslash": (b"name,english\na\\b,1\n", "not a file stem"),
    "nameless": (b"name,english\n,1\n", "not a file stem"),
    "short row": (b"name,chinese,english\nx\n", "line 2: 1 cells where 3 are needed, sample 'x'"),
    "long row": (
        b"name,english\nx,Hi, you\n",
        "line 2: 3 cells under 2 headings, sample 'x'; put text that holds commas",
    ),
    "doubled column": (b"name,english,english\nx,1,2\n", "two columns are called 'english'"),
    "no row": (b"name,english\nother,1\n", "no row for sample 'sample_00000000' of MER2023"),
    "huge cell": (b"name,english\nx," + b"y" * 200_000 + b"\n", "no CSV"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_subtitles(kind, make, tmp_path):
    content, message = DAMAGE[kind]
    path = make.layout(get_row("MER2023"), tmp_path).root / SUBTITLES
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        load_samples(get_row("MER2023"), split="test", dataset_root=tmp_path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_cells_are_text_and_a_byte_order_mark_is_no_part_of_them(make, tmp_path):
    row = get_row("MER2023")
    path = make.layout(row, tmp_path).root / SUBTITLES
    cells = ["None of it", " NA", " 007 ", 'He said "hi", then\nleft']
    make.csv(path, ["name", "english"], zip(make.names, cells, strict=True), encoding="utf-8-sig")
    assert [s.subtitle for s in load_samples(row, split="test", dataset_root=tmp_path)] == cells


@pytest.mark.parametrize(
    "name, corpus, message",
    [
        ("MER2023", {"a": {"emo": 3}}, "sample 'a': 'emo' is 3, expected a word"),
        ("MELD", {"a": {"emo": 7}}, "sample 'a': 'emo' is 7, expected 0 to 6"),
        ("MELD", {"a": {"emo": 1.5}}, "expected 0 to 6"),
        ("SIMS", {"a": {"val": float("nan")}}, "sample 'a': 'val' is nan, expected a finite number"),
        ("SIMS", {"a": {"val": "high"}}, "'val' is 'high', expected a number"),
        ("SIMS", {"a": {"emo": 1}}, "expected a dict with 'val'"),
        ("SIMS", {"../a": {"val": 1.0}}, "'../a' is not a file stem"),
    ],
)
def test_damaged_labels(name, corpus, message, tmp_path):
    row = get_row(name)
    path = tmp_path / row.root / row.label_file
    write_npz(path, **{row.splits["test"]: corpus})
    with pytest.raises(DataError) as error:
        load_labels(row, split="test", dataset_root=tmp_path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_a_missing_split_names_those_that_are_there(tmp_path):
    row = get_row("SIMS")
    write_npz(tmp_path / row.root / row.label_file, val_corpus={})
    with pytest.raises(DataError, match=r"no split 'test_corpus'; it holds val_corpus"):
        load_labels(row, split="test", dataset_root=tmp_path)


def test_numpy_numbers_become_plain_ones(make, tmp_path):
    make.layout(get_row("SIMS"), tmp_path)
    labels = load_labels(get_row("SIMS"), split="test", dataset_root=tmp_path)
    assert all(type(label.valence) is float for label in labels.values())
    assert not any(isinstance(name, np.str_) for name in labels)


def test_reading_labels_imports_neither_torch_nor_pandas():
    code = "import affectgpt.datasets.label_files, sys; print({'torch', 'pandas', 'cv2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("x", Labels(valence="0.5"), "sample 'x': valence is '0.5', expected a finite number"),
        ("x", Labels(valence=float("nan")), "sample 'x': valence is nan, expected a finite number"),
        ("x", Labels(ovlabels="calm"), "sample 'x': ovlabels is 'calm', expected a tuple of texts"),
        ("x", Labels(emotion=3), "sample 'x': emotion is 3, expected a text"),
        ("x", {"emotion": "calm"}, "expected a name and its Labels"),
        ("evening/x", Labels(emotion="calm"), "sample name 'evening/x' is not a file stem"),
    ],
)
def test_what_a_reader_of_ones_own_gives_is_checked_at_once(name, labels, message, tmp_path, monkeypatch):
    monkeypatch.setattr(LABEL_READERS, "_entries", dict(LABEL_READERS._entries))
    LABEL_READERS.register("mine")(lambda row, split, root: {"fine": Labels(valence=np.float32(1)), name: labels})
    row = dataclasses.replace(get_row("SIMS"), name="Stage", label_kind="mine")
    with pytest.raises(DataError, match=r"Stage: what its label reader \(mine\) gives for train") as raised:
        load_labels(row, split="train", dataset_root=tmp_path)
    assert message in str(raised.value)


def test_a_set_without_subtitles(make, tmp_path):
    make.layout(get_row("OVMERD"), tmp_path)
    row = dataclasses.replace(get_row("OVMERD"), subtitle_file="")
    samples = load_samples(row, split="train", dataset_root=tmp_path)
    assert [s.subtitle for s in samples] == [""] * len(make.names)
