"""Estimates of memory and operations against what is counted: saved tensors, the operations of a step."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import folder_of, tiny_config
from torch.utils.flop_counter import FlopCounterMode
from training_recipe import load_parts

from affectgpt.config.load import load_config
from affectgpt.modeling.build import build_empty_model
from affectgpt.training.dry_run import Shape, step_flop, step_memory
from affectgpt.training.objectives.sft import SupervisedObjective
from affectgpt.training.step import build_train_step

ROOT = Path(__file__).resolve().parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
WIDER = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4}


@pytest.fixture(scope="module")
def models(tiny_models, tmp_path_factory) -> Path:
    """The tiny models, with an LLM whose layers outweigh the rest, as they do at real size."""
    from transformers import AutoConfig, AutoModelForCausalLM

    root = shutil.copytree(tiny_models, tmp_path_factory.mktemp("wider") / "models")
    folder = folder_of(root, "Qwen25")
    numbers = json.loads((folder / "config.json").read_text()) | WIDER
    numbers.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(numbers))
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    save_file(made.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return root


def shape_of(batch) -> Shape:
    return Shape.of_batch(batch, learnt=SupervisedObjective.terms(batch))


@pytest.mark.parametrize(
    "run", [{}, {"batch_size_train": 6}, {"attention": "eager"}, {"packing": 400, "batch_size_train": 6}],
    ids=["batch 3", "batch 6", "eager", "packing"],
)  # fmt: skip
def test_activations_are_what_a_forward_pass_keeps(tmp_path, models, training_set, run):
    """Bytes of all storages that are saved for backward, weights left out: within 15 %."""
    parts = load_parts(tmp_path, models, training_set, **run)
    config, batch = parts.config, parts.batches[0]
    train_step = build_train_step(parts.model, config, CPU, resumed=None)
    parts.model.train()
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = train_step.objective(batch)
    weights = {p.untyped_storage().data_ptr() for p in parts.model.parameters()}
    counted = sum(storage.nbytes() for at, storage in kept.items() if at not in weights)
    del loss
    shape = shape_of(batch)
    memory = step_memory(config, CPU, shape=shape)
    assert memory.activations + memory.scores / 3 == pytest.approx(counted, rel=0.15)  # of scores the logarithms


def test_weights_gradients_and_optimizer_are_what_a_step_holds(tmp_path, models, training_set):
    parts = load_parts(tmp_path, models, training_set)
    train_step = build_train_step(parts.model, parts.config, CPU, resumed=None)
    train_step.run(parts.batches[:1], lr=1e-3)
    held = sum(v.numel() * v.itemsize for s in train_step.optimizer.state.values() for v in s.values() if v.ndim)
    memory = step_memory(parts.config, CPU)
    assert memory.weights == sum(p.numel() * p.itemsize for p in parts.model.parameters())
    # What a batch has not used (the image branch) has neither gradient nor state yet.
    unused = sum(p.numel() for p in train_step.parameters if p not in train_step.optimizer.state)
    assert memory.optimizer == held + 8 * unused
    assert memory.gradients == 4 * sum(p.numel() for p in train_step.parameters)


def published(*options: str):
    path = next((ROOT / "train_configs").glob("emercoarse*_lz.yaml"))
    return load_config(path, ["paths.models_root=/nowhere", *options])


def test_the_published_step_on_a_gpu():
    """Measured at these shapes without this code: 8.3 MB of activations per token with peft's own layers, of which ours
    (a bit per dropped number, the input once for all that share it) keep nine tenths."""
    config = published("run.amp_dtype=bfloat16", "model.llm_dtype=bfloat16", "model.encoder_dtype=bfloat16")
    shape = Shape(rows=3, length=200, learnt=240)
    memory = step_memory(config, GPU, shape=shape)
    assert memory.activations / 600 == pytest.approx(0.91 * 8.3e6, rel=0.02)
    assert memory.gradients == 4 * 57_168_644 and memory.optimizer == 2 * memory.gradients
    more = step_memory(config, GPU, shape=replace(shape, rows=6))
    assert more.activations == pytest.approx(2 * memory.activations, rel=0.02)  # but for weights that are cast
    again = replace(config, run=replace(config.run, gradient_checkpointing=True))
    assert step_memory(again, GPU, shape=shape).activations < 0.1 * memory.activations
    carried = replace(config, run=replace(config.run, accum_grad_iters=2))
    assert step_memory(carried, GPU, shape=shape).total == memory.total + memory.gradients


def test_shapes_of_a_configuration(tmp_path):
    run = tiny_config(tmp_path).run
    assert Shape.of(samples=3, length=200, learnt=9, run=run) == Shape(3, 200, 9)
    assert Shape.of(samples=10, length=200, learnt=9, run=replace(run, packing=512)) == Shape(4, 512, 9)
    assert Shape.of(samples=2, length=200, learnt=9, run=replace(run, packing=2048)) == Shape(1, 400, 9)
    assert Shape.of(samples=2, length=900, learnt=9, run=replace(run, packing=512)) == Shape(2, 900, 9)


def test_operations_of_the_published_model():
    flop = step_flop(build_empty_model(published()))
    assert flop.token == pytest.approx(26.3e9, rel=0.01) and flop.learnt == pytest.approx(2.2e9, rel=0.01)


def test_operations_are_those_that_a_step_takes(tmp_path, models, training_set):
    """Matrix products of forward and backward, as torch counts them, with features in the place of media."""
    parts = load_parts(tmp_path, models, training_set)
    batch, model = parts.batches[0], parts.model
    with torch.no_grad():
        features = model.encode(**batch)
    rest = {key: value for key, value in batch.items() if key not in tuple(batch.media)}
    encoded = type(batch)(rest, features=features, mode=batch.mode)
    model.train()
    objective = build_train_step(model, parts.config, CPU, resumed=None).objective
    with FlopCounterMode(display=False) as counter:
        objective(encoded).backward()
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op))
    flop = step_flop(model).of(tokens=batch.input_ids.numel(), learnt=SupervisedObjective.terms(batch))
    assert flop == pytest.approx(counted, rel=0.05)
