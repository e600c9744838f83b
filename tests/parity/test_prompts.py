"""Prompts against those of the published implementation."""

import json

import pytest

from affectgpt.core.types import Labels, Sample
from affectgpt.processing.prompt import render_prompt, repeat_placeholders
from affectgpt.processing.questions import render_answer, render_question

pytestmark = pytest.mark.parity


def test_published_prompts(golden):
    strings = json.loads((golden / "attention" / "strings.json").read_text())
    assert len(strings) >= 6
    for mode, entry in strings.items():
        for sample in entry["samples"]:
            prompt = render_prompt(mode, subtitle=sample["subtitle"], question=sample["question"])
            assert prompt == sample["prompt"], mode
            assert repeat_placeholders(prompt, {}) == sample["prompt_replaced"]


def test_published_questions_and_answers(golden):
    strings = json.loads((golden / "attention" / "strings.json").read_text())
    for entry in strings.values():
        for sample in entry["samples"]:
            if entry["label_type"] == "description":
                assert render_question("description") == sample["question"]
            if entry["label_type"] == "ovlabel":
                assert render_question("ovlabel") == sample["question"]
                inner = sample["answer"].removeprefix("The character's emotional state is ").removesuffix(".")
                labels = Labels(ovlabels=tuple(inner.split(", ")))
                assert render_answer("ovlabel", Sample("x", "MERCaptionPlus", labels=labels)) == sample["answer"]
