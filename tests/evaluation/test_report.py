"""What users see: table, JSON, LaTeX, HTML."""

from __future__ import annotations

import json
import re

import pytest
from small_benchmark import Bench

from affectgpt.datasets.table import get_row
from affectgpt.evaluation import report
from affectgpt.evaluation.lexicon import NOT_COMPARABLE, Lexicon, grouping_of, load_builtin
from affectgpt.evaluation.report_html import confusion, distribution, mistakes, page
from affectgpt.evaluation.score import PUBLISHED_MEAN, PUBLISHED_MODEL, RunScores, score_run

ROWS = [get_row(name) for name in ("MER2023", "SIMS", "OVMERDPlus")]
FIRST = "checkpoint_000030_loss_0.600"


@pytest.fixture
def run_scores(bench: Bench, lexicon: Lexicon) -> RunScores:
    return score_run(ROWS, bench.places, lexicon, draws=50)


def row_of(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(name))
    return line.removeprefix(name).split()


def test_table(run_scores: RunScores) -> None:
    text = report.table(run_scores)
    assert row_of(text, FIRST) == ["100.00", "100.00", "75.00", "91.67"]
    assert row_of(text, "checkpoint_000035_loss_0.500") == ["33.33", "50.00", "6.67", "30.00"]
    assert row_of(text, "best per data set (paper's protocol)") == ["100.00", "100.00", "75.00", "91.67"]
    assert row_of(text, report.BEST_SINGLE) == ["100.00", "100.00", "75.00", "91.67"]
    assert row_of(text, PUBLISHED_MODEL) == ["78.54", "88.49", "62.52", "76.52"]
    assert "mean of 3" in text and str(PUBLISHED_MEAN) not in text
    assert "labels     unknown extractor" in text and "HIT" in text and "WAF" in text and "F_s" in text


def test_a_mean_over_fewer_sets_says_so(bench: Bench, lexicon: Lexicon) -> None:
    (bench.folder("SIMS", "run_a") / "checkpoint_000035_loss_0.500-openset-sentiment.npz").unlink()
    text = report.table(score_run(ROWS, bench.places, lexicon, draws=0))
    assert row_of(text, "checkpoint_000035_loss_0.500") == ["33.33", "–", "6.67", "20.00", "of", "2"]


def test_every_report_of_the_builtin_lexicon_says_that_it_is_not_comparable(bench: Bench) -> None:
    run_scores = score_run(ROWS, bench.places, load_builtin(), draws=0)
    reports = [
        report.table(run_scores), report.latex(run_scores), page(run_scores),
        json.dumps(report.as_dict(run_scores)),
    ]  # fmt: skip
    for text in reports:
        assert NOT_COMPARABLE in text and PUBLISHED_MODEL not in text
    assert NOT_COMPARABLE == "built-in lexicon: not comparable with published numbers"


def test_another_grouping_is_not_set_beside_the_paper(bench: Bench, lexicon: Lexicon) -> None:
    text = report.table(score_run(ROWS, bench.places, lexicon, grouping="l2", draws=0))
    assert PUBLISHED_MODEL not in text and "grouping l2" in text


def test_json(run_scores: RunScores) -> None:
    value = json.loads(json.dumps(report.as_dict(run_scores), allow_nan=False))
    assert value["version"] == report.VERSION == 1
    mer = value["datasets"]["mer2023"]
    assert mer["task"] == "basic" and mer["metric"] == "hit"
    assert mer["checkpoints"][FIRST]["hit"] == 1 and len(mer["checkpoints"]) == 2
    assert mer["checkpoints"][FIRST]["per_wheel"] == [1] * 5
    assert mer["best"] == {"checkpoint": FIRST, "hit": 1}
    assert value["datasets"]["sims"]["best"].keys() == {"checkpoint", "waf", "acc"}
    assert value["datasets"]["ovmerdplus"]["best"].keys() == {"checkpoint", "f", "precision", "recall"}
    assert value["mean_best"] == pytest.approx(2.75 / 3) and value["mean_of"] == 3
    assert value["single"][FIRST] == {"mean": pytest.approx(2.75 / 3), "mean_of": 3}
    assert value["best_single"] == FIRST and value["published"]["datasets"]["sims"] == pytest.approx(0.8849)


