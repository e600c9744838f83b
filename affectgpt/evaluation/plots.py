"""Figures of the HTML report, as SVG text to stand in the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from affectgpt.core.figures import COLOURS, GREY, new_figure, short, svg

if TYPE_CHECKING:
    from affectgpt.evaluation.analysis import Matrix
    from affectgpt.evaluation.run_scores import RunScores


def over_checkpoints(run_scores: RunScores) -> str:
    """Primary metric of every checkpoint, by data set, and the mean; intervals as bands.

    Only epochs have an order: other names get points with error bars.
    """
    figure, axes = new_figure(8.6, 3.6)
    checkpoints = run_scores.checkpoints
    epochs = [next(s.epoch for s in run_scores.of_checkpoint(c)) for c in checkpoints]
    by_epoch = None not in epochs
    at = dict(zip(checkpoints, epochs if by_epoch else range(len(checkpoints)), strict=True))
    for colour, (dataset, scores) in zip(COLOURS * 2, run_scores.scores.items(), strict=False):
        x = [at[s.checkpoint] for s in scores]
        axes.plot(x, [100 * s.primary for s in scores], "o-" if by_epoch else "o", color=colour, ms=4, label=dataset)
        bounds = [s.interval.get(s.metric.keys[0]) for s in scores]
        known = [b for b in bounds if b is not None]
        if len(known) == len(x):
            low, high = ([100 * b[side] for b in known] for side in (0, 1))
            if by_epoch:
                axes.fill_between(x, low, high, color=colour, alpha=0.10, lw=0)
            else:
                axes.vlines(x, low, high, color=colour, alpha=0.5)
    full = [c for c in checkpoints if len(run_scores.of_checkpoint(c)) == len(run_scores.datasets)]
    if len(run_scores.datasets) > 1 and full:
        means = [100 * run_scores.mean(c)[0] for c in full]
        axes.plot(
            [at[c] for c in full],
            means,
            "--" if by_epoch else "_",
            color="black",
            lw=1.4,
            label=f"mean of {len(run_scores.datasets)}",
        )
    axes.set_xticks(
        list(at.values()), [str(e) if by_epoch else short(c) for c, e in zip(checkpoints, epochs, strict=True)]
    )
    if not by_epoch:
        axes.margins(x=0.25)
        axes.tick_params(axis="x", rotation=12)
    axes.set_xlabel("epoch" if by_epoch else "", fontsize=9, color=GREY)
    axes.set_ylabel("primary metric, %", fontsize=9, color=GREY)
    axes.grid(axis="y", color="#e3e7ec", lw=0.8)
    axes.legend(fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return svg(figure)


def bars(names: Sequence[str], true: Sequence[float], predicted: Sequence[float]) -> str:
    """Share of samples whose truth, and whose prediction, holds each group."""
    figure, axes = new_figure(4.6, 0.9 + 0.34 * len(names))
    places = range(len(names))
    axes.barh([p - 0.19 for p in places], [100 * v for v in true], height=0.36, color=GREY, label="truth")
    axes.barh(
        [p + 0.19 for p in places], [100 * v for v in predicted], height=0.36, color=COLOURS[0], label="predicted"
    )
    axes.set_yticks(list(places), [short(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("% of samples", fontsize=9, color=GREY)
    axes.legend(fontsize=8.5, frameon=False)
    return svg(figure)


def heat(matrix: Matrix) -> str:
    """A confusion matrix; each row sums to 100 %."""
    figure, axes = new_figure(1.6 + 0.62 * len(matrix.columns), 0.95 + 0.36 * len(matrix.rows))
    axes.imshow(matrix.shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(matrix.columns)), [short(c) for c in matrix.columns], rotation=35, ha="right")
    axes.set_yticks(range(len(matrix.rows)), [f"{r} ({n})" for r, n in zip(matrix.rows, matrix.counts, strict=True)])
    for i, row in enumerate(matrix.shares):
        for j, share in enumerate(row):
            if share >= 0.005:
                colour = "white" if share > 0.55 else "black"
                axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xlabel("predicted", fontsize=9, color=GREY)
    axes.set_ylabel("truth", fontsize=9, color=GREY)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return svg(figure)
