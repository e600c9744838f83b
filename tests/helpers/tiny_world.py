"""A tiny world for inference: models, a small data set in the published layout, and checkpoints of a training run."""

from __future__ import annotations

import csv
from pathlib import Path

SUBTITLES = ("I know.", "You said that you would come, and now look at this.", "", "No! Never, never again.", "嗯")


def write_corpus(root: Path, n_clips: int) -> Path:
    """OV-MERD+ with faces and sound, and videos that nobody needs to read: ``root/ovmerdplus-process``."""
    import numpy as np
    import soundfile

    folder = root / "ovmerdplus-process"
    for name in ("video", "audio", "openface_face"):
        (folder / name).mkdir(parents=True)
    names = [f"sample_{i:08d}" for i in range(n_clips)]
    for i, name in enumerate(names):
        random = np.random.default_rng(i)
        np.save(folder / "openface_face" / f"{name}.npy", random.integers(0, 256, (4, 24, 24, 3), dtype=np.uint8))
        sound = 0.1 * np.sin(np.arange(20_000 + 500 * i) * (0.01 + 0.003 * i)) + 0.01 * random.standard_normal(
            20_000 + 500 * i
        )
        soundfile.write(folder / "audio" / f"{name}.wav", sound, 16_000, subtype="PCM_16")
    for file, column, value in (
        ("ovlabel.csv", "openset", lambda i: "[happy]"),
        ("subtitle_eng.csv", "sentence", lambda i: SUBTITLES[i % len(SUBTITLES)]),
    ):
        with (folder / file).open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerows([("name", column), *((name, value(i)) for i, name in enumerate(names))])
    return root


def write_run(folder: Path, config, epochs: tuple[int, ...]) -> Path:
    """Checkpoints whose connectors and LoRA are random: their answers differ from clip to clip."""
    import torch

    from affectgpt.modeling.build import build_model
    from affectgpt.modeling.checkpoint import trained_state, write_checkpoint
    from affectgpt.processing.processor import AffectGPTProcessor

    tokenizer = AffectGPTProcessor.from_config(config).tokenizer
    for epoch in epochs:
        torch.manual_seed(epoch)
        model = build_model(config, device=torch.device("cpu"), tokenizer=tokenizer)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3 if "lora" not in name else 0.1)
        path = folder / f"checkpoint_{epoch:06d}_loss_{epoch / 100:.3f}.pth"
        write_checkpoint(path, {"model": trained_state(model), "config": {}, "epoch": epoch})
    return folder


YAML = """\
model:
  multi_fusion_type: attention
  video_fusion_type: attention
  audio_fusion_type: attention
  image_fusion_type: mean
  lora_r: 4
datasets:
  mercaptionplus:
    face_or_frame: multiface_audio_face_text
run:
  device: cpu
  num_workers: 0
inference:
  max_new_tokens: 24
  batch_size: 4
  base_root: {root}/output/results
paths:
  dataset_root: {root}/dataset
  models_root: {models}
  output_root: {root}/output
"""


class World:
    """Paths of the tiny world; ``config`` loads its file with options on top."""

    def __init__(self, root: Path, models: Path) -> None:
        self.root = root
        self.yaml = root / "tiny.yaml"
        self.yaml.write_text(YAML.format(root=root, models=models), encoding="utf-8")
        self.run_folder = root / "output" / "tiny" / "tiny_20260101000"

    def config(self, *options: str):
        from affectgpt.config.load import load_config

        return load_config(self.yaml, options)

    def benchmark(self, results: Path | str, *options: str, **arguments):
        import torch

        from affectgpt.inference.benchmark import Benchmark

        config = self.config(f"inference.base_root={results}/results", *options)
        return Benchmark(config, device=torch.device("cpu"), **arguments)

    def checkpoints(self, *options: str):
        from affectgpt.config.paths import select_checkpoints

        return select_checkpoints(self.config(*options))
