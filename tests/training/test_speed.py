"""What a step asks of a GPU, counted on a CPU: kernels, waits, what is copied when; and that answers stay the same."""

from __future__ import annotations

import copy
import math
import shutil
from dataclasses import replace

import pytest
import torch
from device_cost import Kernels, Waits, fake_flash_attention, narrow_qwen
from training_recipe import load_parts

from affectgpt.core.errors import DataError
from affectgpt.processing.collate import layout_of
from affectgpt.processing.data import split_by_tokens
from affectgpt.processing.processor import Example
from affectgpt.training.loop import Prefetcher
from affectgpt.training.objectives.sft import SupervisedObjective
from affectgpt.training.step import build_train_step, prepare_llm

CPU = torch.device("cpu")


@pytest.fixture
def parts(tmp_path, tiny_models, training_set):
    """Configuration, model and the first batches of the tiny recipe."""
    return load_parts(tmp_path, tiny_models, training_set)


@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_step_waits_for_the_gpu_once(parts, accumulated):
    """Besides the optimizer, whose step counts are on the CPU, and the GradScaler."""
    train_step = build_train_step(parts.model.train(), parts.config, CPU, resumed=None)
    train_step.optimizer.step = lambda: None
    with Waits() as waits:
        train_step.run(parts.batches[:accumulated], lr=1e-3)
    assert waits.found == ["tolist"]


def test_a_packed_step_waits_once_too(tmp_path, tiny_models, training_set):
    fresh = load_parts(tmp_path, tiny_models, training_set, packing=300, batch_size_train=4)
    assert all(batch.layout.rows is not None for batch in fresh.batches)
    train_step = build_train_step(fresh.model.train(), fresh.config, CPU, resumed=None)
    train_step.optimizer.step = lambda: None
    with Waits() as waits:
        train_step.run(fresh.batches[:1], lr=1e-3)
    assert waits.found == ["tolist"]


def wide(layers: int = 28, *, lora: bool = True):
    """A Qwen2.5 of 28 layers, narrow, in bfloat16."""
    from affectgpt.encoders.llm import LLMS
    from affectgpt.modeling.lora import add_lora

    return add_lora(narrow_qwen(layers), row=LLMS.get("Qwen25"), rank=16 if lora else 0).train()


