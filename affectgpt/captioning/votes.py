"""The ensemble's majority on every clip: one vote per classifier, for an emotion on each wheel and for a polarity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from affectgpt.evaluation.lexicon import Lexicon, clean, grouping_of

POLARITIES = ("negative", "neutral", "positive")


@dataclass(frozen=True)
class Opinion:
    """What one classifier says of all clips. ``words`` ``[N, V]``: probabilities of the vocabulary; ``valence`` ``[N]``
    in units of the sets' largest values, or None when it has learnt no valence."""

    vocabulary: tuple[str, ...]
    words: np.ndarray
    valence: np.ndarray | None


@dataclass(frozen=True)
class Majority:
    """The choice of most classifiers, and the share of them that made it."""

    choice: str
    share: float


@dataclass(frozen=True)
class ClipVotes:
    """Votes on one clip. ``words``: each classifier's emotion word; ``wheels``: the majority on each wheel."""

    words: tuple[str, ...]
    wheels: tuple[Majority, ...]
    polarities: tuple[str, ...]  # each classifier's; empty when none has learnt valence
    polarity: Majority | None

    @property
    def emotion(self) -> str:
        """The word that most classifiers say (for people to read; the filter goes by wheels)."""
        return Counter(self.words).most_common(1)[0][0]


class Wheels:
    """Words → groups, one set per wheel of a lexicon.

    A word without a group on a wheel (neutral, on most) is a group of its own there.
    """

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self.grouping = grouping_of(lexicon, "wheel")
        self._known: dict[str, tuple[str, ...]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The wheels' names."""
        return self.grouping.views

    def groups(self, word: str) -> tuple[str, ...]:
        """The group of a word on each wheel."""
        known = self._known.get(word)
        if known is None:
            word = clean(word)
            bare = min(self.lexicon.forms.get(word, ()), default=word)
            known = tuple(group if group is not None else bare for group in self.grouping.groups(word))
            self._known[word] = known
        return known

    def canonical(self, word: str) -> str:
        """One word for all that mean the same (joy, happy), so that sets with other words can be counted together."""
        return next(iter(self.lexicon.wheel_words(word)), clean(word))


def tally(opinions: Sequence[Opinion], wheels: Wheels, *, neutral_band: float) -> list[ClipVotes]:
    """Votes clip by clip. Ties go to the choice with the larger sum of probabilities (of valence: its size)."""
    count = len(opinions[0].words)
    words = [[o.vocabulary[i] for i in o.words.argmax(axis=1)] for o in opinions]
    by_wheel = [[_group_votes(o, wheels, wheel) for o in opinions] for wheel in range(len(wheels.names))]
    polar = [o.valence for o in opinions if o.valence is not None]
    votes = []
    for clip in range(count):
        polarities = tuple(polarity_of(float(v[clip]), band=neutral_band) for v in polar)
        votes.append(
            ClipVotes(
                words=tuple(wheels.canonical(column[clip]) for column in words),
                wheels=tuple(_majority([(v[clip], p[clip]) for v, p in one]) for one in by_wheel),
                polarities=polarities,
                polarity=_majority([(p, abs(float(v[clip]))) for p, v in zip(polarities, polar, strict=True)])
                if polar
                else None,
            )
        )
    return votes


def polarity_of(valence: float, *, band: float) -> str:
    """positive, neutral (within ``band`` of 0) or negative."""
    return "positive" if valence > band else "negative" if valence < -band else "neutral"


def _group_votes(opinion: Opinion, wheels: Wheels, wheel: int) -> tuple[list[str], np.ndarray]:
    """The group that one classifier finds likeliest on a wheel, clip by clip, and how likely ``[N]``."""
    of_word = [wheels.groups(word)[wheel] for word in opinion.vocabulary]
    names = list(dict.fromkeys(of_word))
    sums = np.zeros((len(opinion.words), len(names)))
    for column, name in enumerate(of_word):
        sums[:, names.index(name)] += opinion.words[:, column]
    best = sums.argmax(axis=1)
    return [names[i] for i in best], sums[np.arange(len(best)), best]


def _majority(votes: Sequence[tuple[str, float]]) -> Majority:
    counts = Counter(choice for choice, _ in votes)
    weight: Mapping[str, float] = {choice: sum(float(w) for other, w in votes if other == choice) for choice in counts}
    choice = max(counts, key=lambda c: (counts[c], weight[c], c))
    return Majority(choice, counts[choice] / len(votes))
