"""The contract that every engine keeps, and what the vLLM engine asks of vLLM."""

from __future__ import annotations

import os
import sys
import types
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from vllm_source import class_of, fields_of, parameters_of, vllm_source

from affectgpt.core.errors import AffectGPTError, ConfigError
from affectgpt.evaluation.results import read_answers
from affectgpt.inference.benchmark import Benchmark
from affectgpt.inference.engines import vllm as vllm_engine
from affectgpt.inference.engines.base import ENGINES
from affectgpt.inference.session import GenerationSession

QUESTION = "How does he feel?"


class FakeLLM:
    """What the engine needs of ``vllm.LLM``, done by transformers and peft: the folders it is given must load."""

    seen: ClassVar[list[dict]] = []
    made: ClassVar[list[FakeLLM]] = []

    def __init__(self, **keywords):
        from transformers import AutoModelForCausalLM, GenerationConfig

        self.seen.append(keywords)
        self.made.append(self)
        self.folder, self.dtype = keywords["model"], getattr(torch, keywords["dtype"])
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, torch_dtype=self.dtype)
        if keywords["generation_config"] == "vllm":  # else vLLM, too, takes what the folder says
            self.model.generation_config = GenerationConfig()
        self.llm_engine, self.engine_core = self, SimpleNamespace(shutdown=lambda: None)
        self.adapters, self.rows, self.tokens = {None: self.model}, {}, 0

    def add_lora(self, request):
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(self.folder, torch_dtype=self.dtype)
        base.generation_config = self.model.generation_config
        self.adapters[request.name] = PeftModel.from_pretrained(base, request.path).merge_and_unload()
        return True

    def add_request(self, request_id, prompt, params, *, lora_request=None):
        from transformers import GenerationConfig

        embeds, model = prompt["prompt_embeds"], self.adapters[lora_request and lora_request.name]
        assert embeds.ndim == 2 and embeds.shape[1] == model.config.hidden_size
        drawn = params.get("temperature", 1.0) > 0
        if drawn:
            torch.manual_seed(params["seed"])
        settings = GenerationConfig(
            max_new_tokens=params["max_tokens"],
            do_sample=drawn,
            eos_token_id=params["stop_token_ids"],
            pad_token_id=0,
            **({key: params[key] for key in ("temperature", "top_p", "top_k")} if drawn else {}),
        )
        with torch.no_grad():
            ids = model.generate(
                inputs_embeds=embeds[None],
                attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
                generation_config=settings,
            )
        self.rows[request_id] = (ids[0].tolist(), [])

    def has_unfinished_requests(self):
        return bool(self.rows)

    def step(self):
        """One more token of every row, all of its tokens so far each time, as vLLM gives them."""
        outputs = []
        for name, (coming, given) in list(self.rows.items()):
            given.append(coming.pop(0))
            self.tokens += 1
            if not coming:
                del self.rows[name]
            completion = SimpleNamespace(token_ids=list(given))
            outputs.append(SimpleNamespace(request_id=name, outputs=[completion], finished=not coming))
        return outputs

    def abort_request(self, names):
        for name in names:
            del self.rows[name]


@pytest.fixture
def fake_vllm(monkeypatch):
    module, lora = types.ModuleType("vllm"), types.ModuleType("vllm.lora.request")
    module.__version__ = "0.33.0"
    module.__spec__ = ModuleSpec("vllm", None)  # libraries look whether there is one
    module.LLM = FakeLLM
    module.SamplingParams = lambda **keywords: keywords
    lora.LoRARequest = lambda name, number, path: SimpleNamespace(name=name, number=number, path=path)
    FakeLLM.seen.clear()
    FakeLLM.made.clear()
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.lora", types.ModuleType("vllm.lora"))
    monkeypatch.setitem(sys.modules, "vllm.lora.request", lora)
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


@pytest.fixture(params=["transformers", "vllm, played by transformers"])
def engine(request):
    """The option that names an engine; vLLM itself is tested in test_vllm.py."""
    if request.param != "transformers":
        request.getfixturevalue("fake_vllm")
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
        assert session.processor.decode(ids) == (whole if i != 2 else watched)[i].text
    assert len(seen[2]) == 3 and [len(ids) for ids in seen[0]] == list(range(1, len(seen[0]) + 1))


