"""The terminal table and the LaTeX row."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from affectgpt.core.errors import printable
from affectgpt.evaluation.compare import PairedResult, SeedResult
from affectgpt.evaluation.lexicon import Lexicon
from affectgpt.evaluation.run_scores import RunScores
from affectgpt.evaluation.score import UnknownLabels, why_unknown
from affectgpt.evaluation.summary import FLOOR_TITLES, NONE, floor_cells, percent, summarise


def table(run_scores: RunScores) -> str:
    """The scores of one run: a row per checkpoint, then with and without a choice, published, and the floors."""
    summary, n = summarise(run_scores), len(run_scores.datasets)
    titles = [scores[0].metric.titles[0] for scores in run_scores.scores.values()]
    head = [["checkpoint", *run_scores.datasets, f"mean of {n}"], ["", *titles, ""], ["clips", *_clips(run_scores), ""]]
    body = [[row.name, *row.cells, row.mean] for row in summary.checkpoints]
    foot, floors = ([[row.name, *row.cells, row.mean] for row in rows] for rows in (summary.foot, summary.floors))
    lines = [*_heading(run_scores), "", *grid([head, body, foot, *([floors] if floors else [])]), ""]
    if summary.single is not None:
        lines.append(
            f"best single checkpoint: {printable(str(run_scores.best_single))} (mean of {n}: {summary.single.mean})"
        )
    if len(run_scores.checkpoints) > 1:
        lines.append(
            "The row best per data set picks each checkpoint on the test set itself, as the paper does.\n"
            "A single checkpoint scores lower as a rule; to compare models, take one checkpoint of each, or the mean."
        )
    lines += [f"note: {printable(words)}" for words in run_scores.caveats()]
    return "\n".join(lines)


def _clips(run_scores: RunScores) -> list[str]:
    """How many samples were scored, of how many in the split, by data set; from fewest to most over checkpoints."""
    cells = []
    for scores in run_scores.scores.values():
        counts = sorted({len(score.names) for score in scores})
        scored = "-".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        cells.append(f"{scored} of {scores[0].split_size}")
    return cells


def _heading(run_scores: RunScores) -> list[str]:
    made = "; ".join(
        extractor if len(run_scores.extractors) == 1 else f"{extractor} ({', '.join(sets)})"
        for extractor, sets in run_scores.extractors.items()
    )
    lines = [
        f"run        {run_scores.run}",
        f"labels     {made}",
        f"lexicon    {run_scores.lexicon.source}",
        "values     percent",
    ]
    return [printable(line) for line in lines]


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
        metric = scores[0].metric
        rows = []
        for score in scores:
            cells = []
            for key in metric.keys:
                low, high = score.interval.get(key, (None, None))
                cells.append(
                    percent(score.values[key]) + (f" [{percent(low)}, {percent(high)}]" if low is not None else "")
                )
            rows.append([score.checkpoint, *cells, str(len(score.names)), *floor_cells(score)])
        titles = FLOOR_TITLES if any(score.floors for score in scores) else ()
        lines += ["", *grid([[[dataset, *metric.titles, "samples", *titles]], rows])]
    return "\n".join(lines)


def unknown_line(unknown: UnknownLabels) -> str:
    """One line on labels that the lexicon does not know."""
    top = ", ".join(f"{printable(label[:60])} ({count})" for label, count in unknown.by_label.most_common(5))
    share = sum(unknown.counts.values())
    return (
        f"note: {share} of {unknown.total} labels are not in the lexicon and were dropped "
        f"({len(unknown.by_label)} different: {top} …); --unknown-labels FILE lists all"
    )


def unknown_csv(unknown: UnknownLabels, lexicon: Lexicon) -> str:
    """Labels that the lexicon does not know, most frequent first, and at which stage each is lost."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["label", "count", "datasets", "reason"])
    for label, count in sorted(unknown.by_label.items(), key=lambda pair: (-pair[1], pair[0])):
        sets = " ".join(sorted({dataset for known, dataset in unknown.counts if known == label}))
        writer.writerow([printable(label), count, sets, why_unknown(label, lexicon)])
    return out.getvalue()


