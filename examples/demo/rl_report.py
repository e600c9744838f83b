"""The report of the demo's reinforcement learning: one HTML file with the table of all arms and their curves."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affectgpt.core.files import write_text

TEMPLATE = Path(__file__).with_name("rl_report.html")
PANELS = (("reward_wheel", "wheel F of drawn answers"), ("labels_per_answer", "labels per answer"), ("kl", "KL"))


def write_rl_report(
    path: Path, *, rows: Sequence[Mapping[str, Any]], curves: Sequence[tuple[str, Path]], notes: Sequence[str]
) -> None:
    """Write the report. ``rows``: per arm and seed (see cli/demo_rl.table); ``curves``: titles and training logs."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        rows=rows, curve=_curves(curves), notes=notes
    )
    write_text(path, page)


def read_curve(log: Path, name: str) -> list[float]:
    """One number of every step of a training log."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    return [line[name] for line in lines if name in line]


def _curves(curves: Sequence[tuple[str, Path]]) -> str:
    """A PNG as base64: what every arm's answers earned, how long they were, how far the policy went."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 8), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    colours = {arm: f"C{i}" for i, arm in enumerate(dict.fromkeys(title.partition(",")[0] for title, _ in curves))}
    for axes, (name, title) in zip(figure.subplots(len(PANELS), 1, sharex=True), PANELS, strict=True):
        shown = set()
        for label, log in curves:
            arm = label.partition(",")[0]
            values = read_curve(log, name)
            smooth = [sum(part) / len(part) for part in (values[max(i - 2, 0) : i + 3] for i in range(len(values)))]
            axes.plot(
                range(1, len(smooth) + 1), smooth, color=colours[arm], linewidth=1.3, alpha=0.85,
                label=None if arm in shown else arm,
            )  # fmt: skip
            shown.add(arm)
        axes.set_ylabel(title)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=9)
    axes.set_xlabel("step")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return base64.b64encode(out.getvalue()).decode()
