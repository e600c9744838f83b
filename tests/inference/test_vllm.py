"""vLLM itself on the CPU (CONTRIBUTING says how it is installed): answers, commands, kills, failures, memory."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from drawn_clip import write_clip
from tiny import folder_of, make_tiny_models
from tiny_world import World, write_corpus, write_run

from affectgpt.core.errors import AffectGPTError
from affectgpt.core.provenance import installed_version
from affectgpt.datasets.label_files import load_samples
from affectgpt.datasets.table import get_row
from affectgpt.encoders.llm import folder_generation_config, llm_folder
from affectgpt.evaluation.results import read_answers, read_meta
from affectgpt.inference.engines import vllm as vllm_engine
from affectgpt.inference.engines.base import Decoding
from affectgpt.inference.session import GenerationSession

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
pytest.importorskip("vllm", reason="vLLM is not installed", exc_type=ImportError)
ROOT = Path(__file__).resolve().parents[2]
GREEDY = ("inference.decoding=greedy", "inference.max_new_tokens=60")
VLLM = "inference.engine=vllm"
QUESTIONS = ("How does he feel?", "Why?", "Please describe the face, the voice and the words in detail. " * 12)


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> World:
    """The tiny world with an LLM whose heads vLLM takes on a CPU."""
    root = tmp_path_factory.mktemp("wide")
    made = World(root, make_tiny_models(root / "models", llm_width=128))
    write_corpus(root / "dataset", 10)
    write_run(made.run_folder, made.config(), (11, 12))
    return made


def make_session(world: World, *options: str) -> GenerationSession:
    session = GenerationSession.from_config(world.config(*options), device=torch.device("cpu"))
    session.use(world.checkpoints()[0].path)
    return session


def examples_of(world: World, session: GenerationSession, *, questions=QUESTIONS):
    samples = load_samples(get_row("OVMERDPlus"), split="test", dataset_root=world.root / "dataset")
    return [session.processor(sample, question=question) for question in questions for sample in samples]


@pytest.fixture
def temporary(monkeypatch, tmp_path) -> Path:
    """The system's temporary folder, here and in processes started from here."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", str(place))
    return place


def checkpoint(world: World, epoch: int) -> Path:
    return world.run_folder / f"checkpoint_{epoch:06d}_loss_0.{epoch}0.pth"


@pytest.mark.parametrize("handed", ["as an adapter", "merged"])
def test_greedy_answers_are_those_of_transformers(wide, monkeypatch, temporary, handed):
    """Token for token in float32: alone, in a batch, reversed; another checkpoint is there without compiling again."""
    cache = temporary.parent / "cache"
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(cache))
    if handed == "merged":
        monkeypatch.setattr(vllm_engine, "_ADAPTED", ())
    theirs = make_session(wide, *GREEDY, VLLM)
    ours = make_session(wide, *GREEDY)
    examples = examples_of(wide, ours)
    zeros = [0] * len(examples)
    for epoch in (11, 12):
        running = theirs.engine._local.llm
        theirs.use(checkpoint(wide, epoch))
        assert (theirs.engine._local.llm is running) == (handed != "merged")
        ours.use(checkpoint(wide, epoch))
        expected = ours.generate(examples, seeds=zeros)
        assert theirs.generate(examples, seeds=zeros) == expected
        assert theirs.generate(examples[::-1], seeds=zeros) == expected[::-1]
        assert [theirs.generate([e], seeds=[0])[0] for e in examples[:8]] == expected[:8]
        assert len({answer.text for answer in expected}) > 20
    compiled = list(cache.glob("torch_compile_cache/*/*"))
    if handed == "merged":  # each start has the folder's name, and so finds what the first one compiled
        assert len(compiled) == 1
    else:  # on a CPU vLLM compiles nothing where it has LoRA
        assert not compiled
    assert not list(temporary.glob("affectgpt*"))


def test_drawn_answers_depend_on_their_seed_alone(wide):
    """Twice, alone and reversed the same, with more than 4,096 tokens of prompts in a step."""
    session = make_session(wide, VLLM, "inference.max_new_tokens=24")
    examples = examples_of(wide, session)
    assert sum(len(example.input_ids) for example in examples) > 4096 + 2000
    seeds = list(range(len(examples)))
    together = session.generate(examples, seeds=seeds)
    assert session.generate(examples, seeds=seeds) == together
    assert session.generate(examples[::-1], seeds=seeds[::-1]) == together[::-1]
    assert [session.generate([e], seeds=[s])[0] for e, s in zip(examples[-9:], seeds[-9:], strict=True)] == together[
        -9:
    ]
    assert session.generate(examples, seeds=[s + 100 for s in seeds]) != together


