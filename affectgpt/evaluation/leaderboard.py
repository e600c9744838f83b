"""The leaderboard: all runs beside the paper's tables, on one page from the template leaderboard.html."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from affectgpt.core.errors import ConfigError, DataError, did_you_mean
from affectgpt.core.runtime import logger
from affectgpt.datasets.table import DatasetRow
from affectgpt.evaluation import stats
from affectgpt.evaluation.chance import PERMUTATIONS
from affectgpt.evaluation.lexicon import Lexicon
from affectgpt.evaluation.report import CHANCE_TITLES, NONE, chance_cells, percent, render
from affectgpt.evaluation.results import read_meta
from affectgpt.evaluation.score import RunScores, Score, ScoringPaths, score_run, select, shared_summands
from affectgpt.evaluation.stats import Estimate

TABLES = Path(__file__).with_name("paper_tables.toml")
TEMPLATE = Path(__file__).with_name("leaderboard.html")
MODALITIES = {"audio": "a", "video": "v", "text": "t"}
_WORDS = {"subtitle": "text", "face": "video", "frame": "video"}


@functools.cache
def paper_tables() -> dict[str, Any]:
    """The paper's tables 2 (``table2``), 3, 5, 6 and 8 (``others``), see paper_tables.toml."""
    return tomllib.loads(TABLES.read_text(encoding="utf-8"))


@dataclass
class Entry:
    """One run: its scores, its input (letters of MODALITIES, None where unknown), and the media that its model does not
    take in (``marks``)."""

    scores: RunScores
    modality: str | None = None
    marks: list[str] = field(default_factory=list)
    draws: int = stats.DRAWS

    def __post_init__(self) -> None:
        """The mean of the run's checkpoints on each data set, with its interval."""
        self.estimates = {
            dataset: (self.scores.selections.get(dataset) or select(scores, draws=self.draws)).mean
            for dataset, scores in self.scores.scores.items()
        }

    @property
    def name(self) -> str:
        """The run's name."""
        return self.scores.run

    def notes(self) -> list[str]:
        """Notes on its scores, without those that the page itself shows."""
        return [words for words in self.scores.caveats() if not words.startswith(("best of", "no results of this run"))]

    def best(self, dataset: str) -> float | None:
        """Its best checkpoint, chosen on the test set."""
        return max((score.primary for score in self.scores.scores.get(dataset, ())), default=None)


@dataclass(frozen=True)
class Test:
    """A paired test of a run against the reference; ``adjusted``: p by Holm over all tests of the page."""

    comparison: stats.Comparison
    adjusted: float


@dataclass
class Leaderboard:
    """All runs, best first; those that could not be scored by name; paired tests by run and data set."""

    datasets: list[str]
    titles: list[str]
    clips: list[str]  # of each data set; of how many, where the benchmark has another number
    entries: list[Entry]
    lexicon: Lexicon
    reference: str | None = None
    tests: dict[str, dict[str, Test]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def mean(self, entry: Entry) -> tuple[Estimate | None, int]:
        """The mean over the data sets that a run has, and how many these are."""
        estimates = [estimate for dataset in self.datasets if (estimate := entry.estimates.get(dataset)) is not None]
        return Estimate.mean_of(estimates), len(estimates)


def parse_modality(texts: Sequence[str], runs: Sequence[str]) -> dict[str, str]:
    """``RUN=audio,video,text`` items → run → letters. Raises ConfigError."""
    letters = {}
    for text in texts:
        run, _, words = text.rpartition("=")
        if run not in runs:
            raise ConfigError(f"--modality {text}: no run {run!r}.{did_you_mean(run, runs)}")
        names = [_WORDS.get(word.strip().lower(), word.strip().lower()) for word in words.split(",")]
        if unknown := [name for name in names if name not in MODALITIES]:
            raise ConfigError(f"--modality {text}: {unknown[0]!r} is none of {', '.join(MODALITIES)}")
        letters[run] = _letters(names)
    return letters


def gather(
    rows: Sequence[DatasetRow],
    paths: ScoringPaths,
    lexicon: Lexicon,
    *,
    runs: Sequence[str] | None = None,
    extraction: str | None = None,
    allow_missing: bool = False,
    draws: int = stats.DRAWS,
    permutations: int = PERMUTATIONS,
    modality: Sequence[str] = (),
    against: str | None = None,
) -> Leaderboard:
    """Score every run found (or ``runs``) on every data set that it has labels for.

    A run whose files are damaged or incomplete, or that has no labels yet, is left out by name with the reason.
    ``modality``: see ``parse_modality``; ``against``: the run of the paired tests, by default that with most data sets
    and the highest mean. Raises DataError where there is no run at all, ConfigError for a run that is not there.
    """
    names = list(dict.fromkeys(name for row in rows for name in paths.runs(row)))
    for run in [*(runs or ()), *([against] if against else ())]:
        if run not in names:
            raise ConfigError(f"no run {run!r}.{did_you_mean(run, names)}")
    modalities = parse_modality(modality, names)
    board = Leaderboard([], [], [], [], lexicon)
    for name in dict.fromkeys([*runs, *([against] if against else [])] if runs else names):
        try:
            scores = score_run(
                rows, paths, lexicon, run=name, extraction=extraction, allow_missing=allow_missing, optional=True,
                draws=draws, permutations=permutations,
            )  # fmt: skip
        except DataError as error:
            board.left_out[name] = str(error)
            logger.warning("%s is left out: %s", name, error)
            continue
        board.entries.append(_entry(scores, modalities.get(name), draws=draws))
    if not board.entries:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(board.left_out.items())[:3])
        raise DataError(f"no run could be scored ({reasons or 'no result files; see --output-root'})")
    if against in board.left_out:
        raise DataError(f"--against {against}: it could not be scored: {board.left_out[against]}")
    board.datasets = [row.name for row in rows if any(row.name in entry.scores.scores for entry in board.entries)]
    some = {dataset: s[0] for entry in board.entries for dataset, s in entry.scores.scores.items()}
    published = {row.name: row.counts.get("test") for row in rows}
    for dataset in board.datasets:
        clips, expected = some[dataset].split_size, published[dataset]
        board.titles.append(some[dataset].metric.titles[0])
        board.clips.append(f"{clips} of {expected}" if expected and clips != expected else str(clips))

    def order(entry: Entry) -> tuple[int, float, str]:
        estimate, over = board.mean(entry)
        return -over, -(estimate.value if estimate else 0.0), entry.name

    board.entries.sort(key=order)
    board.reference = against or board.entries[0].name
    board.tests = _tests(board)
    return board


