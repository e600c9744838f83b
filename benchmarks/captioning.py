"""The ensemble at the size of MER-Caption+: seconds and memory of reading features and training five classifiers.

    python benchmarks/captioning.py [--clips 31000] [--store]

Random features as wide as CLIP's and HuBERT's (768, 1024), three emotion sets and one of valence. ``--store`` also
writes a feature store of so many clips (eight frames each, float16, about 0.9 GB) to a temporary folder, and measures
reading and averaging it. Ends with status 1 when an epoch of all five classifiers takes more than two minutes, or the
process has held more than 2 GB.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from records import Run, add_out_argument

from affectgpt.cli.common import run_cli

WIDTHS = (768, 1024)  # CLIP ViT-L/14, HuBERT-large
SETS = (("A", 6), ("B", 7), ("C", 4), ("D", 0))  # emotion classes; 0: valence
MOST_SECONDS, MOST_GB = 120.0, 2.0


def memory() -> float:
    """The most this process has held so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def random_sets(clips: int):
    """Labelled sets of ``clips`` clips in all."""
    import numpy as np

    from affectgpt.captioning.ensemble import EMOTION, VALENCE, Head, LabelledSet

    rng = np.random.default_rng(0)
    sets = []
    for number, (name, classes) in enumerate(SETS):
        count = clips // len(SETS) + (number < clips % len(SETS))
        words = tuple(f"word{i}" for i in range(classes))
        head = Head(name, EMOTION if classes else VALENCE, classes=words)
        visual, acoustic = (rng.standard_normal((count, width), dtype=np.float32) for width in WIDTHS)
        targets = rng.integers(classes, size=count) if classes else rng.uniform(-1, 1, count).astype(np.float32)
        sets.append(LabelledSet(head, [f"{name}{i}" for i in range(count)], visual, acoustic, targets))
    return sets


def measure_training(clips: int) -> dict[str, float]:
    """One epoch of each of five classifiers; prints."""
    from dataclasses import replace

    from affectgpt.captioning.ensemble import sets_of, train_one
    from affectgpt.config.captioning import EnsembleConfig

    sets = random_sets(clips)
    spec = EnsembleConfig(epochs=1, leave_out=0)
    heads = [lesson.head for lesson in sets]
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(spec.models):
        chosen = [sets[i] for i in sets_of(number, heads, leave_out=spec.leave_out)]
        train_one(replace(spec, seed=number), chosen, seed=number)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"one epoch of {spec.models} classifiers, {clips} clips: {wall:.1f} s ({cpu:.1f} s of processor time), "
          f"at most {memory():.2f} GB")  # fmt: skip
    return {"classifiers": spec.models, "clips": clips, "wall_seconds": wall, "processor_seconds": cpu,
            "peak_gb": memory()}  # fmt: skip


def measure_store(clips: int, folder: Path) -> dict[str, float]:
    """Reading and averaging stored features; prints."""
    import torch

    from affectgpt.captioning.ensemble import pool
    from affectgpt.core.types import Sample
    from affectgpt.processing.features import FeatureReader, FeatureWriter

    names = [f"clip{i}" for i in range(clips)]
    for width in WIDTHS:
        writer = FeatureWriter(folder / str(width), key={"width": width}, dtype="float16")
        feature = torch.randn(8, width)
        for name in names:
            writer.write(name, feature)
        writer.close()
    readers = tuple(FeatureReader(folder / str(width), key={"width": width}) for width in WIDTHS)
    started, before = time.perf_counter(), memory()
    found = pool(readers, [Sample(name=name, dataset="x") for name in names])  # type: ignore[arg-type]
    seconds = time.perf_counter() - started
    print(f"reading {len(found.names)} clips from the store: {seconds:.1f} s, at most {memory():.2f} GB "
          f"({before:.2f} before)")  # fmt: skip
    return {"clips": len(found.names), "wall_seconds": seconds, "peak_gb": memory(), "peak_before_gb": before}


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 when a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=31_000)
    parser.add_argument("--store", action="store_true", help="also read a feature store of that size (0.9 GB of disk)")
    add_out_argument(parser, "captioning")
    args = parser.parse_args(argv)
    bench, numbers = Run(parser, args), {}
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if args.store:
        with tempfile.TemporaryDirectory() as folder:
            numbers["store"] = measure_store(args.clips, Path(folder))
    numbers["epoch"] = measure_training(args.clips)
    good = numbers["epoch"]["wall_seconds"] <= MOST_SECONDS and memory() <= MOST_GB
    print("within" if good else "NOT within", f"{MOST_SECONDS:.0f} s and {MOST_GB:.0f} GB")
    bench.record("captioning", numbers, model="none")
    return int(not good)


if __name__ == "__main__":
    sys.exit(run_cli(main))
