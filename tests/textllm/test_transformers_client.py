"""The transformers client on a tiny random Qwen2 with a chat template."""

from __future__ import annotations

import json

import pytest
import torch

from affectgpt.core.errors import CheckpointError
from affectgpt.textllm.base import Sampling, TextLLMError, open_client
from affectgpt.textllm.messages import user_message
from affectgpt.textllm.sampler import SeededSampler

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SAMPLING = Sampling(temperature=1.0, top_p=0.95, max_tokens=12, seed=7)
TEXTS = ["happy", "a much longer answer with more tokens", "sad, calm", "x", "happy"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A byte-level vocabulary of 256 and three special tokens, a Qwen2 of two layers with random weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    path = tmp_path_factory.mktemp("models") / "Tiny-Instruct"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    # The folder's own sampling, as Qwen2.5's; none of it may act.
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=1, repetition_penalty=2.0, temperature=0.1,
        eos_token_id=[fast.eos_token_id, fast.pad_token_id], pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    model.save_pretrained(path)
    return path


def _ask(folder, texts, sampling=SAMPLING, **settings):
    with open_client("transformers", model=folder, device="cpu", **settings) as client:
        return client.chat_many([[user_message(text)] for text in texts], sampling=sampling)


def test_a_seed_reproduces_and_another_does_not(folder):
    first = _ask(folder, TEXTS)
    assert first == _ask(folder, TEXTS)
    assert first != _ask(folder, TEXTS, Sampling(temperature=1.0, top_p=0.95, max_tokens=12, seed=8))
    assert first[0] == first[4]  # the same conversation draws alike
    assert len({reply.text for reply in first}) == 4


def test_a_reply_depends_neither_on_its_batch_nor_on_the_order(folder):
    together = _ask(folder, TEXTS, batch_size=5)
    assert _ask(folder, TEXTS, batch_size=2) == together
    assert _ask(folder, TEXTS[::-1], batch_size=3) == together[::-1]
    assert _ask(folder, TEXTS[2:3]) == together[2:3]


def test_greedy_replies_are_those_of_the_plain_model(folder):
    """Against a loop without batches, padding or processors: template, left padding, penalty and stop are right."""
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Qwen2ForCausalLM.from_pretrained(folder).eval()
    replies = _ask(folder, TEXTS, Sampling(temperature=0, repetition_penalty=1.3, max_tokens=10))
    for text, reply in zip(TEXTS, replies, strict=True):
        prompt = f"<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        start = len(ids)
        for _ in range(10):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1].clone()
            for token in set(ids):
                logits[token] = logits[token] * 1.3 if logits[token] < 0 else logits[token] / 1.3
            ids.append(int(logits.argmax()))
            if ids[-1] in (tokenizer.eos_token_id, tokenizer.pad_token_id):
                break
        ended = ids[-1] in (tokenizer.eos_token_id, tokenizer.pad_token_id)
        assert reply.text == tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert reply.truncated != ended


def test_replies_are_streamed_batch_by_batch(folder):
    seen = []
    with open_client("transformers", model=folder, device="cpu", batch_size=2) as client:

        def on_result(index, reply):
            seen.append(index)
            if len(seen) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            client.chat_many([[user_message(text)] for text in TEXTS], sampling=SAMPLING, on_result=on_result)
    assert seen[0] == 1  # the longest first


def test_the_end_token_ends_a_reply(folder, tmp_path):
    """A model that always says one letter and then the end."""
    import shutil

    from transformers import AutoTokenizer, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    model = Qwen2ForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(0)
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.fill_(1)  # every position looks alike
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.eos_token_id] = 5
    model.save_pretrained(copy)
    (reply,) = _ask(copy, ["hello"], Sampling(temperature=0, repetition_penalty=1.0, max_tokens=5))
    assert reply.text == "" and not reply.truncated


def test_what_does_not_fit_is_named(folder):
    with pytest.raises(TextLLMError, match=r"conversation 1: \d+ tokens and 12 .* more than the 256 of Tiny-Instruct"):
        _ask(folder, ["fine", "x" * 300])


def test_a_folder_without_a_chat_template(folder, tmp_path):
    import shutil

    copy = tmp_path / "base"
    shutil.copytree(folder, copy)
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="chat template"):
        _ask(copy, ["x"])


def test_damaged_weights_are_named(folder, tmp_path):
    import shutil

    copy = tmp_path / "broken"
    shutil.copytree(folder, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="broken: cannot be loaded"):
        _ask(copy, ["x"])


def test_short_memory_halves_the_batch(folder, monkeypatch):
    expected = _ask(folder, TEXTS)
    with open_client("transformers", model=folder, device="cpu", batch_size=4) as client:
        generate = client._generate

        def small(prompts, seeds, sampling):
            if len(prompts) > 1:
                raise torch.cuda.OutOfMemoryError("no memory")
            return generate(prompts, seeds, sampling)

        monkeypatch.setattr(client, "_generate", small)
        assert client.chat_many([[user_message(text)] for text in TEXTS], sampling=SAMPLING) == expected
        assert client.batch_size == 1


def _sample(sampling, scores, *, seeds, prompt=None):
    prompt = torch.zeros(len(seeds), 1, dtype=torch.long) if prompt is None else prompt
    sampler = SeededSampler(sampling, seeds=seeds, prompt_mask=torch.ones_like(prompt))
    return sampler(prompt, scores)


