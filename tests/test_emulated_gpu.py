"""What only CUDA refuses or waits for, on an emulated device: released recipe's types, engine, waits of the CPU.

The device (../shared/tools/emulated_cuda) computes on the CPU, refuses what CUDA refuses (operands on two devices,
mixed types in a product) and counts each wait with the line that waits. It takes hold when Python starts, so that the
tests here run in processes of their own: the first test starts them, the others are what they run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_world import World, write_corpus, write_run
from training_recipe import load_parts, write_training_set

ROOT = Path(__file__).resolve().parents[1]
EMULATED = os.environ.get("FAKECUDA") == "1"
inside = pytest.mark.skipif(not EMULATED, reason="run by test_on_an_emulated_gpu")
GPU = torch.device("cuda")
FORCED = ("-p", "forcecuda")  # what asks for a CPU gets the device
RUNS = {
    "steps": (
        "tests/training/test_gpu.py",
        "-m",
        "gpu",
        "-k",
        "(float16 or overflow or qformer or packing) and not (stopped and bfloat16)",
    ),
    "waits": ("tests/test_emulated_gpu.py", "-k", "waits_of or two_devices or arithmetic"),
    "engine": ("tests/inference/test_engines.py", *FORCED, "-k", "(contract or watched) and not played"),
    "grpo": ("tests/training/test_grpo.py", *FORCED, "-k", "last_step_left or embedded_once"),
}


@pytest.mark.skipif(EMULATED, reason="starts the processes whose device is emulated")
@pytest.mark.parametrize("what", RUNS)
def test_on_an_emulated_gpu(shared, what):
    tools = shared / "tools" / "emulated_cuda"
    if not tools.is_dir() or shutil.which("g++") is None:
        pytest.skip("needs ../shared/tools/emulated_cuda and g++")
    environment = {
        **os.environ, "FAKECUDA": "1", "FAKE_GPUS": "2" if what == "waits" else "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tools)]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "-rA", *RUNS[what]],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "PASSED" in done.stdout, done.stdout[-6000:] + done.stderr[-2000:]
    assert "SKIPPED" not in done.stdout, done.stdout[-3000:]


def waits(call: Callable[[], object]) -> Counter[tuple[str, str]]:
    """(kind, line of the package) → how often the CPU waited for the device during a call."""
    import fakecuda

    fakecuda.sync_where.clear()
    fakecuda.TRACE_SYNC = True
    try:
        call()
    finally:
        fakecuda.TRACE_SYNC = False
    return Counter(fakecuda.sync_where)


def on_gpu(config, **model):
    from dataclasses import replace

    numbers = replace(config.model, llm_dtype="float16", encoder_dtype="float16", **model)
    return replace(config, model=numbers, run=replace(config.run, device="cuda"))


@inside
def test_waits_of_a_step(tmp_path, tiny_models):
    """The loss and the norm of the gradient are read once a step; media and layout are moved without waiting."""
    from affectgpt.modeling.build import build_model
    from affectgpt.processing.processor import AffectGPTProcessor
    from affectgpt.training.step import build_train_step

    parts = load_parts(tmp_path, tiny_models, write_training_set(tmp_path / "dataset"), init_lr=1e-3)
    config = on_gpu(parts.config)
    model = build_model(config, device=GPU, tokenizer=AffectGPTProcessor.from_config(config).tokenizer)
    train_step = build_train_step(model.train(), config, GPU, resumed=None)
    batches = [batch.to(GPU) for batch in parts.batches]
    train_step.run([batches[0]], lr=1e-3)
    found = waits(lambda: train_step.run([batches[1]], lr=1e-3))
    assert found.total() <= 2, found


@inside
def test_waits_of_a_token(tmp_path, tiny_models):
    """A token is looked at once, to see whether all rows have ended; nothing is copied to the device for it."""
    from affectgpt.inference.predictor import Predictor

    world = World(tmp_path, tiny_models)
    write_corpus(tmp_path / "dataset", 1)
    checkpoint = write_run(world.run_folder, world.config(), (11,))
    found = []
    for tokens in (4, 12):
        options = ["run.device=cuda", f"inference.max_new_tokens={tokens}", "model.llm_dtype=float16"]
        predictor = Predictor.from_config(world.yaml, mode="textonly", options=options)
        predictor.use(next(iter(checkpoint.glob("*_000011_*"))) if checkpoint.is_dir() else checkpoint)
        predictor(None, subtitle="I am glad.")
        found.append(waits(lambda predictor=predictor: predictor(None, subtitle="I am glad.")))
    more = found[1] - found[0]
    assert more.total() <= 12 - 4, more


@inside
def test_two_devices(tmp_path, tiny_models):
    """The second of two devices answers: everything is there, and what libraries make by themselves too."""
    from affectgpt.inference.predictor import Predictor

    world = World(tmp_path, tiny_models)
    write_corpus(tmp_path / "dataset", 1)
    write_run(world.run_folder, world.config(), (11,))
    options = ["run.device=cuda", "inference.gpu=1", "inference.max_new_tokens=4", "model.llm_dtype=float16"]
    predictor = Predictor.from_config(world.yaml, mode="textonly", options=options)
    assert torch.cuda.current_device() == 1
    assert {p.device for p in predictor.session.model.parameters()} == {torch.device("cuda:1")}
    predictor.use(next(iter(world.run_folder.glob("*_000011_*"))))
    assert predictor(None, subtitle="I am glad.").answer is not None


@inside
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_arithmetic_of_connectors_when_answering(tmp_path, tiny_models, dtype):
    """A model trained in bfloat16 is answered with it: float16 could not hold the outputs of its connectors."""
    from affectgpt.inference.predictor import Predictor

    world = World(tmp_path, tiny_models)
    write_corpus(tmp_path / "dataset", 1)
    write_run(world.run_folder, world.config(), (11,))
    options = ["run.device=cuda", "inference.max_new_tokens=2", f"model.llm_dtype={dtype}"]
    predictor = Predictor.from_config(world.yaml, mode="audio_text", options=options)
    predictor.use(next(iter(world.run_folder.glob("*_000011_*"))))
    outputs = set()
    predictor.session.model.audio.proj.register_forward_hook(lambda *hooked: outputs.add(hooked[2].dtype))
    predictor(None, audio=world.root / "dataset" / next(iter((world.root / "dataset").rglob("*.wav"))), subtitle="Yes.")
    assert outputs == {getattr(torch, dtype)}


@inside
def test_speech_is_heard_on_the_second_of_two_devices(tmp_path, tiny_models, monkeypatch):
    import soundfile
    from tiny_whisper import make_tiny_whisper
    from transformers import WhisperForConditionalGeneration

    from affectgpt.cli.sample import main

    world = World(tmp_path, tiny_models)
    write_corpus(tmp_path / "dataset", 1)
    write_run(world.run_folder, world.config(), (11,))
    soundfile.write(tmp_path / "said.wav", torch.randn(32_000).numpy() * 0.1, 16_000)
    (tmp_path / "whisper").mkdir()
    heard, plain = [], WhisperForConditionalGeneration.generate
    monkeypatch.setattr(
        WhisperForConditionalGeneration, "generate",
        lambda self, *args, **options: heard.append(self.device) or plain(self, *args, **options),
    )  # fmt: skip
    arguments = ["--zeroshot", "--cfg-path", str(world.yaml), "--audio_path", str(tmp_path / "said.wav")]
    arguments += ["--asr", str(make_tiny_whisper(tmp_path / "whisper")), "--outside_face_or_frame=audio_text"]
    options = ["run.device=cuda", "inference.gpu=1", "inference.max_new_tokens=2", "model.llm_dtype=float16"]
    assert main([*arguments, "--options", *options]) == 0
    assert heard and set(heard) == {torch.device("cuda:1")}
