"""The vLLM client with vLLM itself, on the CPU (CONTRIBUTING says how it is installed)."""

from __future__ import annotations

import os

import pytest
from tiny import make_tiny_llm
from transformers import AutoTokenizer

from affectgpt.core.provenance import installed_version
from affectgpt.textllm.base import Sampling, TextLLMError, open_client
from affectgpt.textllm.messages import user_message

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
pytest.importorskip("vllm", reason="vLLM is not installed", exc_type=ImportError)
DRAWN = Sampling(temperature=1.0, top_p=0.95, max_tokens=20, seed=7)
GREEDY = Sampling(temperature=0.0, repetition_penalty=1.05, max_tokens=20)
LONG = "The audio and video merged info is known, and the subtitle says that you came. " * 12
EAGER = {"enforce_eager": True}  # compiles nothing
TALKS = [[user_message(f"{'' if i % 3 else LONG}How does number {i} feel?")] for i in range(36)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_llm(tmp_path_factory.mktemp("models") / "Tiny-Instruct", width=128)


@pytest.fixture(scope="module")
def client(folder):
    with open_client("vllm", model=folder) as opened:
        yield opened


def test_greedy_replies_are_those_of_transformers(folder, client):
    """A float32 folder is run in float32: every reply is the same, alone, in a batch and reversed."""
    with open_client("transformers", model=folder, device="cpu") as theirs:
        expected = [_whole(reply.text) for reply in theirs.chat_many(TALKS, sampling=GREEDY)]
    found = client.chat_many(TALKS, sampling=GREEDY)
    assert [_whole(reply.text) for reply in found] == expected and len(set(expected)) > 20
    assert client.chat_many(TALKS[::-1], sampling=GREEDY) == found[::-1]
    assert [client.chat_many([talk], sampling=GREEDY)[0] for talk in TALKS[:6]] == found[:6]
    assert str(client._local.llm.model_config.dtype) == "torch.float32"
    with open_client("vllm", model=folder, dtype="bfloat16", **EAGER) as asked:  # what is asked for stands
        asked.chat_many(TALKS[:1], sampling=GREEDY)
        assert str(asked._local.llm.model_config.dtype) == "torch.bfloat16"


def _whole(text: str) -> str:
    """Without the bytes of a character that was cut off: vLLM does not give them."""
    return text.rstrip("\ufffd")


def test_drawn_replies_depend_on_their_seed_alone(client, folder):
    """With more than 4,096 tokens of prompts in a step."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert sum(len(tokenizer(talk[0]["content"]).input_ids) for talk in TALKS) > 4096
    together = client.chat_many(TALKS, sampling=DRAWN)
    assert client.chat_many(TALKS, sampling=DRAWN) == together
    assert client.chat_many(TALKS[::-1], sampling=DRAWN) == together[::-1]
    assert [client.chat_many([talk], sampling=DRAWN)[0] for talk in TALKS[:6]] == together[:6]
    other = Sampling(temperature=1.0, top_p=0.95, max_tokens=20, seed=8)
    assert client.chat_many(TALKS, sampling=other) != together


def test_a_failure_is_one_line_and_the_next_call_works(client, monkeypatch):
    monkeypatch.setattr("affectgpt.textllm.vllm_client._CHUNK", 4)
    expected = client.chat_many(TALKS[:8], sampling=GREEDY)
    engine = client._local.llm.llm_engine
    step, kept = engine.step, {}

    def fails_later():
        if len(kept) >= 4:
            raise RuntimeError("the device is gone\nand more of it")
        return step()

    engine.step = fails_later
    with pytest.raises(TextLLMError, match=r"RuntimeError: the device is gone\. The replies so far are kept") as error:
        client.chat_many(TALKS[:8], sampling=GREEDY, on_result=kept.__setitem__)
    assert "\n" not in str(error.value) and kept == dict(enumerate(expected[:4]))
    assert client.chat_many(TALKS[:8], sampling=GREEDY) == expected


def test_a_prompt_that_is_too_long_is_one_line(folder):
    with open_client("vllm", model=folder, max_model_len=64, **EAGER) as client:
        with pytest.raises(TextLLMError, match=r"VLLMValidationError: .*64") as error:
            client.chat_many([[user_message(LONG)]], sampling=GREEDY)
        assert "\n" not in str(error.value)
        assert client.chat_many([[user_message("Oh!")]], sampling=GREEDY)


def test_details_and_the_process(folder):
    """The version is that of the distribution that brings vLLM; the environment is as it was."""
    before = dict(os.environ)
    with open_client("vllm", model=folder, **EAGER) as client:
        assert client.details()["vllm"] == installed_version("vllm") != "not installed"
        client.chat_many(TALKS[:1], sampling=GREEDY)
        assert os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == before.get("VLLM_ENABLE_V1_MULTIPROCESSING")
        assert client._local.llm is not None
    assert client._local.llm is None