def test_the_sampler_draws_from_the_softmax():
    rows = 4000
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    drawn = _sample(
        Sampling(temperature=0.7, top_p=1.0, repetition_penalty=1.0), logits.repeat(rows, 1), seeds=list(range(rows))
    ).argmax(-1)
    counts = torch.bincount(drawn, minlength=4) / rows
    assert torch.allclose(counts, (logits / 0.7).softmax(-1), atol=0.03)


def test_top_p_and_penalty_are_those_of_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 50, generator=generator) * 3
    prompt = torch.randint(50, (6, 9), generator=generator)
    ours = _sample(Sampling(temperature=0.5, top_p=0.8, repetition_penalty=1.4), scores, seeds=[1] * 6, prompt=prompt)
    theirs = RepetitionPenaltyLogitsProcessor(1.4)(prompt, scores.clone())
    theirs = TopPLogitsWarper(0.8)(prompt, theirs / 0.5)
    assert torch.equal(ours.isinf(), theirs.isinf())
    greedy = _sample(Sampling(temperature=0, repetition_penalty=1.4), scores, seeds=[1] * 6, prompt=prompt)
    assert torch.equal(greedy, RepetitionPenaltyLogitsProcessor(1.4)(prompt, scores.clone()))


def test_padding_is_not_penalised():
    sampler = SeededSampler(
        Sampling(temperature=0, repetition_penalty=2.0), seeds=[0], prompt_mask=torch.tensor([[0, 0, 1]])
    )
    first = sampler(torch.tensor([[3, 3, 1]]), torch.ones(1, 5))
    assert first.tolist() == [[1.0, 0.5, 1.0, 1.0, 1.0]]
    second = sampler(torch.tensor([[3, 3, 1, 4]]), torch.ones(1, 5))
    assert second.tolist() == [[1.0, 0.5, 1.0, 1.0, 0.5]]


def test_an_interrupted_extraction_ends_like_an_undisturbed_one(folder, tmp_path, monkeypatch):
    from affectgpt.core.npz import write_npz
    from affectgpt.evaluation.extract import extract_file, get_extractor
    from affectgpt.evaluation.results import read_items

    monkeypatch.setattr("affectgpt.evaluation.extract._PROMPTS", {"labels": "{text}"})  # the paper's is over 256 bytes
    table = {f"clip{i}": f"answer {'x' * i}" for i in range(7)}
    settings = {"model": folder, "device": "cpu", "batch_size": 3, "sampling": Sampling(temperature=1.0, max_tokens=8)}
    made = []
    for run in ("whole", "killed"):
        answers = tmp_path / f"{run}.npz"
        write_npz(answers, name2reason=table)
        if run == "killed":
            extractor = get_extractor("transformers", **settings)
            generate, batches = extractor.client._generate, []

            def broken(prompts, seeds, sampling, generate=generate, batches=batches):
                if batches:
                    raise KeyboardInterrupt
                batches.append(prompts)
                return generate(prompts, seeds, sampling)

            monkeypatch.setattr(extractor.client, "_generate", broken)
            with pytest.raises(KeyboardInterrupt):
                extract_file(answers, task="basic", extractor=extractor)
        with get_extractor("transformers", **settings) as extractor:
            made.append(extract_file(answers, task="basic", extractor=extractor))
    assert [extraction.computed for extraction in made] == [7, 4]
    assert read_items(made[0].labels) == read_items(made[1].labels)
    assert made[0].extractor == "transformers Tiny-Instruct, seed 42"


@pytest.mark.parametrize("kind", ["text", "mllm", "encoder", "tokenizer", "whisper", "export"])
def test_a_folder_with_code_of_its_own_asks_nothing_on_a_terminal(kind, tmp_path, monkeypatch):
    """transformers would print "Do you wish to run the custom code? [y/N]" and wait for an answer."""
    import sys

    from affectgpt.core.errors import AffectGPTError

    questions: list[str] = []

    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self, *question: object) -> str:
            questions.append(str(question))
            return "n"

        read = fileno = readline

    (tmp_path / "odd.py").write_text("raise SystemExit('code of a model folder ran')\n")
    classes = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor", "AutoModelForImageTextToText")
    config = {"architectures": ["Odd"], "auto_map": dict.fromkeys(classes, "odd.Odd")}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "whisper" if kind == "whisper" else "odd", **config})
    )
    auto = {"auto_map": {"AutoTokenizer": ["odd.Odd", None], "AutoProcessor": "odd.Odd"}, "tokenizer_class": "Odd"}
    for name in ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text(json.dumps(auto))
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", Terminal.readline)
    sampling = Sampling(max_tokens=2)
    with pytest.raises(AffectGPTError):
        if kind == "text":
            _ask(tmp_path, ["x"], sampling=sampling)
        elif kind == "mllm":
            from affectgpt.mllm.folder import MultimodalClient

            MultimodalClient(model=tmp_path, device="cpu")._load()
        elif kind == "encoder":
            from affectgpt.encoders.base import read_config

            read_config(tmp_path)
        elif kind == "tokenizer":
            from affectgpt.encoders.llm import get_llm, load_tokenizer

            load_tokenizer(tmp_path, get_llm("Qwen25"))
        elif kind == "whisper":
            from affectgpt.preprocess.asr import Transcriber

            Transcriber(tmp_path, device="cpu")
        else:
            from affectgpt.encoders.llm import folder_generation_config

            folder_generation_config(tmp_path)
    assert not questions
