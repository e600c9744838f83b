"""The contract that every engine keeps, and what the vLLM engine asks of vLLM."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from vllm_source import fields_of, parameters_of, vllm_source

from affectgpt.core.errors import ConfigError
from affectgpt.inference.engines.base import ENGINES
from affectgpt.inference.session import GenerationSession

QUESTION = "How does he feel?"


class FakeLLM:
    """What the engine needs of ``vllm.LLM``, done by transformers one row at a time: the merged folder must load."""

    seen: ClassVar[list[dict]] = []

    def __init__(self, **keywords):
        from transformers import AutoModelForCausalLM, GenerationConfig

        self.seen.append(keywords)
        self.model = AutoModelForCausalLM.from_pretrained(keywords["model"], dtype=getattr(torch, keywords["dtype"]))
        if keywords["generation_config"] == "vllm":  # else vLLM, too, takes what the folder says
            self.model.generation_config = GenerationConfig()

    def generate(self, prompts, sampling_params, *, use_tqdm=True):
        from transformers import GenerationConfig

        outputs = []
        for prompt, wanted in zip(prompts, sampling_params, strict=True):
            embeds = prompt["prompt_embeds"]
            assert embeds.ndim == 2 and embeds.shape[1] == self.model.config.hidden_size
            drawn = wanted.get("temperature", 1.0) > 0
            if drawn:
                torch.manual_seed(wanted["seed"])
            settings = GenerationConfig(
                max_new_tokens=wanted["max_tokens"],
                do_sample=drawn,
                eos_token_id=wanted["stop_token_ids"],
                pad_token_id=0,
                **({key: wanted[key] for key in ("temperature", "top_p", "top_k")} if drawn else {}),
            )
            with torch.no_grad():
                ids = self.model.generate(
                    inputs_embeds=embeds[None],
                    attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
                    generation_config=settings,
                )
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids[0].tolist())]))
        return outputs


@pytest.fixture
def fake_vllm(monkeypatch):
    module = types.ModuleType("vllm")
    module.__version__ = "0.33.0"
    module.LLM = FakeLLM
    module.SamplingParams = lambda **keywords: keywords
    FakeLLM.seen.clear()
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def make_session(world, *options: str) -> GenerationSession:
    session = GenerationSession.from_config(world.config(*options), device=torch.device("cpu"))
    session.use(world.checkpoints()[0].path)
    return session


def clips(world, session, n: int = 6):
    from affectgpt.datasets.label_files import load_samples
    from affectgpt.datasets.table import get_row

    samples = load_samples(get_row("OVMERDPlus"), split="test", dataset_root=world.root / "dataset")[:n]
    return [session.processor(sample, question=QUESTION) for sample in samples]


@pytest.fixture(params=["transformers", "vllm, played by transformers", "vllm"])
def engine(request):
    """The option that names an engine; vLLM itself where it is installed and there is a GPU."""
    if request.param == "vllm, played by transformers":
        request.getfixturevalue("fake_vllm")
    elif request.param == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed")
        if not torch.cuda.is_available():
            pytest.skip("vLLM needs a GPU")
    return f"inference.engine={request.param.split(',')[0]}"


def test_every_engine_is_tested():
    of_the_package = {name for name, kind in ENGINES.items() if kind.__module__.startswith("affectgpt.")}
    assert of_the_package == {"transformers", "vllm"}


def test_contract(world, engine):
    """Order, stops, lengths, clean text, batch against single, seeds, the record: the same for every engine."""
    session = make_session(world, engine, "inference.max_new_tokens=12")
    examples = clips(world, session)
    seeds = list(range(len(examples)))
    together = session.generate(examples, seeds=seeds)
    assert [session.generate([e], seeds=[s])[0] for e, s in zip(examples, seeds, strict=True)] == together
    assert session.generate(examples[::-1], seeds=seeds[::-1]) == together[::-1]
    others = [a for start in (100, 200, 300) for a in session.generate(examples, seeds=[s + start for s in seeds])]
    assert others[:6] != together
    for answer in together + others:
        assert 1 <= answer.tokens <= 12 and (answer.stopped or answer.tokens == 12)
        assert answer.text == answer.text.strip() and "<|im_end|>" not in answer.text and "###" not in answer.text
    assert {answer.stopped for answer in together + others} == {True, False}  # answers of both kinds were seen
    said = session.engine.describe()
    assert said["engine"].startswith(engine.split("=")[1])
    assert (said["greedy"], said["max_new_tokens"], said["top_p"], said["top_k"]) == (False, 12, 0.9, 20)
    session.use(world.run_folder / "checkpoint_000011_loss_0.110.pth")
    assert session.generate(examples, seeds=seeds) != together


def test_a_batch_with_its_own_decoding_is_watched_row_by_row(world, engine):
    """A shorter limit cuts the same answers; each row's ids are seen, and its watcher may end it, which changes no
    other row."""
    session = make_session(world, engine, "inference.max_new_tokens=12")
    examples = clips(world, session)
    seeds = list(range(len(examples)))
    whole = session.generate(examples, seeds=seeds)
    short = session.generate(examples, seeds=seeds, decoding=replace(session.engine.decoding, max_new_tokens=5))
    assert max(answer.tokens for answer in short) == 5
    for one, other in zip(short, whole, strict=True):
        assert other.text.startswith(one.text.rstrip("\ufffd"))
    seen: dict[int, list[list[int]]] = {i: [] for i in seeds}

    def watcher(i: int):
        return lambda ids: seen[i].append(ids) or (i == 2 and len(ids) >= 3)

    watched = session.generate(examples, seeds=seeds, on_token=[watcher(i) for i in seeds])
    assert [a for i, a in enumerate(watched) if i != 2] == [a for i, a in enumerate(whole) if i != 2]
    for i in seeds:
        ids, _ = session.processor.cut(seen[i][-1])
        assert session.processor.decode(ids) == (whole if i != 2 or "vllm" in engine else watched)[i].text
    if "vllm" not in engine:  # which gives all at once
        assert len(seen[2]) == 3 and [len(ids) for ids in seen[0]] == list(range(1, len(seen[0]) + 1))


def test_greedy_answers_of_merged_weights_are_those_of_lora(world, fake_vllm):
    """LoRA merged into a folder of its own, prompt embeddings handed over: token for token the same answers."""
    options = ("inference.decoding=greedy", "inference.max_new_tokens=12")
    ours, theirs = make_session(world, *options), make_session(world, *options, "inference.engine=vllm")
    expected = ours.generate(clips(world, ours), seeds=[0] * 6)
    assert theirs.generate(clips(world, theirs), seeds=[1] * 6) == expected
    assert len({answer.text for answer in expected}) > 3
    assert FakeLLM.seen[0]["enable_prompt_embeds"] is True and FakeLLM.seen[0]["dtype"] == "float32"


def test_a_stop_that_vllm_does_not_know_ends_the_answer(world, fake_vllm):
    session = make_session(world, "inference.engine=vllm", "inference.max_new_tokens=12")
    tokenizer = session.processor.tokenizer
    pair = next(stop for stop in session.processor.stop_sequences if len(stop) == 2)
    ids = tokenizer("happy.", add_special_tokens=False).input_ids
    answer = session.engine._answer([*ids, *pair, *ids])
    assert (answer.text, answer.tokens, answer.stopped) == ("happy.", len(ids) + 2, True)
    full = (ids * 12)[:12]
    assert not session.engine._answer(full).stopped


def test_without_vllm_the_error_says_what_to_do(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"pip install 'affectgpt\[vllm\]'"):
        make_session(world, "inference.engine=vllm")


@pytest.mark.slow
def test_vllm_has_what_is_asked_of_it(world, request):
    files = ("entrypoints/llm.py", "engine/arg_utils.py", "sampling_params.py", "outputs.py", "inputs/llm.py")
    engine, arguments, sampling, outputs, inputs = map(vllm_source, files)
    request.getfixturevalue("fake_vllm")  # only now: it hides an installed vllm
    session = make_session(world, "inference.engine=vllm")
    known = parameters_of(engine, "LLM", "__init__") | fields_of(arguments, "EngineArgs")
    assert FakeLLM.seen[0].keys() <= known
    assert {"prompts", "sampling_params", "use_tqdm"} <= parameters_of(engine, "LLM", "generate")
    assert session.engine._sampling(1).keys() <= fields_of(sampling, "SamplingParams")
    assert "token_ids" in fields_of(outputs, "CompletionOutput")
    assert "outputs" in parameters_of(outputs, "RequestOutput", "__init__")
    assert "prompt_embeds" in fields_of(inputs, "EmbedsPrompt")