def launches(llm, *, mask: torch.Tensor | None) -> int:
    """Forward and backward of one micro-batch of three samples."""
    embeds = torch.randn(3, 24, 32, dtype=torch.bfloat16, requires_grad=True)
    with Kernels() as kernels:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = llm.get_decoder()(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
            loss = hidden.float().sum()
        loss.backward()
    return kernels.total


def as_peft_has_it(llm) -> None:
    """peft's own forward in every LoRA layer."""
    from peft.tuners.lora import Linear

    for module in llm.modules():
        if isinstance(module, Linear):
            module.__class__ = Linear


def test_a_micro_batch_of_three_launches_at_least_a_quarter_fewer_kernels():
    ours, plain = wide(), wide()
    as_peft_has_it(plain)
    mask = torch.ones(3, 24, dtype=torch.bool)
    mask[0, 20:] = False
    before, now = launches(plain, mask=mask), launches(ours, mask=None)
    assert before / now >= 1.3, (before, now)


def test_lora_of_one_function_computes_what_peft_does():
    """Outputs and gradients in float32, dropout included; under autocast to the rounding of bfloat16."""
    ours, plain = wide(2).float(), wide(2).float()
    for name, parameter in ours.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    plain.load_state_dict(ours.state_dict())
    as_peft_has_it(plain)
    weights = torch.randn(3, 24, 32)
    for dtype, near in ((None, 1e-5), (torch.bfloat16, 5e-2)):
        found = []
        for llm in (ours, plain):
            torch.manual_seed(1)
            llm.zero_grad()
            embeds = torch.randn(3, 24, 32).requires_grad_()
            with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                hidden = llm.get_decoder()(inputs_embeds=embeds, use_cache=False).last_hidden_state
            (hidden.float() * weights).sum().backward()
            gradients = [p.grad.clone() for p in llm.parameters() if p.requires_grad]
            found.append([hidden.detach().float(), embeds.grad, *gradients])
        for one, other in zip(*found, strict=True):
            assert (one - other).norm() <= near * other.norm()


def test_lora_that_something_else_is_asked_of_is_pefts_own():
    """Merged, in eval mode with float32 LoRA on half weights outside autocast, frozen: no other numbers than peft's."""
    ours, plain = wide(2), wide(2)
    plain.load_state_dict(ours.state_dict())
    as_peft_has_it(plain)
    embeds = torch.randn(2, 8, 32, dtype=torch.bfloat16)
    for llm in (ours, plain):
        llm.eval()
    with torch.no_grad():
        assert torch.equal(ours(inputs_embeds=embeds).logits, plain(inputs_embeds=embeds).logits)


@pytest.mark.parametrize("room", [1, 300, 100_000], ids=["one-each", "some-rows", "one-row"])
def test_flash_attention_sees_no_other_sample_of_its_rows(
    parts, tiny_models, training_set, tmp_path, monkeypatch, room
):
    """Loss and gradients of packed rows through transformers' FlashAttention code are those of sdpa without packing."""
    fresh = load_parts(tmp_path, tiny_models, training_set, batch_size_train=4)
    batch, model = fresh.batches[0], fresh.model.eval()
    objective = SupervisedObjective(model, fresh.config.run)
    objective(batch).backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    plain = float(objective(batch))
    model.zero_grad()
    lengths = fake_flash_attention(monkeypatch)
    model.get_decoder().config._attn_implementation = "flash_attention_2"
    again = copy.copy(batch)
    again["layout"] = layout_of(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels,
        placeholder_ids=model.placeholder_ids, packing=room,
    )  # fmt: skip
    loss = objective(again)
    loss.backward()
    assert float(loss) == pytest.approx(plain, rel=1e-4)
    for one, other in zip([p.grad for p in model.parameters() if p.grad is not None], expected, strict=True):
        assert (one - other).norm() <= 1e-3 * (other.norm() + 1e-6)
    layers = model.llm.config.num_hidden_layers
    rows = again.layout.rows
    assert sum(lengths) == layers * rows.sample.numel()
    assert rows.max_length == max(lengths)


def test_a_pad_token_inside_a_packed_sample_is_refused_with_flash_attention(parts):
    model, batch = parts.model, parts.batches[0]
    mask = batch.attention_mask.clone()
    mask[0, 3] = False
    batch["layout"] = layout_of(
        input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels, placeholder_ids=model.placeholder_ids,
        packing=100,
    )  # fmt: skip
    model.llm.config._attn_implementation = "flash_attention_2"
    with pytest.raises(DataError, match="pad token inside"):
        model(**batch)


def test_a_hidden_token_inside_a_sample_stays_hidden_in_training(parts):
    """Causal attention without a mask is for padding on the right alone."""
    model, batch = parts.model.eval(), parts.batches[0]
    mask = batch.attention_mask.clone()
    mask[0, 3] = False
    hidden = copy.copy(batch)
    hidden["attention_mask"] = mask
    hidden["layout"] = layout_of(
        input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels, placeholder_ids=model.placeholder_ids
    )
    assert not hidden.layout.causal and batch.layout.causal
    expected = model(**hidden).loss
    model.training = True  # of the model alone: no dropout
    assert float(model(**hidden).loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(model(**batch).loss) != pytest.approx(float(expected), rel=1e-5)


def test_the_next_step_is_read_and_copied_before_the_gpu_is_waited_for(parts):
    events = []

    def stream():
        for number, batch in enumerate(parts.batches[:3]):
            events.append(f"read {number}")
            yield batch

    class Seen(Waits):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.__name__.startswith("_foreach_norm"):
                events.append("gradient's length")
            return super().__torch_dispatch__(func, types, args, kwargs)

    train_step = build_train_step(parts.model.train(), parts.config, CPU, resumed=None)
    batches = Prefetcher(stream(), count=1, device=CPU)
    for _ in range(2):
        fetched = batches.next()
        with Seen():
            train_step.run(fetched, lr=0.0, meanwhile=batches.fetch)
    assert events[:3] == ["read 0", "read 1", "gradient's length"]
    assert events[3] == "read 2"


def test_an_error_of_the_next_step_waits_for_this_one(parts):
    def stream():
        yield parts.batches[0]
        raise DataError("sample 'clip_09' is damaged")

    batches = Prefetcher(stream(), count=1, device=CPU)
    assert batches.next()[0].names == parts.batches[0].names
    batches.fetch()  # nothing is raised here: the step in progress is done first
    with pytest.raises(DataError, match="clip_09"):
        batches.next()


def test_a_batch_by_tokens_is_the_same_step(parts, tmp_path, tiny_models, training_set):
    """As many samples a step, in parts of up to so many tokens: one loss, one gradient, less memory."""
    whole = load_parts(tmp_path, tiny_models, training_set, batch_size_train=6)
    most = 2 * max(len(row) for batch in whole.batches for row in batch.input_ids)
    split = load_parts(tmp_path, tiny_models, training_set, batch_size_train=6, batch_tokens=most)
    assert [b.more for b in split.batches[:3]].count(True) >= 2
    assert all(batch.input_ids.numel() <= most for batch in split.batches)
    taken = []
    for fresh in (whole, split):
        fresh.model.load_state_dict(whole.model.state_dict())
        train_step = build_train_step(fresh.model.eval(), fresh.config, CPU, resumed=None)
        batches = Prefetcher(iter(fresh.batches), count=1, device=CPU)
        taken.append(train_step.run(batches.next(), lr=0.0))
    one, other = taken
    assert (one.samples, one.tokens) == (other.samples, other.tokens) == (6, one.tokens)
    assert other.loss == pytest.approx(one.loss, rel=1e-5)
    assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)


def test_parts_keep_the_order_and_one_that_is_too_long_is_alone():
    examples = [
        Example(name=str(i), dataset="", mode="", prompt="", input_ids=[0] * length)
        for i, length in enumerate((5, 9, 3, 40, 2, 2))
    ]
    names = [[e.name for e in part] for part in split_by_tokens(examples, 20, padded=True)]
    assert names == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    names = [[e.name for e in part] for part in split_by_tokens(examples, 20, padded=False)]
    assert names == [["0", "1", "2"], ["3"], ["4", "5"]]
    assert split_by_tokens(examples, 0, padded=True) == [examples]


def test_lengths_on_a_gpu_are_multiples_of_eight(tmp_path, tiny_models, training_set):
    from affectgpt.processing.data import training_batches
    from affectgpt.processing.processor import AffectGPTProcessor

    fresh = load_parts(tmp_path, tiny_models, training_set)
    config = replace(fresh.config, run=replace(fresh.config.run, device="cuda", num_workers=0))
    stream = training_batches(config, processor=AffectGPTProcessor.from_config(config, training=True))
    stream._loader.pin_memory = False  # there is no GPU to pin for
    batch, plain = next(stream(1)), fresh.batches[0]
    assert plain.input_ids.shape[1] % 8, "the sample's length must not be one by chance"
    assert batch.input_ids.shape[1] == math.ceil(plain.input_ids.shape[1] / 8) * 8
    assert batch.layout.n_learnt == plain.layout.n_learnt
    model = fresh.model.eval()
    assert float(model(**batch).loss) == pytest.approx(float(model(**plain).loss), rel=1e-5)


@pytest.mark.slow
def test_compiled_layers_serve_every_length_and_launch_a_third_of_the_kernels(monkeypatch):
    """Generated kernels of forward and backward, of all layers; no compilation for a second length."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    import torch._dynamo
    import torch._inductor.metrics as metrics

    torch._dynamo.reset()
    metrics.reset()
    plain, compiled = wide(4), wide(4)
    as_peft_has_it(plain)
    mask = torch.ones(3, 24, dtype=torch.bool)
    mask[0, 20:] = False
    eager = launches(plain, mask=mask) / 4

    class Run:
        attention, gradient_checkpointing, compile = "sdpa", False, True

    class Model:
        llm = compiled

        @staticmethod
        def get_decoder():
            return compiled.get_decoder()

    prepare_llm(Model, Run)
    counts = torch._dynamo.utils.counters["stats"]
    for length in (24, 24, 31, 40):
        embeds = torch.randn(3, length, 32, dtype=torch.bfloat16, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = compiled.get_decoder()(inputs_embeds=embeds, use_cache=False).last_hidden_state
        hidden.float().sum().backward()
        if length == 24:
            seen = counts["unique_graphs"], metrics.generated_kernel_count
    assert (counts["unique_graphs"], metrics.generated_kernel_count) == seen, "another length was compiled for"
    extern = 7 * 4 + 7  # of a layer: matrix products that no generated kernel does, attention
    per_layer = metrics.generated_kernel_count / counts["unique_graphs"]
    assert eager / per_layer >= 3, (eager, per_layer, extern)
