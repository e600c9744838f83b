"""What a benchmark leaves: ``benchmarks/results/NAME.json``, from which ``figures.py`` fills the documents' tables.

A record has the settings of the command line, the UTC day, the commit, the machine, versions, and numbers that are not
rounded, with their unit in the key. Names of hosts, users and folders are in none. Only a full run, one with the
settings that the documents' tables are made with, is recorded by itself; any other where ``--out`` says so.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# What changes numbers: of these, and the scripts at the root, a record names the last commit.
CODE = ("affectgpt", "benchmarks", "train_configs", ":(glob)*.py", ":!benchmarks/results", ":!benchmarks/figure*")
PACKAGES = ("torch", "transformers", "peft", "numpy")


def git_commit() -> str | None:
    """The last commit that changed code, shortened, with ``+changes`` where code differs from it; None outside a
    repository. Commits of records or pages alone do not count: what was measured is the same."""

    def git(*arguments: str) -> str:
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
        return git("log", "-1", "--format=%H", "--", *CODE)[:8] + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, load of the last minute."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {"processor": _processor(), "cores": cores, "memory_gb": memory, "load": os.getloadavg()[0]}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of Python and of the libraries that numbers depend on."""
    from affectgpt.core.provenance import installed_version

    return {"python": platform.python_version(), **{name: installed_version(name) or "absent" for name in PACKAGES}}


@dataclass
class Run:
    """A benchmark's run: what is noted before it begins, and the record at its end.

    ``places``: arguments that say where things are kept, which change no number. ``data``: those that name other data
    or models; a record says that they were given, not what they are. ``full``: settings of a full run where these are
    not the parser's defaults.
    """

    parser: argparse.ArgumentParser
    args: argparse.Namespace
    places: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    full: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.began, self.commit, self.machine = time.time(), git_commit(), machine()
        hidden = {action.dest for action in self.parser._actions if action.help is argparse.SUPPRESS}
        self.settings = {
            key: "given" if key in self.data and value != self.parser.get_default(key) else value
            for key, value in vars(self.args).items()
            if key not in {"out", *self.places, *hidden}
        }
        wanted = {key: self.full.get(key, self.parser.get_default(key)) for key in self.settings}
        self.partial = [
            f"--{key.replace('_', '-')} {value}" for key, value in self.settings.items() if value != wanted[key]
        ]

    def record(self, name: str, numbers: Mapping[str, Any], *, model: str, device: str = "cpu", **more: Any) -> bool:
        """Write ``numbers`` and say where; a GPU's record is ``NAME_gpu``. ``more`` replaces other entries.

        False for a partial run without ``--out``, which is said.
        """
        from affectgpt.core.files import write_json

        gpu = gpu_name(device)
        if gpu is not None:
            name, self.machine["gpu"] = f"{name}_gpu", gpu
        path = self.args.out
        if path is None and self.partial:
            print(f"not recorded: not a full run ({', '.join(self.partial)}); --out FILE records it", file=sys.stderr)
            return False
        path = path or RESULTS / f"{name}.json"
        write_json(path, {
            "name": name, "settings": self.settings, "partial": self.partial, "model": model,
            "date": time.strftime("%Y-%m-%d", time.gmtime(self.began)), "commit": self.commit, "machine": self.machine,
            "versions": versions(), "run_seconds": time.time() - self.began, **more, "numbers": numbers,
        })  # fmt: skip
        print(f"recorded: {path}", file=sys.stderr)
        return True


def gpu_name(device: str) -> str | None:
    """The GPU's name; None for the CPU."""
    if not str(device).startswith("cuda"):
        return None
    import torch

    return torch.cuda.get_device_name(torch.device(device))


def add_out_argument(parser: argparse.ArgumentParser, name: str) -> None:
    """``--out``, the one way in which benchmarks say where their record goes."""
    text = f"the record (default: benchmarks/results/{name}.json of a full run, none of others)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)
