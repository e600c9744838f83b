"""Rewards: what they give, what earns nothing, and that they cannot be fooled."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from affectgpt.core.errors import ConfigError
from affectgpt.core.types import Labels
from affectgpt.evaluation.lexicon import Grouping, load_builtin
from affectgpt.evaluation.metrics.base import METRICS
from affectgpt.evaluation.rewards import PENALTIES, REWARDS, Grader, read_reply, split_thinking, truth_of

GROUPING = Grouping(load_builtin())
SAID = "The character's emotional state is {}."
THOUGHT = "<think>The person's emotional state is {}.</think><answer>The character's emotional state is {}.</answer>"


def open_truth(*labels: str):
    return truth_of(Labels(ovlabels=labels), GROUPING)


def earned(text: str, truth, name: str = "wheel", **options) -> float | None:
    grader = Grader({name: 1.0}, grouping=GROUPING, max_tokens=options.pop("max_tokens", 100), **options)
    reply = read_reply(text, think=grader.think, tokens=options.get("tokens", 0), max_tokens=grader.max_tokens)
    return grader.rewards_of(reply, truth)[name]


@pytest.mark.parametrize(
    "said", ["happy", "happy, sad", "sad, angry, worried", "joyful, cheerful", "table", "happy, table"]
)
@pytest.mark.parametrize("true", [("happy",), ("sad", "worried"), ("angry", "sad", "surprised")])
def test_wheel_precision_and_recall_are_those_of_the_metric(said, true):
    metric = METRICS.get("fine-grained")(GROUPING)
    summands = metric.summands([true], [f"[{said}]"])
    assert earned(SAID.format(said), open_truth(*true)) == pytest.approx(float(metric.per_sample(summands)[0]))
    p, r, counted = np.split(summands[0], 3)
    for name, values in (("precision", p), ("recall", r)):
        expected = values[counted > 0].mean()
        assert earned(SAID.format(said), open_truth(*true), name) == pytest.approx(float(expected))


def test_hit_and_polarity_are_those_of_the_metrics():
    basic = truth_of(Labels(emotion="happy"), GROUPING)
    metric = METRICS.get("basic")(GROUPING)
    for said in ("happy", "sad, joyful", "sad"):
        expected = metric.per_sample(metric.summands([("happy",)], [f"[{said}]"]))[0]
        assert earned(f"The most likely label is {said}.", basic, "hit") == pytest.approx(float(expected))
    good, bad = (truth_of(Labels(valence=v), GROUPING) for v in (0.4, -2.0))
    assert [earned(SAID.format("happy"), t, "polarity") for t in (good, bad)] == [1.0, 0.0]
    assert [earned(SAID.format("sad, worried"), t, "polarity") for t in (good, bad)] == [0.0, 1.0]


def test_a_reward_says_nothing_of_a_clip_with_other_labels():
    basic = truth_of(Labels(emotion="happy"), GROUPING)
    assert earned(SAID.format("happy"), basic, "wheel") is None
    assert earned(SAID.format("happy"), open_truth("happy"), "hit") is None
    assert earned(SAID.format("happy"), open_truth("happy"), "polarity") is None


def test_clips_without_a_scorable_truth_have_none():
    assert truth_of(Labels(), GROUPING) is None
    assert truth_of(Labels(valence=0.0), GROUPING) is None
    assert truth_of(Labels(ovlabels=("table",)), GROUPING) is None
    neutral = truth_of(Labels(ovlabels=()), GROUPING)  # an empty list is neutral: scorable where a wheel knows it
    assert (neutral is None) == (GROUPING.mask(["neutral"]) == 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "I do not know what to say about this one at all, sorry.",
        "The character's emotional state is unclear.",
    ],
)
def test_empty_and_unreadable_answers_earn_nothing_by_any_reward(text):
    names = {name: 1.0 for name in REWARDS.names() if name not in ("dual", "alignment")}
    grader = Grader(names, grouping=GROUPING, max_tokens=100)
    found = grader.rewards_of(read_reply(text, think=False, max_tokens=100), open_truth("happy"))
    assert {value for value in found.values() if value is not None} == {0.0}


def test_the_form_is_the_trained_sentence_and_nothing_else():
    truth = open_truth("happy")
    assert earned(SAID.format("happy, sad"), truth, "format") == 1.0
    for text in ("happy", SAID.format("happy") + " " + SAID.format("sad"), "Well. " + SAID.format("happy")):
        assert earned(text, truth, "format") == 0.0


def test_a_thinking_and_an_answer_must_both_be_there_in_order_and_once():
    assert split_thinking("<think>a</think>\n<answer>b</answer>") == ("a", "b")
    for text in (
        "<answer>b</answer><think>a</think>", "<think></think><answer>b</answer>", "<think>a</think><answer> </answer>",
        "<think>a</think>b", "<think>a</think><answer>b</answer><answer>c</answer>",
        "x<think>a</think><answer>b</answer>",
        "<think>a</think><think>a</think><answer>b</answer>", "<think>a<answer>b</answer></think><answer>c</answer>",
    ):  # fmt: skip
        assert split_thinking(text) is None, text
        assert earned(text, open_truth("happy"), "format", think=True) == 0.0


def test_labels_in_the_thinking_earn_nothing_but_for_it():
    truth = open_truth("happy")
    hidden = THOUGHT.format("happy", "sad")
    assert earned(hidden, truth, think=True) == 0.0
    assert earned(hidden, truth, "dual", think=True) == 1.0
    assert earned(hidden, truth, "alignment", think=True) < 1.0
    assert earned(THOUGHT.format("happy", "happy"), truth, "alignment", think=True) == 1.0
    with pytest.raises(ConfigError, match=r"grpo\.rewards\.dual reads a thinking: set grpo\.think"):
        Grader({"dual": 1.0}, grouping=GROUPING)


@pytest.mark.parametrize(
    ("name", "given", "true", "factor"),
    [
        ("none", 9, 1, 1), ("p1", 3, 1, 1 / 3), ("p2", 3, 1, 1 / 3), ("p1", 4, 3, 1 / 2), ("p2", 4, 3, 3 / 4),
        ("p3", 7, 3, np.log(4) / np.log(8)), ("p3", 3, 1, 1 / 2), ("p1", 2, 2, 1), ("p2", 1, 3, 1), ("p3", 3, 3, 1),
    ],
)  # fmt: skip
def test_length_penalties(name, given, true, factor):
    assert PENALTIES[name](given, true) == pytest.approx(factor)


def test_penalties_lower_rewards_of_labels_and_count_words_that_no_wheel_knows():
    truth = open_truth("happy")
    assert earned(SAID.format("happy, table, chair"), truth) == 1.0  # free by the metric
    assert earned(SAID.format("happy, table, chair"), truth, length_penalty="p1") == pytest.approx(1 / 3)
    assert earned(SAID.format("happy, joyful, cheerful"), truth, length_penalty="p2") == pytest.approx(1 / 3)
    assert earned(SAID.format("happy, table, chair"), truth, "format", length_penalty="p1") == 1.0


def test_tokens_cost_and_answers_that_are_nearly_cut_earn_less():
    grader = Grader({"tokens": 1.0, "overlong": 1.0}, grouping=GROUPING, max_tokens=100, overlong=20)
    for tokens, expected in ((10, (0.9, 1.0)), (85, (0.15, 0.75)), (100, (0.0, 0.0))):
        reply = read_reply(SAID.format("happy"), think=False, tokens=tokens, max_tokens=100)
        assert tuple(grader.rewards_of(reply, open_truth("happy")).values()) == pytest.approx(expected)


def test_listing_many_emotions_earns_less_than_naming_the_right_one():
    """HIT does not see that; the wheel reward, precision and all penalties do."""
    everything = SAID.format("happy, sad, angry, surprised, worried, disgusted")
    truth, basic = open_truth("happy"), truth_of(Labels(emotion="happy"), GROUPING)
    assert earned(everything, basic, "hit") == earned(SAID.format("happy"), basic, "hit") == 1.0
    for options in ({"name": "wheel"}, {"name": "precision"}, {"name": "wheel", "length_penalty": "p3"}):
        assert earned(everything, truth, **options) < 0.6 * earned(SAID.format("happy"), truth, **options)
    assert earned(everything, basic, "hit", length_penalty="p1") < 0.2


@pytest.mark.parametrize("trick", ["happy, happy, happy", "HAPPY", "happy, Happy"])
def test_saying_it_again_earns_nothing_more(trick):
    assert earned(SAID.format(trick), open_truth("happy", "sad")) == earned(
        SAID.format("happy"), open_truth("happy", "sad")
    )


def test_a_second_statement_is_read_as_more_labels_not_as_a_second_chance():
    truth = open_truth("happy")
    assert earned(f"{SAID.format('happy')} {SAID.format('sad')}", truth) == earned(SAID.format("happy, sad"), truth)


def answer(text: str) -> SimpleNamespace:
    return SimpleNamespace(text=text, ids=(1, 2, 3))


def test_grades_of_a_batch():
    grader = Grader({"wheel": 1.0, "hit": 0.5, "format": 0.0}, grouping=GROUPING, max_tokens=10)
    truths = [open_truth("happy"), truth_of(Labels(emotion="sad"), GROUPING)]
    grades = grader.grade(
        truths, [[answer(SAID.format("happy")), answer("?!")], [answer(SAID.format("sad, angry"))] * 2]
    )
    assert grades.kinds == ("wheel", "hit", "format")
    assert grades.weights.tolist() == [[1, 0], [0, 0.5], [0, 0]]
    assert grades.totals.tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert grades.labels.tolist() == [[1, 0], [2, 2]] and grades.readable.tolist() == [[True, False], [True, True]]
    assert grades.values[2].tolist() == [[1, 0], [1, 1]]  # measured, though it has no weight


def test_the_best_constant_answer_is_found():
    truths = [open_truth("happy")] * 6 + [open_truth("sad")] * 4
    assert Grader({"wheel": 1.0}, grouping=GROUPING).best_constant(truths) == SAID.format("happy, sad")
    only = Grader({"precision": 1.0}, grouping=GROUPING).best_constant(truths)
    assert only == SAID.format("happy")
    moods = [truth_of(Labels(valence=v), GROUPING) for v in (-1.0, 0.5, -0.2)]
    grader = Grader({"polarity": 1.0}, grouping=GROUPING)
    assert grader.best_constant(moods) == SAID.format("negative")
    assert grader.earns(SAID.format("negative"), moods[0]) == 1.0
    recall = Grader({"recall": 1.0}, grouping=GROUPING).best_constant([*truths, open_truth("angry")])
    assert recall == SAID.format("happy, sad, angry")


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({"weel": 1.0}, "unknown reward 'weel'. Did you mean 'wheel'"), ({"wheel": -1.0}, "allowed: 0 or more"),
        ({"wheel": 0.0}, "nothing would be learnt"),
    ],
)  # fmt: skip
def test_wrong_weights_are_refused(rewards, message):
    with pytest.raises(ConfigError, match=message):
        Grader(rewards, grouping=GROUPING)


def test_a_reward_that_is_not_a_number_is_named():
    @REWARDS.register("test-not-a-number")
    def odd(reply, truth, grader):
        return float("nan")

    with pytest.raises(ConfigError, match=r"grpo\.rewards\.test-not-a-number gave nan"):
        earned(SAID.format("happy"), open_truth("happy"), "test-not-a-number")


def test_a_language_model_reads_the_thinking_once_per_text():
    asked = []

    class Reader:
        def run(self, step, texts, *, on_item):
            asked.extend(texts)
            for index in range(len(texts)):
                on_item(index, "[happy]", None)

    grader = Grader({"dual": 1.0}, grouping=GROUPING, think=True, reader=Reader())
    text = "<think>She beams at us.</think><answer>The character's emotional state is sad.</answer>"
    for _ in range(2):
        assert grader.grade([open_truth("happy")], [[answer(text), answer(text)]]).totals.tolist() == [[1.0, 1.0]]
    assert asked == ["She beams at us."]
    assert grader.grade([open_truth("happy")], [[answer(text)]], read=False).totals.tolist() == [[0.0]]
