"""How a face folder says in which order its crops are stored, and who may say so besides."""

from __future__ import annotations

import json

import pytest

from affectgpt.core.crops import Crops, file_crops, folder_crops, write_record
from affectgpt.core.errors import DataError

KEY = "datasets.mine.face_channels"


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "openface_face"
    made.mkdir()
    return made


def test_record_then_key_then_bgr(folder):
    assert folder_crops(folder) == Crops("bgr", None, folder)
    assert folder_crops(folder, claimed="rgb", claimed_by=KEY) == Crops("rgb", None, folder)
    write_record(folder, {"channels": "rgb", "framing": "tight"})
    assert folder_crops(folder) == Crops("rgb", "tight", folder)
    assert folder_crops(folder, claimed="rgb", claimed_by=KEY).channels == "rgb"
    assert folder_crops(folder.parent / "gone") == Crops("bgr", None, folder.parent / "gone")


def test_two_claims_that_contradict_each_other_are_both_named(folder):
    write_record(folder, {"channels": "rgb"})
    with pytest.raises(DataError) as error:
        folder_crops(folder, claimed="bgr", claimed_by=KEY)
    assert f"{folder / 'crops.json'} says that the face crops are stored as rgb, {KEY} says bgr" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"channels": "grb"}', "channels is 'grb'; allowed: bgr, rgb"),
        ('{"channels": "RGB"}', "channels is 'RGB'; allowed: bgr, rgb"),
        ('{"channels": ["bgr"]}', r"channels is \['bgr'\]; allowed"),
        ('{"chanels": "rgb"}', "channels is missing; allowed: bgr, rgb"),
        ('{"channels": "bgr", "framing": "wide"}', "framing is 'wide'; allowed: loose, tight, openface"),
        ('["bgr"]', "not a JSON object"),
        ("{", "cannot be read as the record of a face folder"),
        ("[" * 60_000, "cannot be read as the record of a face folder"),
        (" " * 70_000, "larger than 65536 bytes"),
    ],
)
def test_a_record_that_says_nothing_is_an_error(content, message, folder):
    (folder / "crops.json").write_text(content)
    with pytest.raises(DataError, match=message) as error:
        folder_crops(folder)
    assert str(folder / "crops.json") in str(error.value)


def test_crops_of_earlier_versions_are_known_by_the_record_beside_the_folder(folder, tmp_path):
    old = folder.parent / "preprocess.json"
    old.write_text(json.dumps({"frames": 32, "channels": "rgb"}))
    assert folder_crops(folder).channels == "rgb"
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "openface_face"
    link.symlink_to(folder)
    assert folder_crops(link).channels == "rgb"
    write_record(folder, {"channels": "bgr"})
    assert folder_crops(folder).channels == "bgr" and not old.exists()


def test_a_file_alone_is_judged_by_its_folder(folder):
    write_record(folder, {"channels": "rgb"})
    assert file_crops(folder / "a.npy").channels == "rgb"
    assert file_crops(folder / "a" / "a.npy").channels == "rgb"
    with pytest.raises(DataError, match="--face_channels says bgr"):
        file_crops(folder / "a.npy", claimed="bgr", claimed_by="--face_channels")
