"""The human-assisted part: a CSV of doubtful clips that a person fills in, and the next run honours."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.config.captioning import CaptioningConfig
from affectgpt.core.errors import DataError
from affectgpt.core.files import atomic_path
from affectgpt.core.tables import read_table

if TYPE_CHECKING:
    from affectgpt.captioning.pipeline import State

KEEP, DROP = "keep", "drop"
FILLED = ("decision", "new_description", "note")  # a person's columns
SHOWN = ("name", "verdict", "subtitle", "acoustic", "visual", "description", "labels", "crowd", "polarity", "doubt")


@dataclass(frozen=True)
class Decision:
    """A person's decision on one clip: ``keep`` is keep, drop or empty (the filters decide)."""

    keep: str
    description: str  # replaces the model's; empty: it stays
    note: str


def file_of(spec: CaptioningConfig, work: Path) -> Path:
    """Path of the review."""
    return Path(spec.review.file) if spec.review.file else work / "review.csv"


def read_decisions(path: Path) -> dict[str, Decision]:
    """Read what a person has filled in; nothing if there is no file. Raises DataError naming file and clip for another
    word."""
    if not path.exists():
        return {}
    found = {}
    for name, (word, description, note) in read_table(path, key="name", columns=FILLED).items():
        word = word.strip().lower()
        if word not in ("", KEEP, DROP):
            raise DataError(f"{path}, clip {name!r}: decision is {word!r}; allowed: keep, drop, or empty")
        description = description.strip()
        if word or description:
            found[name] = Decision(word or (KEEP if description else ""), description, note.strip())
    return found


def write_review(path: Path, state: State, *, count: int) -> int:
    """Write the most doubtful clips for a person to look at; how many rows are new.

    Rows that a person has filled in stay as they are, and so do rows of clips that this run did not look at.
    """
    there = _rows(path)
    looked_at = {clip.name for clip in state.clips}
    kept = {
        name: row
        for name, row in there.items()
        if name not in looked_at or any(row[column].strip() for column in FILLED)
    }
    rows = [row for row in _doubtful(state)[:count] if row["name"] not in kept]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, (*SHOWN, *FILLED))
        writer.writeheader()
        writer.writerows([*kept.values(), *rows])
    return sum(row["name"] not in there for row in rows)


def _rows(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a review by name; none where there is no file."""
    if not path.exists():
        return {}
    table = read_table(path, key="name", columns=(*SHOWN, *FILLED))
    return {name: dict(zip((*SHOWN, *FILLED), cells, strict=True)) for name, cells in table.items()}


def _doubtful(state: State) -> list[dict[str, str]]:
    """All judged clips, the most doubtful first."""
    rows = []
    for clip in state.clips:
        name = clip.name
        if name not in state.descriptions:
            continue
        verdict, reason = state.verdict(name)
        votes, labels = state.votes.get(name), state.labels.get(name)
        rows.append(
            {
                "name": name,
                "verdict": f"{verdict}, {reason}" if reason else verdict,
                "subtitle": clip.sample.subtitle,
                "acoustic": _text(state, "acoustic", name),
                "visual": _text(state, "visual", name),
                "description": state.descriptions[name],
                "labels": ", ".join(labels.labels) if labels else "",
                "crowd": ", ".join(votes.words) if votes else "",
                "polarity": f"{labels.polarity if labels else '?'} / {votes.polarity.choice}"
                if votes and votes.polarity
                else "",
                "doubt": f"{doubt(state, name):.2f}",
                **dict.fromkeys(FILLED, ""),
            }
        )
    return sorted(rows, key=lambda row: (-float(row["doubt"]), row["name"]))


def doubt(state: State, name: str) -> float:
    """How unsure the ensemble's verdict is: 1 when it is not of one mind, 0 when everything agrees or nothing does."""
    agreement = state.agreements.get(name)
    if agreement is None:
        return 0.0
    parts: Sequence[float] = (
        1.0 if agreement.emotion is None else 1 - abs(2 * agreement.emotion - 1),
        1.0 if agreement.sentiment is None else 0.0,
        1.0
        if agreement.emotion is not None
        and agreement.sentiment is not None
        and (agreement.emotion > 0.5) != agreement.sentiment
        else 0.0,
    )
    votes = state.votes[name]
    split = 1 - sum(majority.share for majority in votes.wheels) / max(len(votes.wheels), 1)
    return min(1.0, max(parts) * 0.6 + split * 0.4)


def _text(state: State, step: str, name: str) -> str:
    answers = state.answers.get(step)
    return answers.texts.get(name, "") if answers else ""
