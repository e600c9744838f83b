"""Reports of a run's scores: the rows of its table, printed as text and LaTeX, and everything as JSON.

JSON: ``version`` rises when a key changes its meaning or goes away; new keys may come.

``datasets``: data set in lower case → ``task``, ``metric`` (the primary key), ``samples``, ``checkpoints`` (file stem →
the metric keys as fractions, ``interval`` {key: [low, high]} 95 % bootstrap, ``extractor``, ``samples`` (scored),
``of`` (so many in the split), ``left_out`` and ``missing`` (how many, and which, have a truth and no answer),
``counted``, ``per_wheel`` …, and ``floors``, the chance levels: ``labels``, ``groups`` and their ``precision`` per
answer, the metric keys of ``dealt`` (permuted answers) and ``constant``, the ``constant_answers`` of both halves, and
the primary value ``above`` the higher one), ``selection`` (where there are several: ``mean`` of the checkpoints, and
``halves``: chosen on a half of the samples, scored on the other; ``value`` and ``interval`` each) and ``best``
(``checkpoint`` and its metric keys: chosen on the test set). ``mean_best``: mean of the best primary values, over
``mean_of`` data sets. ``single``: checkpoint → its ``mean`` and over how many data sets; ``best_single``: the best of
those scored everywhere. ``selection``: the same two over all data sets. ``published``: the paper's values in the same
unit, present only when comparable.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt import __version__
from affectgpt.core.errors import DataError, printable
from affectgpt.core.files import parse_json
from affectgpt.evaluation.lexicon import grouping_of
from affectgpt.evaluation.metrics.base import GroupMetric
from affectgpt.evaluation.score import PUBLISHED, PUBLISHED_MODEL, RunScores, Score, published_mean
from affectgpt.evaluation.stats import Estimate

if TYPE_CHECKING:
    from affectgpt.evaluation.compare import PairedResult, SeedResult
    from affectgpt.evaluation.stats import Spread

VERSION = 1
BEST_PER_SET = "best per data set (paper's protocol)"
BEST_SINGLE = "best single checkpoint"
HALVES = "chosen on a half, scored on the other"
PERMUTED = "chance level: answers permuted among clips"
CONSTANT = "chance level: one answer for all clips"
CHANCE_TITLES = ("labels", "groups", "precision", "permuted", "constant", "above")
NONE = "–"


def percent(value: float | None) -> str:
    """A value of 0..1 in percent with two digits; what rounds to zero has no sign."""
    return NONE if value is None else f"{100 * value:z.2f}"


def bounds(interval: Sequence[float] | None, *, sign: str = "") -> str:
    """``[12.34, 56.78]`` in percent; with the sign ``+`` also that of positive numbers."""
    return f"[{', '.join(f'{100 * bound:{sign}z.2f}' for bound in interval)}]" if interval else NONE


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def render(template: Path, **values: Any) -> str:
    """A page from one of the HTML templates of this folder; values are escaped unless the template says ``|safe``."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template.read_text(encoding="utf-8")).render(version=__version__, **values)


# The rows of the table


