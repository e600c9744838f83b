"""A tiny recipe: a training set of drawn numbers, and a configuration file for train.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_recipe import write_training_set


@pytest.fixture(scope="session")
def training_set(tmp_path_factory) -> Path:
    return write_training_set(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def recipe(tmp_path, tiny_models, training_set):
    """``recipe(**run)`` writes tiny.yaml (two epochs of five steps of three samples) and gives its path."""

    def write(*, name: str = "tiny", mode: str = "audio_text", model: str = "", **run) -> Path:
        keys = {
            "lr_sched": "warmup_cosine", "init_lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 2, "max_epoch": 2,
            "iters_per_epoch": 5, "num_workers": 0, "device": "cpu", "log_freq": 1, **run,
        }  # fmt: skip
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            "model: {multi_fusion_type: attention, video_fusion_type: attention, audio_fusion_type: attention, "
            f"image_fusion_type: mean, lora_r: 4{', ' + model if model else ''}}}\n"
            f"datasets: {{mercaptionplus: {{face_or_frame: {mode}, label_type: hybird}}}}\n"
            f"paths: {{dataset_root: {training_set}, models_root: {tiny_models}, output_root: {tmp_path / 'output'}}}\n"
            "run:\n" + "".join(f"  {key}: {'null' if value is None else value}\n" for key, value in keys.items())
        )
        return path

    return write
