"""What answers reach that never met the clip, and scores without a choice on the test set."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_benchmark import GOOD, Bench

from affectgpt.cli import score as command
from affectgpt.cli.common import run_cli
from affectgpt.datasets.table import get_row
from affectgpt.evaluation import report
from affectgpt.evaluation.chance import chance_levels
from affectgpt.evaluation.lexicon import Lexicon, grouping_of, load_builtin
from affectgpt.evaluation.metrics.sentiment import Polarity
from affectgpt.evaluation.report_html import page
from affectgpt.evaluation.score import Score, Truth, make_metric, score_items, score_run, select
from affectgpt.evaluation.stats import Estimate

ROWS = [get_row(name) for name in ("MER2023", "SIMS", "OVMERDPlus")]
WORDS = ("happy", "angry", "sad", "worried")


def scored(dataset: str, truth: dict, items: dict[str, str], checkpoint: str = "x") -> Score:
    row = get_row(dataset)
    split = Truth(row, truth, frozenset(truth), complete=True)
    return score_items(items, split, make_metric(row, grouping_of(load_builtin())), source=None, checkpoint=checkpoint)  # type: ignore[arg-type]


def add_chance(*scores: Score) -> None:
    levels = chance_levels(scores[0].metric, scores[0].truth, [score.items for score in scores])
    for score, level in zip(scores, levels, strict=True):
        score.chance = level


def basic(predicted: list[str], truth: list[str]) -> Score:
    names = [f"c{i}" for i in range(len(truth))]
    return scored(
        "MER2023", {n: (t,) for n, t in zip(names, truth, strict=True)}, dict(zip(names, predicted, strict=True))
    )


def test_no_clip_keeps_its_own_answer() -> None:
    """Two clips that are both met, each with its own emotion: permuted, none is."""
    found = basic(["[happy]", "[angry]"], ["happy", "angry"])
    add_chance(found)
    assert found.primary == 1 and found.chance.permuted == {"hit": 0.0}
    assert found.chance.labels == found.chance.groups == found.chance.precision == 1


def test_permuted_answers_reach_what_chance_gives() -> None:
    truth = list(WORDS[:3]) * 100
    found = basic([f"[{word}]" for word in truth], truth)
    add_chance(found)
    assert found.chance.permuted["hit"] == pytest.approx(
        99 / 299, abs=0.02
    )  # one of three emotions, never its own clip
    assert found.chance.constant["hit"] == pytest.approx(1 / 3)
    assert found.above_chance == pytest.approx(1 - found.chance.higher("hit"))


def test_more_labels_raise_the_score_and_the_chance_levels_with_it() -> None:
    truth = ["happy", "angry", "sad", "happy", "sad", "angry"] * 20
    modest = basic([f"[{word}]" if i % 2 else "[angry]" for i, word in enumerate(truth)], truth)
    greedy = basic([*[f"[{', '.join(WORDS[:3])}, gibberish]"] * 120], truth)
    add_chance(modest, greedy)
    assert greedy.primary == 1 > modest.primary and modest.above_chance > 0
    assert greedy.chance.labels == 4 and greedy.chance.groups == 3 and greedy.chance.precision == pytest.approx(1 / 3)
    assert greedy.chance.permuted["hit"] == greedy.chance.constant["hit"] == 1 and greedy.above_chance == 0
    assert {frozenset(answer) for answer in greedy.chance.answers} == {frozenset(WORDS[:3])}


def test_the_constant_answer_is_chosen_on_the_other_half() -> None:
    """Each half's favourite is missed by the other half where they differ: a choice on all clips would hit half."""
    found = basic(["[happy]"] * 2, ["happy", "angry"])
    add_chance(found)
    assert found.chance.constant == {"hit": 0.0}


