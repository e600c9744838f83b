"""The fast recipe: the released one's samples, schedule and loss, and a curve that is within what a seed changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from training_recipe import write_recipe

from affectgpt.cli.extract_features import main as extract_features
from affectgpt.config.load import load_config
from affectgpt.config.schema import to_dict
from affectgpt.core.runtime import seed_everything
from affectgpt.modeling.build import build_model
from affectgpt.processing.data import training_batches
from affectgpt.processing.processor import AffectGPTProcessor
from affectgpt.training.loop import Prefetcher
from affectgpt.training.step import build_train_step

CONFIGS = Path(__file__).resolve().parents[2] / "train_configs"
RELEASED = "emercoarse_highlevelfilter4_outputhybird_bestsetup_bestfusion_lz"
CPU = torch.device("cpu")
STEPS, WINDOW, LR = 200, 20, 3e-3  # the demo's learning rate


def differing(one: str, other: str) -> set[str]:
    """Dotted keys whose values differ."""

    def flat(name: str) -> dict[str, object]:
        found: dict[str, object] = {}

        def walk(value: object, prefix: str) -> None:
            if isinstance(value, dict):
                for key, inner in value.items():
                    walk(inner, f"{prefix}.{key}" if prefix else str(key))
            else:
                found[prefix] = value

        walk(to_dict(load_config(CONFIGS / f"{name}.yaml")), "")
        return found

    a, b = flat(one), flat(other)
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)} - {"name"}


def test_the_fast_recipe_changes_arithmetic_alone():
    assert differing(RELEASED, f"{RELEASED}_fast") == {
        "model.llm_dtype", "datasets.mercaptionplus.features", "run.amp_dtype", "run.packing", "run.batch_tokens",
        "run.compile", "run.fused_adamw",
    }  # fmt: skip


def test_the_larger_batch_sees_as_many_samples_an_epoch():
    assert differing(f"{RELEASED}_fast", f"{RELEASED}_fast24") == {
        "run.batch_size_train", "run.iters_per_epoch", "run.warmup_steps",
    }  # fmt: skip
    runs = [load_config(CONFIGS / f"{name}.yaml").run for name in (RELEASED, f"{RELEASED}_fast24")]
    assert len({run.batch_size_train * run.iters_per_epoch for run in runs}) == 1


def curve(folder: Path, *, models: Path, dataset: Path, seed: int, fast: bool) -> torch.Tensor:
    """Mean losses of WINDOW steps each, of the tiny recipe with the keys of the released or of the fast one."""
    folder.mkdir()
    keys: dict = {"iters_per_epoch": STEPS, "max_epoch": 1, "init_lr": LR, "min_lr": 1e-4, "seed": seed}
    if fast:
        recipe = yaml.safe_load((CONFIGS / f"{RELEASED}_fast.yaml").read_text())
        keys |= {key: value for key, value in recipe["run"].items() if key != "compile" or shutil.which("g++")}
    path = write_recipe(folder, models=models, dataset=dataset, mode="multiface_audio_face_text", **keys)
    # Of both: in float32 stored features are those of the step to the bit, and the encoders would be most of the time.
    extract_features(["--cfg-path", str(path)])
    config = load_config(path, ["datasets.mercaptionplus.features=require"])
    processor = AffectGPTProcessor.from_config(config, training=True)
    stream = training_batches(config, processor=processor)
    seed_everything(seed)
    dtype = torch.bfloat16 if fast else torch.float32
    model = build_model(config, device=CPU, tokenizer=processor.tokenizer, encoders=False, dtype=dtype)
    train_step = build_train_step(model.train(), config, CPU, resumed=None)
    if fast:
        train_step.amp_dtype = torch.bfloat16  # which only a GPU's autocast would take by itself
    batches = Prefetcher(stream(1), count=1, device=CPU)
    losses = [train_step.run(batches.next(), lr=LR).loss for _ in range(STEPS)]
    return torch.tensor(losses).view(-1, WINDOW).mean(dim=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_its_curve_is_within_the_spread_of_three_seeds(tmp_path, tiny_models, training_set):
    shared = {"models": tiny_models, "dataset": training_set}
    seeds = torch.stack([curve(tmp_path / str(s), seed=s, fast=False, **shared) for s in (42, 43, 44)])
    fast = curve(tmp_path / "fast", seed=42, fast=True, **shared)
    spread = seeds.max(dim=0).values - seeds.min(dim=0).values
    print(seeds, fast, spread)
    assert seeds[0, 0] > 2 * seeds[0, -1], "the recipe does not learn"
    assert (fast - seeds.mean(dim=0)).abs().mean() <= spread.mean()
    assert abs(fast[-1] - seeds[:, -1].mean()) <= spread.max()
