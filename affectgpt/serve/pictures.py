"""What the page shows of a clip, as pictures inside the page: nothing is written, nothing is loaded."""

from __future__ import annotations

import base64
import html
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from affectgpt.core.figures import COLOURS, new_figure, short, svg
from affectgpt.core.types import CLIP_SECONDS, SAMPLE_RATE
from affectgpt.media.audio import clip_starts
from affectgpt.media.encode import jpeg_of

if TYPE_CHECKING:
    import numpy as np

    from affectgpt.evaluation.lexicon import Wheel

_BINS = 600  # of a wave
_GREY = "#8390a2"  # is read on white and on black
_PALE = "#8a94a355"


def strip(pictures: Iterable[np.ndarray], *, names: Sequence[str] = (), what: str) -> str:
    """Pictures uint8 ``[H, W, 3]`` RGB side by side; they wrap where the page is narrow."""
    cells = []
    for i, picture in enumerate(pictures):
        name = html.escape(names[i] if names else f"{what} {i + 1}")
        data = base64.b64encode(jpeg_of(picture)).decode()
        caption = f"<figcaption>{name}</figcaption>" if names else ""
        cells.append(f'<figure><img alt="{name}" src="data:image/jpeg;base64,{data}">{caption}</figure>')
    return f'<div class="ag-strip">{"".join(cells)}</div>'


def image(text: str, *, alt: str) -> str:
    """An SVG element as a picture of its own, whose names cannot meet those of another one."""
    data = base64.b64encode(text.encode()).decode()
    return f'<img class="ag-plot" alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}">'


def wave(samples: np.ndarray, *, spacing: int) -> str:
    """Mono samples at 16 kHz ``[n]`` and the eight clips of two seconds that are heard, as SVG."""
    import numpy as np

    figure, axes = _transparent(8.0, 2.3)
    seconds = len(samples) / SAMPLE_RATE
    edges = np.linspace(0, len(samples), min(_BINS, max(len(samples), 1)) + 1).astype(int)
    parts = [samples[a:b] for a, b in itertools.pairwise(edges) if b > a]
    low, high = [float(p.min()) for p in parts], [float(p.max()) for p in parts]
    loudest = max([1e-3, *map(abs, low), *high])
    times = np.linspace(0, seconds, len(parts))
    axes.fill_between(times, [v / loudest for v in low], [v / loudest for v in high], color=COLOURS[0], lw=0.4)
    starts = [start / SAMPLE_RATE for start in clip_starts(len(samples), spacing=spacing)]
    for i, start in enumerate(starts):
        row = 1.15 + 0.17 * i  # clips overlap in most recordings
        axes.plot([start, min(start + CLIP_SECONDS, max(seconds, CLIP_SECONDS))], [row, row], color=COLOURS[1], lw=2.5)
        axes.text(start, row, f"{i + 1} ", ha="right", va="center", fontsize=6.5, color=_GREY)
    axes.set_xlim(-0.03 * max(seconds, CLIP_SECONDS), max(seconds, CLIP_SECONDS))
    axes.set_ylim(-1.1, 2.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("seconds", fontsize=8.5, color=_GREY)
    return svg(figure)


def wheel(rings: Wheel, marked: Mapping[str, str]) -> str:
    """A wheel's inner and middle ring as SVG, with the sectors of labels coloured; ``marked``: label → inner word."""
    sectors: dict[str, list[str]] = {}
    for one, two, _ in rings.rows:
        middle = sectors.setdefault(one, [])
        if two not in middle:
            middle.append(two)
    labels: dict[str, list[str]] = {}
    for label, group in marked.items():
        labels.setdefault(group, []).append(label)
    figure, axes = _transparent(5.2, 4.0)
    width = 2 * math.pi / max(len(sectors), 1)
    for i, (one, middle) in enumerate(sectors.items()):
        colour = COLOURS[i % len(COLOURS)] if one in labels else None
        _sector(axes, 0.16, 0.62, i * width, width, one, colour, size=7.6)
        for j, two in enumerate(middle):
            part = width / len(middle)
            _sector(axes, 0.62, 0.98, i * width + j * part, part, two, colour, size=5.8, pale=True)
        if one in labels:
            angle = (i + 0.5) * width
            text = "\n".join(short(label) for label in labels[one][:4])
            axes.text(1.06 * math.cos(angle), 1.06 * math.sin(angle), text, ha=_side(angle), va="center", fontsize=9,
                      color=colour, fontweight="bold")  # fmt: skip
    axes.set_xlim(-1.5, 1.5)
    axes.set_ylim(-1.12, 1.12)
    axes.set_aspect("equal")
    axes.axis("off")
    return svg(figure)


def _sector(
    axes: Any, inner: float, outer: float, start: float, width: float, name: str, colour: str | None, *, size: float,
    pale: bool = False,
) -> None:  # fmt: skip
    from matplotlib.patches import Wedge

    alpha = None if colour is None else 0.45 if pale else 0.9
    axes.add_patch(
        Wedge((0, 0), outer, math.degrees(start), math.degrees(start + width), width=outer - inner,
              facecolor=colour or "none", alpha=alpha, edgecolor=_GREY, lw=0.6)
    )  # fmt: skip
    middle, radius = start + width / 2, (inner + outer) / 2
    turned = math.degrees(middle) % 360
    upright = turned - 180 if 90 < turned < 270 else turned
    axes.text(radius * math.cos(middle), radius * math.sin(middle), short(name), ha="center", va="center",
              rotation=upright, fontsize=size, color="white" if colour and not pale else _GREY)  # fmt: skip


def _side(angle: float) -> str:
    across = math.cos(angle)
    return "left" if across > 0.25 else "right" if across < -0.25 else "center"


def _transparent(width: float, height: float) -> tuple[Any, Any]:
    """A figure that stands on a dark page as well as on a light one."""
    figure, axes = new_figure(width, height)
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.spines["bottom"].set_color(_PALE)
    axes.tick_params(colors=_GREY)
    return figure, axes
