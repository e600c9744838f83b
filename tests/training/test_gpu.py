"""What only a GPU shows: half precision, its kernels, and that a run there is continued and read elsewhere.

``pytest -m gpu``. Models are tiny; numbers are compared with those of a CPU in float32.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_processes import run_train
from training_recipe import load_parts, run_folder, write_recipe

from affectgpt.cli.train import main
from affectgpt.core.errors import AffectGPTError, ConfigError
from affectgpt.modeling.build import build_model
from affectgpt.processing.processor import AffectGPTProcessor
from affectgpt.training.step import build_train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ROOT = Path(__file__).resolve().parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def take(tmp_path, tiny_models, training_set):
    """``take(device, **run)``: five steps without dropout: the train_step and its steps. All begin with one model."""
    weights: dict[str, torch.Tensor] = {}

    def five(device: torch.device, *, llm_dtype: str = "float32", fusion: str = "attention", **run):
        parts = load_parts(tmp_path, tiny_models, training_set, init_lr=1e-3)
        kinds = dict.fromkeys(("video_fusion_type", "audio_fusion_type", "multi_fusion_type"), fusion)
        model = replace(parts.config.model, llm_dtype=llm_dtype, encoder_dtype=llm_dtype, **kinds)
        config = replace(parts.config, model=model, run=replace(parts.config.run, device=device.type, **run))
        made = build_model(config, device=device, tokenizer=AffectGPTProcessor.from_config(config).tokenizer)
        weights.update({} if weights else {name: t.clone() for name, t in made.state_dict().items()})
        made.load_state_dict(weights)
        made.train()  # recomputation happens in train mode alone
        for module in made.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        train_step = build_train_step(made, config, device, resumed=None)
        if train_step.scaler is not None:  # torch's first scale overflows and is lowered by steps that change nothing
            train_step.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**8)
        return train_step, [train_step.run([batch], lr=1e-3) for batch in parts.batches]

    return five


@pytest.mark.parametrize(
    ("run", "tolerance"),
    [
        ({"amp": False}, 1e-4),
        ({"amp_dtype": "float16", "llm_dtype": "float16"}, 2e-2),
        ({"amp_dtype": "bfloat16", "llm_dtype": "bfloat16"}, 5e-2),
        ({"amp": False, "llm_dtype": "bfloat16"}, 5e-2),
        ({"amp_dtype": "float16", "llm_dtype": "float16", "fusion": "qformer"}, 2e-2),
        ({"amp": False, "fused_adamw": True}, 1e-4),
        ({"amp": False, "gradient_checkpointing": True}, 1e-4),
        ({"amp": False, "packing": 400}, 1e-4),
        ({"amp_dtype": "bfloat16", "llm_dtype": "bfloat16", "packing": 400, "fused_adamw": True}, 5e-2),
    ],
    ids=["float32", "float16", "bfloat16", "no autocast", "qformer", "fused", "checkpointing", "packing", "all"],
)
def test_losses_are_those_of_a_cpu_in_float32(take, run, tolerance):
    if run.get("amp_dtype") == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    _, expected = take(CPU, fusion=run.get("fusion", "attention"))
    train_step, found = take(GPU, **run)
    assert [step.loss for step in found] == pytest.approx([step.loss for step in expected], rel=tolerance)
    assert [step.tokens for step in found] == [step.tokens for step in expected]
    assert all(p.dtype == torch.float32 and p.device.type == "cuda" for p in train_step.parameters)
    assert (train_step.scaler is not None) == (run.get("amp_dtype") == "float16")
    assert bool(train_step.optimizer.defaults["fused"]) == ("fused_adamw" in run)


def test_a_float16_overflow_changes_no_weight_and_lowers_the_scale(take, tmp_path, tiny_models, training_set):
    train_step, _ = take(GPU, amp_dtype="float16", llm_dtype="float16")
    [batch, *_] = load_parts(tmp_path, tiny_models, training_set, init_lr=1e-3).batches
    before = [p.detach().clone() for p in train_step.parameters]
    scale = train_step.scaler.get_scale()
    train_step.parameters[0].register_hook(lambda gradient: gradient * math.inf)
    assert not math.isfinite(train_step.run([batch], lr=1e-3).grad_norm)
    assert train_step.scaler.get_scale() < scale
    assert all(torch.equal(a, b) for a, b in zip(before, train_step.parameters, strict=True))


def test_bfloat16_is_refused_where_the_gpu_lacks_it(take, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: False)
    with pytest.raises(ConfigError, match=r"run\.amp_dtype is bfloat16, which .* lacks"):
        take(GPU, amp_dtype="bfloat16")


def test_flash_attention_is_sdpas_or_reported_missing(take, tmp_path, tiny_models, training_set):
    if importlib.util.find_spec("flash_attn") is None:
        path = write_recipe(
            tmp_path, models=tiny_models, dataset=training_set, attention="flash_attention_2", device="cuda"
        )
        with pytest.raises(ConfigError, match="flash-attn is not installed"):
            main(["--cfg-path", str(path)])
        return
    half = {"amp_dtype": "bfloat16", "llm_dtype": "bfloat16"}
    for packing in (0, 400):
        _, expected = take(GPU, packing=packing, **half)
        _, found = take(GPU, packing=packing, attention="flash_attention_2", **half)
        assert [step.loss for step in found] == pytest.approx([step.loss for step in expected], rel=2e-2)


def test_compiled_layers_have_the_same_losses(take):
    _, expected = take(GPU, amp=False)
    _, found = take(GPU, amp=False, compile=True)
    assert [step.loss for step in found] == pytest.approx([step.loss for step in expected], rel=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_run_is_stopped_continued_and_read_on_a_cpu(tmp_path, tiny_models, training_set, dtype):
    path = write_recipe(
        tmp_path, models=tiny_models, dataset=training_set, mode="multiface_audio_face_text", device="cuda",
        amp_dtype=dtype, model=f"llm_dtype: {dtype}, encoder_dtype: {dtype}", resume_ckpt_path="auto",
        valid_ratio=0.25, valid_splits='["valid"]',
    )  # fmt: skip
    assert run_train("--cfg-path", str(path), "--options", "run.max_epoch=1").status == 0
    outcome = run_train("--cfg-path", str(path))
    assert outcome.status == 0 and "resuming from" in outcome.stderr, outcome.stderr
    folder = run_folder(path)
    state = torch.load(folder / "last.state", weights_only=True)
    assert (state["scaler"] is not None) == (dtype == "float16")
    assert all(tensor.device == CPU for tensor in state["model"].values())
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    assert all(line["memory_gb"] > 0 for line in lines if "loss" in line)
    record = json.loads((folder / "run.json").read_text())
    assert record["device"] == torch.cuda.get_device_name()
    # The losses of the held-out samples, measured on a CPU in float32 with the checkpoint of the last epoch.
    [held_out] = [k for k in lines[-1] if k.startswith("valid_loss")]
    [checkpoint] = folder.glob("checkpoint_000002*")
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--cfg-path", str(path), "--options", "run.evaluate=True",
         "run.device=cpu", "run.resume_ckpt_path=null", f"model.ckpt={checkpoint}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(result.stdout.split()[1]) == pytest.approx(lines[-1][held_out], rel=5e-2)


def test_memory_that_runs_out_names_what_to_lower(tmp_path, tiny_models, training_set):
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1e8 / total)
    try:
        with pytest.raises(AffectGPTError, match=r"lower run\.batch_size_train"):
            main(["--cfg-path", str(write_recipe(
                tmp_path, models=tiny_models, dataset=training_set, mode="faceonly", device="cuda",
                batch_size_train=100, max_epoch=1, iters_per_epoch=1,
            ))])  # fmt: skip
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_benchmark_reports_memory_and_utilisation():
    command = [sys.executable, str(ROOT / "benchmarks" / "training.py"), "--size", "tiny", "--steps", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"ours, feature store: \d+\.\d GB at most, LLM \d+ TFLOP/s", result), result