def test_a_constant_answer_of_words() -> None:
    truth = {f"c{i}": -1.0 if i % 3 else 1.0 for i in range(90)}
    found = scored("SIMS", truth, dict.fromkeys(truth, "positive"))
    add_chance(found)
    assert found.chance.answers == (("negative",), ("negative",)) and found.chance.labels is None
    assert found.chance.constant["acc"] == pytest.approx(2 / 3, abs=0.02)
    assert found.chance.permuted["acc"] == pytest.approx(1 / 3)  # every clip gets the same word


def test_precision_and_recall_have_chance_levels_too() -> None:
    truth = {f"c{i}": (WORDS[i % 2],) for i in range(60)}
    found = scored("OVMERDPlus", truth, {name: f"[{word}, sad]" for name, (word,) in truth.items()})
    add_chance(found)
    assert found.chance.precision == found.values["precision"] == pytest.approx(0.5)
    assert found.chance.constant["recall"] == 1 and found.chance.constant["precision"] == pytest.approx(0.5)
    assert found.chance.permuted.keys() == {"f", "precision", "recall"}


def test_too_few_clips_for_a_chance_level_are_no_number() -> None:
    found = basic(["[happy]"], ["happy"])
    add_chance(found)
    assert found.chance.permuted is None and found.chance.constant is None and found.above_chance is None


class FirstLetter:
    """A metric with the published methods alone."""

    keys, titles, polarity, truth_column = ("letter",), ("LETTER",), False, "emotion"

    def summands(self, truth: list, predicted: list[str]) -> np.ndarray:
        met = [item[1:2] == word[:1] for (word,), item in zip(truth, predicted, strict=True)]
        return np.stack([np.array(met, float), np.ones(len(met))], axis=1)

    def aggregate(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"letter": sums[..., 0] / sums[..., 1]}

    def per_sample(self, summands: np.ndarray) -> np.ndarray:
        return summands[:, 0]

    def detail(self, sums: np.ndarray) -> dict:
        return {}


def test_a_metric_of_ones_own_has_chance_levels_without_a_further_method() -> None:
    truth = ["happy", "angry", "sad", "happy"] * 10
    found = basic([f"[{word}]" for word in truth], truth)
    metric = FirstLetter()
    found.metric, found.summands = metric, metric.summands(found.truth, found.items)
    found.truth = [list(truth) for truth in found.truth]  # no key of a dict
    found.values = {"letter": 1.0}
    add_chance(found)
    assert found.chance.labels == 1 and found.chance.groups is None
    assert found.chance.constant["letter"] == 0.5 and 0 < found.chance.permuted["letter"] < 0.6


def polarity(right: list[bool], checkpoint: str) -> Score:
    truth = {f"c{i}": 1.0 if i % 2 else -1.0 for i in range(len(right))}
    words = {n: "positive" if (v > 0) == ok else "negative" for (n, v), ok in zip(truth.items(), right, strict=True)}
    return scored("SIMS", truth, words, checkpoint)


def test_a_choice_on_a_half_gains_nothing_where_checkpoints_are_alike() -> None:
    rng = np.random.default_rng(0)
    runs = [polarity(list(rng.random(200) < 0.7), f"c{k}") for k in range(7)]
    found = select(runs, draws=200)
    best = max(score.primary for score in runs)
    assert found.mean.value == pytest.approx(np.mean([score.primary for score in runs]))
    assert abs(found.halves.value - found.mean.value) < 0.02 < best - found.halves.value
    assert found.halves.interval[0] < found.halves.value < found.halves.interval[1]
    assert found.mean.interval[1] - found.mean.interval[0] < found.halves.interval[1] - found.halves.interval[0]


def test_a_choice_on_a_half_finds_the_better_checkpoint() -> None:
    good, poor = polarity([i % 10 > 0 for i in range(200)], "a"), polarity([i % 2 > 0 for i in range(200)], "b")
    found = select([poor, good], draws=0)
    assert found.halves.value == pytest.approx(good.primary, abs=0.005) and found.halves.interval is None
    assert found.mean.value == pytest.approx((good.primary + poor.primary) / 2)
    again = select([poor, good], draws=0)
    assert again.halves.value == found.halves.value