@pytest.mark.parametrize("handed", ["as an adapter", "merged"])
def test_greedy_answers_are_those_of_transformers(world, fake_vllm, monkeypatch, tmp_path, handed):
    """LoRA handed over as an adapter of its own, or merged into a folder: token for token the same answers, for every
    checkpoint; nothing is left in the temporary folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f"affectgpt-vllm-{os.getuid()}" / "0" / "llm"  # by a process that was killed
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    if handed == "merged":
        monkeypatch.setattr(vllm_engine, "_ADAPTED", ())
    options = ("inference.decoding=greedy", "inference.max_new_tokens=12")
    ours, theirs = make_session(world, *options), make_session(world, *options, "inference.engine=vllm")
    for epoch in (11, 12):
        for session in (ours, theirs):
            session.use(world.run_folder / f"checkpoint_{epoch:06d}_loss_0.{epoch}0.pth")
        expected = ours.generate(clips(world, ours), seeds=[0] * 6)
        assert theirs.generate(clips(world, theirs), seeds=[1] * 6) == expected
        assert len({answer.text for answer in expected}) > 3
        assert not list(tmp_path.iterdir())
    for seen in FakeLLM.seen:
        assert seen["enable_prompt_embeds"] is True and seen["dtype"] == "float32"
        assert seen["enable_chunked_prefill"] is False and seen["kv_cache_memory_bytes"] > 0
    models = [seen["model"] for seen in FakeLLM.seen]
    if handed == "merged":  # a fixed name: what vLLM has compiled is found again
        assert len(models) == 3 and len(set(models)) == 1 and models[0].startswith(str(tmp_path))
        assert not any("enable_lora" in seen for seen in FakeLLM.seen)
    else:
        assert models == [str(theirs.engine.llm_folder)] and FakeLLM.seen[0]["max_lora_rank"] == 8
        weights = [p for name, p in theirs.model.llm.named_parameters() if ".lora_" not in name]
        assert sum(not p.is_meta for p in weights) == 1  # the embedding matrix: vLLM alone has the rest


def test_the_folder_for_vllm_is_of_a_fixed_name_and_nobody_elses(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with vllm_engine._scratch() as first, vllm_engine._scratch() as second:
        (first / "file").touch()
        assert first != second and first.is_dir() and not list(second.iterdir())
        assert first.parent.stat().st_mode & 0o077 == 0
    with vllm_engine._scratch() as again:
        assert again == first and not list(again.iterdir())
    assert not list(tmp_path.iterdir())
    (tmp_path / f"affectgpt-vllm-{os.getuid()}").symlink_to(tmp_path.parent)
    with pytest.raises(ConfigError, match="set TMPDIR"), vllm_engine._scratch():
        pass
    assert {path.name for path in tmp_path.iterdir()} == {f"affectgpt-vllm-{os.getuid()}"}


def test_a_stop_of_two_tokens_ends_the_row_at_once(world, fake_vllm, monkeypatch):
    """vLLM knows no such stops: the row is ended here, and not at the limit."""
    session = make_session(world, "inference.engine=vllm", "inference.max_new_tokens=40")
    pair = next(stop for stop in session.processor.stop_sequences if len(stop) == 2)
    letter = session.processor.tokenizer("a", add_special_tokens=False).input_ids
    said = {0: [*letter * 3, *pair, *letter * 35], 1: letter * 40, 2: letter * 7 + list(session.processor.eos_ids[:1])}
    fake = FakeLLM.made[0]
    monkeypatch.setattr(
        fake, "add_request", lambda name, prompt, params, **_: fake.rows.update({name: (said[params["seed"]], [])})
    )
    watched: list[list[int]] = []

    def watch(ids: list[int]) -> bool:
        watched.append(list(ids))
        return len(ids) == 20

    examples = clips(world, session)
    batch = session.processor.collate(examples[:3])
    answers = session.engine.generate(batch, seeds=[0, 1, 2])
    assert [(a.tokens, a.stopped) for a in answers] == [(5, True), (40, False), (8, True)]
    assert answers[0].text == "aaa" and fake.tokens == 5 + 40 + 8 and not fake.rows
    said[1] = letter * 40
    (answer,) = session.engine.generate(session.processor.collate(examples[:1]), seeds=[1], on_token=[watch])
    assert answer.tokens == len(watched) == len(watched[-1]) == 20 and not answer.stopped and not fake.rows
    said[0] = [*letter * 3, *pair, *letter * 35]
    watched.clear()
    (answer,) = session.engine.generate(session.processor.collate(examples[:1]), seeds=[0], on_token=[watch])
    assert watched[-1] == [*letter * 3, *pair] and len(watched) == answer.tokens  # the stop's tokens too


def test_a_failed_engine_is_one_line_and_starts_again(world, fake_vllm, monkeypatch, tmp_path):
    """What was answered is kept, the message says so, and the next call works."""
    config = world.config("inference.engine=vllm", f"inference.base_root={tmp_path}/results", "inference.batch_size=2")
    benchmark = Benchmark(config, device=torch.device("cpu"))
    steps, step = [], FakeLLM.step

    def fails_once(self):
        steps.append(self)
        if len(self.made) == 1 and len(steps) > 30:
            raise RuntimeError("EngineCore encountered an issue.\nSee stack trace")
        return step(self)

    monkeypatch.setattr(FakeLLM, "step", fails_once)
    checkpoint = world.checkpoints()[0]
    with pytest.raises(AffectGPTError) as raised:
        benchmark.run("OVMERDPlus", checkpoint)
    said = str(raised.value)
    assert "RuntimeError: EngineCore encountered an issue." in said and "answers so far are kept" in said
    assert "\n" not in said and "Traceback" not in said
    written = benchmark.run("OVMERDPlus", checkpoint)
    assert len(FakeLLM.made) == 2 and len(read_answers(written)) == 10
    elsewhere = Benchmark(
        world.config("inference.engine=vllm", f"inference.base_root={tmp_path}/other", "inference.batch_size=2"),
        device=torch.device("cpu"),
    )
    assert read_answers(elsewhere.run("OVMERDPlus", checkpoint)) == read_answers(written)


def test_without_vllm_the_error_says_what_to_do(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"pip install 'affectgpt\[vllm\]'"):
        make_session(world, "inference.engine=vllm")


@pytest.mark.slow
def test_vllm_has_what_is_asked_of_it(world, request):
    files = ("entrypoints/llm.py", "engine/arg_utils.py", "sampling_params.py", "outputs.py", "inputs/llm.py",
             "v1/engine/llm_engine.py", "lora/request.py")  # fmt: skip
    entry, arguments, sampling, outputs, inputs, engine, lora = map(vllm_source, files)
    request.getfixturevalue("fake_vllm")  # only now: it hides an installed vllm
    session = make_session(world, "inference.engine=vllm")
    known = parameters_of(entry, "LLM", "__init__") | fields_of(arguments, "EngineArgs")
    assert FakeLLM.seen[0].keys() <= known
    assert session.engine._sampling(1, session.engine.decoding).keys() <= fields_of(sampling, "SamplingParams")
    asked = {"request_id", "prompt", "params", "lora_request"}
    assert asked <= parameters_of(engine, "LLMEngine", "add_request")
    assert "request_ids" in parameters_of(engine, "LLMEngine", "abort_request")
    assert "lora_request" in parameters_of(engine, "LLMEngine", "add_lora")
    assert {"step", "has_unfinished_requests"} <= {getattr(n, "name", "") for n in class_of(engine, "LLMEngine").body}
    assert {"lora_name", "lora_int_id", "lora_path"} <= fields_of(lora, "LoRARequest")
    assert "token_ids" in fields_of(outputs, "CompletionOutput")
    assert {"request_id", "outputs", "finished"} <= parameters_of(outputs, "RequestOutput", "__init__")
    assert "prompt_embeds" in fields_of(inputs, "EmbedsPrompt")