def test_hundreds_of_rows_and_changing_checkpoints(wide):
    """LoRA beside prompt embeddings under load: batches of mixed lengths and sizes give what each row gives alone."""
    session = make_session(wide, VLLM, *GREEDY)
    ours = make_session(wide, *GREEDY)
    examples = examples_of(wide, ours)
    expected = {}
    for epoch in (11, 12):
        ours.use(checkpoint(wide, epoch))
        expected[epoch] = ours.generate(examples, seeds=[0] * len(examples))
    draw = random.Random(0)
    for number in range(8):
        epoch = draw.choice((11, 12))
        session.use(checkpoint(wide, epoch))
        chosen = [draw.randrange(len(examples)) for _ in range(draw.choice((1, 30, 130)) if number else 256)]
        answers = session.generate([examples[i] for i in chosen], seeds=[0] * len(chosen))
        assert answers == [expected[epoch][i] for i in chosen]


def test_each_stop_rule_ends_a_row_when_it_occurs(wide, tmp_path):
    """An LLM that says little but what stops it: the answers of transformers, and no token is made after a stop."""
    from safetensors.torch import load_file, save_file

    models = tmp_path / "models"
    shutil.copytree(wide.root / "models", models)
    folder = folder_of(models, "Qwen25")
    options = (f"paths.models_root={models}", *GREEDY)
    tokenizer = make_session(wide, *GREEDY).processor.tokenizer
    said = [tokenizer(text, add_special_tokens=False).input_ids[-1] for text in ("a##", "a#", "###", "a", "b", "c")]
    weights = load_file(folder / "model.safetensors")
    head = weights["lm_head.weight"]
    loud = torch.zeros_like(head)
    loud[said] = torch.nn.functional.normalize(head[said]) * torch.tensor([1.0, 1.0, 0.7, 1.0, 1.0, 1.0])[:, None]
    save_file(weights | {"lm_head.weight": loud}, folder / "model.safetensors", metadata={"format": "pt"})
    ours, theirs = make_session(wide, *options), make_session(wide, *options, VLLM)
    examples = examples_of(wide, ours)
    expected = ours.generate(examples, seeds=[0] * len(examples))
    engine = theirs.engine._local.llm.llm_engine
    made: dict[str, int] = {}
    step = engine.step

    def counted():
        outputs = step()
        made.update({output.request_id: len(output.outputs[0].token_ids) for output in outputs})
        return outputs

    engine.step = counted
    assert theirs.generate(examples, seeds=[0] * len(examples)) == expected
    assert [made[name] for name in sorted(made, key=int)] == [answer.tokens for answer in expected]
    ids = [row.tolist() for row in _ids(ours, examples)]
    ends = {tuple(ours.processor.cut(row)[0][-2:]) for row, a in zip(ids, expected, strict=True) if a.stopped}
    two, one, three = said[:3]
    assert (two, one) in ends and (one, two) in ends and any(end[-1] == three for end in ends), ends
    assert sum(answer.tokens < 60 for answer in expected) > 5


def _ids(session: GenerationSession, examples) -> torch.Tensor:
    return session.engine.generate_ids(session.processor.collate(examples), seeds=[0] * len(examples))


