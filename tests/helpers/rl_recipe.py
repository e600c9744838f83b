"""Reinforcement learning of the tiny model: clips of its own with open labels, and a reward of the tests'."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from training_recipe import NAMES

CLIPS = NAMES[4:]  # the first four are test clips of OV-MERD+ there
EMOTIONS = ("happy", "sad", "angry", "worried")
REWARDS = Path(__file__).with_name("rl_rewards.py")  # a user's own


def write_start(folder: Path, models: Path) -> Path:
    """A checkpoint to begin with, whose connectors and LoRA are random."""
    from tiny import tiny_config

    from affectgpt.modeling.build import build_model
    from affectgpt.modeling.checkpoint import trained_state, write_checkpoint
    from affectgpt.processing.processor import AffectGPTProcessor

    config = tiny_config(models)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tokenizer = AffectGPTProcessor.from_config(config).tokenizer
        model = build_model(config, device=torch.device("cpu"), tokenizer=tokenizer)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.05 if "lora" in name else 0.3)
    return write_checkpoint(folder / "start.pth", {"model": trained_state(model), "config": {}, "epoch": 1})


def write_rl_recipe(
    folder: Path,
    *,
    models: Path,
    dataset: Path,
    start: Path,
    name: str = "rl",
    grpo: str = "",
    labels=lambda i: EMOTIONS[i % 4],
    clips=CLIPS,
    mode: str = "face_text",
    **run,
) -> Path:
    """A configuration: two epochs of three steps of two clips with four answers each, where ``run`` is silent."""
    keys = {
        "objective": "grpo", "lr_sched": "warmup_cosine", "init_lr": 1e-2, "min_lr": 1e-3, "warmup_lr": 1e-3,
        "warmup_steps": 1, "max_epoch": 2, "iters_per_epoch": 3, "batch_size_train": 2, "num_workers": 0,
        "device": "cpu", "log_freq": 1, "weight_decay": 0.0, **run,
    }  # fmt: skip
    table = folder / f"{name}.csv"
    with table.open("w", newline="") as handle:
        rows = [[clip, "I am glad.", f"[{labels(i)}]"] for i, clip in enumerate(clips)]
        csv.writer(handle).writerows([["name", "subtitle", "ovlabel"], *rows])
    media = dataset / "mer2025-dataset"
    settings = "group_size: 4, lexicon: builtin"
    if "max_new_tokens" not in grpo:
        settings += ", max_new_tokens: 5"
    if "rewards" not in grpo:
        settings += ", rewards: {letters: 1.0, wheel: 0.0}"
    path = folder / f"{name}.yaml"
    path.write_text(
        f"imports: [{REWARDS}]\n"
        "model: {multi_fusion_type: attention, video_fusion_type: attention, audio_fusion_type: attention, "
        f"image_fusion_type: mean, lora_r: 4, ckpt: {start}}}\n"
        f"datasets: {{mine: {{path: {table}, columns: {{name: name, subtitle: subtitle, ovlabel: ovlabel}}, "
        f"folders: {{face: {media / 'openface_face'}, audio: {media / 'audio'}}}, "
        f"face_or_frame: {mode}, label_type: ovlabel}}}}\n"
        f"paths: {{dataset_root: {dataset}, models_root: {models}, output_root: {folder / 'output'}}}\n"
        f"grpo: {{{settings}{', ' + grpo if grpo else ''}}}\n"
        "run:\n" + "".join(f"  {key}: {'null' if value is None else value}\n" for key, value in keys.items())
    )
    return path
