"""Draw ``docs/architecture.svg``: the rooms of the package and who imports whom, read from the imports themselves.

    python docs/draw_architecture.py

Imports inside functions count, those for type checkers alone do not. An arrow goes from a room to one that it imports;
it is left out where the other is reached through a third. ``cli`` imports all rooms, and ``config`` and ``core`` are
imported by nearly all: these are bars. The whole list of a room's imports is its tooltip (SVG ``title``).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path(__file__).with_name("architecture.svg")
WHAT = {
    "captioning": "annotation pipeline", "cli": "every command; sees all rooms", "config": "schema, loading, paths",
    "core": "types, registry, errors, files; imports no other room", "datasets": "sets, labels, splits",
    "demo": "drawn corpus, models", "encoders": "the frozen encoders", "evaluation": "labels, metrics, scores",
    "inference": "samples to answers", "media": "video, sound, faces", "mllm": "other multimodal LLMs",
    "modeling": "the model, checkpoints", "preprocess": "raw clips", "processing": "samples to batches",
    "results": "result files", "serve": "HTTP API, page", "textllm": "clients of LLMs", "training": "loop, objectives",
}  # fmt: skip
TOP, BOTTOM = ("cli",), ("config", "core")  # bars above and below
Graph = dict[str, set[str]]
BOX, HEIGHT, GAP, LANE, ROW = 156, 50, 22, 26, 112  # pixels: a room, between two, a passing arrow, from layer to layer
MARGIN, BAR = 16, 34


def imported_by(path: Path) -> set[str]:
    """Modules that a file imports."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            if isinstance(child, ast.ImportFrom):
                found.add(child.module or "")
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def room_graph(package: Path) -> Graph:
    """Room → rooms that it imports."""
    rooms = sorted(folder.name for folder in package.iterdir() if (folder / "__init__.py").is_file())
    graph: Graph = {}
    for room in rooms:
        names = {name for path in (package / room).rglob("*.py") for name in imported_by(path)}
        parts = {name.split(".")[1] for name in names if name.startswith(f"{package.name}.")}
        graph[room] = (parts & set(rooms)) - {room}
    return graph


def reduced(graph: Mapping[str, set[str]]) -> Graph:
    """Without the arrows to what is reached through another room, and without the bars."""
    rooms = {room: seen - {*TOP, *BOTTOM} for room, seen in graph.items() if room not in (*TOP, *BOTTOM)}

    def below(room: str) -> set[str]:
        return set().union(*({other} | below(other) for other in rooms[room])) if rooms[room] else set()

    return {room: {o for o in seen if o not in set().union(*map(below, seen))} for room, seen in rooms.items()}


def layers_of(graph: Graph) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Rooms by layer, the lowest first, and lines from one layer to the next. A line that passes a layer gets a lane
    in it, named ``from>to@layer``."""
    depth: dict[str, int] = {}

    def depth_of(room: str) -> int:
        if room not in depth:
            depth[room] = max((depth_of(other) + 1 for other in graph[room]), default=0)
        return depth[room]

    layers: list[list[str]] = [[] for _ in range(max(map(depth_of, graph)) + 1)]
    for room in sorted(graph):
        layers[depth[room]].append(room)
    lines = []
    for room in sorted(graph):
        for other in sorted(graph[room]):
            way = [room]
            for level in range(depth[room] - 1, depth[other], -1):
                way.append(f"{room}>{other}@{level}")
                layers[level].append(way[-1])
            way.append(other)
            lines += pairwise(way)
    return layers, lines


def ordered(layers: list[list[str]], lines: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Each layer sorted by where its neighbours are, up and down in turn: few lines cross."""
    near: dict[str, list[str]] = {name: [] for layer in layers for name in layer}
    for upper, lower in lines:
        near[upper].append(lower)
        near[lower].append(upper)
    place = {name: i / max(len(layer) - 1, 1) for layer in layers for i, name in enumerate(layer)}
    for sweep in range(24):
        for level in range(len(layers)) if sweep % 2 else reversed(range(len(layers))):
            layer = layers[level]
            wish = {n: sum(place[o] for o in near[n]) / len(near[n]) if near[n] else place[n] for n in layer}
            layer.sort(key=lambda n: (wish[n], n))
            place.update({name: (i + 0.5) / len(layer) for i, name in enumerate(layer)})
    return layers


def width_of(layer: list[str]) -> int:
    """Pixels of a layer: its rooms and lanes, and what is between them."""
    return sum(LANE if "@" in name else BOX for name in layer) + GAP * (len(layer) - 1)


