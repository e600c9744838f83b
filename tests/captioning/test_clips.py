"""Which clips are annotated, and where their media are looked for."""

from __future__ import annotations

import logging

import pytest
from small_annotation import write_table

from affectgpt.captioning.describe import load_clips
from affectgpt.config.captioning import InputConfig
from affectgpt.core.errors import DataError


@pytest.fixture
def root(tmp_path):
    for file in ("video/b.avi", "video/a.mp4", "video/notes.txt", "audio/a.wav", "openface_face/a/a.npy"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return tmp_path


def load(root, **settings):
    return load_clips(InputConfig(root=str(root), **settings), title="mine")


def test_the_subtitle_file_names_the_clips(root, caplog):
    write_table(root / "subtitle.csv", ("name", "english", "chinese"), [("c", "", ""), ("a", "Hello, you.", "你好")])
    with caplog.at_level(logging.WARNING, logger="affectgpt"):
        clips = load(root, chinese_column="chinese")
    assert [clip.name for clip in clips] == ["c", "a"]
    a = clips[1]
    assert (a.sample.subtitle, a.chinese, a.sample.dataset) == ("Hello, you.", "你好", "mine")
    assert a.sample.face == root / "openface_face/a/a.npy" and a.sample.audio == root / "audio/a.wav"
    assert clips[0].sample.video == root / "video/c.mp4"  # where it should lie
    assert "1 videos have no row in subtitle.csv and are left out (first: b)" in caplog.text


def test_without_subtitles_all_videos_are_taken(root):
    clips = load(root, subtitles="")
    assert [(clip.name, clip.sample.subtitle) for clip in clips] == [("a", ""), ("b", "")]
    assert clips[1].sample.video == root / "video/b.avi"
    assert len(load_clips(InputConfig(root=str(root), subtitles=""), title="mine", limit=1)) == 1


def test_a_names_file_picks_clips(root):
    write_table(root / "subtitle.csv", ("name", "english"), [("a", "x"), ("b", "y")])
    write_table(root / "names.csv", ("name",), [("b",)])
    assert [clip.name for clip in load(root, names="names.csv")] == ["b"]
    write_table(root / "names.csv", ("name",), [("z",)])
    with pytest.raises(DataError, match=r"subtitle\.csv: no row for clip 'z'"):
        load(root, names="names.csv")


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(DataError, match="names no clip"):
        load(tmp_path, subtitles="")
    with pytest.raises(DataError, match="is not a folder"):
        load(tmp_path / "none")
