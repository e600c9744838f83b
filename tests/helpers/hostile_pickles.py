"""Thousands of hostile npz files, read in a process of its own: ``python hostile_pickles.py FOLDER COUNT``.

Pickles put together at random from every opcode, from the names and states that numpy's pickles hold (dtypes with
cleared flags, raw bytes as array data) and from damaged real ones, and attacks written by hand. Each must be read or
refused with a DataError; what is read is looked at in full, so that a pointer from the file would be followed.
"""

from __future__ import annotations

import collections
import pickle
import random
import re
import resource
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np

from affectgpt.core.errors import DataError
from affectgpt.core.npz import read_npz

MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
NAMES = [(m, n) for m in MULTIARRAY for n in ("_reconstruct", "scalar", "dtype", "ndarray", "_frombuffer")] + [
    ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("__builtin__", "getattr"), ("builtins", "list"),
    ("builtins", "bytes"), ("collections", "OrderedDict"), ("collections", "defaultdict"), ("_codecs", "encode"),
    ("numpy", "load"), ("numpy.core.numeric", "_frombuffer"), ("copyreg", "_reconstructor"),
    ("numpy.lib.stride_tricks", "as_strided"), ("operator", "attrgetter"),
]  # fmt: skip


def npy(pickled: bytes, *, descr: str = "'|O'", shape: str = "()", length: int | None = None) -> bytes:
    """An npy file whose header says what it is told to."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) if length is None else length) + header + pickled


def npz(path: Path, *members: bytes) -> Path:
    """An archive of these npy files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i, member in enumerate(members):
            archive.writestr("name2reason.npy" if i == 0 else f"x{i}.npy", member)
    return path


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def dtype(code: str = "O8", *, flags: int = 0, size: int = -1, fields: bytes = b"N", order: str = "|") -> bytes:
    """A dtype whose state says what it is told to; flags 0: its values are no objects."""
    state = b"(" + number(3) + text(order) + b"N" + b"N" + fields + number(size) + number(-1) + number(flags) + b"t"
    return name("numpy", "dtype") + b"(" + text(code) + b"\x89\x88tR" + state + b"b"


def array(made_of: bytes, *, kind: bytes | None = None, shape: bytes = b"K\x01\x85") -> bytes:
    begun = name("numpy.core.multiarray", "_reconstruct") + b"(" + name("numpy", "ndarray") + b"K\x00\x85C\x01btR"
    return begun + b"(K\x01" + shape + (dtype() if kind is None else kind) + b"\x89" + made_of + b"tb"


def scalar(made_of: bytes, *, kind: bytes | None = None) -> bytes:
    return name("numpy.core.multiarray", "scalar") + b"(" + (dtype() if kind is None else kind) + made_of + b"tR"


POINTER = raw(b"\x41\x42\x43\x44\x45\x46\x00\x00")


def laughs() -> bytes:
    """Ten lists of ten lists of … : 10 ** 12 values in 400 bytes."""
    out = b"]" + b"q\x00" + b"(" + b"K\x01" * 10 + b"e"
    for i in range(1, 12):
        out += b"]" + bytes([0x71, i]) + b"(" + bytes([0x68, i - 1]) * 10 + b"e"
    return out + b"."