def test_latex(run_scores: RunScores) -> None:
    lines = report.latex(run_scores).splitlines()
    assert lines[-1] == r"Best per data set (paper's protocol) & 100.00 & 100.00 & 75.00 & 91.67 \\"
    assert r"checkpoint\_000030\_loss\_0.600" in lines[-2]


def test_all_metrics(run_scores: RunScores) -> None:
    text = report.all_metrics(run_scores)
    assert "precision" in text and "ACC" in text and re.search(r"33\.33 \[\d", text)


def test_unknown_labels_as_csv(bench: Bench, lexicon: Lexicon) -> None:
    bench.add("MER2023", "run_b", "checkpoint_000030_loss_0.700", {
        "m1": "[oddness]", "m2": "[zzz, a\"b]", "m3": "[zzz]", "m4": "[]"
    })  # fmt: skip
    run_scores = score_run(ROWS[:1], bench.places, lexicon, run="run_b", draws=0)
    assert report.unknown_csv(run_scores).splitlines() == [
        "label,count,datasets,reason", "zzz,2,MER2023,no word form", "a,1,MER2023,no word form",
        "b,1,MER2023,no word form", "oddness,1,MER2023,no synonym",
    ]  # fmt: skip
    assert "5 of 5 labels" in report.unknown_line(run_scores)


def test_html_is_one_page_with_everything(run_scores: RunScores) -> None:
    text = page(run_scores)
    assert text.count("<svg") == 1 + 3 + 2  # checkpoints; a distribution each; confusion where the truth is one word
    assert not re.search(r'(src|href)="(?!#|data:)', text) and "<script" not in text and "@import" not in text
    assert "say [happy]" in text  # the answer of a sample that was not fully met
    assert "best per data set (paper&#39;s protocol)" in text


def test_html_escapes_answers(bench: Bench, lexicon: Lexicon) -> None:
    items = {"m1": "[angry]", "m2": "[<b>]", "m3": "[]", "m4": "[]"}
    items["m1"] += "$x^$"
    stem = "checkpoint_000030_loss_0.700"
    bench.add("MER2023", "run_b", stem, items, answers=dict.fromkeys(items, "<script>alert(1)</script>"))
    text = page(score_run(ROWS[:1], bench.places, lexicon, run="run_b", draws=0))
    assert "<script" not in text and "&lt;script&gt;" in text and "&lt;b&gt;" in text


def test_html_of_odd_polarity_words(bench: Bench, lexicon: Lexicon) -> None:
    words = {"s1": "a < b", "s2": "$x^$", "s3": "word " * 50, "s4": "positive", "s5": "[]"}
    bench.add("SIMS", "run_c", "checkpoint_000030_loss_0.700", words)
    text = page(score_run(ROWS[1:2], bench.places, lexicon, run="run_c", draws=0))
    assert "$x^$" in text and "a &lt; b" in text and "word word word word word word word word…" in text


def test_confusion_and_mistakes(bench: Bench, lexicon: Lexicon) -> None:
    run_scores = score_run(ROWS[:1], bench.places, lexicon, run="run_b", draws=0)
    score = run_scores.scores["MER2023"][0]
    matrix = confusion(score, grouping_of(lexicon))
    assert matrix is not None
    cells = {
        (r, c): share
        for r, line in zip(matrix.rows, matrix.shares, strict=True)
        for c, share in zip(matrix.columns, line, strict=True)
    }
    assert cells["happy", "mad"] == cells["angry", "mad"] == cells["sad", "joy"] == 1
    assert [sum(line) for line in matrix.shares] == pytest.approx([1] * 4)
    assert [(m.name, m.value, m.truth) for m in mistakes(score)] == [("m1", 0, "happy"), ("m3", 0, "sad")]
    names, true, predicted = distribution(score, grouping_of(lexicon))
    assert dict(zip(names, zip(true, predicted, strict=True), strict=True)) == {
        "joy": (0.25, 0.5), "mad": (0.25, 0.5), "low": (0.25, 0),
    }  # fmt: skip