def _entry(scores: RunScores, modality: str | None, *, draws: int) -> Entry:
    """A run with its input, as its records or the paper say."""
    letters, marks = set(), set()
    for of_set in scores.scores.values():
        for score in of_set:
            record = read_meta(score.source.with_name(f"{score.checkpoint}.npz"))
            marks |= set(map(str, record.get("deaf_or_blind") or ()))
            if media := record.get("media"):
                letters.add(_letters([_WORDS.get(str(medium), str(medium)) for medium in media]))
            elif isinstance(mode := record.get("mode"), str):
                letters.add(_of_mode(mode))
    if not letters:  # published answers: their runs are named as the paper names the models
        printed = {row[1] for row in paper_tables()["table2"]["rows"] if row[0].lower() == scores.run.lower()}
        letters = printed if len(printed) == 1 else set()
    return Entry(scores, modality or (letters.pop() if len(letters) == 1 else None), sorted(marks), draws)


def _letters(names: Sequence[str]) -> str:
    return "".join(letter for name, letter in MODALITIES.items() if name in names)


def _of_mode(mode: str) -> str:
    """The media of one of our input modes, by its name."""
    all_three = mode in ("face", "frame", "faceframe")
    return _letters(
        [
            *(["audio"] if all_three or "audio" in mode or mode.startswith("multi") else []),
            *(["video"] if any(word in mode for word in ("face", "frame", "image")) else []),
            *(["text"] if all_three or "text" in mode else []),
        ]
    )


def _tests(board: Leaderboard) -> dict[str, dict[str, Test]]:
    """Every run against the reference, data set by data set, all checkpoints of both counting the same."""
    reference = next(entry for entry in board.entries if entry.name == board.reference)
    comparisons: dict[tuple[str, str], stats.Comparison] = {}
    for entry in board.entries:
        for dataset in board.datasets:
            a, b = (side.scores.scores.get(dataset, []) for side in (reference, entry))
            if entry is not reference and a and b and len((summands := shared_summands([*a, *b]))[0]):
                comparisons[entry.name, dataset] = stats.compare(a[0].metric, summands[: len(a)], summands[len(a) :])
    tests: dict[str, dict[str, Test]] = {}
    for (name, dataset), adjusted in holm({key: c.p for key, c in comparisons.items()}).items():
        tests.setdefault(name, {})[dataset] = Test(comparisons[name, dataset], adjusted)
    return tests


def holm(p: Mapping[Any, float]) -> dict[Any, float]:
    """p values adjusted for their number (Holm 1979), in the order of the values given."""
    adjusted: dict[Any, float] = {}
    highest = 0.0
    for rank, key in enumerate(sorted(p, key=lambda key: p[key])):
        highest = max(highest, min(1.0, p[key] * (len(p) - rank)))
        adjusted[key] = highest
    return {key: adjusted[key] for key in p}


