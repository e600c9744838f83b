"""Table 3's filter on instruction sets of every shape."""

from __future__ import annotations

import csv
import json

import pytest
from fake_llm_server import Answer

from affectgpt.captioning.labels import open_extractor
from affectgpt.captioning.nonempty import keep_nonempty
from affectgpt.config.captioning import ExtractorConfig
from affectgpt.core.errors import DataError

LLAVA = [
    {"id": 1, "image": "1.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhat does she feel?"}, {"from": "gpt", "value": "She is sad."},
        {"from": "human", "value": "How many chairs?"}, {"from": "gpt", "value": "Three."}]},
    {"id": 2, "image": "2.jpg", "conversations": [
        {"from": "human", "value": "How many chairs?"}, {"from": "gpt", "value": "Four."}]},
]  # fmt: skip


@pytest.fixture
def extractor(serve):
    """Labels are found where the text says sad; what the model was asked is kept."""
    server = serve(lambda text, _: Answer(text="[sad]" if "sad" in text.rsplit("Input: ", 1)[1] else "[]"))
    made = open_extractor(ExtractorConfig(name="openai", base_url=server.url, model="m"))
    made.server = server
    yield made
    made.close()


def test_of_a_dialogue_the_pairs_with_labels_stay(extractor, tmp_path):
    source, target = tmp_path / "llava.json", tmp_path / "kept.json"
    source.write_text(json.dumps(LLAVA))
    found = keep_nonempty(source, target, extractor, dialogue="conversations", folder=tmp_path / "cache")
    assert (found.pairs, found.kept, found.empty, found.failed) == (3, 1, 2, 0)
    assert json.loads(target.read_text()) == [{**LLAVA[0], "conversations": LLAVA[0]["conversations"][:2]}]
    asked = [r["body"]["messages"][0]["content"] for r in extractor.server.requests]
    assert len(asked) == 3 and "gpt" not in asked[0]
    assert any("Input: <image>\nWhat does she feel?\nShe is sad.; Output:" in text for text in asked)
    keep_nonempty(source, target, extractor, dialogue="conversations", folder=tmp_path / "cache")
    assert len(extractor.server.requests) == 3


def test_a_dialogue_may_be_taken_whole_or_have_both_in_one_turn(extractor, tmp_path):
    source, target = tmp_path / "llava.json", tmp_path / "kept.json"
    source.write_text(json.dumps(LLAVA))
    keep_nonempty(source, target, extractor, columns=["conversations"], folder=tmp_path / "cache")
    assert json.loads(target.read_text()) == LLAVA[:1]
    chat = {"video": "v", "QA": [{"q": "How?", "a": "Fine."}, {"q": "And now?", "a": "She is sad."}]}
    source.write_text(json.dumps([chat]))
    keep_nonempty(source, target, extractor, dialogue="QA", folder=tmp_path / "cache")
    assert json.loads(target.read_text()) == [{**chat, "QA": chat["QA"][1:]}]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "annotations", "names"])
def test_every_kind_of_file_keeps_its_kind(extractor, tmp_path, kind):
    records = [{"name": "a", "q": "How?", "answer": "sad, 很 sad"}, {"name": "b", "q": "How?", "answer": "fine"}]
    suffix = kind if kind in ("csv", "jsonl") else "json"
    source, target = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    if kind == "csv":
        with source.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    elif kind == "jsonl":
        source.write_text("".join(json.dumps(r) + "\n" for r in records))
    elif kind == "names":
        source.write_text(json.dumps({r["name"]: r for r in records}))
    else:
        source.write_text(json.dumps({"info": 1, "annotations": records}))
    keep_nonempty(source, target, extractor, columns=["q", "answer"], folder=tmp_path / "cache")
    if kind == "csv":
        assert target.read_text(encoding="utf-8") == 'name,q,answer\na,How?,"sad, 很 sad"\n'
    elif kind == "jsonl":
        assert [json.loads(line) for line in target.read_text().splitlines()] == records[:1]
    elif kind == "names":
        assert json.loads(target.read_text()) == {"a": records[0]}
    else:
        assert json.loads(target.read_text()) == {"info": 1, "annotations": records[:1]}


def test_nothing_is_written_while_some_are_not_asked(serve, tmp_path):
    server = serve(lambda text, _: Answer(status=401, body=b"no"))
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"t": "sad"}\n{"t": ""}\n')
    with open_extractor(ExtractorConfig(name="openai", base_url=server.url, model="m")) as extractor:
        found = keep_nonempty(source, target, extractor, columns=["t"], folder=tmp_path / "cache")
    assert (found.kept, found.empty, found.failed) == (0, 1, 1) and found.stopped is not None
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", r"a\.json: no JSON"),
        ("a.json", '{"x": 1}', "an object that holds one such list"),
        ("a.json", '[{"txet": "x"}]', r"record 1: no 't'.*Known: txet"),
        ("a.json", "[3]", "record 1: no 't'"),
        ("a.csv", "t,u\nx\n", "record 1: not 2 cells"),
        ("a.txt", "x", r"\.csv, \.json, \.jsonl"),
    ],
)
def test_damaged_files_are_told(extractor, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        keep_nonempty(tmp_path / name, tmp_path / f"out{name[1:]}", extractor, columns=["t"], folder=tmp_path / "cache")


def test_a_file_is_not_written_over_itself(extractor, tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match="over itself"):
        keep_nonempty(tmp_path / "a.json", tmp_path / "a.json", extractor, columns=["t"], folder=tmp_path)


@pytest.mark.parametrize("flag", [["--out", "k.json"], ["--dialogue", "conversations"], ["--columns", "q", "a"]])
def test_flags_of_this_filter_alone_are_refused_without_it(flag, capsys):
    from affectgpt.cli.main import main

    assert main(["caption", "--cfg-path", "train_configs/captioning.yaml", *flag]) == 1
    assert "go with --nonempty-labels FILE" in capsys.readouterr().err
