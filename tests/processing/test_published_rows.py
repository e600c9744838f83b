"""Behaviour that was adopted from the published code after it was run beside this one."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import pytest

from affectgpt.core.errors import CheckpointError, DataError
from affectgpt.core.tables import read_table
from affectgpt.core.types import Labels, Modality, Sample
from affectgpt.encoders.llm import LLMS, load_tokenizer
from affectgpt.processing.data import MixedBatches, TrainDataset
from affectgpt.processing.processor import AffectGPTProcessor
from affectgpt.processing.prompt import render_prompt


def test_of_doubled_rows_of_published_tables_the_last_counts(tmp_path, caplog):
    """MERBench's subtitles of IEMOCAP hold two names twice, with equal text."""
    table = tmp_path / "subtitles.csv"
    table.write_text("name,english\na,one\nb,two\na,one\n")
    with caplog.at_level(logging.WARNING, logger="affectgpt"):
        assert read_table(table, key="name", columns=("english",), doubled="last") == {"a": ("one",), "b": ("two",)}
    assert not caplog.text
    table.write_text("name,english\na,one\nb,two\na,three\nb,four\n")
    with caplog.at_level(logging.WARNING, logger="affectgpt"):
        assert read_table(table, key="name", columns=("english",), doubled="last")["a"] == ("three",)
    assert len(caplog.records) == 1 and "a, b" in caplog.text
    with pytest.raises(DataError, match="line 4: sample 'a' is there twice"):
        read_table(table, key="name", columns=("english",))


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory):
    """A folder with a SentencePiece model and no tokenizer.json, as Vicuna's."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("vicuna")
    words = [
        "the",
        "person",
        "feels",
        "happy",
        "sad",
        "angry",
        "worried",
        "calm",
        "###",
        "Human",
        "Assistant",
        "emotional",
        "state",
        "is",
        "character",
    ]
    text = [" ".join(words[(i * k) % len(words)] for k in range(1, 12)) + "." for i in range(2000)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(folder / "tokenizer"), vocab_size=320, model_type="bpe",
        normalization_rule_name="identity", remove_extra_whitespaces=False, byte_fallback=True, hard_vocab_limit=False,
        bos_id=1, eos_id=2, unk_id=0, minloglevel=2,
    )  # fmt: skip
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def slow_pieces(model: str, text: str, *, legacy: bool, special: list[str]) -> list[str]:
    """The pieces of transformers' slow Llama tokenizer, written out with sentencepiece alone."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(Path(model).read_bytes())
    proto.normalizer_spec.add_dummy_prefix = legacy
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    if not legacy:
        text = "▁" + text.replace("▁", " ")
    pieces: list[str] = []
    for part in filter(None, re.split("(" + "|".join(map(re.escape, special)) + ")", text)):
        if part in special:
            pieces.append(part)
        elif legacy or not part.startswith(("▁", " ")):
            pieces += processor.encode(part, out_type=str)
        else:  # <unk> keeps sentencepiece from taking the blank away
            pieces += processor.encode("<unk>" + part, out_type=str)[len(processor.encode("<unk>", out_type=str)) :]
    if not legacy and len(pieces) > 1 and pieces[0] == "▁" and pieces[1] in special:
        pieces = pieces[1:]
    return pieces


@pytest.mark.parametrize("legacy", [None, True, False])
def test_a_folder_with_a_sentencepiece_model_alone_gives_the_ids_of_the_slow_tokenizer(vicuna, tmp_path, legacy):
    from transformers import AutoTokenizer

    folder = tmp_path / "folder"
    shutil.copytree(vicuna, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["legacy"]
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings if legacy is None else {**settings, "legacy": legacy})
    )
    tokenizer = load_tokenizer(folder, LLMS["Vicuna"])
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    special = [medium.placeholder for medium in Modality] + ["<s>", "</s>", "<unk>"]
    texts = ["the person feels happy.", "sad, angry and worried ###", "calm", "  two  blanks ", "<s>happy", "<s> happy"]
    texts += [
        "calm <FaceHere> happy</s>",
        " <FaceHere>happy",
        "<FaceHere></Video>. sad",
        "▁mark",
        "开心 ☃",
        "a\nb",
        " ",
    ]
    texts += [render_prompt(mode, subtitle="I'm calm.", question="How?") for mode in ("audio_text", "face_text")]
    for text in texts:
        pieces = slow_pieces(str(vicuna / "tokenizer.model"), text, legacy=legacy is not False, special=special)
        expected = tokenizer.convert_tokens_to_ids(pieces)
        assert tokenizer(text, add_special_tokens=False).input_ids == expected, (text, pieces)
        assert again(text, add_special_tokens=False).input_ids == expected, text
    assert tokenizer("calm").input_ids[0] == tokenizer.bos_token_id == 1


def test_without_the_package_the_error_names_it(vicuna, monkeypatch):
    from transformers import AutoTokenizer

    def refuse(*_, **__):
        raise ImportError("needs sentencepiece")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    monkeypatch.setattr("affectgpt.encoders.llm.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is read by .*pip install sentencepiece"):
        load_tokenizer(vicuna, LLMS["Vicuna"])


@pytest.fixture
def processor(tokenizer, transforms):
    return AffectGPTProcessor(tokenizer, mode="face_text", transforms=transforms, eos_ids=[tokenizer.eos_token_id])


def sample(subtitle="", name="a"):
    return Sample(
        name=name, dataset="X", subtitle=subtitle, labels=Labels(ovlabels=("happy",), description="He smiles.")
    )


def test_a_subtitle_that_is_too_long_is_shortened_and_all_media_stay(processor, tokenizer):
    example = processor.text(sample("word " * 900), question="How is he?")
    face = tokenizer.convert_tokens_to_ids(Modality.FACE.placeholder)
    assert example.input_ids.count(face) == 1 and example.flags == ("subtitle_shortened",)
    assert len(example.input_ids) == 2000 - processor.max_new_tokens
    assert "word word" in example.prompt and "How is he?" in example.prompt
    assert processor.text(sample("word"), question="How is he?").flags == ()


def test_a_type_is_drawn_each_time_that_a_sample_is_drawn(processor):
    """In the OV-MERD recipe a sample comes back several times within an epoch."""
    batches = MixedBatches([4], batch_size=4, iters_per_epoch=40, seed=42)
    keys = [key for batch in batches for key in batch]
    assert len(set(keys)) == 160  # each drawing is one of its own
    data = TrainDataset([sample(name=str(i)) for i in range(4)], processor, label_types=("ovlabel", "description"))
    prompts = {data.text(index, epoch=number).prompt for _, number, index in keys if index == 0}
    assert len(prompts) == 2


def test_answers_of_folders_that_ask_for_it_have_no_blanks_before_marks(processor, tokenizer, monkeypatch):
    ids = tokenizer("He is n't good . Is he 's calm ?", add_special_tokens=False).input_ids
    assert processor.decode(ids) == "He is n't good . Is he 's calm ?"
    monkeypatch.setattr(tokenizer, "clean_up_tokenization_spaces", True)
    assert processor.decode(ids) == "He isn't good. Is he's calm?"
