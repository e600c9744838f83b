"""A metric from a file of one's own: every report of it, and one line for whatever is wrong with it."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_benchmark import GOOD, Bench

from affectgpt.cli import score
from affectgpt.cli.common import run_cli
from affectgpt.datasets.table import DATASETS
from affectgpt.evaluation.metrics.base import METRICS

ROOT = Path(__file__).resolve().parents[2]
STEM = "checkpoint_000030_loss_0.600"
METRIC = '''
import numpy as np

from affectgpt.datasets.table import DATASETS, DatasetRow
from affectgpt.evaluation.metrics.base import METRICS


@METRICS.register("own-words")
class OwnWords:
    keys = ("near", "sign")
    titles = ("NEAR", "SIGN")
    polarity = False
    truth_column = "emotion"

    def __init__(self, grouping):
        self.grouping = grouping

    @staticmethod
    def truth(labels):
        return labels.emotion

    def summands(self, truth, predicted):
        """[N, 3]: two kinds of being right, and counted."""
        met = np.array([word[0] in item for word, item in zip(truth, predicted)], float)
        return np.stack([met, 1 - met, np.ones(len(met))], axis=1)

    def aggregate(self, sums):
        return {"near": sums[..., 0] / sums[..., 2], "sign": sums[..., 1] / sums[..., 2]}

    def per_sample(self, summands):
        return summands[:, 0]

    def detail(self, sums):
        return {"counted": [int(sums[2])]}


DATASETS.register("Lab")(
    DatasetRow(
        name="Lab", root="mer2023-dataset-process", task="own-words", label_kind="npz_word", label_types=(),
        splits={"test": "test1_corpus"}, counts={}, label_file="label-6way.npz",
    )
)
'''
_number = itertools.count()


@pytest.fixture
def lab(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Scores ``Lab`` with the metric above, changed by replacements, as the command does: status, stdout, stderr."""
    bench.add("Lab", "run_a", STEM, GOOD["MER2023"])
    for registry in (METRICS, DATASETS):
        registry.names()  # the package's own, scanned
        for table in ("_entries", "_places"):
            monkeypatch.setattr(registry, table, dict(getattr(registry, table)))

    def run(*replaced: tuple[str, str], more: tuple[str, ...] = ()) -> tuple[int, str, str]:
        text = METRIC
        for old, new in replaced:
            assert old in text, old
            text = text.replace(old, new)
        file = tmp_path / f"own_metric_{next(_number)}.py"
        file.write_text(text)
        arguments = bench.arguments("--imports", str(file), "--datasets", "Lab", *more)
        status = run_cli(score.main, arguments)
        return status, *capsys.readouterr()

    return run


