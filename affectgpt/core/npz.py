"""Result and label files (npz, npy) of strangers, read without running anything.

The published files hold one pickled object per key. Python's unpickler makes whatever a pickle asks for, and numpy
trusts what it is given: a dtype whose flags were cleared by a pickle takes raw bytes for pointers. Here the names that
numpy's pickles hold (``_reconstruct``, ``scalar``, ``dtype``, ``ndarray``) are inert marks, which this file alone
interprets; a dtype is a word of a fixed list. Every length is compared with the data that is there; steps, nesting,
what repeated references unfold to, and what an archive unpacks to are bounded.
"""

from __future__ import annotations

import ast
import io
import math
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.core.errors import DataError
from affectgpt.core.files import atomic_path

# Opcodes, and values in the result. 115,000 descriptions, the largest published set, take 600,000.
MAX_STEPS = 5_000_000
MAX_NESTING = 24  # containers in containers; result and label files have three

_FORMATS = {
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "f2": "e",
    "f4": "f", "f8": "d",
}  # fmt: skip
# Neither tuples nor large integers: any number of these can be made to share a hash, and a dict of them takes for ever.
_KEYS = frozenset({str, int, float, bool, bytes})
_ODD_DICT = "a dict with other keys than text and numbers"


_DOUBLE = struct.Struct(">d").unpack_from
_UINT = struct.Struct("<I").unpack_from


class _Mark:
    """A global name of a pickle: nothing but its name."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Dtype:
    """A dtype of a pickle: a word of the fixed list, and its byte order."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"


class _Array:
    """An array of a pickle before (None) and after its state was read."""

    value: np.ndarray | None = None


_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_CALLED = ("dtype", "ndarray", "_reconstruct", "scalar", "_frombuffer")
_BUILTINS = ("dict", "list", "tuple", "str", "int", "float", "bool", "bytes", "bytearray")
_MARKS: dict[tuple[str, str], _Mark] = {
    **{(module, name): _Mark(name) for module in _NUMPY for name in _CALLED},
    **{(module, name): _Mark(name) for module in ("builtins", "__builtin__") for name in _BUILTINS},
    **{("collections", name): _Mark(name) for name in ("OrderedDict", "defaultdict")},
    ("_codecs", "encode"): _Mark("encode"),  # how protocol 2 writes bytes
}


def load_plain(data: bytes, start: int = 0) -> Any:
    """Return the content of a pickle (protocols 2 to 5) in ``data``, from byte ``start`` on.

    dict, list, tuple, text, bytes, numbers and numpy arrays of numbers, strings or objects; numpy scalars come back as
    Python's numbers and text, an OrderedDict as a dict. Raises RefusedError for anything else, ValueError where the
    pickle is damaged or beyond the bounds above.
    """
    try:
        value = _settled(_Machine(data).run(start))
        _check_nesting(value)
        return value
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise ValueError(f"broken pickle ({type(error).__name__}: {error})") from error


def _settled(value: Any) -> Any:
    """A value as it stays: an array in place of the mark that it was read under."""
    if type(value) is _Array:
        if value.value is None:
            raise ValueError("an array without content, or within itself")
        return value.value
    return value


def _check_nesting(value: Any) -> None:
    """ValueError for a value that is nested too deeply (or in itself) or unfolds to too many values.

    Level by level, as what is shared is met again wherever it is referenced.
    """
    level, seen = [] if type(value) in PLAIN else [value], 0
    for _ in range(MAX_NESTING):
        below: list[Any] = []
        for container in level:
            if type(container) is dict:
                seen += len(container)
                values: Any = container.values()
            elif type(container) in (list, tuple):
                seen += len(container)
                values = container
            elif type(container) is np.ndarray:
                if container.dtype != object:
                    continue
                seen += container.size
                values = container.ravel().tolist()
            else:
                raise ValueError(f"{brief(container)} where data should be")
            if seen > MAX_STEPS:
                raise ValueError(f"it unfolds to more than {MAX_STEPS} values")
            below += [v for v in values if type(v) not in PLAIN]
        if not below:
            return
        level = below
    raise ValueError(f"its content is nested in itself, or more than {MAX_NESTING} levels deep")


