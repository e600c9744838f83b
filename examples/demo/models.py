"""The demo's tiny models, in the folder formats of the real ones: CLIP, HuBERT and Qwen2 with its tokenizer."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from affectgpt.core.files import write_json, write_text
from affectgpt.core.runtime import logger, worker_pool

VERSION = 2  # raise when a model would come out differently
MARKER = "demo_model.json"
# Folder under models/ → the function that makes it. The longest work first: two are made at a time.
RECIPES = {
    "demo-qwen2": "examples.demo.pretrain_decoder:pretrain_qwen2",
    "demo-hubert": "examples.demo.pretrain_speech:pretrain_hubert",
    "demo-clip": "examples.demo.pretrain_vision:pretrain_clip",
}
_README = """A toy, made by `make demo`: a model of less than a million weights, taught for some seconds on drawn faces,
synthetic voices and invented sentences. It has the folder format of the real model and none of its abilities.
May be deleted.
"""


def missing_models(root: Path, *, seed: int = 0) -> list[str]:
    """The demo folders under ``root`` that are absent or were made by other settings."""
    return [name for name in RECIPES if _state(root / name) != {"version": VERSION, "seed": seed}]


def _state(folder: Path) -> dict[str, int]:
    try:
        state = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return {key: state[key] for key in ("version", "seed")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def make_models(
    root: Path,
    *,
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[Iterator, int], Iterator] | None = None,
) -> list[str]:
    """Make the missing demo models under ``root``; returns their names. A folder is there whole or not at all.

    ``progress(iterator, total)`` may wrap the iterator over finished models, for a bar.
    """
    names = missing_models(root, seed=seed)
    if names:
        root.mkdir(parents=True, exist_ok=True)
        for name in names:
            for draft in root.glob(f".{name}.tmp*"):  # of a run that was killed
                shutil.rmtree(draft, ignore_errors=True)
        finished = _run([(name, root, seed) for name in names], workers)
        for name, seconds, result in progress(finished, len(names)) if progress else finished:
            shown = ", ".join(f"{key} {value:.3f}" for key, value in result.items())
            logger.info("made %s in %.0f s (%s)", root / name, seconds, shown)
    return names


def _make(job: tuple[str, Path, int]) -> tuple[str, float, dict[str, float]]:
    name, root, seed = job
    import torch
    import transformers

    torch.set_num_threads(1)  # two processes on two cores; and the same sums on every machine
    transformers.utils.logging.disable_progress_bar()
    started = time.perf_counter()
    module, function = RECIPES[name].split(":")
    folder, draft = root / name, root / f".{name}.tmp{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        result = getattr(importlib.import_module(module), function)(draft, seed=seed)
        write_text(draft / "README.txt", _README)
        write_json(draft / MARKER, {"version": VERSION, "seed": seed, "lessons": result})
        if folder.exists():
            shutil.rmtree(folder)
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return name, time.perf_counter() - started, result


def _run(jobs: list, workers: int) -> Iterator[tuple[str, float, dict[str, float]]]:
    if workers <= 1:
        yield from map(_make, jobs)
        return
    from concurrent.futures import as_completed

    with worker_pool(workers) as pool:
        for future in as_completed([pool.submit(_make, job) for job in jobs]):
            yield future.result()