@pytest.mark.parity
def test_published_generations(golden, tmp_path):
    """The published answers that end by each stop rule, of the golden LLM. Its heads are 16 wide, which vLLM does not
    take on a CPU: they are filled up with zeros, as a Llama's that turns half of each."""
    from affectgpt.config.schema import Config, ModelConfig, PathsConfig
    from affectgpt.core.types import Batch
    from affectgpt.modeling.build import build_model, load_checkpoint
    from affectgpt.modeling.lora import merge_lora
    from affectgpt.processing.processor import AffectGPTProcessor

    recipe = {"multi_fusion_type": "attention", "video_fusion_type": "attention", "audio_fusion_type": "attention"}
    config = Config(name="golden", model=ModelConfig(**recipe), paths=PathsConfig(models_root=str(golden / "models")))
    processor = AffectGPTProcessor.from_config(config)
    model = build_model(config, device=torch.device("cpu"), tokenizer=processor.tokenizer)
    load_checkpoint(model, golden / "attention/checkpoint_000005_loss_0.123.pth")
    merge_lora(model.llm)
    folder = _with_wider_heads(model.llm, llm_folder(config), tmp_path / "llm")
    engine = vllm_engine.VLLMEngine(
        model,
        processor=processor,
        decoding=Decoding(greedy=True, max_new_tokens=24),
        defaults=folder_generation_config(llm_folder(config)),
        llm_folder=folder,
    )
    published = json.loads((golden / "attention" / "generations_textonly.json").read_text())["generations"]
    prompts = [processor.tokenizer(case["prompt"], add_special_tokens=False).input_ids for case in published]
    longest = max(map(len, prompts))
    batch = Batch(
        names=[str(i) for i in range(len(prompts))],
        mode="textonly",
        input_ids=torch.tensor([[processor.tokenizer.pad_token_id] * (longest - len(p)) + p for p in prompts]),
        attention_mask=torch.tensor([[False] * (longest - len(p)) + [True] * len(p) for p in prompts]),
    )
    seen: list[list[int]] = [[] for _ in prompts]

    def watch(row: list[int]):
        return lambda ids: row.__setitem__(slice(None), ids)

    answers = engine.generate(batch, seeds=[0] * len(prompts), on_token=[watch(row) for row in seen])
    assert {case["why"] for case in published} >= {"eos", "length", "#+##"}
    for case, ids, answer in zip(published, seen, answers, strict=True):
        assert ids == case["new_ids"]
        assert answer.text == case["response"].replace("<|endoftext|>", "").strip()
        assert answer.tokens == len(case["new_ids"]) and answer.stopped == (case["why"] != "length")


def _with_wider_heads(llm, source: Path, target: Path, *, width: int = 32) -> Path:
    from safetensors.torch import save_file

    numbers = llm.config
    heads, groups = numbers.num_attention_heads, numbers.num_key_value_heads
    head = numbers.hidden_size // heads

    def fill(tensor: torch.Tensor, count: int) -> torch.Tensor:
        """[count · head, …] → [count · width, …]"""
        parts = tensor.unflatten(0, (count, head))
        return torch.cat([parts, parts.new_zeros(count, width - head, *tensor.shape[1:])], dim=1).flatten(0, 1)

    state = {}
    for name, tensor in llm.state_dict().items():
        if ".q_proj." in name:
            tensor = fill(tensor, heads) * (width / head) ** 0.5  # its products are divided by sqrt(width)
        elif ".k_proj." in name or ".v_proj." in name:
            tensor = fill(tensor, groups)
        elif ".o_proj." in name:
            state[name.replace("weight", "bias")] = torch.zeros(tensor.shape[0])
            tensor = fill(tensor.T.contiguous(), heads).T
        state[name] = tensor.contiguous()
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "vocab_size", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "eos_token_id")  # fmt: skip
    turned = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": head / width}
    settings = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "head_dim": width, "attention_bias": True,
        "mlp_bias": False, "hidden_act": "silu", "dtype": "float32", "rope_parameters": turned,
    }  # fmt: skip
    (target / "config.json").write_text(json.dumps({**{key: getattr(numbers, key) for key in kept}, **settings}))
    return target


def test_an_engine_that_dies_is_one_line_and_works_again(wide, tmp_path):
    benchmark = wide.benchmark(tmp_path, VLLM, *GREEDY)
    first = wide.checkpoints()[0]
    expected = read_answers(wide.benchmark(tmp_path / "undisturbed", VLLM, *GREEDY).run("OVMERDPlus", first))
    steps = []

    def fails(*_, **__):
        steps.append(0)
        if len(steps) > 70:  # in the second batch of four
            raise RuntimeError("the device is gone\nand more of it")
        return execute(*_, **__)

    start = vllm_engine.LocalVLLM.start

    def breakable(self, **settings):
        nonlocal execute
        llm = start(self, **settings)
        executor = llm.llm_engine.engine_core.engine_core.model_executor
        execute, executor.execute_model = executor.execute_model, fails
        return llm

    execute = None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vllm_engine.LocalVLLM, "start", breakable)
        with pytest.raises(
            AffectGPTError, match=r"RuntimeError: the device is gone\. The answers so far are kept"
        ) as error:
            benchmark.run("OVMERDPlus", first)
    assert "\n" not in str(error.value)
    written = benchmark.run("OVMERDPlus", first)
    assert read_answers(written) == expected
    assert read_meta(written)["versions"]["vllm"] == installed_version("vllm")


