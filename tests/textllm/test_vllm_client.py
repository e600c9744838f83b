"""The vLLM client: what it asks of vLLM, and that vLLM has it. vLLM itself needs a GPU."""

from __future__ import annotations

import sys
import types
from types import SimpleNamespace

import pytest
from vllm_source import fields_of, parameters_of, vllm_source

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
    assert calls["SamplingParams"][3] == {
        "temperature": 0.3, "top_p": 0.6, "repetition_penalty": 1.2, "max_tokens": 9, "seed": seed_for(TALKS[3], 5),
    }  # fmt: skip


def test_without_vllm_the_error_says_what_to_do(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(TextLLMError, match=r"pip install 'affectgpt\[vllm\]'"):
        open_client("vllm", model=folder).chat_many(TALKS, sampling=SAMPLING)


@pytest.mark.slow
def test_vllm_has_what_is_asked_of_it(folder, request):
    """vLLM's own source, read and not run, against the recorded calls."""
    engine, sampling, outputs = map(vllm_source, ("entrypoints/llm.py", "sampling_params.py", "outputs.py"))
    calls = request.getfixturevalue("calls")  # only now: it hides an installed vllm
    open_client("vllm", model=folder).chat_many(TALKS, sampling=SAMPLING)
    assert calls["LLM"][0].keys() <= parameters_of(engine, "LLM", "__init__")
    assert calls["chat"][0].keys() <= parameters_of(engine, "LLM", "chat")
    assert calls["SamplingParams"][0].keys() <= fields_of(sampling, "SamplingParams")
    assert {"text", "finish_reason"} <= fields_of(outputs, "CompletionOutput")
    assert "outputs" in parameters_of(outputs, "RequestOutput", "__init__")
