"""Two result files of one data set, sample by sample: how far they agree, and where least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectgpt.core.errors import DataError
from affectgpt.evaluation.labels import read_labels
from affectgpt.evaluation.results import read_answers, read_meta
from affectgpt.inference.flags import EMPTY, REPEATING, answer_flags

# Mean agreement of two neighbouring released checkpoints on MER2023, CMU-MOSI and SIMS, sampled as published; of
# answers to different clips.
USUAL, CHANCE = (0.15, 0.22), 0.04


@dataclass(frozen=True)
class Side:
    """One file's answers in numbers."""

    answers: int
    mean_characters: float
    mean_labels: float
    without_labels: float  # share of answers off the template of a label answer
    empty: int
    repeating: int
    settings: dict[str, Any]  # of sampling, where a meta file says so


@dataclass(frozen=True)
class Agreement:
    """``overlap``: mean over common samples of |both| / |either| of the label sets; ``least``: the furthest apart."""

    ours: Side
    theirs: Side
    common: int
    only_ours: list[str]
    only_theirs: list[str]
    same_text: float
    overlap: float
    least: list[tuple[str, str, str]]


def compare_answers(ours: Path, theirs: Path, *, show: int = 10) -> Agreement:
    """Compare two result files. Raises DataError when they have no sample in common."""
    mine, other = read_answers(ours), read_answers(theirs)
    common = [name for name in mine if name in other]
    if not common:
        raise DataError(f"{ours} and {theirs} have no sample in common: results of different data sets?")
    overlaps = {name: label_overlap(mine[name], other[name]) for name in common}
    furthest = sorted(common, key=lambda name: (overlaps[name], -abs(len(mine[name]) - len(other[name])), name))
    return Agreement(
        ours=_side(mine, ours),
        theirs=_side(other, theirs),
        common=len(common),
        only_ours=[name for name in mine if name not in other],
        only_theirs=[name for name in other if name not in mine],
        same_text=sum(mine[name] == other[name] for name in common) / len(common),
        overlap=sum(overlaps.values()) / len(common),
        least=[(name, mine[name], other[name]) for name in furthest[:show] if overlaps[name] < 1],
    )


def label_overlap(first: str, second: str) -> float:
    """|both| / |either| of the labels of two answers; two answers without labels agree only when they are equal."""
    a, b = (set(map(str.lower, read_labels(text) or ())) for text in (first, second))
    return len(a & b) / len(a | b) if a | b else float(first == second)


def _side(answers: Mapping[str, str], path: Path) -> Side:
    labels = [read_labels(text) or [] for text in answers.values()]
    flags = [answer_flags(text, stopped=True) for text in answers.values()]
    meta = read_meta(path)
    n = max(1, len(answers))
    return Side(
        answers=len(answers),
        mean_characters=sum(map(len, answers.values())) / n,
        mean_labels=sum(map(len, labels)) / n,
        without_labels=sum(not found for found in labels) / n,
        empty=sum(EMPTY in odd for odd in flags),
        repeating=sum(REPEATING in odd for odd in flags),
        settings={key: meta[key] for key in ("decoding", "question", "mode", "seed") if key in meta},
    )


def verdict(result: Agreement) -> str:
    """What the numbers say, in a sentence."""
    if result.overlap >= USUAL[0]:
        return f"as near as released checkpoints are to each other ({USUAL[0]} to {USUAL[1]}) or nearer"
    if result.ours.without_labels > 0.1 >= result.theirs.without_labels:
        return "many of these answers have no labels in the learnt form: another question, or the weights are wrong"
    if result.overlap <= 2 * CHANCE:
        return (
            f"hardly more than answers to different clips ({CHANCE}): the media or the weights do not reach the model; "
            "compare fingerprints with a machine that works"
        )
    return f"lower than between released checkpoints ({USUAL[0]} to {USUAL[1]})"