def comparison_table(result: PairedResult) -> str:
    """Two systems, paired by sample."""
    rows = [
        [
            dataset, str(c.n), percent(c.a), percent(c.b), f"{100 * c.difference:+z.2f}",
            f"[{100 * c.interval[0]:+z.2f}, {100 * c.interval[1]:+z.2f}]", f"{c.p:.4f}",
            *(f"{groups:.2f}" for groups in result.groups.get(dataset, ())),
        ]
        for dataset, c in result.datasets.items()
    ]  # fmt: skip
    head = ["data set", "samples", "A", "B", "B − A", "95 % interval", "p"]
    head += ["groups A", "groups B"] if result.groups else []
    rows = [row + [NONE] * (len(head) - len(row)) for row in rows]
    lines = [f"A  {printable(result.a)}", f"B  {printable(result.b)}", "", *grid([[head], rows]), ""]
    lines.append(
        "p: paired randomisation test over samples, two-sided; interval: paired bootstrap. Neither covers another"
    )
    lines.append("training run or another extraction, and p is not corrected for the number of data sets.")
    return "\n".join(lines + [f"note: {printable(words)}" for words in result.notes])


def seeds_table(result: SeedResult) -> str:
    """Training seeds of one recipe, paired by sample."""
    names = [chr(ord("A") + at) if len(result.runs) <= 26 else str(at + 1) for at in range(len(result.runs))]
    spreads = [*result.datasets.items()]
    if result.mean is not None:
        spreads.append((f"mean of {len(result.datasets)}", result.mean))
    rows = [
        [
            dataset, str(found.n), *map(percent, found.values),
            f"{percent(found.mean)} ± {percent(found.deviation)}",
            f"[{percent(found.interval[0])}, {percent(found.interval[1])}]" if found.interval else NONE,
            NONE if found.same is None else f"{100 * found.same:.1f}",
        ]
        for dataset, found in spreads
    ]  # fmt: skip
    head = ["data set", "samples", *names, "mean ± deviation", "95 % interval", "alike"]
    lines = [printable(f"{name}  {run}") for name, run in zip(names, result.runs, strict=True)]
    lines += ["", *grid([[head], rows]), ""]
    lines.append(
        "deviation: over the runs, with n - 1; interval: of their mean, bootstrap over samples, the same for all"
    )
    lines.append("runs; alike: percent of the samples that all runs meet equally well. Values in percent.")
    return "\n".join(lines + [f"note: {printable(words)}" for words in result.notes])


def latex(run_scores: RunScores) -> str:
    """Rows for a LaTeX table: floors, scores without a choice, the best single checkpoint, the oracle row.

    A comment says what the columns are.
    """
    datasets = run_scores.datasets
    lines = [f"% {printable(words)}" for words in (run_scores.run, *run_scores.caveats())]
    lines.append(f"% columns: model & {' & '.join(datasets)} & mean of {len(datasets)}")
    summary = summarise(run_scores)
    lines += [_latex_row(row.name.capitalize(), [*row.cells, row.mean]) for row in summary.floors]
    lines += [
        _latex_row(row.name.capitalize(), [*row.cells, row.mean])
        for row in (summary.mean, summary.halves)
        if row is not None
    ]
    if summary.single is not None:
        name = f"Best single checkpoint ({run_scores.best_single})"
        lines.append(_latex_row(name, [*summary.single.cells, summary.single.mean]))
    lines.append(_latex_row("Best per data set (paper's protocol)", [*summary.best.cells, summary.best.mean]))
    return "\n".join(lines)


def _latex_row(name: str, cells: Sequence[str]) -> str:
    name = printable(name)
    for character in "\\&%$#_{}":
        name = name.replace(character, "\\" + character if character != "\\" else r"\textbackslash ")
    return " & ".join([name, *cells]) + r" \\"
