"""Figures of the captioning report, as SVG text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp, pi, sqrt
from typing import Any

from affectgpt.captioning.filters import LengthFit
from affectgpt.core.figures import COLOURS, GREY, new_figure, short, svg

_BINS = 40
_CUT = "#b3bcc7"


def lengths(before: Sequence[int], after: Sequence[int], fit: LengthFit | None) -> str:
    """Lengths of all descriptions and of the kept ones (figure 7 of the paper), the Gaussian and its cuts."""
    figure, axes = new_figure(6.2, 2.9)
    bins = _bins(before)
    axes.hist(before, bins=bins, color=_CUT, label=f"all descriptions ({len(before)})")
    axes.hist(after, bins=bins, color=COLOURS[0], label=f"kept ({len(after)})")
    if fit is not None:
        width = bins[1] - bins[0]
        x = [bins[0] + (bins[-1] - bins[0]) * i / 200 for i in range(201)]
        scale = len(before) * width / (fit.std * sqrt(2 * pi))
        axes.plot(x, [scale * exp(-(((v - fit.mean) / fit.std) ** 2) / 2) for v in x], color=COLOURS[1], lw=1.4,
                  label=f"Gaussian, mean {fit.mean:.1f}, deviation {fit.std:.1f}")  # fmt: skip
        for cut in (fit.low, fit.high):
            if bins[0] <= cut <= bins[-1]:
                axes.axvline(cut, color=COLOURS[1], lw=1, ls="--")
    axes.set_xlabel("words", fontsize=9, color=GREY)
    axes.set_ylabel("descriptions", fontsize=9, color=GREY)
    _legend(axes)
    return svg(figure)


def speakers(scores: Sequence[float], threshold: float, *, title: str) -> str:
    """Speaker scores and the threshold."""
    figure, axes = new_figure(6.2, 2.4)
    axes.hist(scores, bins=_BINS, color=COLOURS[0])
    axes.axvline(threshold, color=COLOURS[1], lw=1, ls="--", label=f"dropped below {threshold:g}")
    axes.set_xlabel(title, fontsize=9, color=GREY)
    axes.set_ylabel("clips", fontsize=9, color=GREY)
    _legend(axes)
    return svg(figure)


def labels_per_sample(before: Sequence[int], after: Sequence[int]) -> str:
    """Labels per description (figure 7, second row), as shares."""
    figure, axes = new_figure(6.2, 2.4)
    most = max([*before, *after, 1])
    for shift, values, colour, title in ((-0.2, before, _CUT, "all labelled"), (0.2, after, COLOURS[0], "kept")):
        counted = Counter(values)
        shares = [100 * counted[n] / max(len(values), 1) for n in range(most + 1)]
        axes.bar([n + shift for n in range(most + 1)], shares, width=0.38, color=colour, label=title)
    axes.set_xticks(range(most + 1))
    axes.set_xlabel("labels per description", fontsize=9, color=GREY)
    axes.set_ylabel("%", fontsize=9, color=GREY)
    _legend(axes)
    return svg(figure)


def distribution(before: Counter[str], after: Counter[str], *, shown: int = 20) -> str:
    """The most frequent labels: share of the descriptions that hold each, all and kept."""
    names = [name for name, _ in (before or after).most_common(shown)]
    figure, axes = new_figure(6.2, 0.8 + 0.26 * max(len(names), 1))
    for shift, counted, colour, title in ((-0.2, before, _CUT, "all labelled"), (0.2, after, COLOURS[0], "kept")):
        total = max(sum(counted.values()), 1)
        axes.barh(
            [i + shift for i in range(len(names))], [100 * counted[n] / total for n in names], height=0.38,
            color=colour, label=title,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("% of all labels", fontsize=9, color=GREY)
    _legend(axes)
    return svg(figure)


def matrix(rows: Sequence[str], columns: Sequence[str], shares: Sequence[Sequence[float]], *, x: str, y: str) -> str:
    """Shares (0 to 1) as a heat map."""
    figure, axes = new_figure(1.9 + 0.56 * len(columns), 1.15 + 0.34 * len(rows))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), [short(c) for c in columns], rotation=35, ha="right")
    axes.set_yticks(range(len(rows)), [short(r) for r in rows])
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            if share >= 0.005:
                axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=8,
                          color="white" if share > 0.55 else "black")  # fmt: skip
    axes.set_xlabel(x, fontsize=9, color=GREY)
    axes.set_ylabel(y, fontsize=9, color=GREY)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return svg(figure)


def _legend(axes: Any) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.2)


def _bins(values: Sequence[int]) -> list[float]:
    low, high = min(values, default=0), max(values, default=1)
    step = max(1, -(-(high - low + 1) // _BINS))  # whole words per bin
    return [low - 0.5 + step * i for i in range((high - low) // step + 2)]
