"""A model that does not fit is refused in one line, before it is loaded or when loading finds it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from drawn_clip import write_clip

from affectgpt.cli import infer, sample
from affectgpt.core.errors import ConfigError
from affectgpt.inference.memory import enough_memory

HAVE = "affectgpt.inference.memory.available_memory"


@pytest.fixture
def commands(world, tmp_path):
    """Both inference commands, as functions without arguments."""
    video = write_clip(tmp_path / "a.mp4")
    config = ["--cfg-path", str(world.yaml)]
    options = ["--options", f"inference.base_root={tmp_path}/results"]
    mode = ["--outside_face_or_frame", "audio_text"]
    return (
        lambda: sample.run_cli(sample.main, [*config, *mode, "--video_path", str(video)]),
        lambda: sample.run_cli(infer.main, [*config, "--dataset", "OVMERDPlus", *options]),
    )


@pytest.mark.parametrize("at", [0, 1])
def test_too_little_memory_is_reported_before_the_model_is_loaded(at, commands, monkeypatch, capsys):
    monkeypatch.setattr("affectgpt.inference.session.build_model", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(HAVE, lambda: 100_000)
    assert commands[at]() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the weights of Qwen25, CLIP_VIT_LARGE, HUBERT_LARGE need 0.0 GB in float32, and 0.0 GB are free on" in error
    assert "cpu: use a GPU (run.device=cuda), or a recipe with a smaller LLM" in error


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_while_the_model_is_built_is_one_line(error, commands, monkeypatch, capsys):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("affectgpt.inference.session.build_model", full)
    assert commands[0]() == 1
    shown = capsys.readouterr().err.splitlines()[-1]
    assert "out of memory while the model was built: the weights of" in shown


def test_what_is_counted_is_what_is_loaded(world, monkeypatch):
    from affectgpt.modeling.build import build_model
    from affectgpt.processing.processor import AffectGPTProcessor

    config, cpu = world.config(), torch.device("cpu")
    tokenizer = AffectGPTProcessor.from_config(config).tokenizer
    for encoders in (True, False):
        built = build_model(config, device=cpu, tokenizer=tokenizer, encoders=encoders)
        needed = sum(p.numel() * p.itemsize for p in built.parameters())
        monkeypatch.setattr(HAVE, lambda needed=needed: needed)
        with enough_memory(config, cpu, encoders=encoders):
            pass
        monkeypatch.setattr(HAVE, lambda needed=needed: needed - 1)
        with pytest.raises(ConfigError, match="GB are free") as raised, enough_memory(config, cpu, encoders=encoders):
            pass
        assert ("affectgpt extract_features" in str(raised.value)) == encoders
    monkeypatch.setattr(HAVE, lambda: None)  # a system that does not say
    with enough_memory(config, cpu):
        pass
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 1000))
    gpu = pytest.raises(ConfigError, match=r"in model\.llm_dtype float16, and 0\.0 GB .* on cuda: free the GPU")
    with gpu, enough_memory(config, torch.device("cuda")):
        pass


@pytest.mark.parametrize(("free", "rows"), [(8e9, 40), (120e9, 128), (20e9, 100)])
def test_the_batch_is_as_large_as_the_memory_of_a_gpu(monkeypatch, free, rows):
    """Of Qwen2.5-7B and the published 1,200 new tokens; 128 at most, since rows that have ended stay in the batch."""
    from affectgpt.encoders.base import read_config
    from affectgpt.encoders.llm import LLMS
    from affectgpt.inference import memory

    embedding = SimpleNamespace(weight=torch.empty(0, dtype=torch.float16))
    llm = SimpleNamespace(config=read_config(LLMS["Qwen25"].architecture), get_input_embeddings=lambda: embedding)
    monkeypatch.setattr(memory, "free_bytes", lambda _: int(free))
    found = memory.find_batch_size(llm, device=torch.device("cuda"), prompt_tokens=150, max_new_tokens=1200)
    assert found == 128 if rows == 128 else abs(found - rows) < 10
