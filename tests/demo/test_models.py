"""The tiny models: folders as the real ones have them, prompts as the product writes them, lessons that take."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from affectgpt.core.types import Modality
from examples.demo import language, models, pretrain_decoder, pretrain_speech, pretrain_vision


@pytest.fixture(scope="module")
def tokenizer():
    return pretrain_decoder.build_tokenizer()


@pytest.mark.parametrize("question", sorted(pretrain_decoder.QUESTIONS))
@pytest.mark.parametrize("mode", sorted(pretrain_decoder.MODES))
def test_lessons_use_the_prompts_of_the_product(mode, question):
    from affectgpt.processing.prompt import render_prompt

    subtitle = "I am so glad, my brother bought some bread."
    assert pretrain_decoder.prompt(mode, subtitle=subtitle, question=question) == render_prompt(
        mode, subtitle=subtitle, question=pretrain_decoder.QUESTIONS[question]
    )


def test_questions_and_answers_are_those_of_the_product():
    from affectgpt.processing import questions

    asked = {row.question for row in questions.LABEL_TYPES.values()}
    assert set(pretrain_decoder.QUESTIONS.values()) <= asked
    rng = np.random.default_rng(0)
    answers = [pretrain_decoder.draw_lesson(rng).answer for _ in range(60)]
    labels = [a for a in answers if a.startswith("The character's emotional state is ")]
    assert 20 < len(labels) < 50 and all(a.endswith(".") for a in answers)


def test_answers_are_read_by_the_direct_extractor():
    from affectgpt.evaluation.labels import read_labels

    for words in (("happy",), ("sad", "gloomy"), ("angry", "annoyed", "furious")):
        text = language.describe(emotion_words=words, face="happy", voice="neutral", text="sad")
        assert read_labels(text) == list(words)


def test_words_are_in_the_built_in_lexicon():
    """Each emotion's words fall into one group on most wheels, or the scores would measure the lexicon."""
    from affectgpt.evaluation.lexicon import Grouping, load_builtin

    grouping = Grouping(load_builtin())
    for emotion in language.FELT:
        first, weak, strong = language.OPEN_WORDS[emotion]
        home = grouping.groups(emotion)
        assert None not in home
        for word in (first, *weak, *strong):
            same = sum(a == b for a, b in zip(grouping.groups(word), home, strict=True))
            assert same >= 3, (word, grouping.groups(word), home)


def test_tokenizer_keeps_the_marks_apart(tokenizer):
    assert tokenizer.encode("###").tokens == ["###"]
    assert tokenizer.encode("is happy.###").tokens[-2:] == [".", "###"]
    assert tokenizer.encode("a##").tokens[-1] == "##" and tokenizer.encode("a#").tokens[-1] == "#"
    assert tokenizer.encode(" ###Assistant: ").tokens[-1] == "Ġ"
    assert tokenizer.token_to_id("!") == 0
    last = tokenizer.get_vocab_size() - 1
    assert tokenizer.token_to_id("<|im_end|>") == last
    text = "你好 – naïve ﬂoat 3.14\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_enlarged_clip_answers_as_the_small_one():
    torch.manual_seed(0)
    small = pretrain_vision.build_clip(image_size=112).eval()
    big = pretrain_vision.enlarge(small).eval()
    pixels = torch.randn(2, 3, 112, 112)
    doubled = pixels.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    with torch.no_grad():
        torch.testing.assert_close(
            pretrain_vision.embed(big, doubled), pretrain_vision.embed(small, pixels), rtol=1e-4, atol=1e-5
        )


def test_lessons_hear_what_the_product_hears(tmp_path):
    """Sound reaches the taught encoder through the same cutting and normalising as in training."""
    import soundfile

    from affectgpt.encoders.base import ACOUSTIC_ENCODERS
    from affectgpt.media.audio import read_audio

    wave = (0.1 * np.random.default_rng(0).normal(size=47_000)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    transform = ACOUSTIC_ENCODERS.get("HUBERT_LARGE").transform_of(_preprocessor(tmp_path))
    product = transform(read_audio(tmp_path / "a.wav")[0])
    np.testing.assert_allclose(pretrain_speech.eight_clips(wave), np.asarray(product), atol=1e-4)


def _preprocessor(folder):
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": 16_000}))
    return folder


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """All three folders after a fraction of their lessons."""
    root = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain_decoder, "STEPS", 12)
        patch.setattr(pretrain_vision, "_FACES", 96)
        patch.setattr(pretrain_vision, "_EPOCHS", 1)
        patch.setattr(pretrain_speech, "_SENTENCES", 64)
        patch.setattr(pretrain_speech, "_EPOCHS", 1)
        made = models.make_models(root, seed=1, workers=1)
    assert sorted(made) == sorted(models.RECIPES)
    return root


