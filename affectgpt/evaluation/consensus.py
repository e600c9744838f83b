"""Votes: the labels that several result files agree on, as a result file of its own.

Each file votes once for each group that its labels name: labels that are in the same group in every wheel are one
group, and a label that the lexicon does not know votes for its own word. A clip keeps the groups with at least T votes,
each by the label that named it first; where no group has T, the first of those with most votes. T is chosen without
any truth: the one with which answers have as many known groups as single answers have, since further labels raise
HIT whatever they are. Polarity words: the most frequent one, neutral where that is not a single one.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from affectgpt import __version__
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.datasets.table import DatasetRow
from affectgpt.evaluation import results
from affectgpt.evaluation.extract import LABELS, MAX_ITEM, POLARITY
from affectgpt.evaluation.labels import POLARITIES
from affectgpt.evaluation.lexicon import Grouping
from affectgpt.evaluation.metrics.base import METRICS
from affectgpt.evaluation.results import ResultFile, suffix_of

EXTRACTOR = "votes"  # how the files describe themselves
NEUTRAL = "neutral"
FIRST = 5  # names that a message lists


@dataclass(frozen=True)
class Votes:
    """The outcome of a vote: name → item, and how.

    ``at_least``: votes that a group needs (None: polarity words). ``single``, ``groups``: known groups per answer,
    of the voters and of the votes. ``undecided``: clips where no group had enough votes, or the polarity was a tie.
    """

    items: dict[str, str]
    undecided: list[str]
    at_least: int | None = None
    single: float | None = None
    groups: float | None = None
    cut: list[str] = field(default_factory=list)  # clips whose item would have been too long


def vote_labels(voters: Sequence[Mapping[str, str]], grouping: Grouping, *, at_least: int | None = None) -> Votes:
    """Votes of name → item such as ``[happy, calm]``. Empty items, and clips that a voter lacks, give no vote.

    ``at_least``: the number of votes that a group needs; None: chosen by the number of groups. Raises ConfigError
    where it is not one of 1 to the number of voters.
    """
    if at_least is not None and not 1 <= at_least <= len(voters):
        raise ConfigError(f"--at-least {at_least}: 1 to {len(voters)}, the number of voters")

    @functools.cache
    def groups_of(item: str) -> dict[int | str, str]:
        """Group (the word itself, where the lexicon does not know it) → the first label of an item that names it."""
        groups: dict[int | str, str] = {}
        for label in grouping.item(item)[0]:
            groups.setdefault(grouping.label_mask(label) or label, label)
        return groups

    ballots: dict[str, list[tuple[str, int]]] = {}  # clip → labels with their votes, most first
    answers = known_groups = 0
    reached = [0] * (len(voters) + 2)  # by T: known groups that are kept, over all clips
    for name in dict.fromkeys(name for voter in voters for name in voter):
        votes: Counter[int | str] = Counter()
        first: dict[int | str, str] = {}
        for voter in voters:
            if is_empty(voter.get(name)):
                continue
            answers += 1
            groups = groups_of(voter[name])
            votes.update(groups.keys())
            first = {**groups, **first}
            known_groups += sum(not isinstance(group, str) for group in groups)
        # stable: of those with as many votes the first that was named
        ranked = votes.most_common()
        ballots[name] = [(first[group], count) for group, count in ranked]
        for at, (group, count) in enumerate(ranked):
            if not isinstance(group, str):
                # the first is kept, too, where more votes are needed than it has
                reached[count if at else -1] += 1
    single, clips = known_groups / max(answers, 1), max(len(ballots), 1)
    allowed = [at_least] if at_least else range(1, len(voters) + 1)
    mean_groups = {needed: sum(reached[needed:]) / clips for needed in allowed}
    # of two that are as near, the one that asks for more votes
    chosen = min(mean_groups, key=lambda needed: (abs(mean_groups[needed] - single), -needed))
    items, cut = {}, []
    for name, ballot in ballots.items():
        labels = [label for label, count in ballot if count >= chosen] or [label for label, _ in ballot[:1]]
        items[name] = f"[{', '.join(labels)}]"
        if len(items[name]) > MAX_ITEM:
            items[name] = items[name][:MAX_ITEM]
            cut.append(name)
    undecided = [name for name, ballot in ballots.items() if ballot and ballot[0][1] < chosen]
    return Votes(items, undecided, chosen, single, mean_groups[chosen], cut)


def vote_polarity(voters: Sequence[Mapping[str, str]]) -> Votes:
    """The most frequent of positive, negative and neutral by name; any other word counts as neutral, as in scoring."""
    items, ties = {}, []
    for name in dict.fromkeys(name for voter in voters for name in voter):
        words = [voter[name] for voter in voters if not is_empty(voter.get(name))]
        ranked = Counter(word if word in POLARITIES else NEUTRAL for word in words).most_common(2)
        tie = len(ranked) != 1 and (not ranked or ranked[0][1] == ranked[1][1])
        items[name] = NEUTRAL if tie else ranked[0][0]
        if tie:
            ties.append(name)
    return Votes(items, ties)


def is_empty(item: str | None) -> bool:
    """True where a voter said nothing on a clip; ``[]`` is an answer."""
    return item is None or item.strip().lower() in ("", "nan")


@dataclass(frozen=True)
class Consensus:
    """The votes on one data set, as they were written."""

    dataset: str
    voters: tuple[str, ...]  # RUN/CHECKPOINT
    votes: Votes
    path: Path
    fresh: bool  # False: the same file was there already
    notes: tuple[str, ...] = ()


def consensus(
    row: DatasetRow,
    voters: Mapping[str, ResultFile],
    grouping: Grouping,
    *,
    base_root: Path,
    name: str,
    stem: str,
    extraction: str,
    at_least: int | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
) -> Consensus:
    """Let result files (``RUN/CHECKPOINT`` → file) vote on one data set, and write ``stem`` in the run ``name``.

    A sentiment set gets the polarity that is scored, and the labels where every voter has them. A file that is there
    and holds something else is an error unless ``overwrite``. ``allow_missing``: clips that not every voter answered
    are voted on by the others. Raises DataError and ConfigError.
    """
    if len(voters) < 2:
        raise DataError(f"{row.name}: a vote needs two or more result files; chosen is {', '.join(voters) or 'none'}")
    target = results.results_folder(base_root, row) / name / f"{stem}.npz"
    steps = [POLARITY] if METRICS.get(row.task).polarity else []
    if not steps or all(file.has(extraction, polarity=False) for file in voters.values()):
        steps.insert(0, LABELS)
    outputs, notes = [], []
    for step in steps:
        polarity = step == POLARITY
        paths = {voter: file.extracted(extraction, polarity=polarity) for voter, file in voters.items()}
        items = {voter: results.read_items(path) for voter, path in paths.items()}
        notes += _check(paths, items, allow_missing=allow_missing)
        votes = (
            vote_polarity(list(items.values()))
            if polarity
            else vote_labels(list(items.values()), grouping, at_least=at_least)
        )
        if votes.cut:
            notes.append(f"{len(votes.cut)} items of more than {MAX_ITEM} characters are cut ({_first(votes.cut)})")
        path = results.items_path(target, suffix_of(extraction), polarity=polarity)
        outputs.append((votes, path, _record(step, votes, paths, lexicon=grouping.lexicon.source, notes=notes)))
    # all are made before the first is written, so that an error leaves no half of a pair
    fresh = [_is_new(path, votes, record, overwrite=overwrite) for votes, path, record in outputs]
    for (votes, path, record), new in zip(outputs, fresh, strict=True):
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
            results.write_items(path, votes.items, record=record)
    votes, path, _ = outputs[-1]
    return Consensus(row.name, tuple(voters), votes, path, any(fresh), tuple(dict.fromkeys(notes)))


def _check(paths: Mapping[str, Path], items: Mapping[str, Mapping[str, str]], *, allow_missing: bool) -> list[str]:
    """Notes on clips that not all voters answered. Raises DataError where that was not allowed."""
    names = list(dict.fromkeys(name for of_voter in items.values() for name in of_voter))
    wrong, notes = [], []
    for voter, of_voter in items.items():
        missing = [name for name in names if name not in of_voter]
        empty = [name for name in names if name in of_voter and is_empty(of_voter[name])]
        for what, which in (("lacks", missing), ("has empty items for", empty)):
            if which:
                wrong.append(f"{paths[voter]} {what} {len(which)} of {len(names)} clips (first: {_first(which)})")
                notes.append(f"{voter} {what} {len(which)} clips ({_first(which)})")
    if wrong and not allow_missing:
        raise DataError(
            f"{'; '.join(wrong)}. Make these files again, or let the others vote on these clips with --allow-missing"
        )
    return notes


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:FIRST]) + (" …" if len(names) > FIRST else "")


def _record(
    step: str, votes: Votes, paths: Mapping[str, Path], *, lexicon: str, notes: Sequence[str]
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "extractor": EXTRACTOR,
        "step": step,
        "voters": {voter: results.file_sha256(path) for voter, path in paths.items()},
    }
    if votes.at_least is not None:
        settings["at_least"] = votes.at_least
    return {
        "settings": settings,
        "source": "; ".join(paths),
        "details": {
            "affectgpt": __version__,
            "lexicon": lexicon,
            "labels_by": sorted({results.describe(path) for path in paths.values()}),
            "groups_per_answer": {"voters": votes.single, "votes": votes.groups},
        },
        "notes": {
            "undecided": {"count": len(votes.undecided), "first": votes.undecided[:10]},
            **{f"voters {at}": note for at, note in enumerate(notes)},
        },
    }


def _is_new(path: Path, votes: Votes, record: Mapping[str, Any], *, overwrite: bool) -> bool:
    """True where the file is to be written. Raises DataError where another one is in its place."""
    if not path.exists():
        return True
    existing = results.read_record(path)
    if existing is not None and existing["settings"] == record["settings"] and results.read_items(path) == votes.items:
        return False
    if overwrite:
        return True
    what = "other votes" if existing is not None and existing["settings"].get("extractor") == EXTRACTOR else "no votes"
    raise DataError(f"{path}: is there and holds {what}; give another --name, or replace it with --overwrite")
