"""Figures of HTML reports, as SVG text to stand in a page. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import io
from typing import Any

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#7F3C8D", "#4D4D4D")
GREY = "#5f6b7a"


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes, without the upper and right lines."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no window system

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5, colors=GREY)
    return figure, axes


def short(name: str) -> str:
    """A name that fits an axis and is not read as mathematics."""
    name = name if len(name) <= 40 else name[:39] + "…"
    return name.replace("$", r"\$")


def svg(figure: Any) -> str:
    """The figure as an SVG element; equal figures give equal text."""
    import matplotlib

    out = io.StringIO()
    # text stays text: smaller, and it can be searched and copied; a fixed salt gives the same ids every time
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "affectgpt", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
