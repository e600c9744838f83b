"""One step: its loss, packing, clipping, recomputation, and a golden curve."""

from __future__ import annotations

import copy
import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from training_recipe import load_parts

from affectgpt.config.schema import RunConfig
from affectgpt.core.types import IGNORE_INDEX, Batch
from affectgpt.processing.collate import layout_of, row_of_each
from affectgpt.training.objectives.sft import SupervisedObjective
from affectgpt.training.optim import get_schedule
from affectgpt.training.step import build_train_step, prepare_llm

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "training_curve.json"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parts(tmp_path_factory, tiny_models, training_set):
    """Configuration, model and the first batches of the tiny recipe, batch 4."""
    return load_parts(tmp_path_factory.mktemp("step"), tiny_models, training_set, batch_size_train=4)


@pytest.fixture
def model(parts):
    parts.model.eval()  # no dropout: two ways of computing one thing can be compared
    parts.model.zero_grad()
    return parts.model


terms = SupervisedObjective.terms


def objective_of(model, **run) -> SupervisedObjective:
    return SupervisedObjective(model, RunConfig(**run))


def packed(batch: Batch, room: int, model) -> Batch:
    """The batch as the loader makes it with ``run.packing``."""
    again = copy.copy(batch)
    again["layout"] = layout_of(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels,
        placeholder_ids=model.placeholder_ids, packing=room,
    )  # fmt: skip
    return again


