"""The data set of the training tests, and where a run leaves its files."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    _write_test_set(dataset_root, root)
    return dataset_root


def _write_test_set(dataset_root: Path, media: Path) -> None:
    """OV-MERD+ of four samples, with the media of the training set."""
    root = dataset_root / "ovmerdplus-process"
    root.mkdir()
    for folder in ("audio", "openface_face"):
        (root / folder).symlink_to(media / folder)
    for file, column, value in (
        ("ovlabel.csv", "openset", "['happy', 'worried']"),
        ("subtitle_eng.csv", "sentence", "I am so glad that you came."),
    ):
        with (root / file).open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows([["name", column], *([name, value] for name in NAMES[:4])])


def write_recipe(
    folder: Path, *, models: Path, dataset: Path, name: str = "tiny", mode: str = "audio_text", model: str = "", **run
) -> Path:
    """A configuration over the tiny models: two epochs of five steps of three samples where ``run`` is silent."""
    keys = {
        "lr_sched": "warmup_cosine", "init_lr": 1e-3, "min_lr": 1e-4, "warmup_lr": 1e-6, "warmup_steps": 2,
        "max_epoch": 2, "iters_per_epoch": 5, "num_workers": 0, "device": "cpu", "log_freq": 1, **run,
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(
        "model: {multi_fusion_type: attention, video_fusion_type: attention, audio_fusion_type: attention, "
        f"image_fusion_type: mean, lora_r: 4{', ' + model if model else ''}}}\n"
        f"datasets: {{mercaptionplus: {{face_or_frame: {mode}, label_type: hybird}}}}\n"
        f"paths: {{dataset_root: {dataset}, models_root: {models}, output_root: {folder / 'output'}}}\n"
        "run:\n" + "".join(f"  {key}: {'null' if value is None else value}\n" for key, value in keys.items())
    )
    return path


def run_folder(config_path: Path) -> Path:
    """The one folder that runs of a recipe have written to."""
    [folder] = (config_path.parent / "output" / config_path.stem).iterdir()
    return folder


@dataclass
class Parts:
    """What a step needs, in this process."""

    config: Any
    model: Any
    batches: list


def load_parts(folder: Path, models: Path, dataset: Path, **run) -> Parts:
    """The tiny recipe with audio, faces and text, built: configuration, model, the five batches of epoch 1."""
    import torch

    from affectgpt.config.load import load_config
    from affectgpt.modeling.build import build_model
    from affectgpt.processing.data import training_batches
    from affectgpt.processing.processor import AffectGPTProcessor

    config = load_config(write_recipe(folder, models=models, dataset=dataset, mode="multiface_audio_face_text", **run))
    made = AffectGPTProcessor.from_config(config)
    stream = training_batches(config, processor=made)
    torch.manual_seed(3)
    model = build_model(config, device=torch.device("cpu"), tokenizer=made.tokenizer)
    return Parts(config, model, list(stream(1)))