FLOATS = (
    ("labels.emotion", "labels.valence"), ("word[0] in item", "word > 0"), ("mer2023-dataset-process", "sims-process"),
    ("npz_word", "npz_valence"), ("test1_corpus", "test_corpus"), ("label-6way.npz", "label.npz"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("replaced", "truth"),
    [
        ((), "<td>happy</td>"),
        ((("labels.emotion", "[labels.emotion]"),), "<td>[&#39;angry&#39;]</td>"),
        (FLOATS, "<td>-0.4</td>"),
        ((("polarity = False", "polarity = True"),), "<td>neutral</td>"),
    ],
    ids=["word", "list", "number", "polarity of words"],
)
def test_every_report_takes_any_truth(lab, bench: Bench, tmp_path: Path, replaced, truth: str) -> None:
    if replaced == FLOATS:
        bench.add("Lab", "run_a", STEM, GOOD["SIMS"])
    if any("True" in new for _, new in replaced):
        folder = bench.folder("Lab", "run_a")
        (folder / f"{STEM}-openset.npz").rename(folder / f"{STEM}-openset-sentiment.npz")
    files = [str(tmp_path / name) for name in ("s.html", "s.tex", "s.json")]
    status, out, err = lab(
        *replaced, more=("--html", files[0], "--latex", files[1], "--json", files[2], "--all-metrics")
    )
    assert (status, err) == (0, "") and "NEAR" in out and "SIGN" in out  # the second key: --all-metrics
    page = Path(files[0]).read_text()
    assert truth in page and "NEAR" in page
    # neither the distribution of groups nor a confusion of labels means anything here
    assert "<svg" not in page and "Confusion" not in page and "Dashed" not in page
    assert "Chance level" in Path(files[1]).read_text()


def test_labels_of_the_truth_are_drawn(lab, tmp_path: Path) -> None:
    status, _, err = lab(
        ("labels.emotion", "(labels.emotion,)"), ("word[0] in", "word[0][0] in"), more=("--html", str(tmp_path / "s"))
    )
    assert (status, err) == (0, "")
    assert (tmp_path / "s").read_text().count("<svg") == 2 and "<td>happy</td>" in (tmp_path / "s").read_text()


def test_a_metric_without_groups_drops_no_label(lab, bench: Bench) -> None:
    bench.add("Lab", "run_a", STEM, {**GOOD["MER2023"], "m1": "[xyzzy]"})
    status, out, _ = lab(("word[0] in item", "True"))
    assert status == 0 and "not in the lexicon" not in out


def test_no_minus_zero(lab) -> None:
    """Every answer is worth 0.6 to any clip; the mean of 50 permutations is that and 1e-16."""
    status, out, _ = lab(("word[0] in item", "0.6"))
    assert status == 0 and "score above the higher chance level" in out and "-0.00" not in out


STACK = "return np.stack([met, 1 - met, np.ones(len(met))], axis=1)"
VALUES = 'return {"near": sums[..., 0] / sums[..., 2], "sign": sums[..., 1] / sums[..., 2]}'
WRONG = [
    ('keys = ("near", "sign")', 'keys = "near"', "keys must be a tuple of names such as ('hit',), the primary one f"),
    ('keys = ("near", "sign")', "", "keys must be a tuple of names such as ('hit',), the primary one first; found n"),
    ('keys = ("near", "sign")', 'keys = ("near", "near")', "keys must differ, and each needs a title; found keys near"),
    (
        'titles = ("NEAR", "SIGN")',
        'titles = ("NEAR",)',
        "and each needs a title; found keys near, sign and titles NEAR",
    ),
    ('titles = ("NEAR", "SIGN")', "", "titles must be a tuple with a heading for each of the keys; found nothing"),
    ("polarity = False", "", "polarity must be True where the metric reads polarity words, else False; found nothing"),
    ("polarity = False", "polarity = 'no'", "else False; found str 'no'"),
    ('truth_column = "emotion"', "", "truth_column must be what a table of one's own calls the truth"),
    ("    @staticmethod\n    def truth", "    def other", "it needs a method truth"),
    (
        "    @staticmethod\n    def truth(",
        "    def truth(self, ",
        "truth must be a static method of one argument, the labels of a sample",
    ),
    ("def detail", "def details", "it needs a method detail"),
    ("def __init__(self, grouping):", "def __init__(self):\n        grouping = 0", "__init__ must take one argument"),
    (STACK, "return 'right'", "summands must give a float array [4, C], found str 'right'"),
    (STACK, "return met.tolist()", "summands must give a float array [4, C], found list ["),
    (STACK, "return met", "summands must give a float array [4, C], found float64 [4]"),
    (STACK, STACK + "[1:]", "summands must give a float array [4, C], found float64 [3, 3]"),
    (STACK, STACK + ".astype(str)", "summands must give a float array [4, C], found <U32 [4, 3]"),
    (STACK, STACK + " / met[:, None]", "summands must be finite, with a row of zeros for a sample that does not count"),
    (STACK, "return truth['a']", "summands fails on list [4] and list [4] ("),
    (
        VALUES,
        'return {"near": sums[..., 0] / sums[..., 2]}',
        "for each of the keys near, sign, of sums [C] an array []",
    ),
    (VALUES, 'return {"near": "much", "sign": 1.0}', "found near (<U4 []), sign (float64 [])"),
    (VALUES, "return sums[..., 0]", "aggregate must give a number for each of the keys near, sign, of sums [C]"),
    (VALUES, VALUES.replace("..., ", "").replace("2", "-1"), "of sums [2, C] an array [2]; found near (float64 [3])"),
    (
        VALUES,
        "near, sign, n = sums; return {'near': near / n, 'sign': sign / n}",
        "aggregate fails on ndarray [2, 3] (",
    ),
    (
        "sums[..., 0] / sums[..., 2]",
        "17 * sums[..., 0] / sums[..., 2]",
        "numbers from 0 to 1, which reports show in pe",
    ),
    ("return summands[:, 0]", "return 1.0", "per_sample must give a float array [4], found float 1.0"),
    ('return {"counted": [int(sums[2])]}', "return sums", "detail must give a dict of plain numbers"),
]


@pytest.mark.parametrize(("old", "new", "told"), WRONG, ids=[told[:40] for *_, told in WRONG])
def test_what_is_wrong_is_one_line_with_the_metric_and_its_file(lab, old: str, new: str, told: str) -> None:
    status, _, err = lab((old, new))
    assert status == 1 and err.startswith("error: metric 'own-words' (") and told in err, err
    assert "own_metric_" in err and ".py:8): " in err and len(err.splitlines()) == 1, err


def test_no_value_is_an_error_that_does_not_speak_of_wheels(lab) -> None:
    status, _, err = lab(("np.ones(len(met))", "0 * met"))
    assert status == 1 and "no sample counts: own-words has no value on the 4 samples of Lab" in err


@pytest.mark.parametrize(
    ("text", "theirs"),
    [
        ('METRICS.register("basic")(int)', r"evaluation/metrics/emotions\.py:\d+"),
        ('DATASETS.register("mer2023")(DATASETS.get("SIMS"))', r"datasets/table\.py:\d+"),
    ],
)
def test_a_name_that_is_taken_is_one_line_with_both_places(bench: Bench, tmp_path: Path, text: str, theirs: str):
    """In a process of its own: the package's metrics are imported after the user's file."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from affectgpt.datasets.table import DATASETS\nfrom affectgpt.evaluation.metrics.base import METRICS\n" + text
    )
    done = subprocess.run(
        [sys.executable, "-m", "affectgpt.cli.score", *bench.arguments("--imports", str(file))],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert "is registered twice" in done.stderr and f"{file}:3" in done.stderr
    assert re.search(theirs, done.stderr)
