"""Multimodal models in folders, through transformers: tiny random ones that hear or see."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_multimodal
from talking_clips import make_clips

from affectgpt.cli import main as cli
from affectgpt.core.errors import CheckpointError, DataError
from affectgpt.core.npz import read_npz
from affectgpt.mllm.clip import ClipMedia, MediaOptions, folder_conversation
from affectgpt.mllm.folder import MultimodalClient
from affectgpt.textllm.base import ConversationsFailedError, Sampling

SAMPLING = Sampling(temperature=1.0, top_p=0.95, repetition_penalty=1.0, max_tokens=10, seed=7)
OPTIONS = MediaOptions(("video", "audio", "subtitle"))


@pytest.fixture(scope="module")
def ears(tmp_path_factory):
    return tiny_multimodal.make_audio_model(tmp_path_factory.mktemp("models") / "Tiny-Audio")


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    return tiny_multimodal.make_video_model(tmp_path_factory.mktemp("models") / "Tiny-Video")


def sounds(count):
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.3, 8000 * (1 + i % 3)).astype(np.float32) for i in range(count)]


def heard(count, options=OPTIONS):
    return [folder_conversation(f"What is felt? {i}", ClipMedia(sound=s), options) for i, s in enumerate(sounds(count))]


def seen(count, options=OPTIONS, frames=4):
    rng = np.random.default_rng(1)
    clips = [rng.integers(0, 256, (frames, 20, 30, 3), dtype=np.uint8) for _ in range(count)]
    return [folder_conversation(f"What? {i}", ClipMedia(frames=c, fps=2.0), options) for i, c in enumerate(clips)]


def ask(folder, conversations, sampling=SAMPLING, **settings):
    with MultimodalClient(model=folder, device="cpu", **settings) as client:
        return client.chat_many(conversations, sampling=sampling)


@pytest.mark.parametrize(("folder", "conversations"), [("ears", heard(5)), ("eyes", seen(5))])
def test_a_reply_depends_on_its_clip_and_not_on_its_batch(request, folder, conversations):
    path = request.getfixturevalue(folder)
    together = ask(path, conversations, batch_size=5)
    assert ask(path, conversations, batch_size=2) == together
    assert len({reply.text for reply in together}) == 5
    assert all(reply.reply_tokens == 10 and reply.truncated for reply in together)
    assert ask(path, conversations, Sampling(temperature=1.0, max_tokens=10, seed=8)) != together


def test_greedy_replies_are_those_of_the_plain_model(ears):
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    processor = AutoProcessor.from_pretrained(ears)
    model = Qwen2AudioForConditionalGeneration.from_pretrained(ears).eval()
    greedy = Sampling(temperature=0, repetition_penalty=1.0, max_tokens=8)
    replies = ask(ears, heard(3), greedy, batch_size=3)
    for conversation, sound, reply in zip(heard(3), sounds(3), replies, strict=True):
        text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        inputs = processor(text=text, audio=[sound], sampling_rate=16_000, return_tensors="pt")
        assert inputs["input_ids"].shape[1] == reply.prompt_tokens
        output = model.generate(**inputs, do_sample=False, top_k=None, repetition_penalty=1.0, max_new_tokens=8)
        assert processor.tokenizer.decode(output[0, reply.prompt_tokens :]) == reply.text


def test_frames_are_taken_as_they_were_chosen(eyes):
    ask(eyes, seen(1))
    settings = tiny_multimodal.TinyVideoProcessor.seen[-1]
    assert settings["videos_kwargs"]["do_sample_frames"] is False
    assert settings["videos_kwargs"]["video_metadata"] == [
        {"total_num_frames": 4, "fps": 2.0, "frames_indices": [0, 1, 2, 3]}
    ]


def test_pictures_instead_of_a_video(eyes):
    (pictures,) = ask(eyes, seen(1, MediaOptions(("video",), as_frames=True)))
    (video,) = ask(eyes, seen(1))
    assert video.prompt_tokens - pictures.prompt_tokens == 4 * 5 - 4 * 4


def test_one_bad_clip_fails_alone(eyes):
    class Lazy(list):
        def __getitem__(self, index):
            if index == 1:
                raise DataError("clip one: no such file")
            return super().__getitem__(index)

    conversations = Lazy([*seen(2), *seen(1, frames=3), *seen(2)])
    done = {}
    with (
        MultimodalClient(model=eyes, device="cpu", batch_size=3) as client,
        pytest.raises(ConversationsFailedError) as caught,
    ):
        client.chat_many(conversations, sampling=SAMPLING, on_result=lambda index, reply: done.update({index: reply}))
    assert sorted(done) == [0, 3, 4]
    assert {index: why.reason for index, why in caught.value.failed.items()} == {
        1: "clip one: no such file", 2: "ValueError: three frames are too few",
    }  # fmt: skip


def test_a_prompt_that_is_too_long_says_what_to_do(eyes):
    with pytest.raises(ConversationsFailedError, match="more than the 1024 of Tiny-Video; send fewer or smaller"):
        ask(eyes, seen(1, frames=250))


def test_folders_that_are_no_multimodal_models(tmp_path, ears):
    with pytest.raises(CheckpointError, match="no such model folder"):
        ask(tmp_path / "none", heard(1))
    for file in ears.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "bert", "architectures": ["BertModel"]}))
    with pytest.raises(CheckpointError, match="bert is not a multimodal LLM"):
        ask(tmp_path, heard(1))


@pytest.mark.parametrize(("folder", "media"), [("ears", "audio,subtitle"), ("eyes", "video,subtitle")])
def test_a_folder_answers_a_data_set(request, tmp_path, monkeypatch, folder, media):
    make_clips(tmp_path / "dataset")
    monkeypatch.chdir(tmp_path)
    path = request.getfixturevalue(folder)
    arguments = ["ask", "--model-path", str(path), "--device", "cpu", "--media", media, "--datasets", "MER2023",
                 "--dataset-root", "dataset", "--max-tokens", "12", "--run", "tiny"]  # fmt: skip
    assert cli.main(arguments) == 0
    target = tmp_path / "output" / "results-mer2023" / "tiny" / "seed_42.npz"
    assert sorted(read_npz(target)["name2reason"]) == ["m1", "m2", "m3", "m4"]
    record = json.loads(target.with_name("seed_42-answers.meta.json").read_text())
    assert record["model"] == path.name and record["model_sha256"] and record["flags"]["truncated"]
    medium = media.partition(",")[0]
    assert record["senses"][medium]["fault"] is None
    with_it, without = record["senses"][medium]["prompt_tokens_with_and_without"][0]
    assert with_it > without
