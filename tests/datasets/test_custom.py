"""A user's own data set is a block of the configuration: CSV or JSON, any columns, any folders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from affectgpt.config.load import load_config
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.types import IGNORE_INDEX, Modality
from affectgpt.datasets.base import open_dataset
from affectgpt.processing.data import training_batches, validation_batches
from affectgpt.processing.processor import AffectGPTProcessor

N_TOKENS = dict.fromkeys(Modality, 1)


@pytest.fixture
def build(tmp_path, tokenizer, transforms):
    def build(datasets: str):
        path = tmp_path / "config.yaml"
        body = "".join(f"  {line}\n" for line in datasets.splitlines())
        run = "run: {device: cpu, num_workers: 0, batch_size_train: 2, iters_per_epoch: 6}\n"
        path.write_text(f"datasets:\n{body}{run}paths: {{dataset_root: {tmp_path}}}\n")
        config = load_config(path)
        return config, training_batches(
            config, processor=AffectGPTProcessor(tokenizer, n_tokens=N_TOKENS, transforms=transforms)
        )

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
    load = lambda: open_dataset(config, "wavcaps").samples("train")  # noqa: E731
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
    processor = AffectGPTProcessor(tokenizer, n_tokens=N_TOKENS, transforms=transforms)
    splits = dataclasses.replace(config, run=dataclasses.replace(config.run, valid_splits=("test",)))
    (batch,) = validation_batches(splits, processor=processor)["mine_test"]
    assert batch.names == ["z"] and "glad" in tokenizer.decode(batch.labels[0][batch.labels[0] != IGNORE_INDEX])
    assert [s.name for s in open_dataset(config, "MINE").samples("train")] == ["x", "y"]
    spec = dataclasses.replace(config.datasets["mine"], test_path="c.csv")
    config = dataclasses.replace(config, datasets={"mine": spec})
    dataset = open_dataset(config, "MINE")
    (sample,) = dataset.samples("test", labels=False)
    assert (dataset.name, sample.name, sample.subtitle) == ("mine", "z", "Well.")
    spec = dataclasses.replace(spec, test_path=None)  # no other file: those of path
    assert len(open_dataset(dataclasses.replace(config, datasets={"mine": spec}), "mine").samples("test")) == 2


def test_a_set_published_without_a_file_name_takes_it_from_path(build, make, tmp_path):
    root = tmp_path / "mer2025-dataset"
    make.csv(root / "coarse.csv", ["name", "reason"], [["x", "He is glad."]])
    make.csv(root / "subtitle_chieng.csv", ["name", "english"], [["x", "Hi."]])
    _, batches = build("mercaption: {path: coarse.csv, face_or_frame: textonly, label_type: description}")
    assert "Hi." in next(batches(1)).prompts[0]


DIALOGUE = [
    {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."},
    {"from": "human", "value": "Is it glad?\n<image>"}, {"from": "gpt", "value": "It is."},
]  # fmt: skip
IMAGE = "data_type: image, face_or_frame: image, folders: {image: media}"
AUDIO = "data_type: audio, face_or_frame: audioonly, folders: {audio: media}"
VIDEO = "face_or_frame: frameonly, folders: {video: media}"
# set of the paper's table 3 → file, its content as published, its block, media files, (sample, file, question, answer)
PUBLISHED = {
    "minigpt4": (
        "filter_cap.json", {"annotations": [{"image_id": "2", "caption": "A cat."}]},
        f"columns: {{name: image_id, caption: caption}}, {IMAGE}", ["2.jpg"], [("2", "2.jpg", None, "A cat.")],
    ),
    "llava": (  # one image several times, another suffix
        "llava_instruct_150k.json",
        [{"id": "33", "image": "33.png", "conversations": DIALOGUE},
         {"id": "33", "image": "33.png", "conversations": DIALOGUE[:2]}],
        f"columns: {{file: image, dialogue: conversations}}, {IMAGE}", ["33.png"],
        [("00000001_1", "33.png", "What is it?", "A cat."), ("00000001_2", "33.png", "Is it glad?", "It is."),
         ("00000002_1", "33.png", "What is it?", "A cat.")],
    ),
    "emovit": (
        "emovit.json", [{"id": "a", "image": "amusement/a.jpg", "conversations": DIALOGUE[2:]}],
        f"columns: {{name: id, file: image, dialogue: conversations}}, {IMAGE}", ["amusement/a.jpg"],
        [("a_1", "amusement/a.jpg", "Is it glad?", "It is.")],
    ),
    "videochat": (
        "videochat_instruct_11k.json", [{"video": "000_050/77.mp4", "QA": [{"q": "Who?", "a": "He."}]}],
        f"columns: {{file: video, dialogue: QA}}, {VIDEO}", ["000_050/77.mp4"],
        [("00000001_1", "000_050/77.mp4", "Who?", "He.")],
    ),
    "wavcaps": (  # ids of its AudioSet part end in .wav, the files in .flac
        "as_final.json", {"num_captions_per_audio": 1, "data": [{"id": "Yx.wav", "caption": "Rain.", "title": "x"}]},
        f"columns: {{name: id, caption: caption}}, {AUDIO}", ["Yx.flac"], [("Yx.wav", "Yx.flac", None, "Rain.")],
    ),
    "mafw": (
        "descriptions.xlsx", [["video_name", "Chinese", "English"], ["00001.mp4", "他笑了。", "He smiles."]],
        f"label_type: description, columns: {{name: video_name, description: English}}, {VIDEO}", ["00001.mp4"],
        [("00001.mp4", "00001.mp4", None, "He smiles.")],
    ),
    "merr": (
        "MERR_fine_grained.json",
        {"sample_7": {"text": "No!", "AU_list": ["AU04"], "smp_reason_caption": "He frowns."}},
        f"label_type: description, columns: {{description: smp_reason_caption, subtitle: text}}, {VIDEO}",
        ["sample_7.mp4"], [("sample_7", "sample_7.mp4", None, "He frowns.")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_sets_of_table_3_are_read_from_their_published_files(name, build, make, tokenizer, tmp_path):
    file, content, block, media, expected = PUBLISHED[name]
    if file.endswith(".xlsx"):
        from openpyxl import Workbook

        book = Workbook()
        for row in content:
            book.active.append(row)
        book.save(tmp_path / file)
    else:
        (tmp_path / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    for medium in media:
        path = tmp_path / "media" / medium
        if path.suffix == ".mp4":
            make.video(path)
        elif path.suffix == ".flac":
            make.sound(path)
        else:
            from PIL import Image

            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30, 20)).save(path)
    config, batches = build(f"{name}: {{path: {file}, {block}}}")
    samples = open_dataset(config, name).samples("train")
    kind = {"image": "image", "audio": "audio", "video": "video"}[config.datasets[name].data_type]
    assert [s.name for s in samples] == [e[0] for e in expected]
    assert [str(getattr(s, kind).relative_to(tmp_path / "media")) for s in samples] == [e[1] for e in expected]
    for sample, (_, _, question, answer) in zip(samples, expected, strict=True):
        assert answer in (sample.labels.answer, sample.labels.description)
        assert question in (None, sample.labels.question)
    assert answers(batches, tokenizer) <= {e[3] for e in expected}  # media are read, prompts rendered


@pytest.mark.parametrize(
    "content, message",
    [
        (
            [{"c": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]}],
            "record 1: expected turns of human",
        ),
        ([{"c": DIALOGUE}, {"c": DIALOGUE[:3]}], "record 2: the dialogue has 3 turns"),
        ([{"c": [{"q": "x"}]}], "a turn is {'q': 'x'}, expected q and a"),
        ([{"c": "x"}], "the dialogue is 'x', expected a list of turns"),
        ([{"c": [{"q": "<image>", "a": "x"}]}], "an answer without a question"),
        ([{"d": DIALOGUE}], "record 1: no 'c'. Known: d."),
        ({"a": [1], "b": [2]}, "expected a list of objects"),
        ([3], "record 1: expected an object with name, c; found 3"),
        ([{"name": None, "c": DIALOGUE}], "sample name ''"),
        ([{"name": "x", "c": DIALOGUE}] * 2, "record 2: sample 'x_1' is there twice"),
    ],
)
def test_dialogues_that_are_none(content, message, build, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as raised:
        build("mine: {path: a.json, columns: {dialogue: c}, " + IMAGE + "}")
    assert message in str(raised.value) and "a.json" in str(raised.value)


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
        ("mine: {path: a.csv, columns: {file: n, emotion: e}}", DataError, "file '../x' must be below"),
        ("mine: {path: a.json, columns: {caption: c}}", DataError, "record 2: no 'c'"),
        ("mine: {path: b.json, columns: {caption: c}}", DataError, "cannot be read as UTF-8 JSON"),
        ("mine: {path: d.json, columns: {caption: c}}", DataError, "'x' is there twice"),
        ("mine: {path: a.csv, columns: {dialogue: e}}", DataError, "a dialogue column needs a JSON file"),
        ("mine: {path: a.csv, columns: {caption: e, dialogue: e}}", ConfigError, "not two of them"),
        ("mine: {path: c.json, columns: {caption: c}}", DataError, "'c' is ['x'], expected a text"),
        ("mine: {path: a.txt, columns: {caption: c}}", DataError, "expected a .csv, .xlsx, .json or .jsonl file"),
        ("mine: {path: a.xlsx, columns: {caption: c}}", DataError, "cannot be read as an Excel file"),
        ("a/b: {path: a.csv, columns: {emotion: e}}", DataError, "'a/b' is not a file stem"),
        ("mercaptionplus: {path: a.csv}", ConfigError, "has files of its own"),
    ],
)
def test_wrong_blocks(block, error, message, build, make, tmp_path):
    make.csv(tmp_path / "a.csv", ["name", "n", "e"], [["x", "../x", "sad"]])
    (tmp_path / "a.json").write_text('[{"name": "x", "c": "y"}, {"name": "z"}]')
    (tmp_path / "b.json").write_text("[{]")
    (tmp_path / "c.json").write_text('[{"name": "x", "c": ["x"]}]')
    (tmp_path / "d.json").write_text('{"x": {"c": "y"}, "x": {"c": "z"}}')
    (tmp_path / "a.xlsx").write_text("no zip")
    assert isinstance(tmp_path, Path)
    with pytest.raises(error) as raised:
        build(block)
    assert message in str(raised.value)


@pytest.mark.parametrize("file", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("depth", [900, 990, 100_000])
def test_json_of_any_depth_is_an_error_in_words(file, depth, build, tmp_path):
    """Nesting that Python can just read must not be too much for what looks at it."""
    record = '{"name": "x", "english": "", "ovlabel": ' + "[" * depth + "]" * depth + "}"
    (tmp_path / file).write_text(f"[{record}]" if file == "a.json" else record)
    try:
        build(f"mine:\n  path: {file}\n  columns: {{name: name, subtitle: english, ovlabel: ovlabel}}\n")
    except DataError as error:
        assert file in str(error) and "nested too deeply" in str(error)
    else:
        assert depth < 1_000
    (tmp_path / file).write_text("[" * depth + "]" * depth)
    with pytest.raises(DataError, match=rf"{file}.*(nested too deeply|expected an object)") as error:
        build(f"mine:\n  path: {file}\n  columns: {{name: name, subtitle: english, ovlabel: ovlabel}}\n")
    assert len(str(error.value)) < 400