ATTACKS: dict[str, bytes] = {
    "array of pointers": npy(b"\x80\x03" + array(POINTER) + b"."),
    "scalar of a pointer": npy(b"\x80\x03" + scalar(POINTER) + b"."),
    "pointers in a label": npy(b"\x80\x03}" + text("a") + b"}" + text("emo") + scalar(POINTER) + b"ss."),
    "pointers in an array of objects": npy(b"\x80\x03" + array(b"](" + array(POINTER) + b"e") + b"."),
    "pointers from a buffer": npy(
        b"\x80\x05" + name("numpy.core.numeric", "_frombuffer") + b"(" + POINTER + dtype() + b"K\x01\x85" + text("C")
        + b"tR."
    ),
    "pointers in fields": npy(
        b"\x80\x03" + array(POINTER, kind=dtype("V8", size=8, fields=b"}" + text("f") + dtype() + b"K\x00\x86s")) + b"."
    ),
    "pointers without a pickle": npy(b"\x41" * 8, descr="'<O8'", shape="(1,)"),
    "records in the header": npy(b"\x41" * 8, descr="[('a', '|O')]", shape="(1,)"),
    "more values than bytes": npy(
        b"\x80\x03" + array(raw(b"12345678"), kind=dtype("f8"), shape=b"J\0\0\0\x7f\x85") + b"."
    ),
    "a shape of terabytes": npy(b"", descr="'<f8'", shape="(1000000000000,)"),
    "a shape below zero": npy(b"12345678", descr="'<f8'", shape="(-1,)"),
    "a header of 64 KB": npy(b"", length=65535),
    "a deep header": npy(b"", shape="(" * 600 + ")" * 600),
    "a text of terabytes": npy(b"\x80\x04\x8d" + struct.pack("<Q", 1 << 42) + b"x."),
    "bytes of gigabytes": npy(b"\x80\x04B" + struct.pack("<I", 0xFFFFFFF0) + b"x."),
    "a strange letter": npy(struct.pack("<I", 0x110000), descr="'<U1'", shape="(1,)"),
    "half a letter": npy(struct.pack("<I", 0xD800), descr="'<U1'", shape="()"),
    "lists in lists": npy(b"\x80\x03" + b"]" * 200_000 + b"a" * 199_999 + b"."),
    "tuples in tuples as a key": npy(b"\x80\x03})" + b"\x85" * 500_000 + b"Ns."),
    "arrays in arrays": npy(
        b"\x80\x03" + (array(b"](").removesuffix(b"tb") * 20_000) + b"K\x01" + b"etb" * 20_000 + b"."
    ),
    "a list in itself": npy(b"\x80\x03]q\x00h\x00a."),
    "a dict in itself": npy(b"\x80\x03}q\x00" + text("a") + b"h\x00s."),
    "an array in itself": npy(b"\x80\x03" + array(b"](h\x00e").replace(b"tR(", b"tRq\x00(") + b"."),
    "laughs": npy(b"\x80\x03" + laughs()),
    "one text many times": npy(
        b"\x80\x03" + raw(b"\0" * 4_000_000) + b"q\x010" + dtype("U1000000", order="<") + b"q\x020("
        + (name("numpy.core.multiarray", "scalar") + b"h\x02h\x01\x86R") * 20_000 + b"t."
    ),
    "one array many times": npy(
        b"\x80\x03" + raw(b"\1" * 4_000_000) + b"q\x010("
        + array(b"h\x01", kind=dtype("u1"), shape=b"J\0\x09\x3d\0\x85") * 9_000 + b"t."
    ),
    "a million steps too many": npy(b"\x80\x03" + b"]" * 6_000_000 + b"."),
    "numbers of one hash": npy(
        b"\x80\x03}("
        + b"".join(b"\x8a\x20" + (i * (2**61 - 1)).to_bytes(32, "little") + b"N" for i in range(60_000)) + b"u."
    ),
    "tuples as keys": npy(b"\x80\x03}" + b"K\x01K\x02\x86Ns."),
    "a name called": npy(b"\x80\x03" + name("os", "system") + b"(" + text("touch MARKER") + b"tR."),
    "a name of the stack": npy(b"\x80\x04" + text("posix") + text("system") + b"\x93(" + text("touch MARKER") + b"tR."),
    "an instance": npy(b"(" + text("touch MARKER") + b"ios\nsystem\n."),
    "a name in a name": npy(
        b"\x80\x04" + text("numpy") + text("f2py.os.system") + b"\x93(" + text("touch MARKER") + b"tR."
    ),
}  # fmt: skip
# Odd and harmless: these are read.
ODD: dict[str, tuple[bytes, object]] = {
    "a far memo": (npy(b"\x80\x03" + text("a") + b"r\xff\xff\xff\xff0j\xff\xff\xff\xff."), "a"),
    "no array around": (npy(pickle.dumps({"a": "b"}, 4)), {"a": "b"}),
}


def plain_values() -> list[object]:
    """What result and label files hold, and near it."""
    shared = {"emo": "happy", "val": np.float64(0.5)}
    return [
        {"a": "I see a face.", "b": "", "ü": "你好 \U0001f600"},
        {"a": shared, "b": shared, "c": {"emo": np.int64(3), "val": -1.5, "ok": np.bool_(True), "n": None}},
        collections.OrderedDict(a=np.str_("ä"), b=np.float32(0.25), c=b"xyz", d=np.bytes_(b"q")),
        ["x", 2**40, -3, 70_000, True, (1, 2.5, "three"), {"deep": [[], {}, ()]}],
        np.array(["a", {"b": [1, None]}], dtype=object),
        {"numbers": np.arange(6, dtype=">i4").reshape(2, 3), "words": np.array(["ab", "c"]), "f": np.eye(2, order="F")},
    ]


