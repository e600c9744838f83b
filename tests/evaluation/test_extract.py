"""Extraction files: how they are made, reused, refused, and taken up again after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fake_llm_server import Answer, FakeServer

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.npz import read_npz, write_npz
from affectgpt.evaluation import results as files
from affectgpt.evaluation.extract import (
    LABELS_PROMPT,
    LLMExtractor,
    clean_reply,
    direct_items,
    extract_file,
    extractor_names,
    get_extractor,
)
from affectgpt.evaluation.results import read_items
from affectgpt.textllm.base import Sampling, TextLLM, TextLLMError, TextReply

ANSWERS = {
    "b": "The character's emotional state is happy, calm.",
    "a": "The character's emotional state is sad.",
    "c": "The character's emotional state is happy, calm.",
    "d": "He walks up and down the room.",
}


class FakeLLM(TextLLM):
    """Reads labels by the direct rules; counts what it is asked; fails after ``limit`` replies."""

    name = "fake"

    def __init__(self, *, model="m1", limit=None):
        self.model, self.limit, self.prompts = model, limit, []

    def identity(self):
        return {"model": self.model, "model_sha256": None}

    def details(self):
        return {"folder": "/somewhere"}

    def chat_many(self, conversations, *, sampling, on_result=None):
        for index in reversed(range(len(conversations))):
            if self.limit is not None and len(self.prompts) >= self.limit:
                raise TextLLMError("the server went away")
            prompt = conversations[index][0]["content"]
            self.prompts.append(prompt)
            text = prompt.rpartition("Input: ")[2].removesuffix("; Output: ")
            if "sentiment" in prompt:
                reply = "Output: positive\n" if "happy" in text else "neutral"
            else:
                reply = f"Output: [{text.removesuffix('.').rpartition(' is ')[2]}]\n" if " is " in text else "[]"
            on_result(index, TextReply(reply, truncated=text.startswith("He")))
        return []


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "checkpoint_000030_loss_0.602.npz"
    write_npz(path, name2reason=ANSWERS)
    return path


def journal_path(path):
    return path.with_suffix(".journal.jsonl")


def _llm(**settings):
    return LLMExtractor(FakeLLM(**settings), sampling=Sampling(seed=1))


# The published prompts once more, written out on their own: every byte of them counts.
PUBLISHED_LABELS = (
    b"Please assume the role of an expert in the field of emotions. We provide clues that may be related to the "
    b"emotions of the characters. Based on the provided clues, please identify the emotional states of the main "
    b"character. The main character is the one with the most detailed clues. Please separate different emotional "
    b"categories with commas and output only the clearly identifiable emotional categories in a list format. If none "
    b"are identified, please output an empty list. Input: We cannot recognize his emotional state; Output: [] Input: "
    b"His emotional state is happy, sad, and angry; Output: [happy, sad, angry] Input: He is {text}.; Output: "
)
PUBLISHED_POLARITY = (
    b"Please act as an expert in the field of emotions.             We provide a few words to describe the emotions "
    b"of a character.             Please choose the most likely sentiment from the given candidates: [positive, "
    b"negative, neutral]             Please direct output answer without analyzing process.             Input: "
    b"[joyful]; Output: positive             Input: []; Output: neutral             Input: [sad]; Output: "
)


def test_prompts_are_the_published_ones_byte_for_byte(answers):
    write_npz(answers, name2reason={"a": "He is {text}."})  # and this is what a model is asked
    extractor = _llm()
    extract_file(answers, task="sentiment", extractor=extractor)
    assert [prompt.encode() for prompt in extractor.client.prompts] == [
        PUBLISHED_LABELS,
        PUBLISHED_POLARITY.replace(b"[sad]", b"[{text}]"),
    ]


@pytest.mark.parametrize(
    ("reply", "clean"),
    [
        ("[happy, calm]", "[happy, calm]"),
        ("Output: [happy]", "[happy]"),
        ("output: [happy]", "[happy]"),
        ("OUTPUT: [happy]", "OUTPUT: [happy]"),
        ("outPut: [happy]", "outPut: [happy]"),
        ("Output [happy]", "[happy]"),
        ("Output : [happy]", "[happy]"),
        ("Output:: [happy]", ": [happy]"),
        ("Output:：[happy]", "[happy]"),
        ("Output：:[happy]", ":[happy]"),
        ("Outputs: [happy]", "s: [happy]"),
        ("Output Output: [happy]", "Output: [happy]"),  # once each, and a blank is in between
        ("OutputOutput: [happy]", "Output: [happy]"),
        ("outputOutput: [happy]", "[happy]"),
        ("Outputoutput: [happy]", "output: [happy]"),  # this order only
        ("OutputInput: [happy]", "[happy]"),
        ("InputOutput: [happy]", "Output: [happy]"),
        ("Input: Output: [happy]", "Output: [happy]"),
        ("Output: Input: x", "Input: x"),
        ("input: x; Output: [happy]", "x; Output: [happy]"),
        ("inputInput: x", "x"),
        ("输出：[happy]\n", "[happy]"),
        ("输入输出翻译：[happy]", "[happy]"),
        ("翻译输出：[happy]", "输出：[happy]"),
        ("翻译: 输出: x", "输出: x"),
        ("让我们来翻译一下：[happy]", "[happy]"),
        ("让我们来翻译一下: [happy]", "让我们来翻译一下: [happy]"),  # the wide colon belongs to it
        ("翻译让我们来翻译一下：output: [happy]", "[happy]"),
        ("\nInput: [happy,\n calm] ", "[happy, calm]"),
        ("[happy,\ncalm]", "[happy,calm]"),
        ("Output:\n\n[happy]\n\nIt is clear.", "[happy]It is clear."),
        ("Out\nput: [happy]", "Output: [happy]"),  # newlines go last
        ("[happy,\r\n calm]", "[happy,\r calm]"),
        (": positive", "positive"),
        (": ：positive", "：positive"),
        (" ：Positive. ", "Positive."),
        ("positive", "positive"),
        ("Output", ""),
        (":", ""),
        (" \n ", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_replies_are_cleaned_as_published(reply, clean):
    assert clean_reply(reply) == clean


def test_items_of_another_wording_are_asked_again(answers, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("affectgpt.evaluation.extract._PROMPTS", {"labels": "Name the emotions. Input: {text}; Output: "})
        with pytest.raises(TextLLMError):
            extract_file(answers, task="basic", extractor=_llm(limit=2))
    made = extract_file(answers, task="basic", extractor=_llm())
    assert made.computed == 3 and made.extractor == "fake m1, seed 1"  # all three, not only the last one


def test_direct_items():
    answers = {"a": "The character's emotional state is happy, calm.", "b": "It rains. Nobody knows.", "c": ""}
    assert direct_items(answers, polarity=False) == ({"a": "[happy, calm]", "b": "[]"}, ["b"])
    assert direct_items(answers, polarity=True)[0] == {"a": "positive", "b": "neutral"}


def test_labels_through_a_language_model(answers):
    extractor = _llm()
    made = extract_file(answers, task="basic", extractor=extractor)
    values = read_npz(answers.with_name("checkpoint_000030_loss_0.602-openset.npz"))
    assert values["filenames"].tolist() == list(ANSWERS)
    assert values["fileitems"].tolist() == ["[happy, calm]", "[sad]", "[happy, calm]", "[]"]
    assert values["fileitems"].dtype.kind == "U"
    assert made.sentiment is None and made.extractor == "fake m1, seed 1" and made.computed == 3
    assert len(extractor.client.prompts) == 3  # an answer given twice is asked once
    meta = json.loads(files.record_path(made.labels).read_text())
    assert meta["settings"]["sampling"] == Sampling(seed=1).as_dict()
    assert meta["settings"]["prompt_sha256"] == hashlib.sha256(LABELS_PROMPT.encode()).hexdigest()
    assert meta["details"]["folder"] == "/somewhere" and meta["source"] == answers.name
    assert meta["notes"] == {"reply cut at 512 tokens": {"count": 1, "first": ["d"]}}
    assert not journal_path(made.labels).exists()


def test_polarity_is_the_second_step(answers):
    extractor = _llm()
    made = extract_file(answers, task="sentiment", extractor=extractor)
    assert made.sentiment.name == "checkpoint_000030_loss_0.602-openset-sentiment.npz"
    assert read_items(made.sentiment) == {"b": "positive", "a": "neutral", "c": "positive", "d": "neutral"}
    assert made.computed == 6 and len(extractor.client.prompts) == 6
    assert any(prompt.endswith("Input: [happy, calm]; Output: ") for prompt in extractor.client.prompts)


def test_the_direct_extractor_needs_no_model_and_has_its_own_names(answers, caplog):
    caplog.set_level("WARNING", logger="affectgpt")
    made = extract_file(answers, task="sentiment", extractor=get_extractor("direct"))
    assert made.labels.name == "checkpoint_000030_loss_0.602-openset-direct.npz"
    assert made.sentiment.name == "checkpoint_000030_loss_0.602-openset-direct-sentiment.npz"
    assert read_items(made.sentiment) == {"b": "positive", "a": "negative", "c": "positive", "d": "neutral"}
    assert made.extractor == "direct"
    assert "answer not of the trained form: 1 of 4 (first: d)" in caplog.text
    assert extract_file(answers, task="sentiment", extractor=get_extractor("direct")).computed == 0


def test_the_same_settings_reuse_the_file(answers):
    made = extract_file(answers, task="sentiment", extractor=_llm())
    before = made.labels.stat().st_mtime_ns, made.sentiment.stat().st_mtime_ns
    extractor = _llm()
    again = extract_file(answers, task="sentiment", extractor=extractor, overwrite=True)
    assert again.computed == 0 and extractor.client.prompts == []
    assert (made.labels.stat().st_mtime_ns, made.sentiment.stat().st_mtime_ns) == before


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: _llm(model="m2"), r"model: it has 'm1', asked for 'm2'"),
        (lambda: LLMExtractor(FakeLLM(), sampling=Sampling(seed=2)), r"sampling\.seed: it has 1, asked for 2"),
        (lambda: LLMExtractor(FakeLLM(), sampling=Sampling(seed=1, top_p=0.5)), r"sampling\.top_p: it has 0\.8"),
    ],
)
def test_other_settings_are_refused_and_overwrite_replaces(answers, other, words):
    made = extract_file(answers, task="basic", extractor=_llm())
    before = made.labels.read_bytes()
    with pytest.raises(DataError, match=rf"-openset\.npz: made otherwise.*{words}.*--overwrite"):
        extract_file(answers, task="basic", extractor=other())
    assert made.labels.read_bytes() == before
    assert extract_file(answers, task="basic", extractor=other(), overwrite=True).computed == 3
    assert extract_file(answers, task="basic", extractor=other()).computed == 0


def test_another_prompt_is_other_settings(answers, monkeypatch):
    extract_file(answers, task="basic", extractor=_llm())
    monkeypatch.setattr("affectgpt.evaluation.extract._PROMPTS", {"labels": "Name the emotions. {text}"})
    with pytest.raises(DataError, match="prompt_sha256"):
        extract_file(answers, task="basic", extractor=_llm())


def test_other_answers_are_refused(answers):
    extract_file(answers, task="basic", extractor=_llm())
    write_npz(answers, name2reason={**ANSWERS, "a": "The character's emotional state is angry."})
    with pytest.raises(DataError, match=r"answers_sha256: it has \w{12}…, asked for"):
        extract_file(answers, task="basic", extractor=_llm())


def test_a_changed_extraction_file_is_refused(answers):
    made = extract_file(answers, task="basic", extractor=_llm())
    write_npz(made.labels, filenames=np.array(list(ANSWERS)), fileitems=np.array(["[x]"] * 4))
    with pytest.raises(DataError, match="changed after it was made"):
        extract_file(answers, task="basic", extractor=_llm())


def test_a_published_file_is_taken_as_it_is(answers):
    path = files.items_path(answers)
    write_npz(path, filenames=np.array(list(ANSWERS)), fileitems=np.array(["[joy]", "[sad]", "[joy]", "[]"]))
    before = path.read_bytes()
    made = extract_file(answers, task="basic", extractor=_llm())
    assert made.computed == 0 and made.extractor == "unknown extractor (no meta file)"
    # Polarity made from labels of unknown origin says so.
    made = extract_file(answers, task="sentiment", extractor=_llm())
    assert made.computed == 3 and path.read_bytes() == before
    meta = files.read_record(made.sentiment)
    assert meta["settings"]["labels_by"] == "unknown extractor (no meta file)"
    assert extract_file(answers, task="basic", extractor=_llm(), overwrite=True).computed == 3


def test_a_published_file_of_other_clips_is_refused(answers):
    write_npz(files.items_path(answers), filenames=np.array(["a", "z"]), fileitems=np.array(["[joy]", "[sad]"]))
    with pytest.raises(DataError, match=r"no item for 3 answers \(first: b, c, d\); 1 items without an answer"):
        extract_file(answers, task="basic", extractor=_llm())


def test_new_labels_make_old_polarity_stale(answers):
    extract_file(answers, task="sentiment", extractor=_llm())
    extract_file(answers, task="basic", extractor=_llm(model="m2"), overwrite=True)
    with pytest.raises(DataError, match=r"-sentiment\.npz: made otherwise.*labels_by"):
        extract_file(answers, task="sentiment", extractor=_llm(model="m2"))


def test_an_error_keeps_what_is_finished(answers):
    first = _llm(limit=2)
    with pytest.raises(TextLLMError, match="went away"):
        extract_file(answers, task="sentiment", extractor=first)
    assert not files.items_path(answers).exists() and journal_path(files.items_path(answers)).exists()
    second = _llm()
    made = extract_file(answers, task="basic", extractor=second)
    assert made.computed == 1 and not set(first.client.prompts) & set(second.client.prompts)
    assert read_items(made.labels)["b"] == "[happy, calm]"
    assert files.read_record(made.labels)["notes"]  # also of the items that came from the journal


def test_a_killed_overwrite_goes_on_and_never_mixes(answers):
    extract_file(answers, task="basic", extractor=_llm(model="m1"))
    with pytest.raises(TextLLMError):
        extract_file(answers, task="basic", extractor=_llm(model="m2", limit=2), overwrite=True)
    # The old file is whole, and still is what it says it is.
    assert extract_file(answers, task="basic", extractor=_llm(model="m1")).extractor == "fake m1, seed 1"
    made = extract_file(answers, task="basic", extractor=_llm(model="m2"))
    assert made.computed == 1 and made.extractor == "fake m2, seed 1"


def test_a_kill_between_record_and_file(answers, monkeypatch):
    """The record is written first; a kill before the rename must not leave a file of unknown origin, or lose items."""
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(files, "write_json", lambda path, value: path.write_text(json.dumps(value)))
        with pytest.raises(KeyboardInterrupt):
            extract_file(answers, task="basic", extractor=_llm())
    path = files.items_path(answers)
    assert files.record_path(path).exists() and not path.exists()
    extractor = _llm()
    assert extract_file(answers, task="basic", extractor=extractor).computed == 0
    assert extractor.client.prompts == [] and read_items(path)["a"] == "[sad]"
    assert sorted(p.suffix for p in answers.parent.iterdir()) == [".json", ".npz", ".npz"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"name2answer": {"a": "x"}}, "under the key name2reason; keys: name2answer"),
        ({"name2reason": np.arange(3)}, "under the key name2reason"),
        ({"name2reason": {}}, "is empty"),
        ({"name2reason": {"a": "x", "b": float("nan")}}, r"1 of 2 answers are not text: 'b' \(nan\)"),
        ({"name2reason": {"a": "x", "b": None}}, r"'b' \(None\)"),
        ({"name2reason": {"a": "x", "b": " \n"}}, r"1 of 2 answers are empty \(first: b\)"),
    ],
)
def test_answers_that_cannot_be_read(answers, value, words):
    write_npz(answers, **value)
    with pytest.raises(DataError, match=rf"checkpoint_000030_loss_0\.602\.npz: .*{words}"):
        extract_file(answers, task="basic", extractor=_llm())
    assert [path.name for path in answers.parent.iterdir()] == [answers.name]


def test_empty_answers_can_be_allowed(answers):
    write_npz(answers, name2reason={**ANSWERS, "e": ""})
    extractor = _llm()
    made = extract_file(answers, task="basic", extractor=extractor, allow_empty=True)
    assert read_items(made.labels)["e"] == "[]" and len(extractor.client.prompts) == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}'])
def test_a_damaged_record_is_named(answers, text):
    made = extract_file(answers, task="basic", extractor=_llm())
    files.record_path(made.labels).write_text(text)
    with pytest.raises(DataError, match=r"-openset\.meta\.json"):
        extract_file(answers, task="basic", extractor=_llm())


def test_unequal_arrays_are_refused(answers):
    path = files.items_path(answers)
    for names, items in ((["a", "b"], ["x"]), (["a", "a"], ["x", "y"])):
        write_npz(path, filenames=np.array(names), fileitems=np.array(items))
        with pytest.raises(DataError, match="each name should have one item"):
            read_items(path)
    write_npz(path, filenames=np.array(["a"]), fileitems=np.array([1.0]))
    with pytest.raises(DataError, match="string array under the key fileitems"):
        read_items(path)


def test_extractors_by_name():
    assert set(extractor_names()) >= {"direct", "openai", "transformers", "vllm"}
    with pytest.raises(ConfigError, match="direct"):
        get_extractor("dircet")
    extractor = get_extractor("transformers", model="models/none", sampling=Sampling(seed=9))
    assert extractor.settings("labels")["sampling"]["seed"] == 9


_PROGRAM = """
import sys
from affectgpt.evaluation.extract import extract_file, get_extractor
extractor = get_extractor("openai", base_url=sys.argv[2], model="served", concurrency=4)
extract_file(sys.argv[1], task="basic", extractor=extractor)
"""


def test_kill_and_resume_ask_for_nothing_twice(tmp_path):
    """kill -9 in the middle: only what was in flight is asked again, and the file is that of an undisturbed run."""
    table = {f"clip_{n:03d}": f"The character's emotional state is mood{n}." for n in range(60)}
    answers = tmp_path / "checkpoint_000030_loss_0.602.npz"
    write_npz(answers, name2reason=table)

    def behave(text, _):
        return Answer(text=f"[{text.rpartition(' is ')[2].partition('.')[0]}]", delay=0.02)

    server = FakeServer(behave)
    root = Path(__file__).resolve().parents[2]
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    command = [sys.executable, "-c", _PROGRAM, str(answers), server.url]
    try:
        process = subprocess.Popen(command, cwd=root, env=environment)
        deadline = time.monotonic() + 30
        while server.asked.total() < 25 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        time.sleep(0.05)
        path = files.items_path(answers)
        finished = len(journal_path(path).read_bytes().splitlines()) - 1
        first = Counter(server.asked)
        assert not path.exists() and 15 < finished < 60
        assert first.total() - finished <= 4  # the requests in flight
        subprocess.run(command, cwd=root, env=environment, check=True)
    finally:
        server.close()
    assert len(server.asked) == 60 and server.asked.total() - 60 <= 4
    assert read_items(path) == {name: f"[mood{n}]" for n, name in enumerate(table)}
    assert not journal_path(path).exists()
