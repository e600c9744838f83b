"""Result and label files: npz archives whose entries are arrays or pickles, read without running anything.

The published files hold one pickled object per key; ``core.plain_pickle`` reads these, and refuses by name whatever is
no plain data. What an archive unpacks to is bounded before and while it is unpacked.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.core.errors import DataError
from affectgpt.core.files import atomic_path
from affectgpt.core.npy import OBJECTS, RefusedError, array_of, read_header
from affectgpt.core.plain_pickle import load_plain

# Unpacked, all entries of a file together. The largest published set, 115,000 descriptions, takes about 100 MB; padded
# string arrays of 20,000 answers, each as long as the longest, 160 MB. No bound on the ratio: such padding is zeros.
MAX_BYTES = 512 << 20
MAX_ENTRIES = 10_000


def _read_member(data: bytes) -> Any:
    code, fortran, shape, start = read_header(data)
    if code == OBJECTS:
        return load_plain(data, start)
    return array_of(data, code=code, shape=shape, fortran=fortran, start=start)


def _entries(path: Path, key: str | None) -> Iterator[tuple[str, bytes]]:
    """Keys and unpacked bytes, of one key or all. Raises ValueError beyond the bounds above."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")  # a pipe or a device has no end
    if status.st_size > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES >> 20} MB, which no result or label file has")
    packed = path.read_bytes()
    if packed.count(b"PK\x01\x02") > MAX_ENTRIES:  # each entry of the directory begins with it
        raise ValueError(f"more than {MAX_ENTRIES} entries")
    left = MAX_BYTES
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        for info in archive.infolist():
            found = info.filename.removesuffix(".npy")
            if key is not None and found != key:
                continue
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("compressed in another way than npz files are")
            # the size is a claim: reading stops one byte beyond what is left
            data = b"" if info.file_size > left else archive.open(info).read(left + 1)
            left -= max(info.file_size, len(data))
            if left < 0:
                size = max(info.file_size, len(data))
                raise ValueError(
                    f"{info.filename} unpacks to {size} bytes, more than {MAX_BYTES} (all entries together)"
                )
            yield found, data


def read_npz(path: str | os.PathLike[str], *, key: str | None = None) -> dict[str, Any]:
    """Read an npz file, key → value; with ``key`` that one alone (empty where it is absent), the others not unpacked.

    A 0-d array comes back as the object or number in it; arrays of numbers and strings are read-only.
    Raises DataError, naming the file, when it is missing, damaged, too large, or asks for anything but plain data.
    """
    path = Path(path)
    result: dict[str, Any] = {}
    try:
        for found, data in _entries(path, key):
            value = _read_member(data)
            result[found] = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except RefusedError as refused:
        raise DataError(
            f"{path}: refused, it asks for {refused}, which is not plain data. Nothing in it was run."
        ) from None
    except (
        zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, KeyError, IndexError,
        TypeError, AttributeError, OverflowError, MemoryError, NotImplementedError, RuntimeError, OSError, SyntaxError,
    ) as error:  # fmt: skip
        raise DataError(f"{path}: damaged or no npz file ({type(error).__name__}: {error})") from error
    return result


def write_npz(path: str | os.PathLike[str], **values: Any) -> None:
    """Write values as numpy does (a dict becomes a pickled 0-d object array, wire), atomically."""
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **values)