def test_what_is_free_decides_the_memory_and_nothing_stays_changed(wide, monkeypatch):
    """Keys and values take half of what the weights leave at most, and a run that cannot fit says so."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    before, threads = dict(os.environ), torch.set_num_threads
    session = make_session(wide, VLLM, *GREEDY)
    cache = session.engine._local.llm.llm_engine.vllm_config.cache_config
    assert 0 < cache.kv_cache_memory_bytes < 1 << 30
    assert dict(os.environ) | {"VLLM_LOGGING_STREAM": ""} == before | {"VLLM_LOGGING_STREAM": ""}
    assert torch.set_num_threads is threads
    session.engine._local.stop()
    monkeypatch.setattr("affectgpt.core.local_vllm.available_memory", lambda: 1 << 20)
    with pytest.raises(AffectGPTError, match=r"need 0\.0 GB in float32, and 0\.0 GB are free"):
        session.generate(examples_of(wide, session)[:1], seeds=[0])


def start(world: World, results: Path, *options: str) -> subprocess.Popen:
    command = [
        sys.executable, "inference_hybird.py", "--zeroshot", "--dataset", "OVMERDPlus", f"--cfg-path={world.yaml}",
        "--options", f"inference.base_root={results}/output/results", VLLM, *GREEDY, *options,
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def alive_in(session: int) -> list[int]:
    """Processes of a session that are no zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_commands_after_a_kill_9(wide, tmp_path, temporary):
    """``inference_hybird.py`` with two checkpoints is killed, leaves nothing, resumes; ``evaluation.py`` scores it."""
    options = ("inference.batch_size=2", "inference.test_epochs=11-12", "inference.skip_epoch=1")
    process = start(wide, tmp_path, *options)
    deadline = time.monotonic() + 300
    while not list(tmp_path.rglob("*_000012_*.part*.jsonl")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while alive_in(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive_in(process.pid)
    assert not [left.name for left in temporary.iterdir() if left.name.startswith("affectgpt")]
    process = start(wide, tmp_path, *options)
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    ours = wide.benchmark(tmp_path / "transformers", *GREEDY)
    for point in wide.checkpoints("inference.test_epochs=11-12", "inference.skip_epoch=1"):
        (written,) = tmp_path.glob(f"output/results-ovmerdplus/*/{point.path.stem}.npz")
        assert read_answers(written) == read_answers(ours.run("OVMERDPlus", point))
        assert read_meta(written)["decoding"]["engine"].startswith("vllm ")
    assert not [left.name for left in temporary.iterdir() if left.name.startswith("affectgpt")]
    model = str(folder_of(wide.root / "models", "Qwen25"))
    command = [
        sys.executable, "evaluation.py", "--extractor", "vllm", "--model-path", model, "--datasets", "OVMERDPlus",
        "--output-root", str(tmp_path / "output"), "--dataset-root", str(wide.root / "dataset"), "--lexicon", "builtin",
        "--bootstrap", "0", "--deals", "0",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "OVMERDPlus" in done.stdout and "INFO" not in done.stdout  # vLLM's log goes to stderr
    extracted = list(tmp_path.glob("output/results-ovmerdplus/*/*-openset.npz"))
    assert len(extracted) == 2
    details = json.loads(extracted[0].with_name(extracted[0].stem + ".meta.json").read_text())["details"]
    assert details["vllm"] == installed_version("vllm")


def test_a_script_without_a_main_guard(wide, tmp_path):
    """The README's four lines, with vLLM."""
    clip = write_clip(tmp_path / "clip.mp4")
    script = tmp_path / "four_lines.py"
    script.write_text(
        "from affectgpt import Predictor\n"
        f"predict = Predictor.from_config({str(wide.yaml)!r}, options=['{VLLM}', 'inference.decoding=greedy'])\n"
        f'reply = predict({str(clip)!r}, subtitle="I don\'t know!")\n'
        "print(repr(reply.answer))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = []
    for engine in ("vllm", "transformers"):
        script.write_text(script.read_text().replace("engine=vllm", f"engine={engine}"))
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1] and len(said[0]) > 10
