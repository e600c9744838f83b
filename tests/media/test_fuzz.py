"""Three hundred damaged media files: each is read or refused by name, and the process lives on."""

from __future__ import annotations

import random

import numpy as np
import pytest

from affectgpt.core.errors import DataError
from affectgpt.media.audio import read_wave
from affectgpt.media.guard import Decoder
from affectgpt.media.video import read_faces, read_image


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, flip, overwrite, remove or double parts of a file; headers are hit more often than bodies."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 20])):
        end = len(data) if rng.random() < 0.5 else min(len(data), 400)
        at = rng.randrange(max(1, end))
        length = rng.choice([1, 4, 64, 1000])
        kind = rng.randrange(5)
        if kind == 0 and at > 0:
            del data[at:]
        elif kind == 1 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at : at + length] = rng.choice([b"\0", b"\xff"]) * length
        elif kind == 3:
            data[at : at + length] = rng.randbytes(length)
        else:
            data[at:at] = data[at : at + length]
    return bytes(data)


@pytest.fixture(scope="module")
def originals(make, tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("originals")
    Image.effect_noise((60, 40), 50).save(folder / "a.png")
    return {
        "mp4": make.video(folder / "a.mp4").read_bytes(),
        "wav": make.sound(folder / "a.wav", rate=44100).read_bytes(),
        "npy": make.faces(folder / "a.npy", n=4, size=32).read_bytes(),
        "png": (folder / "a.png").read_bytes(),
    }


@pytest.mark.parametrize("suffix, count", [("mp4", 120), ("wav", 70), ("npy", 70), ("png", 40)])
def test_damaged_files(suffix, count, originals, tmp_path):
    decoder = Decoder(time_limit=20)
    readers = {
        "mp4": [lambda p: decoder.frames(p, size=32), decoder.track, decoder.probe],
        "wav": [read_wave], "npy": [read_faces], "png": [read_image],
    }[suffix]  # fmt: skip
    rng = random.Random(f"fuzz {suffix}")
    read = refused = 0
    path = tmp_path / f"clip.{suffix}"
    for _ in range(count):
        path.write_bytes(damaged(originals[suffix], rng))
        for reader in readers:
            try:
                result = reader(path)
            except DataError as error:
                assert f"clip.{suffix}" in str(error)
                refused += 1
            else:
                read += 1
                if suffix in ("npy", "png"):
                    assert result.dtype == np.uint8 and result.shape[-3:] == (224, 224, 3)
                elif suffix == "wav":
                    assert np.isfinite(result).all() and len(result)
    decoder.close()
    assert read + refused == count * len(readers) and refused > count // 10