def page(board: Leaderboard) -> str:
    """The whole page as text: one file that needs nothing else."""
    tables = paper_tables()
    return render(
        TEMPLATE,
        board=board,
        rows=[_row(board, entry) for entry in board.entries],
        paper=_paper_rows(board, tables["table2"]) if board.lexicon.comparable else [],
        table2=tables["table2"],
        others=tables["others"],
        chance=_chance_rows(board),
        chance_titles=CHANCE_TITLES,
        tests={
            run: [_test_cell(tests.get(dataset)) for dataset in board.datasets] for run, tests in board.tests.items()
        },
        n_tests=sum(map(len, board.tests.values())),
        notes=[(entry.name, words) for entry in board.entries for words in entry.notes()],
    )  # fmt: skip


def _row(board: Leaderboard, entry: Entry) -> dict[str, Any]:
    """One run in the main table: for each data set the mean of its checkpoints and the best of them."""

    def cell(estimate: Estimate | None, best: float | None, margin: float | None = None) -> dict[str, Any]:
        interval = estimate.interval if estimate else None
        return {
            "value": percent(estimate.value if estimate else None),
            "interval": [f"{100 * bound:.1f}" for bound in interval] if interval else None,
            "best": percent(best),
            "low": margin is not None and margin <= 0,
        }

    by_set = [entry.scores.scores.get(dataset, []) for dataset in board.datasets]
    overall, over = board.mean(entry)
    bests = [best for dataset in board.datasets if (best := entry.best(dataset)) is not None]
    return {
        "name": entry.name,
        "modality": entry.modality or "",
        "media": (entry.modality or "?").upper(),
        "marks": entry.marks,
        "extractors": "; ".join(entry.scores.extractors),
        "checkpoints": max(map(len, by_set)),
        "cells": [
            cell(entry.estimates.get(dataset), entry.best(dataset), _margin(scores))
            for dataset, scores in zip(board.datasets, by_set, strict=True)
        ],
        "mean": cell(overall, sum(bests) / len(bests) if bests else None),
        "over": over,
    }


def _margin(scores: Sequence[Score]) -> float | None:
    """The mean over the checkpoints of what is above the higher chance level."""
    margins = [score.above_chance for score in scores if score.above_chance is not None]
    return sum(margins) / len(margins) if margins else None


def _paper_rows(board: Leaderboard, table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Table 2 in the page's columns; the mean is printed where these are the nine, else taken over the columns."""
    rows = []
    for name, letters, values, mean in table["rows"]:
        by_set = dict(zip(table["datasets"], values, strict=True))
        shown = [by_set.get(dataset) for dataset in board.datasets]
        numbers = [value for value in shown if value is not None]
        if len(board.datasets) != len(values) or len(numbers) != len(values):
            mean = sum(numbers) / len(numbers) if numbers else None
        cells = [NONE if value is None else f"{value:.2f}" for value in (*shown, mean)]
        row = {"name": name, "modality": letters, "media": letters.upper(), "over": len(numbers)}
        rows.append((mean or 0.0, {**row, "cells": cells[:-1], "mean": cells[-1]}))
    return [row for _, row in sorted(rows, key=lambda pair: -pair[0])]


def _chance_rows(board: Leaderboard) -> dict[str, list[dict[str, Any]]]:
    """Data set → every run with its chance levels, means over the checkpoints that have some."""

    def mean(column: Sequence[str]) -> str:  # of numbers that are text already
        return NONE if NONE in column else f"{sum(map(float, column)) / len(column):.2f}"

    rows: dict[str, list[dict[str, Any]]] = {}
    for dataset in board.datasets:
        for entry in board.entries:
            scores = [score for score in entry.scores.scores.get(dataset, ()) if score.chance is not None]
            if scores:
                estimate = entry.estimates.get(dataset)
                rows.setdefault(dataset, []).append({
                    "name": entry.name,
                    "modality": entry.modality or "",
                    "value": percent(estimate.value if estimate else None),
                    "cells": [mean(column) for column in zip(*map(chance_cells, scores), strict=True)],
                    "low": (_margin(scores) or 0.0) <= 0,
                })  # fmt: skip
    return rows


def _test_cell(test: Test | None) -> dict[str, Any] | None:
    if test is None:
        return None
    c = test.comparison
    return {
        "difference": f"{100 * c.difference:+z.2f}",
        "interval": [f"{100 * bound:+.1f}" for bound in c.interval],
        "p": f"{c.p:.4f}",
        "adjusted": f"{test.adjusted:.4f}",
        "sure": test.adjusted < 0.05,
        "n": c.n,
    }
