"""Commands on real file systems that take nothing: each in a process and a mount namespace of its own.

A folder gets a small tmpfs that is full, has one page left, or is read-only. Root needs no more; others get a user
namespace where the system allows one. Nothing has to be undone: a mount ends with its process.
"""

from __future__ import annotations

import csv
import ctypes
import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from affectgpt.core.files import naming

READ_ONLY = "read-only"
FREE_PAGES = {"full": 0, "one page left": 1, "some pages left": 24}
KINDS = ("full", "one page left", READ_ONLY)
_SERVER = multiprocessing.get_context(
    "forkserver"
)  # torch is imported once; every command is a fresh process all the same
_SERVER.set_forkserver_preload(
    ["torch", "peft", "transformers.models.qwen2.modeling_qwen2", "affectgpt.modeling.build"]
)
_NEWNS, _NEWUSER = 0x20000, 0x10000000
_PAGE = 4096


@dataclass(frozen=True)
class Outcome:
    """Exit status (negative: the signal that ended it) and what was printed."""

    status: int
    stdout: str
    stderr: str


def run_there(
    folder: Path, kind: str, argv: Sequence[str], *, logs: Path, content: Path | None = None, inside: bool = False,
    printed: bool = False, options: str = "size=256k",
) -> Outcome:  # fmt: skip
    """``affectgpt ARGV`` while ``folder`` is a file system of a ``kind``, with a copy of ``content`` in it.

    ``ARGV`` may also name one of WRITERS. ``inside``: run with the folder as working folder; ``printed``: standard
    output goes to a file there.
    """
    logs.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    process = _SERVER.Process(target=_child, args=(folder, kind, list(argv), logs, content, inside, printed, options))
    process.start()
    process.join(timeout=100)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"{argv} hung: {(logs / 'stderr').read_text()}")
    out = "" if printed else (logs / "stdout").read_text()
    return Outcome(process.exitcode or 0, out, (logs / "stderr").read_text())


def why_not(folder: Path) -> str | None:
    """Why no file system can be mounted here; None where it can."""
    process = _SERVER.Process(target=_mounts, args=(folder,))
    process.start()
    process.join(timeout=100)
    return None if process.exitcode == 0 else "this system allows neither mounts nor user namespaces"


def _mounts(folder: Path) -> None:
    _namespace()
    _mount("-t", "tmpfs", "none", str(folder))


def _namespace() -> None:
    root = os.geteuid() == 0
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEWNS if root else _NEWNS | _NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")
    if not root:
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", file).write_text(text)
    _mount("--make-rprivate", "/")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def _child(
    folder: Path, kind: str, argv: list[str], logs: Path, content: Path | None, inside: bool, printed: bool,
    options: str,
) -> None:  # fmt: skip
    _namespace()
    _mount("-t", "tmpfs", "-o", options, "none", str(folder))
    if content is not None:
        shutil.copytree(content, folder, dirs_exist_ok=True)
    out = os.open(folder / "printed" if printed else logs / "stdout", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    if kind == READ_ONLY:
        _mount("-o", "remount,ro", str(folder))
    else:
        _fill(folder, pages_left=FREE_PAGES[kind])
    for number, descriptor in ((1, out), (2, os.open(logs / "stderr", os.O_CREAT | os.O_WRONLY | os.O_TRUNC))):
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    if inside:
        os.chdir(folder)
    import torch

    from affectgpt.cli.common import run_cli
    from affectgpt.cli.main import main

    torch.set_num_threads(1)
    sys.argv = ["affectgpt", *argv]
    if argv[0] in WRITERS:
        sys.exit(run_cli(lambda _: _write(argv[0], folder / "here.bin")))
    sys.exit(main(argv))


def _write(library: str, path: Path) -> int:
    with naming(path):
        WRITERS[library](path)
    return 0


def _csv(path: Path) -> None:
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([["x" * 100]] * 100)


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", bytes(100_000))


def _npz(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), bytes(100_000))


def _matplotlib(path: Path) -> None:
    from matplotlib.figure import Figure

    Figure().savefig(path, format="raw")


def _safetensors(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(10_000)}, path)


def _torch(path: Path) -> None:
    import torch

    with path.open("wb") as handle:
        torch.save({"x": torch.zeros(10_000)}, handle)


# Libraries that have errors of their own for a full disk.
WRITERS = {
    "csv": _csv,
    "zip": _zip,
    "npz": _npz,
    "matplotlib": _matplotlib,
    "safetensors": _safetensors,
    "torch": _torch,
}


def _fill(folder: Path, *, pages_left: int) -> None:
    """Write until nothing more fits, then give so many pages back."""
    filler = os.open(folder / ".filler", os.O_CREAT | os.O_WRONLY)
    size = 0
    try:
        while True:
            size += os.write(filler, bytes(_PAGE))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    os.ftruncate(filler, size - size % _PAGE - pages_left * _PAGE)
    os.close(filler)
