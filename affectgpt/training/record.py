"""``run.json``: what a run was made with, so that it can be made again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from affectgpt.config.schema import Config, to_dict
from affectgpt.core.files import write_json
from affectgpt.core.provenance import device_name, installed_versions


class Record:
    """Written when a run begins and again when it ends, however it ends. ``path`` None: nothing is written."""

    def __init__(
        self,
        path: Path | None,
        *,
        config: Config,
        device: torch.device,
        counts: Mapping[str, int],
        video_reader: str,
        revisions: Mapping[str, int],
        world_size: int,
    ) -> None:
        self.path = path
        self.started = time.time()
        self.values: dict[str, Any] = {
            "command": sys.argv,
            "config": to_dict(config),
            "versions": installed_versions(),
            "revisions": dict(revisions),
            "video_reader": video_reader,  # pixels differ between readers
            "git": git_revision(),
            "data": dict(counts),
            "seeds": {"run": config.run.seed, "ranks": [config.run.seed + rank for rank in range(world_size)]},
            "device": device_name(device),
            "processes": world_size,
            "host": platform.node(),
            "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        self.end("running")

    def end(self, how: str, **more: Any) -> None:
        """Note how the run ended: finished, stopped, failed."""
        if self.path is not None:
            self.values |= {"state": how, "seconds": round(time.time() - self.started, 1), **more}
            write_json(self.path, self.values)


def git_revision() -> str | None:
    """The revision of the code that runs, with ``+changes`` where files differ from it; None outside a repository."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        ).stdout.strip()  # fmt: skip

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
