"""The data set of the training tests, and where a run leaves its files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

NAMES = [f"clip_{i:02}" for i in range(12)]
_EMOTIONS = ("happy", "sad", "angry", "worried")


def write_training_set(dataset_root: Path) -> Path:
    """MER-Caption+ in its published layout: 12 samples with faces, sound and subtitles of different lengths."""
    import soundfile

    root = dataset_root / "mer2025-dataset"
    draw = np.random.default_rng(5)
    for name in NAMES:
        faces, sound = root / "openface_face" / name / f"{name}.npy", root / "audio" / f"{name}.wav"
        faces.parent.mkdir(parents=True)
        sound.parent.mkdir(parents=True, exist_ok=True)
        np.save(faces, draw.integers(0, 256, (8, 24, 24, 3), dtype=np.uint8))
        soundfile.write(sound, draw.normal(0, 0.1, 33_000), 16_000, subtype="PCM_16")
    for file, column, value in (
        ("track2_train_mercaptionplus.csv", "openset", lambda i: f"['{_EMOTIONS[i % 4]}', '{_EMOTIONS[i % 3]}']"),
        ("track3_train_mercaptionplus.csv", "reason", lambda i: "The person smiles and speaks. " * (1 + i % 5)),
        ("subtitle_chieng.csv", "english", lambda i: "I am so glad that you came. " * (i % 4)),
    ):
        with (root / file).open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows([["name", column], *([name, value(i)] for i, name in enumerate(NAMES))])
    return dataset_root


def run_folder(config_path: Path) -> Path:
    """The one folder that runs of a recipe have written to."""
    [folder] = (config_path.parent / "output" / config_path.stem).iterdir()
    return folder