def random_pickle(rng: random.Random) -> bytes:
    """A pickle of random pieces, some of them well-formed parts of numpy's pickles."""
    codes = ("O8", "O", "f8", "i4", "U2", "S3", "V8", "M8", "b1", "f16", "U99999999", "x", "(2,)O", "O8,O8")

    def piece() -> bytes:
        kind = rng.randrange(12)
        if kind == 0:
            return bytes([rng.randrange(256)]) + rng.randbytes(rng.randrange(9))
        if kind == 1:
            return rng.choice(
                [b"]", b"}", b"(", b")", b"N", b"\x88", b"\x94", b"2", b"0", b"1", b"\x8f", b"\x91", b"\x90"]
            )
        if kind == 2:
            return rng.choice(
                [b"t", b"e", b"a", b"s", b"u", b"b", b"R", b"\x81", b"\x85", b"\x86", b"\x87", b"o", b"l", b"d"]
            )
        if kind == 3:
            return name(*rng.choice(NAMES))
        if kind == 4:
            return dtype(
                rng.choice(codes),
                flags=rng.choice([0, 63, 8, -1]),
                size=rng.choice([-1, 0, 8, 1 << 30]),
                order=rng.choice("|<>=?"),
            )
        if kind == 5:
            return rng.choice(
                [text("emo"), text("O8"), raw(rng.randbytes(rng.choice([0, 1, 8, 16]))), text("touch MARKER")]
            )
        if kind == 6:
            return number(rng.choice([0, 1, -1, 2**31 - 1, rng.randrange(300)]))
        if kind == 7:
            return array(
                rng.choice([POINTER, b"]", b"](K\x01e", raw(rng.randbytes(16)), b"N", b"h\x00"]),
                kind=rng.choice([None, dtype(rng.choice(codes), flags=rng.choice([0, 63]))]),
                shape=rng.choice([b"K\x01\x85", b")", b"K\x02K\x01\x86", b"J\xff\xff\xff\xff\x85", b"N"]),
            )
        if kind == 8:
            return scalar(
                rng.choice([POINTER, raw(rng.randbytes(4)), b"N", text("a")]),
                kind=rng.choice([None, dtype(rng.choice(codes), flags=rng.choice([0, 63]))]),
            )
        if kind == 9:
            return rng.choice([b"q", b"h"]) + bytes([rng.randrange(4)])
        if kind == 10:
            return rng.choice([b"r", b"j"]) + rng.randbytes(4)
        return rng.choice(
            [b"\x95" + rng.randbytes(8), b"\x8a\x02\x00\x01", b"G" + rng.randbytes(8), b"\x97", b"\x98", b"."]
        )

    return b"\x80\x04" + b"".join(piece() for _ in range(rng.choice([3, 8, 20, 60]))) + b"."


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A real pickle with some bytes or pieces replaced, removed or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 6])):
        at = rng.randrange(len(changed))
        what = rng.randrange(4)
        if what == 0:
            changed[at] = rng.randrange(256)
        elif what == 1:
            changed[at : at + rng.choice([1, 2, 9])] = b""
        elif what == 2:
            changed[at:at] = random_pickle(rng)[2:-1][: rng.choice([1, 5, 200])]
        else:
            changed[at : at + 1] = rng.choice([array(POINTER), scalar(POINTER), dtype(), b"h\x01", b"]", b"b"])
        if not changed:
            break
    return bytes(changed)


def random_file(rng: random.Random, originals: list[bytes]) -> bytes:
    kind = rng.randrange(10)
    if kind < 4:
        return npy(random_pickle(rng))
    if kind < 8:
        return npy(damaged(rng.choice(originals), rng), shape=rng.choice(["()", "(1,)", "(0,)"]))
    if kind == 8:  # arrays without a pickle
        descr = rng.choice(
            ["'<f8'", "'<U3'", "'|S2'", "'|b1'", "'<M8[ns]'", "'|V4'", "[('a','<f8')]", "'O'", "0", "'<c8'"]
        )
        return npy(
            rng.randbytes(rng.randrange(40)), descr=descr, shape=rng.choice(["()", "(2,)", "(1, 3)", "(0, 9)", "7"])
        )
    return damaged(npy(rng.choice(originals)), rng)


def main(folder: Path, count: int) -> int:
    """Read them all; the numbers of files read and refused go to stdout."""
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    marker = folder / "ran"
    rng = random.Random(13)
    originals = [pickle.dumps(v, p) for v in plain_values() for p in range(2, 6)]
    originals += [pickle.dumps(np.array(v, dtype=object), 4) for v in plain_values()[:3]]
    outcomes: collections.Counter[str] = collections.Counter()

    def read(what: str, member: bytes) -> object:
        path = npz(folder / "hostile.npz", member.replace(b"MARKER", b"ran   "))
        try:
            value = read_npz(path)["name2reason"]
            repr(value), str(value)
            outcomes["read"] += 1
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and str(error).isprintable(), f"{what}: {error!r}"
            value = error
            outcomes["refused"] += 1
        assert not marker.exists(), f"{what}: its code was run"
        return value

    for what, member in ATTACKS.items():
        assert isinstance(read(what, member), DataError), f"{what}: was read"
    for what, (member, expected) in ODD.items():
        assert read(what, member) == expected, what
    for number_ in range(count):
        read(f"random file {number_}", random_file(rng, originals))
    # Of this program alone: ru_maxrss also counts what the process that started it had.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) >> 10
    print(f"{outcomes['read']} read, {outcomes['refused']} refused, {peak} MB")
    return 0


if __name__ == "__main__":
    import os

    os.chdir(sys.argv[1])
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
