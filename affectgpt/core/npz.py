"""Result and label files: npz archives whose entries are pickles, read without running anything.

The published files hold one pickled object per key. A pickle can name any callable; this reader knows plain
containers, strings, numbers and numpy arrays, and refuses the rest by name before it runs.
"""

from __future__ import annotations

import io
import lzma
import os
import pickle
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.core.errors import DataError
from affectgpt.core.files import atomic_path

MAX_BYTES = 2 << 30  # unpacked, per entry: result and label files are some megabytes

_NUMPY_MODULES = (
    "numpy",
    "numpy.core.multiarray",
    "numpy._core.multiarray",
    "numpy.core.numeric",
    "numpy._core.numeric",
)
_NUMPY_NAMES = {"dtype", "ndarray", "_reconstruct", "scalar", "_frombuffer"}
_NUMPY_SCALARS = {"float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool_", "str_", "bool"}
_CONTAINERS = {
    ("builtins", name) for name in ("dict", "list", "tuple", "set", "frozenset", "str", "int", "float", "bool", "bytes")
} | {("collections", "OrderedDict"), ("collections", "defaultdict")}


class _RefusedError(pickle.UnpicklingError):
    pass


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise _RefusedError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that resolves names of plain data only."""

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module
        if (module, name) in _CONTAINERS:
            return super().find_class(module, name)
        if module in _NUMPY_MODULES and (name in _NUMPY_NAMES or (module == "numpy" and name in _NUMPY_SCALARS)):
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):  # numpy bytes pickled with protocol 2
            return _latin1_bytes
        raise _RefusedError(f"{module}.{name}")


def _read_member(data: bytes) -> Any:
    handle = io.BytesIO(data)
    version = np.lib.format.read_magic(handle)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"unknown npy version {version}")
    _, _, dtype = readers[version](handle)
    if dtype.hasobject:
        return _PlainUnpickler(handle).load()
    handle.seek(0)
    return np.lib.format.read_array(handle, allow_pickle=False)


def read_npz(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an npz file, key → value. A 0-d array comes back as the object or number in it.

    Raises DataError, naming the file, when it is missing, damaged, or asks for anything but plain data.
    """
    path = Path(path)
    result: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                size = archive.getinfo(member).file_size
                if size > MAX_BYTES:
                    raise ValueError(f"{member} unpacks to {size} bytes, more than {MAX_BYTES}")
                value = _read_member(archive.read(member))
                key = member.removesuffix(".npy")
                result[key] = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except _RefusedError as refused:
        raise DataError(
            f"{path}: refused, it asks for {refused}, which is not plain data. Nothing in it was run."
        ) from None
    except (
        zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
        OverflowError, MemoryError, NotImplementedError, RuntimeError, UnicodeDecodeError, ImportError,
        pickle.UnpicklingError, OSError, SyntaxError, struct.error, lzma.LZMAError, tokenize.TokenError,
    ) as error:  # fmt: skip
        raise DataError(f"{path}: damaged or no npz file ({type(error).__name__}: {error})") from error
    return result


def write_npz(path: str | os.PathLike[str], **values: Any) -> None:
    """Write values as numpy does (a dict becomes a pickled 0-d object array, wire), atomically."""
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **values)
