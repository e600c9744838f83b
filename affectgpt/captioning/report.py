"""``report.html``: what every step did, and random clips for a person to look at."""

from __future__ import annotations

import base64
from collections import Counter
from pathlib import Path
from typing import Any

from affectgpt import __version__
from affectgpt.captioning import figures
from affectgpt.captioning.describe import Clip
from affectgpt.captioning.filters import Wheels, length
from affectgpt.captioning.labels import ClipLabels
from affectgpt.captioning.pipeline import State
from affectgpt.config.captioning import CaptioningFile
from affectgpt.core.crops import in_order
from affectgpt.core.errors import DataError
from affectgpt.core.files import write_text
from affectgpt.core.seeds import seeded
from affectgpt.evaluation.lexicon import find_lexicon
from affectgpt.media.video import read_faces

TEMPLATE = Path(__file__).with_name("report.html")
_CROPS, _SIDE = 5, 72  # face crops shown of a clip, and their side in pixels
_MOST_GROUPS = 14  # rows of a matrix


def write_report(path: Path, config: CaptioningFile, state: State, found: dict[str, Any]) -> None:
    """Write the report. ``found``: counts and costs as in ``counts.json``."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    kept = {clip.name for clip in state.kept}
    spec = config.captioning
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=config.name,
        version=__version__,
        spec=spec,
        counts=_bars(found["counts"]),
        costs=found["costs"],
        dropped=Counter(filter_ for filter_, _ in state.dropped.values()).most_common(),
        failures=Counter((f.step, _kind(f.reason), f.again) for f in state.failures).most_common(12),
        figures=_figures(config, state, kept),
        estimated=state.speakers is not None and spec.speaker.source == "estimate",
        unscored=len(state.speakers.unscored) if state.speakers else 0,
        clips=[_card(state, clip) for clip in shown_clips(state, spec.shown, seed=config.name)],
        decided=sum(bool(d.keep) for d in state.decisions.values()),
        stopped=state.stopped,
    )
    write_text(path, page)


def shown_clips(state: State, count: int, *, seed: str) -> list[Clip]:
    """Random clips, whatever became of them: the same ones in every report of the same clips."""
    order = sorted(state.clips, key=lambda clip: seeded(seed, clip.name).random())
    chosen = {clip.name for clip in order[:count]}
    return [clip for clip in state.clips if clip.name in chosen]


def _bars(counts: dict[str, int]) -> list[dict[str, Any]]:
    most = max(max(counts.values(), default=1), 1)
    return [{"title": t, "count": n, "percent": 100 * n / most} for t, n in counts.items()]


def _kind(reason: str) -> str:
    """A reason without what differs from clip to clip."""
    return reason if len(reason) <= 60 else reason[:60] + "…"


def _figures(config: CaptioningFile, state: State, kept: set[str]) -> list[tuple[str, str, str]]:
    """(anchor, SVG, caption) of the figures that this run has numbers for."""
    found = []
    words = {name: length(text) for name, text in state.descriptions.items()}
    if words:
        after = [n for name, n in words.items() if name in kept]
        found.append(
            ("lengths", figures.lengths(list(words.values()), after, state.fit),
             "Words per description, before and after all filters. Dashed: the cuts of the length filter.")
        )  # fmt: skip
    if state.speakers is not None and state.speakers.scores:
        found.append(
            ("speakers", figures.speakers(
                list(state.speakers.scores.values()), state.speakers.threshold, title=state.speakers.source),
             "Is the visible person the one who speaks?")
        )  # fmt: skip
    if state.labels:
        found += _label_figures(state.labels, kept)
    if state.votes:
        found += _vote_figures(config, state)
    return found


def _label_figures(labels: dict[str, ClipLabels], kept: set[str]) -> list[tuple[str, str, str]]:
    numbers = {name: len(said.labels) for name, said in labels.items()}
    after = [n for name, n in numbers.items() if name in kept]
    before_labels = Counter(label for said in labels.values() for label in said.labels)
    after_labels = Counter(label for name, said in labels.items() if name in kept for label in said.labels)
    mean = sum(after) / max(len(after), 1)
    return [
        ("labels", figures.labels_per_sample(list(numbers.values()), after),
         f"Labels per description; {mean:.2f} on average in the kept ones."),
        ("emotions", figures.distribution(before_labels, after_labels),
         f"The most frequent of {len(before_labels)} different labels."),
    ]  # fmt: skip


def _vote_figures(config: CaptioningFile, state: State) -> list[tuple[str, str, str]]:
    wheels = Wheels(find_lexicon(config.captioning.agreement.lexicon or None))
    pairs: Counter[tuple[str, str]] = Counter()
    for name, votes in state.votes.items():
        if name in state.labels:
            for label in dict.fromkeys(wheels.groups(label)[0] for label in state.labels[name].labels):
                pairs[label, votes.wheels[0].choice] += 1
    rows = _most(Counter(a for a, _ in pairs.elements()))
    said = _most(Counter(b for _, b in pairs.elements()))
    columns = [*(row for row in rows if row in said), *(group for group in said if group not in rows)]
    shares = [[pairs[r, c] / max(sum(pairs[r, k] for k in columns), 1) for c in columns] for r in rows]
    found = []
    if rows and columns:
        found.append(
            ("agreement", figures.matrix(rows, columns, shares, x="ensemble's majority", y="description's labels"),
             f"Agreement of descriptions and ensemble, groups of the wheel {wheels.names[0]}, % of each row. "
             "Before the high-level filter.")
        )  # fmt: skip
    people = [f"classifier {i + 1}" for i in range(len(next(iter(state.votes.values())).words))]
    words = [votes.words for votes in state.votes.values()]
    same = [[sum(w[i] == w[j] for w in words) / len(words) for j in range(len(people))] for i in range(len(people))]
    found.append(
        (
            "crowd",
            figures.matrix(people, people, same, x="", y=""),
            "How often two classifiers say the same emotion, %.",
        )
    )
    return found


def _most(counted: Counter[str]) -> list[str]:
    return [name for name, _ in counted.most_common(_MOST_GROUPS)]


def _card(state: State, clip: Clip) -> dict[str, Any]:
    name = clip.name
    verdict, reason = state.verdict(name)
    votes, labels = state.votes.get(name), state.labels.get(name)
    speaker = state.speakers.scores.get(name) if state.speakers else None
    return {
        "name": name,
        "verdict": verdict,
        "reason": reason,
        "faces": _strip(clip),
        "subtitle": clip.sample.subtitle,
        "clues": [
            (kind, state.answers[kind].texts[name])
            for kind in ("acoustic", "visual")
            if kind in state.answers and name in state.answers[kind].texts
        ],
        "description": state.descriptions.get(name, ""),
        "labels": labels,
        "votes": Counter(votes.words).most_common() if votes else [],
        "polarities": Counter(votes.polarities).most_common() if votes else [],
        "speaker": None if speaker is None else f"{speaker:.2f}",
        "by_person": name in state.decisions,
    }


def _strip(clip: Clip) -> str | None:
    """Some face crops side by side, a JPEG as base64; None where there are none."""
    import cv2
    import numpy as np

    if clip.sample.face is None or not clip.sample.face.is_file():
        return None
    try:
        crops = read_faces(clip.sample.face, n_frames=_CROPS, size=_SIDE)  # [5, 72, 72, 3]
    except DataError:
        return None
    row: np.ndarray = np.hstack(list(in_order(crops, stored=clip.sample.crops.channels, wanted="bgr")))
    good, data = cv2.imencode(".jpg", row, [cv2.IMWRITE_JPEG_QUALITY, 82])
    return base64.b64encode(data.tobytes()).decode() if good else None