@dataclass(frozen=True)
class Row:
    """One row: a number per data set and their mean, as text. ``best``: cells that are the data set's best; ``kind``:
    its class in the page."""

    name: str
    cells: list[str]
    mean: str
    best: tuple[bool, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Summary:
    """All rows of a run. None where there is no such row. ``foot``: those below the checkpoints, with intervals, in
    order; ``chance``: chance levels, means over the checkpoints."""

    checkpoints: list[Row]
    mean: Row | None
    halves: Row | None
    single: Row | None
    best: Row
    foot: list[Row]
    chance: list[Row]


def summarise(run_scores: RunScores) -> Summary:
    """The rows of a run: checkpoints, what they score without and with a choice on the test set, and chance levels."""
    datasets, best = run_scores.datasets, run_scores.best

    def cell(score: Score | None) -> str:
        return NONE if score is None else percent(score.primary) + ("*" if score.left_out else "")

    checkpoints = []
    for checkpoint in run_scores.checkpoints:
        scores = [run_scores.cell(dataset, checkpoint) for dataset in datasets]
        value, over = run_scores.mean(checkpoint)
        mean = percent(value) if over == len(datasets) else f"{percent(value)} of {over}"
        marks = tuple(score is not None and score is best[score.dataset] for score in scores)
        checkpoints.append(Row(checkpoint, [cell(score) for score in scores], mean, marks))
    foot: list[Row] = []  # what is printed below the checkpoints, in this order

    def add_intervals(intervals: Sequence[tuple[float, float] | None], overall: tuple[float, float] | None) -> None:
        if any(intervals):
            for side, name in enumerate(("  95 % interval, from", "  to")):
                cells = [percent(interval[side] if interval else None) for interval in intervals]
                foot.append(Row(name, cells, percent(overall[side]) if overall else "", kind="interval"))

    def add_estimates(name: str, estimates: Sequence[Estimate | None]) -> Row:
        overall = Estimate.mean_of(estimates)
        values = [percent(estimate.value if estimate else None) for estimate in (*estimates, overall)]
        foot.append(row := Row(name, values[:-1], values[-1], kind="sum"))
        intervals = [estimate.interval if estimate else None for estimate in estimates]
        add_intervals(intervals, overall.interval if overall else None)
        return row

    means = halves = single = None
    if len(run_scores.selections) == len(datasets):
        selections = run_scores.selections.values()
        counts = {len(scores) for scores in run_scores.scores.values()}
        name = f"mean of {counts.pop()} checkpoints" if len(counts) == 1 else "mean of the checkpoints"
        means = add_estimates(name, [selection.mean for selection in selections])
        halves = add_estimates(HALVES, [selection.halves for selection in selections])
    if run_scores.best_single is not None:
        chosen = run_scores.of_checkpoint(run_scores.best_single)
        overall = percent(run_scores.mean(run_scores.best_single)[0])
        foot.append(single := Row(BEST_SINGLE, [cell(score) for score in chosen], overall, kind="sum"))
        if all(score.interval for score in chosen):
            add_intervals([score.interval[score.metric.keys[0]] for score in chosen], None)
    # the paper's protocol: each data set's best checkpoint, chosen on its test set
    oracle = Row(BEST_PER_SET, [cell(best[d]) for d in datasets], percent(run_scores.mean_best), kind="sum")
    foot.append(oracle)
    if run_scores.comparable and any(dataset in PUBLISHED for dataset in datasets):
        cells = [_number(PUBLISHED.get(dataset)) for dataset in datasets]
        foot.append(Row(PUBLISHED_MODEL, cells, _number(published_mean(datasets)), kind="published"))
    return Summary(checkpoints, means, halves, single, oracle, foot, _chance_rows(run_scores))


def _chance_rows(run_scores: RunScores) -> list[Row]:
    """Means over the checkpoints of each data set; no row where no score has chance levels."""
    per_set = [[s for s in scores if s.chance is not None] for scores in run_scores.scores.values()]
    if not any(per_set):
        return []

    def mean(values: Sequence[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None

    def row(name: str, value: Callable[[Any], float | None], show: Callable = percent, *, overall: bool = True) -> Row:
        means = [mean([value(score) for score in scores]) for scores in per_set]
        return Row(name, [show(m) for m in means], show(mean(means)) if overall else "")

    def level(name: str) -> Callable[[Any], float | None]:
        return lambda score: (getattr(score.chance, name) or {}).get(score.metric.keys[0])

    several = len(run_scores.checkpoints) > 1
    return [
        row("labels per answer", lambda score: score.chance.labels, _number, overall=False),
        row("known groups per answer", lambda score: score.chance.groups, _number, overall=False),
        row("precision of these groups", lambda score: score.chance.precision, overall=False),
        row(PERMUTED, level("permuted")),
        row(CONSTANT, level("constant")),
        row(f"{'mean' if several else 'score'} above the higher chance level", lambda score: score.above_chance),
    ]


def chance_cells(score: Score) -> list[str]:
    """The chance levels of one score, under CHANCE_TITLES; nothing where it has none."""
    chance, key = score.chance, score.metric.keys[0]
    if chance is None:
        return []
    levels = [percent(level[key] if level else None) for level in (chance.permuted, chance.constant)]
    counts = [_number(chance.labels), _number(chance.groups), percent(chance.precision)]
    return [*counts, *levels, percent(score.above_chance)]


# Text


def table(run_scores: RunScores) -> str:
    """The scores of one run: a row per checkpoint, then with and without a choice, published, and chance levels."""
    summary, n = summarise(run_scores), len(run_scores.datasets)
    extractors = "; ".join(
        extractor if len(run_scores.extractors) == 1 else f"{extractor} ({', '.join(sets)})"
        for extractor, sets in run_scores.extractors.items()
    )
    titles, clips = [], []
    for scores in run_scores.scores.values():
        titles.append(scores[0].metric.titles[0])
        counts = sorted({len(score.names) for score in scores})  # from fewest to most over the checkpoints
        scored = "-".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        clips.append(f"{scored} of {scores[0].split_size}")
    head = [["checkpoint", *run_scores.datasets, f"mean of {n}"], ["", *titles, ""], ["clips", *clips, ""]]
    blocks = [
        [[r.name, *r.cells, r.mean] for r in rows] for rows in (summary.checkpoints, summary.foot, summary.chance)
    ]
    lines = [
        *map(printable, (f"run        {run_scores.run}", f"labels     {extractors}")),
        *map(printable, (f"lexicon    {run_scores.lexicon.source}", "values     percent")),
        "", *grid([head, *filter(None, blocks)]), "",
    ]  # fmt: skip
    if summary.single is not None:
        lines.append(f"{BEST_SINGLE}: {printable(str(run_scores.best_single))} (mean of {n}: {summary.single.mean})")
    if len(run_scores.checkpoints) > 1:
        lines.append(
            "The row best per data set picks each checkpoint on the test set itself, as the paper does.\n"
            "A single checkpoint scores lower as a rule; to compare models, take one checkpoint of each, or the mean."
        )
    return "\n".join(lines + _note_lines(run_scores.caveats()))


def _note_lines(notes: Sequence[str]) -> list[str]:
    return [f"note: {printable(words)}" for words in notes]


def grid(blocks: Sequence[Sequence[Sequence[str]]]) -> list[str]:
    """Blocks of rows with a rule between them; first column to the left, the others to the right."""
    blocks = [[[printable(cell) for cell in row] for row in block] for block in blocks]
    rows = [row for block in blocks for row in block]
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines: list[str] = []
    for block in blocks:
        if lines:
            lines.append("─" * (sum(widths) + 2 * (len(widths) - 1)))
        for row in block:
            cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  ".join(cells).rstrip())
    return lines


def all_metrics(run_scores: RunScores) -> str:
    """Secondary metrics of every checkpoint with their intervals, a table per data set."""
    lines: list[str] = []
    for dataset, scores in run_scores.scores.items():
        metric, rows = scores[0].metric, []
        for score in scores:
            cells = [
                percent(score.values[key]) + (f" {bounds(score.interval[key])}" if key in score.interval else "")
                for key in metric.keys
            ]
            rows.append([score.checkpoint, *cells, str(len(score.names)), *chance_cells(score)])
        titles = CHANCE_TITLES if any(score.chance for score in scores) else ()
        lines += ["", *grid([[[dataset, *metric.titles, "samples", *titles]], rows])]
    return "\n".join(lines)


def unknown_labels(run_scores: RunScores) -> tuple[Counter[tuple[str, str]], int]:
    """How often each predicted label (by data set) is in no view of the grouping, and how many labels there are.

    Of the metrics that are made of groups.
    """
    grouping = grouping_of(run_scores.lexicon, run_scores.grouping)
    unknown: Counter[tuple[str, str]] = Counter()
    total = 0
    for score in (s for scores in run_scores.scores.values() for s in scores if isinstance(s.metric, GroupMetric)):
        for item in score.items:
            labels, _ = grouping.item(item)
            total += len(labels)
            unknown.update((label, score.dataset) for label in labels if not grouping.label_mask(label))
    return unknown, total


def _by_label(unknown: Counter[tuple[str, str]]) -> Counter[str]:
    merged: Counter[str] = Counter()
    for (label, _), count in unknown.items():
        merged[label] += count
    return merged


def unknown_line(run_scores: RunScores) -> str:
    """One line on labels that the lexicon does not know; empty where there are none."""
    unknown, total = unknown_labels(run_scores)
    if not unknown:
        return ""
    merged = _by_label(unknown)
    top = ", ".join(f"{printable(label[:60])} ({count})" for label, count in merged.most_common(5))
    return (
        f"note: {unknown.total()} of {total} labels are not in the lexicon and were dropped "
        f"({len(merged)} different: {top} …); --unknown-labels FILE lists all"
    )


def unknown_csv(run_scores: RunScores) -> str:
    """Labels that the lexicon does not know, most frequent first, and at which stage each is lost."""
    unknown, _ = unknown_labels(run_scores)
    lexicon = run_scores.lexicon
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["label", "count", "datasets", "reason"])
    for label, count in sorted(_by_label(unknown).items(), key=lambda pair: (-pair[1], pair[0])):
        sets = " ".join(sorted({dataset for other, dataset in unknown if other == label}))
        reason = "no word form"
        if label in lexicon.forms:
            reason = "in no wheel" if lexicon.wheel_words(label) else "no synonym"
        writer.writerow([printable(label), count, sets, reason])
    return out.getvalue()


def comparison_table(result: PairedResult) -> str:
    """Two systems, paired by sample."""
    rows = [
        [
            dataset, str(c.n), percent(c.a), percent(c.b), f"{100 * c.difference:+z.2f}",
            bounds(c.interval, sign="+"), f"{c.p:.4f}",
            *map(_number, result.groups.get(dataset, (None, None) if result.groups else ())),
        ]
        for dataset, c in result.datasets.items()
    ]  # fmt: skip
    head = ["data set", "samples", "A", "B", "B − A", "95 % interval", "p"]
    head += ["groups A", "groups B"] if result.groups else []
    lines = [f"A  {printable(result.a)}", f"B  {printable(result.b)}", "", *grid([[head], rows]), ""]
    lines.append(
        "p: paired randomisation test over samples, two-sided; interval: paired bootstrap. Neither covers another\n"
        "training run or another extraction, and p is not corrected for the number of data sets."
    )
    return "\n".join(lines + _note_lines(result.notes))


def seeds_table(result: SeedResult) -> str:
    """Training seeds of one recipe, paired by sample."""
    names = [chr(ord("A") + at) if len(result.runs) <= 26 else str(at + 1) for at in range(len(result.runs))]
    spreads = [*result.datasets.items()]
    if result.mean is not None:
        spreads.append((f"mean of {len(result.datasets)}", result.mean))
    rows = [
        [
            dataset, str(part.n), *map(percent, part.values),
            f"{percent(part.mean.value)} ± {percent(part.deviation)}", bounds(part.mean.interval),
            NONE if part.same is None else f"{100 * part.same:.1f}",
        ]
        for dataset, part in spreads
    ]  # fmt: skip
    head = ["data set", "samples", *names, "mean ± deviation", "95 % interval", "alike"]
    lines = [printable(f"{name}  {run}") for name, run in zip(names, result.runs, strict=True)]
    lines += ["", *grid([[head], rows]), ""]
    lines.append(
        "deviation: over the runs, with n - 1; interval: of their mean, bootstrap over samples, the same for all\n"
        "runs; alike: percent of the samples that all runs meet equally well. Values in percent."
    )
    return "\n".join(lines + _note_lines(result.notes))


def latex(run_scores: RunScores) -> str:
    """Rows for a LaTeX table: chance levels, scores without a choice, the best single checkpoint, the oracle row.

    A comment names the columns.
    """
    summary, datasets = summarise(run_scores), run_scores.datasets
    lines = [f"% {printable(words)}" for words in (run_scores.run, *run_scores.caveats())]
    lines.append(f"% columns: model & {' & '.join(datasets)} & mean of {len(datasets)}")
    for row in (*summary.chance, summary.mean, summary.halves, summary.single, summary.best):
        if row is None:
            continue
        name = row.name[:1].upper() + row.name[1:]
        if row is summary.single:
            name += f" ({run_scores.best_single})"
        name = printable(name)
        for character in "\\&%$#_{}":
            name = name.replace(character, "\\" + character if character != "\\" else r"\textbackslash ")
        lines.append(" & ".join([name, *row.cells, row.mean]) + r" \\")
    return "\n".join(lines)


# JSON


def as_dict(run_scores: RunScores) -> dict[str, Any]:
    """The scores of a run as plain data, see above."""
    datasets = run_scores.datasets
    value: dict[str, Any] = {
        "version": VERSION,
        "affectgpt": __version__,
        "run": run_scores.run,
        "lexicon": {"source": run_scores.lexicon.source, "comparable": run_scores.lexicon.comparable},
        "grouping": run_scores.grouping,
        "extractors": run_scores.extractors,
        "datasets": {},
        "mean_best": run_scores.mean_best,
        "mean_of": len(datasets),
        "single": {c: dict(zip(("mean", "mean_of"), run_scores.mean(c), strict=True)) for c in run_scores.checkpoints},
        "best_single": run_scores.best_single,
        "selection": None,  # where not every data set has several checkpoints
        "notes": run_scores.caveats(),
    }
    for dataset, scores in run_scores.scores.items():
        metric, best = scores[0].metric, run_scores.best[dataset]
        entry = value["datasets"][dataset.lower()] = {
            "task": scores[0].task,
            "metric": metric.keys[0],
            "checkpoints": {score.checkpoint: _score(score) for score in scores},
            "best": {"checkpoint": best.checkpoint, **best.values},
        }
        if dataset in run_scores.selections:
            found = run_scores.selections[dataset]
            entry["selection"] = {
                "samples": found.samples, "mean": _estimate(found.mean), "halves": _estimate(found.halves),
            }  # fmt: skip
    if len(run_scores.selections) == len(datasets):
        selections = run_scores.selections.values()
        value["selection"] = {
            "mean": _estimate(Estimate.mean_of([selection.mean for selection in selections])),
            "halves": _estimate(Estimate.mean_of([selection.halves for selection in selections])),
        }
    if run_scores.comparable:
        published = {dataset.lower(): PUBLISHED[dataset] / 100 for dataset in datasets if dataset in PUBLISHED}
        mean = published_mean(datasets)
        value["published"] = {
            "model": PUBLISHED_MODEL,
            "datasets": published,
            "mean": None if mean is None else mean / 100,
        }
    return value


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {"value": estimate.value, "interval": list(estimate.interval) if estimate.interval else None}


def _score(score: Score) -> dict[str, Any]:
    chance = score.chance
    return {
        **score.values,
        "interval": {key: list(interval) for key, interval in score.interval.items()},
        "samples": len(score.names),
        "of": score.split_size,
        "left_out": score.left_out,
        "missing": list(score.missing),
        "extractor": score.extractor,
        "floors": None if chance is None else {
            "labels": chance.labels,
            "groups": chance.groups,
            "precision": chance.precision,
            "dealt": chance.permuted,
            "constant": chance.constant,
            "constant_answers": [list(answer) for answer in chance.answers],
            "above": score.above_chance,
        },
        **score.detail,
    }  # fmt: skip


def comparison_dict(result: PairedResult) -> dict[str, Any]:
    """A paired comparison as plain data; values as fractions."""
    return {
        "version": VERSION,
        "a": result.a,
        "b": result.b,
        "datasets": {
            dataset.lower(): {
                "a": c.a, "b": c.b, "difference": c.difference, "interval": list(c.interval), "p": c.p, "samples": c.n,
                "groups": dict(zip("ab", result.groups[dataset], strict=True)) if dataset in result.groups else None,
            }
            for dataset, c in result.datasets.items()
        },
        "notes": result.notes,
    }  # fmt: skip


def seeds_dict(result: SeedResult) -> dict[str, Any]:
    """The spread over training seeds as plain data; values as fractions."""

    def spread(part: Spread) -> dict[str, Any]:
        return {
            "values": list(part.values),
            "mean": part.mean.value,
            "deviation": part.deviation,
            "interval": list(part.mean.interval) if part.mean.interval else None,
            "samples": part.n,
            "alike": part.same,
        }

    return {
        "version": VERSION,
        "runs": result.runs,
        "datasets": {dataset.lower(): spread(found) for dataset, found in result.datasets.items()},
        "mean": None if result.mean is None else spread(result.mean),
        "notes": result.notes,
    }


def headline(path: Path, *, checkpoint: str) -> dict[str, str]:
    """Read a JSON file of scores: data set → the score of a checkpoint (file stem) there, e.g. ``HIT 78.50``.

    Raises DataError when the file is not one of these, or says nothing of the checkpoint.
    """
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
        scores = {
            name: f"{entry['metric']} {100 * entry['checkpoints'][checkpoint][entry['metric']]:.2f}"
            for name, entry in value["datasets"].items()
            if checkpoint in entry["checkpoints"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not scores as affectgpt score --json writes them ({error})") from error
    if not scores:
        raise DataError(f"{path}: has no score of {checkpoint}")
    return scores