def text(x: float, y: float, words: str, *, kind: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{words}</text>'


def box(room: str, graph: Graph, *, x: float, y: float, width: float, height: float, bar: bool = False) -> list[str]:
    """A room with its name, what it is, and the list of its imports as a tooltip."""
    middle = x + width / 2
    label = (
        [text(middle, y + 22, f'<tspan class="name">{room}</tspan>  {WHAT[room]}', kind="what")]
        if bar
        else [text(middle, y + 21, room, kind="name"), text(middle, y + 38, WHAT[room], kind="what")]
    )
    return [
        f'<g id="room-{room}">',
        f"<title>{room} imports: {', '.join(sorted(graph[room])) or 'none'}</title>",
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>',
        *label,
        "</g>",
    ]


def svg(graph: Graph) -> str:
    """The picture."""
    few = reduced(graph)
    layers, lines = layers_of(few)
    layers = ordered(layers, lines)
    width = max(map(width_of, layers)) + 2 * MARGIN
    top = MARGIN + BAR + 34
    height = top + ROW * (len(layers) - 1) + HEIGHT + 34 + len(BOTTOM) * (BAR + 8) + MARGIN - 8
    spot: dict[str, tuple[float, float]] = {}  # centre and upper edge
    for level, layer in enumerate(layers):
        x = (width - width_of(layer)) / 2
        for name in layer:
            wide = LANE if "@" in name else BOX
            spot[name] = (x + wide / 2, top + ROW * (len(layers) - 1 - level))
            x += wide + GAP
    # Where a line leaves or reaches a room: side by side, in the order of the other ends.
    out: dict[str, list[str]] = {}
    into: dict[str, list[str]] = {}
    for upper, lower in lines:
        out.setdefault(upper, []).append(lower)
        into.setdefault(lower, []).append(upper)

    def port(name: str, other: str, ends: dict[str, list[str]]) -> float:
        if "@" in name:
            return spot[name][0]
        others = sorted(ends[name], key=lambda n: (spot[n][0], n))
        return spot[name][0] + (others.index(other) - (len(others) - 1) / 2) * min(26, (BOX - 30) / len(others))

    parts = []
    for upper, lower in lines:
        x1, x2 = port(upper, lower, out), port(lower, upper, into)
        y0, y1 = spot[upper][1], spot[upper][1] + HEIGHT
        y2 = spot[lower][1] - (0 if "@" in lower else 3)
        start = upper.partition(">")[0]
        end = lower.partition(">")[2].partition("@")[0] if "@" in lower else lower
        head = "" if "@" in lower else ' marker-end="url(#head)"'
        begin = f"M{x1:g} {y0:g}V{y1:g}" if "@" in upper else f"M{x1:g} {y1:g}"  # a lane is passed straight
        bend = (y2 - y1) / 2
        parts.append(
            f'<path class="arrow" data-from="{start}" data-to="{end}"{head} '
            f'd="{begin}C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}"/>'
        )
    for name in sorted(spot):
        if "@" not in name:
            x, y = spot[name]
            parts += box(name, graph, x=x - BOX / 2, y=y, width=BOX, height=HEIGHT)
    inner = width - 2 * MARGIN
    parts += box(TOP[0], graph, x=MARGIN, y=MARGIN, width=inner, height=BAR, bar=True)
    y = top + ROW * (len(layers) - 1) + HEIGHT + 34
    for name in BOTTOM:
        parts += box(name, graph, x=MARGIN, y=y, width=inner, height=BAR, bar=True)
        y += BAR + 8
    style = (
        "rect{fill:#fff;stroke:#3f51b5;stroke-width:1.2}.page{fill:#fafafa;stroke:none}"
        ".arrow{fill:none;stroke:#7986cb;stroke-width:1.3}"
        "text{font-family:sans-serif;text-anchor:middle;fill:#222}.name{font-size:16px;font-weight:600}.what{font-size:12.5px}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">',
            "<title>The rooms of affectgpt and their imports</title>",
            "<!-- drawn by docs/draw_architecture.py from the imports; do not edit -->",
            f"<style>{style}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"',
            ' orient="auto">',
            '<path d="M0 0L8 4L0 8z" fill="#7986cb"/></marker></defs>',
            f'<rect class="page" width="{width:g}" height="{height:g}"/>',
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(svg(room_graph(ROOT / "affectgpt")), encoding="utf-8")
    print(PICTURE)
