"""Archives of pickles are read without running anything in them."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from affectgpt.core.errors import DataError
from affectgpt.core.npz import read_npz, write_npz


def npz_with(path, payload: bytes) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + payload)


def test_round_trip_of_what_result_and_label_files_hold(tmp_path):
    answers = {"a": "The character's emotional state is happy.", "b": "", "ü": "你好"}
    labels = {"a": {"emo": "happy", "val": np.float64(0.5)}, "b": {"emo": 3, "val": -1}}
    write_npz(tmp_path / "r.npz", name2reason=answers, test1_corpus=labels, filenames=np.array(["a", "b"]))
    content = read_npz(tmp_path / "r.npz")
    assert content["name2reason"] == answers
    assert content["test1_corpus"] == labels
    assert content["filenames"].tolist() == ["a", "b"]
    assert np.load(tmp_path / "r.npz", allow_pickle=True)["name2reason"].item() == answers  # as others read it


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


def test_a_pickle_that_calls_something_is_refused_by_name_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    npz_with(tmp_path / "evil.npz", pickle.dumps({"a": Evil(marker)}))
    with pytest.raises(DataError, match=r"evil\.npz: refused, it asks for (posix|os)\.system"):
        read_npz(tmp_path / "evil.npz")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "numpy.load", "numpy.f2py.compile"])
def test_other_callables_are_refused(tmp_path, name):
    module, attribute = name.rsplit(".", 1)
    npz_with(tmp_path / "evil.npz", f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(DataError, match="refused"):
        read_npz(tmp_path / "evil.npz")


def test_what_is_no_archive_is_said_to_be_none(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"text\.npz: damaged or no npz file"):
        read_npz(tmp_path / "text.npz")
    with pytest.raises(DataError, match=r"gone\.npz: no such file"):
        read_npz(tmp_path / "gone.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    from affectgpt.core.files import atomic_path

    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
