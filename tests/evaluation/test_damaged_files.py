"""200 damaged result files: each gives an error or the right score, never another score."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from affectgpt.core.errors import DataError
from affectgpt.datasets.table import get_row
from affectgpt.evaluation.lexicon import Lexicon, grouping_of
from affectgpt.evaluation.results import read_answers, read_items
from affectgpt.evaluation.score import Truth, make_metric, score_items

MER = get_row("MER2023")
N = 40


def damage(data: bytes, rng: random.Random) -> bytes:
    """A few bits, bytes or blocks changed, cut or added, half of the time in the zip's directory."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if not out:
            break
        at = rng.randrange(len(out)) if rng.random() < 0.5 else max(0, len(out) - rng.randrange(1, 220))
        kind = rng.randrange(7)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + rng.randrange(1, 20)]
        elif kind == 4:
            out[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 5:
            out[at : at + 16] = bytes(min(16, len(out) - at))
        else:
            out[at:] = out[at:][::-1]
    return bytes(out)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", ["labels", "answers"])
def test_damaged_files_never_give_another_score(lexicon: Lexicon, tmp_path: Path, compressed: bool, kind: str) -> None:
    words = ["happy", "angry", "sad", "merry", "blue", "irate"]
    rng = random.Random(f"{compressed} {kind}")
    truth = Truth(MER, {f"s{i}": (rng.choice(words),) for i in range(N)}, frozenset(f"s{i}" for i in range(N)), True)
    items = {name: f"[{rng.choice(words)}, w{name}]" for name in truth.values}
    path = tmp_path / "x.npz"
    save = np.savez_compressed if compressed else np.savez
    if kind == "labels":
        save(path, filenames=np.array(list(items)), fileitems=np.array(list(items.values())))
    else:  # a pickled dict
        save(path, name2reason=np.array(items, dtype=object))
    read = read_items if kind == "labels" else read_answers
    metric = make_metric(MER, grouping_of(lexicon))

    def score() -> float:
        return score_items(read(path), truth, metric, source=path, checkpoint="x").primary

    right, intact, refused = score(), path.read_bytes(), 0
    assert 0 < right < 1
    for _ in range(50):
        path.write_bytes(damage(intact, rng))
        try:
            assert score() == right
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused >= 40  # some bytes of a zip mean nothing


@pytest.mark.parametrize("method", [0, 9, 12, 14, 97])
def test_another_compression_in_the_directory(tmp_path: Path, method: int) -> None:
    path = tmp_path / "x-openset.npz"
    np.savez_compressed(path, filenames=np.array(["a"]), fileitems=np.array(["[happy]"]))
    data = bytearray(path.read_bytes())
    for at in (8, data.rfind(b"PK\x01\x02", 0, data.rfind(b"PK\x01\x02")) + 10):  # first entry: local, central
        data[at] = method
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x-openset\.npz: damaged or no npz file"):
        read_items(path)


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -23])
def test_truncated(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x-openset.npz"
    np.savez_compressed(path, filenames=np.array(["a"]), fileitems=np.array(["[happy]"]))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="damaged or no npz file"):
        read_items(path)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x-openset.npz"
    np.savez_compressed(path, filenames=np.array(["a"]), fileitems=np.array(["x" * 100_000]))
    assert path.stat().st_size < 4_000 and len(read_items(path)["a"]) == 100_000
    monkeypatch.setattr("affectgpt.core.npz.MAX_BYTES", 50_000)
    with pytest.raises(DataError, match=r"fileitems\.npy unpacks to 400\d+ bytes, more than 50000"):
        read_items(path)
