"""Archives of pickles are read without running anything in them."""

import io
import os
import pickle
import re
import subprocess
import sys
import time
import zipfile

import hostile_pickles
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


def test_one_key_is_read_without_unpacking_the_others(tmp_path):
    npz_with(tmp_path / "labels.npz", b"no pickle")
    with zipfile.ZipFile(tmp_path / "labels.npz", "a") as archive:
        archive.writestr("test1_corpus.npy", hostile_pickles.npy(pickle.dumps({"a": {"emo": "happy"}})))
    assert read_npz(tmp_path / "labels.npz", key="test1_corpus") == {"test1_corpus": {"a": {"emo": "happy"}}}
    assert read_npz(tmp_path / "labels.npz", key="train_corpus") == {}
    with pytest.raises(DataError, match=r"labels\.npz: refused"):
        read_npz(tmp_path / "labels.npz")


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


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match=r"pipe\.npz: .*not a regular file"):
        read_npz(tmp_path / "pipe.npz")


def numbers_and_text(value):
    """Numpy's scalars and arrays as Python's, to be compared with ==."""
    if isinstance(value, dict):
        return {key: numbers_and_text(v) for key, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [numbers_and_text(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", hostile_pickles.plain_values(), ids=lambda value: type(value).__name__)
def test_plain_values_of_every_protocol_are_read(value, protocol, tmp_path):
    pickled = pickle.dumps(value, protocol)
    # numpy 1 has another name for the module; from protocol 4 on the name's length is written before it
    names = [b"numpy._core", b"numpy.core"][: 1 if protocol > 3 else 2]
    for name in names:
        npz_with(tmp_path / "a.npz", pickled.replace(b"numpy._core", name))
        assert numbers_and_text(read_npz(tmp_path / "a.npz")["x"]) == numbers_and_text(value)
    boxed = np.empty((), dtype=object)
    boxed[()] = {"x": value}
    np.savez(tmp_path / "b.npz", x=boxed)
    assert numbers_and_text(read_npz(tmp_path / "b.npz")["x"]) == numbers_and_text({"x": value})


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3), np.asfortranarray(np.eye(3)), np.array(["a", "bcd", "\U0001f600"]),
        np.array([b"x", b"yz"]), np.array([], dtype="U4"), np.array(True), np.array("happy"), np.zeros((0, 3), "i2"),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)  # fmt: skip
def test_plain_arrays_are_read_as_numpy_reads_them(array, tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=array)
    content = read_npz(tmp_path / "a.npz")["x"]
    expected = array.item() if array.ndim == 0 else array
    assert type(content) is type(expected) and np.shape(content) == np.shape(expected)
    np.testing.assert_array_equal(content, expected)


def test_published_files_are_read_as_numpy_reads_them(merunibench, golden):
    files = sorted([*merunibench.rglob("*.npz"), *golden.rglob("*.npz")])
    assert len(files) > 50
    for path in files:
        with np.load(path, allow_pickle=True) as expected:
            content = read_npz(path)
            assert list(content) == list(expected)
            for key, value in content.items():
                wanted = expected[key]
                if isinstance(value, np.ndarray):
                    assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape), f"{path}, {key}"
                    np.testing.assert_array_equal(value, wanted)
                else:
                    assert value == wanted.item(), f"{path}, {key}"


def test_thousands_of_hostile_files_are_read_or_refused(tmp_path):
    """In a process of its own: no signal, no traceback, no code of theirs run; little time and memory."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, hostile_pickles.__file__, str(tmp_path), "2200"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), f"after {time.monotonic() - started:.0f} s: {done.stderr[-3000:]}"
    found = re.match(r"(\d+) read, (\d+) refused, (\d+) MB", done.stdout)
    assert found is not None, done.stdout
    read, refused, megabytes = map(int, found.groups())
    assert read + refused >= 2_200 and read > 50 and megabytes < 1_000
    assert {p.name for p in tmp_path.iterdir()} == {"hostile.npz"}


def test_what_a_file_unpacks_to_is_bounded(tmp_path):
    """Two gigabytes of zeros in two megabytes, and a file that says it has less than it unpacks to."""
    with zipfile.ZipFile(tmp_path / "large.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        zeros = np.zeros(1 << 22, np.uint8)
        with archive.open("x.npy", "w", force_zip64=True) as member:
            member.write(hostile_pickles.npy(b"", descr="'|u1'", shape=f"({130 << 22},)"))
            for _ in range(130):
                member.write(zeros)
    assert (tmp_path / "large.npz").stat().st_size < 3_000_000
    with pytest.raises(DataError, match=r"large\.npz: .*x\.npy unpacks to 5452\d+ bytes, more than 536870912"):
        read_npz(tmp_path / "large.npz")
    data = bytearray((tmp_path / "large.npz").read_bytes())
    at = data.rindex(b"PK\x01\x02") + 24
    data[at : at + 4] = (100).to_bytes(4, "little")
    (tmp_path / "lies.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"lies\.npz: damaged"):
        read_npz(tmp_path / "lies.npz")
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        for i in range(10_001):
            archive.writestr(str(i), b"")
    with pytest.raises(DataError, match=r"many\.npz: .*more than 10000 entries"):
        read_npz(tmp_path / "many.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    from affectgpt.core.files import atomic_path

    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