class _Machine:
    """One run over one pickle. ``run`` holds the opcodes that files consist of, ``_OTHERS`` the rest."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.stack: list[Any] = []
        self.marks: list[int] = []  # lengths of the stack
        self.memo: dict[int, Any] = {}
        # What calls may make of bytes and values that are referenced again and again.
        self.bytes_left = len(data) + 65536
        self.values_left = MAX_STEPS

    def run(self, at: int) -> Any:
        """The value that the pickle from byte ``at`` on ends with."""
        data, stack, marks, memo = self.data, self.stack, self.marks, self.memo
        push, size = stack.append, len(data)
        # Beyond the end data[at] is an IndexError, so that only long texts and bytes are compared with the size.
        for _ in range(MAX_STEPS):
            op = data[at]
            at += 1
            if op == 0x94:  # MEMOIZE
                memo[len(memo)] = stack[-1]
            elif op == 0x68 or op == 0x6A:  # BINGET, LONG_BINGET
                if op == 0x68:
                    value = memo[data[at]]
                    at += 1
                else:
                    value = memo[_UINT(data, at)[0]]
                    at += 4
                push(value if type(value) is not _Array else _settled(value))
            elif op == 0x72:  # LONG_BINPUT: the number is a key, whatever its size
                memo[_UINT(data, at)[0]] = stack[-1]
                at += 4
            elif op == 0x8C:  # SHORT_BINUNICODE
                end = at + 1 + data[at]
                push(data[at + 1 : end].decode())
                at = end
            elif op == 0x58:  # BINUNICODE
                end = at + 4 + _UINT(data, at)[0]
                if end > size:
                    raise ValueError("a text is longer than the data")
                push(data[at + 4 : end].decode())
                at = end
            elif op == 0x7D:  # EMPTY_DICT
                push({})
            elif op == 0x73:  # SETITEM
                value = stack.pop()
                key = stack.pop()
                if type(key) not in _KEYS or type(stack[-1]) is not dict:
                    raise RefusedError(_ODD_DICT)
                stack[-1][key] = value
            elif op == 0x28:  # MARK
                marks.append(len(stack))
            elif op == 0x75:  # SETITEMS
                items = self._since_mark()
                self._set_items(stack[-1], items)
            elif op == 0x47:  # BINFLOAT
                push(_DOUBLE(data, at)[0])
                at += 8
            elif op == 0x4B:  # BININT1
                push(data[at])
                at += 1
            elif op == 0x71:  # BINPUT
                memo[data[at]] = stack[-1]
                at += 1
            elif op == 0x43:  # SHORT_BINBYTES
                end = at + 1 + data[at]
                push(data[at + 1 : end])
                at = end
            elif op == 0x86:  # TUPLE2
                stack[-2:] = [tuple(stack[-2:])]
            elif op == 0x52:  # REDUCE
                arguments = stack.pop()
                stack[-1] = self._call(stack[-1], arguments)
            elif op == 0x2E:  # STOP
                return stack[-1]
            elif op in _OTHERS:
                at = _OTHERS[op](self, at)
            else:
                raise RefusedError(f"the opcode {chr(op)!r}")
        raise ValueError(f"it takes more than {MAX_STEPS} steps")

    def _since_mark(self) -> list[Any]:
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    @staticmethod
    def _set_items(target: Any, items: list[Any]) -> None:
        keys = items[::2]
        if type(target) is not dict or not _KEYS.issuperset(map(type, keys)):
            raise RefusedError(_ODD_DICT)
        target.update(zip(keys, items[1::2], strict=True))

    def _bytes(self, at: int, width: int) -> int:
        """Push the bytes whose length the ``width`` bytes at ``at`` give; where they end."""
        end = at + width + int.from_bytes(self.data[at : at + width], "little")
        if end > len(self.data):
            raise ValueError("bytes are longer than the data")
        self.stack.append(self.data[at + width : end])
        return end

    def _text(self, at: int, width: int, encoding: str) -> int:
        end = self._bytes(at, width)
        self.stack[-1] = str(self.stack[-1], encoding)
        return end

    def _number(self, at: int, width: int, signed: bool = False) -> int:
        self.stack.append(int.from_bytes(self.data[at : at + width], "little", signed=signed))
        return at + width

    def _long(self, at: int, width: int) -> int:
        end = self._bytes(at, width)
        number = int.from_bytes(self.stack[-1][:16], "little", signed=True)
        if end - at - width > 16 or number.bit_length() > 64:
            raise RefusedError("an integer of more than 64 bits")  # see _KEYS
        self.stack[-1] = number
        return end

    def _name(self, module: Any, name: Any) -> None:
        found = _MARKS.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if found is None:
            names = [part[:100] if isinstance(part, str) else brief(part) for part in (module, name)]
            raise RefusedError(".".join(names).encode("unicode_escape").decode())
        self.stack.append(found)

    def _global(self, at: int) -> int:
        end = self.data.index(b"\n", at, at + 200)
        after = self.data.index(b"\n", end + 1, end + 200)
        self._name(str(self.data[at:end], "utf-8"), str(self.data[end + 1 : after], "utf-8"))
        return after + 1

    def _stack_global(self, at: int) -> int:
        name, module = self.stack.pop(), self.stack.pop()
        self._name(module, name)
        return at

    def _build(self, at: int) -> int:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is _Dtype:
            _set_order(target, state)
        elif type(target) is _Array and target.value is None:
            target.value = self.stack[-1] = self._content(state)
        else:
            raise RefusedError(f"the state of {brief(target)}")
        return at

    def _call(self, mark: Any, arguments: Any) -> Any:
        """Return what one of the known names gives. Raises RefusedError if it is not called as pickles of data call
        it."""
        if type(mark) is _Mark and type(arguments) is tuple:
            name, n = mark.name, len(arguments)
            if name == "scalar" and n == 2 and type(arguments[0]) is _Dtype and type(arguments[1]) is bytes:
                self._spend(len(arguments[1]))
                return _scalar(*arguments)
            if name == "_reconstruct" and n == 3 and type(arguments[0]) is _Mark and arguments[0].name == "ndarray":
                return _Array()
            if name == "dtype" and n == 3:
                return _Dtype(known_code(arguments[0]))
            if name == "_frombuffer" and n == 4 and type(arguments[0]) is bytes and type(arguments[1]) is _Dtype:
                return self._numeric(arguments[1], arguments[2], arguments[0], fortran=arguments[3] == "F")
            if name == "encode" and n == 2 and type(arguments[0]) is str and arguments[1] in ("latin1", "latin-1"):
                self._spend(len(arguments[0]))
                return arguments[0].encode("latin1")
            if (name, n) in (("dict", 0), ("OrderedDict", 0), ("defaultdict", 0), ("defaultdict", 1)):
                return {}
            if name in ("bytes", "bytearray") and (n == 0 or (n == 1 and type(arguments[0]) is bytes)):
                return arguments[0] if n else b""
        raise RefusedError(f"a call of {brief(mark)}")

    def _content(self, state: Any) -> np.ndarray:
        """The array of a state ``(1, shape, dtype, is in Fortran's order, data)``."""
        if type(state) is not tuple or len(state) != 5 or type(state[2]) is not _Dtype:
            raise RefusedError("an array with another state than numpy writes")
        _, shape, dtype, fortran, data = state
        if dtype.code != OBJECTS:
            return self._numeric(dtype, shape, data, fortran=fortran is True)
        if type(data) is not list or math.prod(checked_shape(shape)) != len(data):
            raise RefusedError(
                f"an array of objects whose data ({brief(data)}) are not a list as long as its shape says"
            )
        self.values_left -= len(data)
        if self.values_left < 0:
            raise ValueError(f"it makes arrays of more than {MAX_STEPS} values")
        values = np.empty(len(data), dtype=object)
        for i, value in enumerate(data):
            values[i] = value = _settled(value)
            if type(value) is np.ndarray and value.dtype == object:
                raise RefusedError("an array of objects in another one")  # numpy frees a deep row of them recursively
        return values.reshape(shape, order="F" if fortran is True else "C")

    def _numeric(self, dtype: _Dtype, shape: Any, data: Any, *, fortran: bool) -> np.ndarray:
        if dtype.code == OBJECTS or type(data) is not bytes:
            raise RefusedError(f"an array of {dtype.code!r} made of {brief(data)}")
        self._spend(len(data))
        return array_of(data, code=dtype.order + dtype.code, shape=checked_shape(shape), fortran=fortran)

    def _spend(self, n: int) -> None:
        self.bytes_left -= n
        if self.bytes_left < 0:
            raise ValueError("it makes more arrays and strings than it holds bytes for")

    def _extend(self, target: Any, items: list[Any]) -> None:
        if type(target) is not list:
            raise RefusedError(f"items in {brief(target)}")
        target += items

    def _append(self, at: int) -> int:
        item = self.stack.pop()
        self._extend(self.stack[-1], [item])
        return at

    def _appends(self, at: int) -> int:
        items = self._since_mark()
        self._extend(self.stack[-1], items)
        return at

    def _tuple(self, at: int) -> int:
        items = self._since_mark()
        self.stack.append(tuple(items))
        return at

    def _last(self, at: int, n: int) -> int:
        self.stack[-n:] = [tuple(self.stack[-n:])]
        return at

    def _push(self, at: int, value: Any) -> int:
        self.stack.append(value)
        return at

    def _protocol(self, at: int) -> int:
        if self.data[at] > 5:
            raise ValueError(f"protocol {self.data[at]} is not known")
        return at + 1

    def _drop(self, at: int) -> int:
        self.stack.pop()
        return at


# Left out, and so refused: the text of protocols 0 and 1, DUP, sets, persistent ids, extension codes, instances and
# out-of-band buffers. numpy writes protocol 2 and later.
_OTHERS: dict[int, Callable[[_Machine, int], int]] = {
    0x80: _Machine._protocol,
    0x95: lambda m, at: at + 8,  # FRAME
    0x30: _Machine._drop,  # POP
    0x4E: lambda m, at: m._push(at, None),
    0x88: lambda m, at: m._push(at, True),
    0x89: lambda m, at: m._push(at, False),
    0x5D: lambda m, at: m._push(at, []),
    0x29: lambda m, at: m._push(at, ()),
    0x4A: lambda m, at: m._number(at, 4, signed=True),  # BININT
    0x4D: lambda m, at: m._number(at, 2),  # BININT2
    0x8A: lambda m, at: m._long(at, 1),
    0x8B: lambda m, at: m._long(at, 4),
    0x54: lambda m, at: m._text(at, 4, "ascii"),  # text of Python 2
    0x55: lambda m, at: m._text(at, 1, "ascii"),
    0x8D: lambda m, at: m._text(at, 8, "utf-8"),
    0x42: lambda m, at: m._bytes(at, 4),
    0x8E: lambda m, at: m._bytes(at, 8),
    0x96: lambda m, at: m._bytes(at, 8),  # BYTEARRAY8
    0x61: _Machine._append,
    0x65: _Machine._appends,
    0x74: _Machine._tuple,
    0x85: lambda m, at: m._last(at, 1),
    0x87: lambda m, at: m._last(at, 3),
    0x63: _Machine._global,
    0x93: _Machine._stack_global,
    0x62: _Machine._build,
}


def _set_order(dtype: _Dtype, state: Any) -> None:
    """Take the byte order from a dtype's state; its flags, sizes and fields are never used."""
    if type(state) is not tuple or len(state) != 8 or state[2:5] != (None, None, None):
        raise RefusedError("a dtype with fields or metadata")
    if state[1] not in ("<", ">", "|", "="):
        raise RefusedError("a dtype of an unknown byte order")
    dtype.order = "<" if state[1] in ("|", "=") else state[1]


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    """A numpy scalar as Python's number or text."""
    form = _FORMATS.get(dtype.code)
    if form is not None:
        return struct.unpack(dtype.order + form, raw)[0]  # struct.error when the length is another
    kind, size = dtype.code[0], int(dtype.code[1:] or 0)
    if kind == "U" and len(raw) == 4 * size:
        return raw.decode("utf-32-le" if dtype.order == "<" else "utf-32-be").rstrip("\0")
    if kind == "S" and len(raw) == size:
        return raw.rstrip(b"\0")
    raise RefusedError(f"a scalar of dtype {dtype.code!r} and {len(raw)} bytes")


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
