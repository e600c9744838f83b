"""A user's own data set is a block of the configuration: CSV or JSON, any columns, any folders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from affectgpt.config.load import load_config
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.types import IGNORE_INDEX, Modality
from affectgpt.data.loader import named_samples, training_batches
from affectgpt.data.own import load_own_samples
from affectgpt.data.validation import validation_batches

N_TOKENS = dict.fromkeys(Modality, 1)


@pytest.fixture
def build(tmp_path, tokenizer, transforms):
    def build(datasets: str):
        path = tmp_path / "config.yaml"
        body = "".join(f"  {line}\n" for line in datasets.splitlines())
        run = "run: {device: cpu, num_workers: 0, batch_size_train: 2, iters_per_epoch: 6}\n"
        path.write_text(f"datasets:\n{body}{run}paths: {{dataset_root: {tmp_path}}}\n")
        config = load_config(path)
        return config, training_batches(config, tokenizer=tokenizer, transforms=transforms, n_tokens=N_TOKENS)

    return build


def answers(batches, tokenizer):
    return {
        tokenizer.decode(row[row != IGNORE_INDEX]).removesuffix("###<|im_end|>")
        for batch in batches(1)
        for row in batch.labels
    }


def test_clips_with_columns_and_folders(build, make, tokenizer, tmp_path):
    header = ["clip", "text", "why", "labels"]
    make.csv(tmp_path / "mine" / "a.csv", header, [["x", "Hi.", "He is glad.", "[glad]"], ["y", "", "She is sad.", ""]])
    for name in "xy":
        make.video(tmp_path / "mine" / "v" / f"{name}.mp4")
        make.sound(tmp_path / "mine" / "w" / f"{name}.wav")
        make.faces(tmp_path / "faces" / name / f"{name}.npy")
    _, batches = build(
        "mine:\n"
        "  path: mine/a.csv\n"
        "  columns: {name: clip, subtitle: text, description: why, ovlabel: labels}\n"
        "  folders: {video: mine/v, audio: mine/w, face: faces}\n"
    )
    assert batches.counts == {"mine": 2}
    batch = next(batches(1))
    assert set(batch.media) == {Modality.FACE, Modality.AUDIO}
    assert any("<Subtitle>Hi.</Subtitle>" in p for p in batch.prompts) or "x" not in batch.names
    assert answers(batches, tokenizer) <= {
        "He is glad.", "She is sad.", "The character's emotional state is glad.",
        "The character's emotional state is neutral.",
    }  # fmt: skip


def test_image_questions_from_json(build, tokenizer, tmp_path):
    from PIL import Image

    (tmp_path / "images" / "sub").mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(tmp_path / "images" / "sub" / "cat.jpg")
    records = [{"id": i, "image": "sub/cat.jpg", "q": f"What {i}?", "a": f"A cat {i}."} for i in range(3)]
    (tmp_path / "llava.json").write_text(json.dumps({"annotations": records}))
    _, batches = build(
        "llava:\n"
        "  path: llava.json\n"
        "  data_type: image\n"
        "  face_or_frame: image\n"
        "  label_type: qa\n"
        "  columns: {name: id, file: image, question: q, answer: a}\n"
        "  folders: {image: images}\n"
    )
    batch = next(batches(1))
    assert batch.media[Modality.IMAGE].shape == (2, 3, 224, 224)
    assert answers(batches, tokenizer) == {f"A cat {i}." for i in range(3)}
    assert all(f"What {name}? ###Assistant" in prompt for name, prompt in zip(batch.names, batch.prompts, strict=True))


def test_captions_draw_their_question_by_name(build, make, tmp_path):
    lines = [json.dumps({"name": f"s{i}", "caption": f"Rain {i}."}) for i in range(40)]
    (tmp_path / "wavcaps.jsonl").write_text("\n".join(lines))
    config, _ = build(
        "wavcaps:\n  path: wavcaps.jsonl\n  data_type: audio\n  face_or_frame: audioonly\n"
        "  columns: {caption: caption}\n  folders: {audio: sounds}\n"
    )
    load = lambda: load_own_samples("wavcaps", config.datasets["wavcaps"], dataset_root=tmp_path)  # noqa: E731
    asked = [sample.labels.question for sample in load()]
    assert asked == [sample.labels.question for sample in load()]
    assert len(set(asked)) == 4 and all("audio" in q or "sound" in q for q in asked)
    assert load()[0].audio == tmp_path / "sounds" / "s0.wav"


def test_own_candidates_and_range(build, make, tmp_path):
    make.csv(tmp_path / "a.csv", ["name", "e", "v"], [["x", "sad", "-2"], ["y", "glad", "1.5"], ["z", "", "0"]])
    _, batches = build("mine: {path: a.csv, face_or_frame: textonly, columns: {emotion: e, valence: v}}")
    prompts = {p for epoch in range(1, 9) for b in batches(epoch) for p in b.prompts}
    assert any("candidate labels: glad,sad." in p for p in prompts)
    assert any("ranging from -2.0 to 1.5." in p for p in prompts)


def test_clips_to_answer_and_the_loss_on_them(build, make, tokenizer, transforms, tmp_path):
    make.csv(tmp_path / "a.csv", ["name", "e", "said"], [["x", "sad", "No."], ["y", "glad", "Yes."]])
    make.csv(tmp_path / "b.csv", ["name", "said", "e"], [["z", "Well.", "glad"]])
    make.csv(tmp_path / "c.csv", ["name", "said"], [["z", "Well."]])  # not labelled: enough for answers
    block = "mine: {path: a.csv, test_path: b.csv, face_or_frame: textonly, columns: {emotion: e, subtitle: said}}"
    config, batches = build(block)
    assert batches.counts == {"mine": 2}
    parts = {"tokenizer": tokenizer, "transforms": transforms, "n_tokens": N_TOKENS}
    splits = dataclasses.replace(config, run=dataclasses.replace(config.run, valid_splits=("test",)))
    (batch,) = validation_batches(splits, **parts)["mine_test"]
    assert batch.names == ["z"] and "glad" in tokenizer.decode(batch.labels[0][batch.labels[0] != IGNORE_INDEX])
    assert [s.name for s in named_samples(config, "MINE", split="train")[1]] == ["x", "y"]
    spec = dataclasses.replace(config.datasets["mine"], test_path="c.csv")
    config = dataclasses.replace(config, datasets={"mine": spec})
    title, (sample,) = named_samples(config, "MINE", split="test")
    assert (title, sample.name, sample.subtitle) == ("mine", "z", "Well.")
    spec = dataclasses.replace(spec, test_path=None)  # no other file: those of path
    assert len(named_samples(dataclasses.replace(config, datasets={"mine": spec}), "mine", split="test")[1]) == 2


def test_a_set_published_without_a_file_name_takes_it_from_path(build, make, tmp_path):
    root = tmp_path / "mer2025-dataset"
    make.csv(root / "coarse.csv", ["name", "reason"], [["x", "He is glad."]])
    make.csv(root / "subtitle_chieng.csv", ["name", "english"], [["x", "Hi."]])
    _, batches = build("mercaption: {path: coarse.csv, face_or_frame: textonly, label_type: description}")
    assert "Hi." in next(batches(1)).prompts[0]


@pytest.mark.parametrize(
    "block, error, message",
    [
        ("mine: {}", DataError, "unknown data set 'mine'"),
        ("mercaption: {}", DataError, "no published label file name"),
        ("mine: {path: a.csv, columns: {captions: c}}", ConfigError, "unknown 'captions'. Did you mean 'caption'"),
        ("mine: {path: a.csv, folders: {faces: f}}", ConfigError, "unknown 'faces'. Did you mean 'face'"),
        ("mine: {path: a.csv}", ConfigError, "nothing to learn"),
        ("mine: {path: a.csv, columns: {question: q}}", ConfigError, "question and answer belong together"),
        ("mine: {path: gone.csv, columns: {emotion: e}}", DataError, "gone.csv: no such file"),
        ("mine: {path: a.csv, columns: {emotion: x}}", DataError, "a.csv: no column 'x'"),
        ("mine: {path: a.csv, columns: {valence: e}}", DataError, "sample 'x': valence is 'sad'"),
        ("mine: {path: a.csv, columns: {name: n, emotion: e}}", DataError, "sample name '../x'"),
        ("mine: {path: a.csv, columns: {file: n, emotion: e}}", DataError, "file '../x' must lie below"),
        ("mine: {path: a.json, columns: {caption: c}}", DataError, "record 2: no 'c'"),
        ("mine: {path: b.json, columns: {caption: c}}", DataError, "no UTF-8 JSON"),
        ("mercaptionplus: {path: a.csv}", ConfigError, "has files of its own"),
    ],
)
def test_wrong_blocks(block, error, message, build, make, tmp_path):
    make.csv(tmp_path / "a.csv", ["name", "n", "e"], [["x", "../x", "sad"]])
    (tmp_path / "a.json").write_text('[{"name": "x", "c": "y"}, {"name": "z"}]')
    (tmp_path / "b.json").write_text("[{]")
    assert isinstance(tmp_path, Path)
    with pytest.raises(error) as raised:
        build(block)
    assert message in str(raised.value)