def gradients(model, objective, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    objective(batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(ours: dict, theirs: dict) -> None:
    """To rounding, which goes by the largest terms of a sum: small numbers of a gradient are sums of large ones."""
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() <= 1e-5 * (1 + gradient.abs().max()), name


def test_the_objective_is_the_models_mean_times_its_terms(parts, model):
    for batch in parts.batches:
        total = objective_of(model)(batch)
        assert float(total) == pytest.approx(float(model(**batch).loss) * terms(batch), rel=1e-5)


@pytest.mark.parametrize("room", [1, 300, 100_000], ids=["one-each", "some-rows", "one-row"])
def test_packing_changes_neither_loss_nor_gradient(parts, model, room):
    for batch in parts.batches[:2]:
        objective, side_by_side = objective_of(model), packed(batch, room, model)
        assert float(objective(side_by_side)) == pytest.approx(float(objective(batch)), rel=1e-5)
        assert_close(gradients(model, objective, side_by_side), gradients(model, objective, batch))


def test_packed_rows_waste_less_than_a_tenth_where_padding_wastes_more(parts, model):
    """The batches are the very same, so every sample is drawn as often, and label types mix, as without packing."""
    padded = in_rows = real = 0
    for batch in parts.batches:
        padded += batch.input_ids.numel()
        in_rows += packed(batch, 2048, model).layout.rows.sample.numel()
        real += int((batch.attention_mask | (batch.labels != IGNORE_INDEX)).sum())
    assert 1 - real / padded > 0.1
    assert 1 - real / in_rows < 0.1


def test_samples_go_to_rows_with_room():
    assert row_of_each([5, 9, 3, 2], 10) == [1, 0, 1, 1]
    assert row_of_each([20, 1], 10) == [0, 1]  # longer than a row: one of its own
    lengths = [17, 80, 33, 64, 5, 41, 99, 12]
    rows = row_of_each(lengths, 100)
    for row in set(rows):
        assert sum(n for n, r in zip(lengths, rows, strict=True) if r == row) <= 100


KERNELS = {"gradient_checkpointing": True, "attention": "eager", "compile": True}


@pytest.fixture
def changed(parts, tiny_models, training_set, tmp_path):
    """``changed(key)``: a copy of the model prepared with KERNELS[key]; both in train mode, without dropout."""

    def make(key: str):
        other = load_parts(tmp_path, tiny_models, training_set, batch_size_train=4).model
        other.load_state_dict(parts.model.state_dict())
        prepare_llm(other, replace(parts.config.run, **{key: KERNELS[key]}))
        for model in (parts.model, other):
            model.train()
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        return other

    return make


def assert_same_gradients(other, parts) -> None:
    for batch in parts.batches[:2]:  # of different lengths
        assert_close(
            gradients(other, objective_of(other), batch), gradients(parts.model, objective_of(parts.model), batch)
        )


@pytest.mark.parametrize(
    "key", ["gradient_checkpointing", "attention", pytest.param("compile", marks=pytest.mark.slow)]
)
def test_recomputation_kernels_and_compilation_change_no_gradient(parts, changed, monkeypatch, key):
    if key == "compile":  # the graphs of forward and backward, run by torch as they are: no compiler needed
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    other = changed(key)
    decoder = other.llm.get_decoder()
    if key == "gradient_checkpointing":
        assert all(layer.gradient_checkpointing for layer in decoder.layers)
    elif key == "attention":
        assert decoder.config._attn_implementation == "eager"
    else:
        assert all(layer._compiled_call_impl is not None for layer in decoder.layers)
    assert_same_gradients(other, parts)


@pytest.mark.slow
def test_compiled_kernels_change_no_gradient(parts, changed):
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    assert_same_gradients(changed("compile"), parts)


def test_clipping_shortens_the_gradient_and_reports_the_whole(parts, tiny_models, training_set, tmp_path):
    lengths = {}
    for clip in (None, 0.01):
        fresh = load_parts(tmp_path, tiny_models, training_set, clip_grad_norm=clip)
        train_step = build_train_step(fresh.model.train(), fresh.config, CPU, resumed=None)
        seen = []
        train_step.optimizer.register_step_pre_hook(
            lambda optimizer, *_, seen=seen: seen.append(
                math.sqrt(sum(float(p.grad.square().sum()) for g in optimizer.param_groups for p in g["params"]
                              if p.grad is not None))
            )
        )  # fmt: skip
        torch.manual_seed(0)
        lengths[clip] = (train_step.run(fresh.batches[:1], lr=1e-3).grad_norm, seen[0])
    whole, used = lengths[None]
    assert whole == pytest.approx(used, rel=1e-4) and whole > 0.1
    assert lengths[0.01] == (pytest.approx(whole, rel=1e-5), pytest.approx(0.01, rel=1e-3))


def test_a_wholly_unreadable_batch_is_a_step_of_the_others(parts, tiny_models, training_set, tmp_path):
    fresh = load_parts(tmp_path, tiny_models, training_set)
    train_step = build_train_step(fresh.model, fresh.config, CPU, resumed=None)
    fresh.model.eval()
    expected = float(objective_of(fresh.model)(fresh.batches[0])) / terms(fresh.batches[0])
    step = train_step.run([None, fresh.batches[0]], lr=0.0)
    assert step.loss == pytest.approx(expected, rel=1e-5)
    assert train_step.run([None], lr=0.0).samples == 0


def five_steps(folder, tiny_models, training_set) -> list[float]:
    fresh = load_parts(folder, tiny_models, training_set, init_lr=5e-3)
    train_step = build_train_step(fresh.model.train(), fresh.config, CPU, resumed=None)
    schedule = get_schedule(fresh.config.run)
    torch.manual_seed(42)
    return [train_step.run([batch], lr=schedule(1, i)).loss for i, batch in enumerate(fresh.batches)]


def test_five_steps_are_golden_and_repeatable(tmp_path, tiny_models, training_set):
    curve = five_steps(tmp_path, tiny_models, training_set)
    assert curve == five_steps(tmp_path, tiny_models, training_set)
    assert curve == pytest.approx(json.loads(GOLDEN.read_text())["loss"], abs=2e-4)


def steps(parts, tiny_models, training_set, folder, *, prepare=lambda train_step: None):
    """Two steps of a fresh model without dropout: the train_step, its steps, its trained weights."""
    fresh = load_parts(folder, tiny_models, training_set)
    fresh.model.load_state_dict(parts.model.state_dict())
    train_step = build_train_step(fresh.model.eval(), fresh.config, CPU, resumed=None)
    prepare(train_step)
    taken = [train_step.run([batch], lr=1e-3) for batch in fresh.batches[:2]]
    return train_step, taken, [p.detach().clone() for p in train_step.parameters]


def test_scaled_losses_take_the_same_steps(parts, tiny_models, training_set, tmp_path):
    """What float16 needs on a GPU: the loss is scaled up, the gradient down again before it is measured and used."""
    _, plain, weights = steps(parts, tiny_models, training_set, tmp_path)

    def scale(train_step):
        train_step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)

    _, scaled, scaled_weights = steps(parts, tiny_models, training_set, tmp_path, prepare=scale)
    for one, other in zip(plain, scaled, strict=True):
        assert (other.loss, other.grad_norm) == (pytest.approx(one.loss), pytest.approx(one.grad_norm, rel=1e-4))
    moved = torch.cat([(a - b).abs().flatten() for a, b in zip(weights, scaled_weights, strict=True)])
    assert moved.mean() < 1e-6


def test_an_overflow_changes_no_weight_and_lowers_the_scale(parts, tiny_models, training_set, tmp_path):
    before = []

    def overflow(train_step):
        train_step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        train_step.parameters[0].register_hook(lambda gradient: gradient * math.inf)
        before.extend(p.detach().clone() for p in train_step.parameters)

    train_step, taken, weights = steps(parts, tiny_models, training_set, tmp_path, prepare=overflow)
    assert all(math.isfinite(step.loss) and not math.isfinite(step.grad_norm) for step in taken)
    assert train_step.scaler.get_scale() == 2.0**10  # halved by each of the two steps
    assert all(torch.equal(one, other) for one, other in zip(before, weights, strict=True))


def test_bfloat16_arithmetic_is_near_float32(parts, tiny_models, training_set, tmp_path):
    def bfloat16(train_step):
        train_step.amp_dtype = torch.bfloat16

    _, plain, _ = steps(parts, tiny_models, training_set, tmp_path)
    train_step, taken, weights = steps(parts, tiny_models, training_set, tmp_path, prepare=bfloat16)
    assert [s.loss for s in taken] == pytest.approx([s.loss for s in plain], rel=2e-2)
    assert [s.loss for s in taken] != [s.loss for s in plain]
    assert all(w.dtype == torch.float32 for w in weights) and train_step.scaler is None
