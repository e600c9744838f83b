"""The length filter: both ends of the distribution."""

import numpy as np
import pytest

from affectgpt.captioning.filters import cut_lengths, fit_lengths, length
from affectgpt.config.captioning import LengthConfig


@pytest.mark.parametrize(
    ("text", "words"), [("The voice is low.", 4), ("", 0), ("他很高兴", 4), ("她 feels 很 sad。", 4)]
)
def test_words_and_chinese_characters_count(text, words):
    assert length(text) == words


def test_both_fits_find_the_gaussian():
    values = np.random.default_rng(0).normal(60, 8, 4000).round().astype(int).tolist()
    for fit in ("moments", "robust"):
        found = fit_lengths(values, LengthConfig(fit=fit, sigmas=2))
        assert abs(found.mean - 60) < 1 and abs(found.std - 8) < 0.6
        assert found.low == pytest.approx(found.mean - 2 * found.std)


def test_many_failures_move_the_moments_but_not_the_robust_fit():
    rng = np.random.default_rng(1)
    texts = {f"long{i}": "w " * int(rng.normal(60, 5)) for i in range(170)}
    texts |= {f"short{i}": "w " * 4 for i in range(30)}
    robust, _ = cut_lengths(texts, LengthConfig(fit="robust", sigmas=3))
    assert {n for n in robust if n.startswith("short")} == {f"short{i}" for i in range(30)}
    assert len(robust) <= 33
    moments, _ = cut_lengths(texts, LengthConfig(fit="moments", sigmas=3))
    assert not moments


def test_the_reason_names_the_end():
    texts = {**{f"c{i}": "w " * (50 + i % 5) for i in range(50)}, "short": "w", "long": "w " * 200}
    cut, fit = cut_lengths(texts, LengthConfig())
    assert cut["short"].startswith("too short: 1 words") and cut["long"].startswith("too long: 200 words")
    assert fit is not None and set(cut) == {"short", "long"}


def test_equal_lengths_lose_nothing_and_off_is_off():
    assert cut_lengths({"a": "w w", "b": "w w"}, LengthConfig())[0] == {}
    assert cut_lengths({"a": "w w", "b": ""}, LengthConfig(use=False)) == ({}, None)