def test_checkpoints_of_different_clips_are_compared_on_what_they_share() -> None:
    one, two = polarity([True] * 20, "a"), polarity([True] * 10 + [False] * 10, "b")
    kept = slice(0, 10)
    two.names, two.truth, two.items, two.summands = (
        two.names[kept], two.truth[kept], two.items[kept], two.summands[kept],
    )  # fmt: skip
    assert select([one, two], draws=10).samples == 10 and select([one, two], draws=10).halves.value == 1


def test_the_mean_of_data_sets_pairs_their_resamples_at_random() -> None:
    found = [select([polarity([i % k > 0 for i in range(100)], "a")] * 2, draws=400).mean for k in (2, 3)]
    both = Estimate.mean_of(found)
    assert both.value == pytest.approx((found[0].value + found[1].value) / 2)
    width = [e.interval[1] - e.interval[0] for e in found]
    assert both.interval[1] - both.interval[0] == pytest.approx(np.hypot(*width) / 2, rel=0.15)
    assert Estimate.mean_of([*found, None]) is None


def row_of(text: str, name: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(name)).removeprefix(name).split()


def test_every_report_says_it(bench: Bench, lexicon: Lexicon) -> None:
    found = score_run(ROWS, bench.places, lexicon, draws=50)
    text, tex, html = report.table(found), report.latex(found), page(found)
    assert row_of(text, "mean of 2 checkpoints") == ["66.67", "75.00", "40.83", "60.83"]
    assert row_of(text, "labels per answer")[0] == "1.00" and row_of(text, "known groups per answer")[1] == "–"
    for form in (text, tex, html):
        assert "nswers permuted among clips" in form and "ne answer for all clips" in form
        assert "hosen on a half, scored on the other" in form
    assert "precision" in report.all_metrics(found) and "permuted" in report.all_metrics(found)
    value = json.loads(json.dumps(report.as_dict(found), allow_nan=False))
    floors = value["datasets"]["sims"]["checkpoints"]["checkpoint_000030_loss_0.600"]["floors"]
    assert floors.keys() >= {"labels", "groups", "precision", "dealt", "constant", "constant_answers", "above"}
    assert floors["dealt"].keys() == {"waf", "acc"}
    assert value["datasets"]["mer2023"]["selection"]["mean"]["value"] == pytest.approx(2 / 3)
    assert len(value["selection"]["halves"]["interval"]) == 2


def test_a_constant_answer_that_is_not_exceeded_is_said_so(bench: Bench, capsys) -> None:
    bench.add("MER2023", "run_c", "checkpoint_000030_loss_0.1", dict.fromkeys(GOOD["MER2023"], "[happy, angry, sad]"))
    status = run_cli(command.main, bench.arguments("--run", "run_c", "--datasets", "mer2023"))
    out = capsys.readouterr().out
    assert status == 0 and "100.00" in out
    assert "note: MER2023: one answer for every clip" in out or "permuted among clips reaches HIT 100.00" in out


def test_chance_levels_can_be_left_out_and_are_not_made_of_a_few_permutations(bench: Bench, capsys) -> None:
    assert run_cli(command.main, bench.arguments("--deals", "0")) == 0
    assert "chance" not in capsys.readouterr().out
    assert run_cli(command.main, bench.arguments("--deals", "5")) == 1
    assert "--deals 5: 20 or more, or 0 for no chance levels" in capsys.readouterr().err


def test_polarity_words_broadcast() -> None:
    metric = Polarity()
    truth, words = metric.encode_truth([1.0, -1.0, 0.0]), metric.encode_items(["positive", "negative"])
    assert metric.compare(truth[:, None], words[None]).sum(axis=-1).tolist() == [[1, 1], [1, 1], [0, 0]]
