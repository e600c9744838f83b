"""Arrays of numbers and strings as numpy stores them, made from outside bytes by a fixed list of dtypes.

What a file says of an array is a claim: numpy would make any dtype that a header or a pickle asks for.
"""

from __future__ import annotations

import ast
import math
import re
from typing import Any

import numpy as np

OBJECTS = "O"  # the dtype word of arrays whose values are pickled
PLAIN = frozenset({str, int, float, bool, type(None), bytes})  # types of single values
_SIZES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8)}  # kind → bytes of one value
_MAX_TEXT = 1 << 20  # characters of a fixed-width string
_MAX_HEADER = 2_000  # bytes; numpy writes 118
_BEGINNING = re.compile(rb"\x93NUMPY([\x01-\x03])\x00")


class RefusedError(ValueError):
    """The pickle asks for something that is not plain data; the message says for what."""


def read_header(data: bytes) -> tuple[str, bool, tuple[int, ...], int]:
    """Dtype word (``O`` for a pickle), order and shape of an npy file, and where its data begin.

    Not numpy's own function: that makes any dtype the header asks for.
    """
    found = _BEGINNING.match(data)
    if found is None:
        raise ValueError("an entry is not an npy array")
    width = 2 if found[1] == b"\x01" else 4
    length = int.from_bytes(data[8 : 8 + width], "little")
    start = 8 + width + length
    if length > _MAX_HEADER or start > len(data):
        raise ValueError(f"an array's header claims {length} bytes")
    header = ast.literal_eval(data[8 + width : start].decode("latin1").strip())
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise ValueError("an array's header is not a dict of descr, fortran_order and shape")
    code, shape = header["descr"], header["shape"]
    if not isinstance(code, str):
        raise RefusedError("an array of records")
    if code.lstrip("|<>=") in ("O", "O4", "O8"):
        code = OBJECTS
    return code, header["fortran_order"] is True, checked_shape(shape), start


def array_of(data: bytes, *, code: str, shape: tuple[int, ...], fortran: bool, start: int = 0) -> np.ndarray:
    """``data`` from ``start`` on as a read-only array of numbers or strings; ``code`` is a word as ``<f8`` or ``<U5``.

    Raises RefusedError when the word is not on the list; ValueError when the data are fewer than the shape takes, or a
    string is not Unicode text.
    """
    order, plain = (code[0], code[1:]) if code[:1] in ("<", ">", "|", "=") else ("<", code)
    plain = known_code(plain)
    if plain == OBJECTS:
        raise RefusedError("objects made of bytes")
    dtype = np.dtype(order + plain)  # of our own list: numpy sees nothing else
    count = math.prod(checked_shape(shape))
    if count * dtype.itemsize > len(data) - start:
        raise ValueError(f"the shape {shape} of {code} takes more bytes than there are ({len(data) - start})")
    values = np.frombuffer(data, dtype=dtype, count=count, offset=start)
    if dtype.kind == "b":
        values = values.view("u1") != 0  # numpy counts bytes other than 0 and 1 wrongly
    if dtype.kind == "U" and count:
        points = values.view(np.dtype(dtype.byteorder + "u4"))
        if points.max() >= 0xD800 and ((points > 0x10FFFF) | ((points >= 0xD800) & (points < 0xE000))).any():
            raise ValueError("a string that is not Unicode text")
    return values.reshape(shape, order="F" if fortran else "C")


def known_code(code: object) -> str:
    """A dtype word without byte order as the list has it (``?`` is ``b1``). Raises RefusedError if it has none."""
    if isinstance(code, str) and 1 <= len(code) <= 8:
        kind, digits = code[0], code[1:]
        if code == "?":
            return "b1"
        if kind == OBJECTS and digits in ("", "4", "8"):
            return OBJECTS
        if digits.isascii() and digits.isdigit():
            if int(digits) in _SIZES.get(kind, ()):
                return f"{kind}{int(digits)}"
            if kind in "US" and 0 < int(digits) <= _MAX_TEXT:
                return f"{kind}{int(digits)}"
    raise RefusedError(f"the dtype {brief(code)}")


def checked_shape(shape: object) -> tuple[int, ...]:
    """The shape, when it is a tuple of lengths. Raises ValueError."""
    if type(shape) is tuple and len(shape) <= 32 and all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
        return shape
    raise ValueError(f"{brief(shape)} is not the shape of an array")


def brief(value: Any) -> str:
    """A value for a message; a container by its type alone, as nobody knows yet how deep it is."""
    if type(value) in (str, bytes):
        return repr(value[:60])
    return repr(value) if type(value) in PLAIN else getattr(value, "name", type(value).__name__)
