"""Labels and polarity of descriptions: asked once per text, kept, told where they fail."""

from __future__ import annotations

import pytest
from fake_llm_server import Answer

from affectgpt.captioning.labels import ClipLabels, extract_labels, open_extractor
from affectgpt.config.captioning import ExtractorConfig
from affectgpt.core.errors import ConfigError


def test_the_direct_extractor_needs_no_server_and_no_cache(tmp_path):
    texts = {"a": "So the person's emotional state is Happy and joyful.", "b": "The chair is red and so is the table."}
    with open_extractor(ExtractorConfig(name="direct")) as extractor:
        found, steps = extract_labels(texts, extractor, folder=tmp_path / "cache")
    assert found == {"a": ClipLabels(("happy", "joyful"), "positive"), "b": ClipLabels((), "neutral")}
    assert [step.step for step in steps] == ["labels", "polarity"] and not (tmp_path / "cache").exists()


def test_equal_texts_are_asked_once_and_new_ones_added(serve, tmp_path):
    server = serve(lambda text, _: Answer(text="Negative." if "Output: positive" in text else "Output: [Sad, tired]"))
    spec = ExtractorConfig(name="openai", base_url=server.url, model="m")
    with open_extractor(spec) as extractor:
        found, _ = extract_labels({"a": "x", "b": "x", "c": "y"}, extractor, folder=tmp_path)
        assert found == dict.fromkeys("abc", ClipLabels(("sad", "tired"), "negative"))
        assert len(server.requests) == 3  # two texts; one label list
        extract_labels({"a": "x", "d": "z"}, extractor, folder=tmp_path)
    assert len(server.requests) == 4


def test_replies_to_another_wording_are_not_taken(serve, tmp_path, monkeypatch):
    server = serve(lambda text, _: Answer(text="[old]" if text.startswith("Name") else "output: [new]"))
    spec = ExtractorConfig(name="openai", base_url=server.url, model="m")
    with open_extractor(spec) as extractor:
        with monkeypatch.context() as patch:
            patch.setattr("affectgpt.evaluation.extract._PROMPTS", {"labels": "Name the emotions. {text}"})
            found, _ = extract_labels({"a": "x"}, extractor, folder=tmp_path, polarity=False)
            assert found["a"].labels == ("old",)
        found, _ = extract_labels({"a": "x"}, extractor, folder=tmp_path, polarity=False)
    assert found["a"].labels == ("new",) and len(server.requests) == 2


def test_a_server_that_fails_leaves_the_rest_waiting(serve, tmp_path):
    def behave(text, _):
        return (
            Answer(text="[sad]") if text.endswith("Input: x; Output: ") else Answer(status=404, body=b"no such model")
        )

    server = serve(behave)
    spec = ExtractorConfig(name="openai", base_url=server.url, model="m", concurrency=1)
    with open_extractor(spec) as extractor:
        found, (first, second) = extract_labels({"a": "x", "b": "y"}, extractor, folder=tmp_path)
    assert found == {} and first.texts == {"a": "[sad]"}
    assert "no such model" in first.failures["b"].reason and first.stopped is not None and second.stopped is not None


def test_a_server_must_be_named():
    with pytest.raises(ConfigError, match="base_url"):
        open_extractor(ExtractorConfig(name="openai"))
