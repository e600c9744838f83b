"""Labels and polarity without a language model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affectgpt.evaluation.labels import (
    label_polarity,
    parse_item,
    polarity,
    polarity_words,
    read_labels,
)


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        ("The character's emotional state is happy, calm.", ["happy", "calm"]),
        ("The character’s emotional state is happy.", ["happy"]),
        ("The character's emotional state is: sad", ["sad"]),
        ("The characters' emotional states are sad and worried.", ["sad", "worried"]),
        ("The man's emotional state is angry; frustrated", ["angry", "frustrated"]),
        ("The most likely label is neutral.", ["neutral"]),
        ("The character's sentiment state is positive.", ["positive"]),
        ("The valence score is 0.60.", ["positive"]),
        ("The valence score is -1.25.", ["negative"]),
        ("The valence score is 0.00.", ["neutral"]),
        ("The character's emotional state is slightly anxious, and a bit sad.", ["anxious", "sad"]),
        ("The character's emotional state is one of confusion and helplessness.", ["confusion", "helplessness"]),
        ("The character's emotional state is happy, Happy, happy.", ["happy"]),
        ("The character's emotional state is not interested, bored.", ["not interested", "bored"]),
        ("The character's emotional state is calm because the exam is over. He smiles.", ["calm"]),
        ("He speaks fast. Hence the character's emotional state is tense. The tone is loud.", ["tense"]),
        ("The character's emotional state is sad, unable to say what it is that he would want.", ["sad"]),
        ("[happy, 'calm']", ["happy", "calm"]),
        ("happy, very calm.", ["happy", "calm"]),
        ("happy", ["happy"]),
        ("The character's emotional state is unclear.", []),
        ("The character's emotional state is .", []),
        ("[]", []),
        ("", []),
    ],
)
def test_labels_of_the_trained_form(answer, labels):
    assert read_labels(answer) == labels


@pytest.mark.parametrize(
    "answer",
    [
        "In the video a man sits in a white room. His eyebrows are furrowed and his mouth is open.",
        "I'm sorry, but I cannot answer that question without the video.",
        "The character's emotional state is that of a man who lost the one thing he loved.\nHe sits down.",
        "The man smiles, nods and leaves.",
    ],
)
def test_free_text_is_left_to_a_language_model(answer):
    assert read_labels(answer) is None


_LABEL = st.sampled_from(["happy", "sad", "under pressure", "self-doubt", "in awe", "worried"])


@given(st.lists(_LABEL, min_size=1, max_size=8, unique=True))
def test_every_list_of_labels_comes_back(labels):
    assert read_labels(f"The character's emotional state is {', '.join(labels)}.") == labels
    assert list(parse_item(f"[{', '.join(labels)}]")) == labels


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text):
    labels = read_labels(text)
    assert labels is None or all(label and label == label.strip() for label in labels)
    assert polarity(labels or []) in ("positive", "negative", "neutral")


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("happy", 1), ("Happiness", 1), ("worried", -1), ("surprised", 0), ("calm", 0), ("flurbish", None),
        ("not happy", -1), ("lack of confidence", -1), ("not angry", 0), ("fear of success", -1),
        ("emotional pain", -1), ("under pressure", -1), ("positive evaluation", 1), ("full of energy", None),
        ("sense of loss", -1), ("hopelessly lost", -1), ("", None),
    ],
)  # fmt: skip
def test_polarity_of_a_label(label, value):
    assert label_polarity(label) == value


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([], "neutral"),
        (["flurbish"], "neutral"),
        (["calm", "serious"], "neutral"),
        (["calm", "serious", "worried"], "negative"),  # neutral labels do not vote
        (["happy", "worried", "sad"], "negative"),
        (["happy", "worried"], "positive"),  # a tie: the first named
        (["worried", "happy"], "negative"),
    ],
)
def test_polarity_of_labels(labels, expected):
    assert polarity(labels) == expected


def test_the_word_list_has_no_word_twice():
    import tomllib

    from affectgpt.evaluation.labels import WORDS_FILE

    words = [word for part in tomllib.loads(WORDS_FILE.read_text(encoding="utf-8")).values() for word in part.split()]
    assert len(words) == len(set(words)) == len(polarity_words())
    assert all(word == word.lower() for word in words)
    assert len(words) > 1000
