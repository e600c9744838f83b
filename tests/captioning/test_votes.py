"""Majorities by emotion wheel, and when a description agrees with them."""

from __future__ import annotations

import numpy as np
import pytest

from affectgpt.captioning.filters import ClipVotes, Majority, Opinion, Wheels, high_level, polarity_of, tally
from affectgpt.captioning.labels import ClipLabels
from affectgpt.config.captioning import AgreementConfig
from affectgpt.core.errors import ConfigError
from affectgpt.evaluation.lexicon import load_builtin

WORDS = ("happy", "sad", "angry", "neutral")
MELD = ("joy", "sadness", "anger", "neutral")


@pytest.fixture(scope="module")
def wheels() -> Wheels:
    return Wheels(load_builtin())


def opinion(word: str, *, sure: float = 0.7, valence: float | None = None, vocabulary=WORDS) -> Opinion:
    """One classifier's opinion on one clip."""
    rest = (1 - sure) / (len(vocabulary) - 1)
    words = np.array([[sure if v == word else rest for v in vocabulary]])
    return Opinion(vocabulary, words, None if valence is None else np.array([valence]))


def one(opinions, wheels, band: float = 0.1) -> ClipVotes:
    (votes,) = tally(opinions, wheels, neutral_band=band)
    return votes


def test_words_of_other_label_sets_count_together(wheels):
    votes = one([opinion("happy"), opinion("joy", vocabulary=MELD), opinion("sad")], wheels)
    assert votes.words == ("happy", "happy", "sad") and votes.emotion == "happy"
    assert votes.wheels[0] == Majority("joy", pytest.approx(2 / 3))
    assert votes.polarity is None and votes.polarities == ()


def test_a_tie_goes_to_the_surer_side(wheels):
    assert one([opinion("happy", sure=0.5), opinion("sad", sure=0.9)], wheels).wheels[0].choice == "sadness"
    assert one([opinion("happy", sure=0.9), opinion("sad", sure=0.5)], wheels).wheels[0].choice == "joy"


def test_neutral_is_a_group_of_its_own(wheels):
    assert set(wheels.groups("neutral")) == {"neutral"}
    assert one([opinion("neutral")], wheels).wheels[0].choice == "neutral"


def test_polarity_has_a_neutral_band(wheels):
    assert [polarity_of(v, band=0.2) for v in (-0.5, -0.2, 0.0, 0.2, 0.21)] == [
        "negative", "neutral", "neutral", "neutral", "positive",
    ]  # fmt: skip
    votes = one([opinion("sad", valence=v) for v in (-0.9, 0.05, -0.3)], wheels)
    assert votes.polarities == ("negative", "neutral", "negative")
    assert votes.polarity == Majority("negative", pytest.approx(2 / 3))


def verdict(labels, polarity, opinions, wheels, **spec) -> str | None:
    _, dropped = high_level(
        {"clip": ClipLabels(tuple(labels), polarity)},
        {"clip": one(opinions, wheels)},
        wheels,
        spec=AgreementConfig(**spec),
    )
    return dropped.get("clip")


def three(word: str, valence: float) -> list[Opinion]:
    return [opinion(word, valence=valence) for _ in range(3)]


@pytest.mark.parametrize(
    ("labels", "polarity", "rule", "kept"),
    [
        (["sad", "tired"], "negative", "E+S", True),
        (["sorrowful"], "negative", "E+S", True),  # another word of the same group
        (["angry"], "negative", "S", True),
        (["angry"], "negative", "E", False),
        (["angry"], "negative", "E+S", False),
        (["happy"], "positive", "S", False),
        (["sad"], "neutral", "E", True),
        (["sad"], "neutral", "E+S", False),
        ([], "neutral", "E", False),
        (["happy"], "positive", "off", True),
    ],
)
def test_the_rules_of_table_4(labels, polarity, rule, kept, wheels):
    reason = verdict(labels, polarity, three("sad", -0.8), wheels, rule=rule)
    assert (reason is None) == kept, reason


def test_the_reason_says_what_both_sides_said(wheels):
    reason = verdict(["happy"], "positive", three("sad", -0.8), wheels)
    assert reason == (
        "emotion: the description says happy, the ensemble sad; sentiment: the description is positive, the ensemble "
        "negative"
    )


def test_an_ensemble_that_is_not_of_one_mind(wheels):
    split = [opinion("happy", valence=0.8), opinion("sad", valence=-0.8), opinion("angry", valence=0)]
    assert "not of one mind" in (verdict(["happy"], "positive", split, wheels, votes=0.6) or "")
    assert verdict(["happy"], "positive", split, wheels, votes=0.6, undecided="keep") is None


def test_sentiment_needs_an_ensemble_that_has_learnt_it(wheels):
    with pytest.raises(ConfigError, match="has learnt no valence"):
        verdict(["sad"], "negative", [opinion("sad")], wheels, rule="E+S")
    assert verdict(["sad"], "negative", [opinion("sad")], wheels, rule="E") is None


def test_a_clip_without_votes_is_not_judged(wheels):
    assert high_level({"clip": ClipLabels(("sad",), "negative")}, {}, wheels, spec=AgreementConfig()) == ({}, {})