def test_folders_load_as_real_ones(taught, tmp_path):
    from affectgpt.encoders.base import ACOUSTIC_ENCODERS, VISUAL_ENCODERS
    from affectgpt.encoders.llm import get_llm, load_tokenizer, placeholder_ids, stop_sequences
    from affectgpt.modeling.build import load_llm

    visual = VISUAL_ENCODERS.get("CLIP_VIT_LARGE").from_folder(taught / "demo-clip", dtype=torch.float32)
    acoustic = ACOUSTIC_ENCODERS.get("HUBERT_LARGE").from_folder(taught / "demo-hubert", dtype=torch.float32)
    llm = load_llm(taught / "demo-qwen2", row=get_llm("Qwen25"), dtype=torch.float32, lora_r=4)
    tokenizer = load_tokenizer(taught / "demo-qwen2", get_llm("Qwen25"))
    z_v = visual(torch.randn(1, 8, 3, 224, 224))
    z_a = acoustic(torch.randn(1, 8, 32_000))
    D = llm.get_input_embeddings().weight.shape[1]
    assert z_v.shape == (1, 8, pretrain_vision.WIDTH) and z_a.shape == (1, 8, pretrain_speech.WIDTH)
    assert len({D, z_v.shape[-1], z_a.shape[-1]}) == 3  # so that a swapped dimension shows
    assert tokenizer.bos_token == "<|im_start|>" and tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    assert [len(s) for s in stop_sequences(tokenizer)] == [1, 2, 2]
    assert set(placeholder_ids(tokenizer)) == set(Modality)
    assert max(placeholder_ids(tokenizer).values()) < llm.get_input_embeddings().weight.shape[0]


def test_the_tokenizer_of_the_folder_is_the_one_that_was_trained(taught, tokenizer):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(taught / "demo-qwen2")
    for text in ("###Human: The audio", "emotional state is happy.###", "I can't believe it, 12 你好 "):
        assert loaded(text).input_ids == tokenizer.encode(text).ids
    chat = loaded.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_finished_models_are_left_alone_and_others_made_anew(taught, monkeypatch):
    monkeypatch.setattr(models, "_run", lambda jobs, workers: pytest.fail(f"made again: {jobs}"))
    assert models.make_models(taught, seed=1) == []
    assert sorted(models.missing_models(taught, seed=2)) == sorted(models.RECIPES)


def test_a_model_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    def fail(folder, *, seed):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain_vision, "pretrain_clip", fail)
    monkeypatch.setattr(models, "RECIPES", {"demo-clip": models.RECIPES["demo-clip"]})
    with pytest.raises(KeyboardInterrupt):
        models.make_models(tmp_path, workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("teach", ["vision", "speech"])
def test_no_lesson_uses_a_held_out_person(teach, monkeypatch):
    module = {"vision": pretrain_vision, "speech": pretrain_speech}[teach]
    asked, real = [], module.draw_person

    def draw(**arguments):
        asked.append(arguments)
        return real(**arguments)

    monkeypatch.setattr(module, "draw_person", draw)
    module.draw_lessons(count=6, seed=0)
    assert len(asked) == 6 and not any(a["held_out"] for a in asked)


def test_the_decoder_learns_to_read_cues(tokenizer):
    """A few seconds of lessons lower the loss far below that of a random decoder."""
    from torch.nn.functional import cross_entropy

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    encoder = pretrain_decoder._Encoder(tokenizer)
    model = pretrain_decoder.build_qwen2(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        lessons = [pretrain_decoder.draw_lesson(rng) for _ in range(8)]
        embeds, mask, labels = encoder.batch(model, lessons, rng)
        logits = model(inputs_embeds=embeds, attention_mask=mask.long()).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
