"""A folder as a clone is, in which the documentation's commands run as they stand: the released recipes are tiny ones,
`models/` holds tiny models, and `.venv/bin` is this interpreter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tiny_world import write_run

ROOT = Path(__file__).resolve().parents[2]
FACE = "emercoarse_highlevelfilter4_outputhybird_bestsetup_bestfusion_lz"
FRAME = "mercaptionplus_outputhybird_bestsetup_bestfusion_frame_lz"
STARTED = "20250110100"  # of the released face model's run
_MODES = {FACE: "multiface_audio_face_text", FRAME: "multiframe_audio_frame_text"}
_RECIPE = """\
model:
  multi_fusion_type: attention
  video_fusion_type: attention
  audio_fusion_type: attention
  image_fusion_type: mean
  lora_r: 4
datasets:
  mercaptionplus: {{face_or_frame: {mode}}}
run: {{device: cpu, num_workers: 0, max_epoch: 1, iters_per_epoch: 2, batch_size_train: 2}}
inference: {{max_new_tokens: 24, batch_size: 4}}
paths: {{models_root: {models}}}
"""


def make_clone(root: Path, models: Path) -> Path:
    """Make it; files of the recipes that extend a released one are the repository's own."""
    shutil.copytree(ROOT / "train_configs", root / "train_configs")
    for name, mode in _MODES.items():
        (root / "train_configs" / f"{name}.yaml").write_text(_RECIPE.format(mode=mode, models=models), "utf-8")
    for script in ROOT.glob("*.py"):
        shutil.copy(script, root)
    (root / "models").symlink_to(models)
    binaries = root / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, line in (("python", '"$@"'), ("affectgpt", '-m affectgpt.cli.main "$@"')):
        (binaries / name).write_text(f"#!/bin/sh\nexec {sys.executable} {line}\n")
        (binaries / name).chmod(0o755)
    (binaries / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    return root


def add_run(clone: Path, recipe: str, epochs: tuple[int, ...], *, output: str = "output") -> Path:
    """A run of a recipe with random checkpoints of these epochs."""
    from affectgpt.config.load import load_config

    config = load_config(clone / "train_configs" / f"{recipe}.yaml")
    folders = {name: str(clone / folder) for name, folder in config.paths.folders.items()}
    config = replace(config, paths=replace(config.paths, folders=folders))
    return write_run(clone / output / recipe / f"{recipe}_{STARTED}", config, epochs)


def shell(clone: Path, script: str, *, timeout: int = 600) -> subprocess.CompletedProcess:
    """Run lines of bash in the clone, its environment being active; the first that fails ends it."""
    environment = {
        **os.environ, "PATH": f"{clone / '.venv' / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=timeout)
