"""Filters of MER-Caption+ (paper, section 2.2): lengths of descriptions, votes of the ensemble, agreement of both."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from affectgpt.captioning.labels import ClipLabels
from affectgpt.config.captioning import AgreementConfig, LengthConfig
from affectgpt.core.errors import ConfigError
from affectgpt.evaluation.lexicon import Lexicon, clean, grouping_of

_UNIT = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\s\u3400-\u9fff\uf900-\ufaff]+")


def length(text: str) -> int:
    """Words of a text; a Chinese character counts as one."""
    return len(_UNIT.findall(text))


@dataclass(frozen=True)
class LengthFit:
    """The Gaussian through the lengths, and what is between the cuts is kept."""

    mean: float
    std: float
    low: float
    high: float

    def reason(self, words: int) -> str | None:
        """Why a length is cut; None when it is kept."""
        if words < self.low:
            return f"too short: {words} words, cut below {self.low:.1f}"
        if words > self.high:
            return f"too long: {words} words, cut above {self.high:.1f}"
        return None


def fit_lengths(lengths: Sequence[int], spec: LengthConfig) -> LengthFit:
    """Fit a Gaussian: by moments, or by median and interquartile range, which the ends themselves do not move."""
    values = np.asarray(lengths, dtype=float)
    if spec.fit == "robust":
        low, mean, high = np.percentile(values, [25, 50, 75])
        std = (high - low) / 1.349  # the interquartile range of a Gaussian
    else:
        mean, std = values.mean(), values.std()
    std = max(float(std), 0.5)  # lengths are whole numbers: equal ones are not cut for the first that differs by one
    return LengthFit(float(mean), std, float(mean) - spec.sigmas * std, float(mean) + spec.sigmas * std)


def cut_lengths(descriptions: Mapping[str, str], spec: LengthConfig) -> tuple[dict[str, str], LengthFit | None]:
    """Name → reason of the descriptions that are cut, and the fit (None when the filter is off or has nothing)."""
    if not spec.use or not descriptions:
        return {}, None
    lengths = {name: length(text) for name, text in descriptions.items()}
    fit = fit_lengths(list(lengths.values()), spec)
    reasons = {name: fit.reason(words) for name, words in lengths.items()}
    return {name: reason for name, reason in reasons.items() if reason}, fit


POLARITIES = ("negative", "neutral", "positive")


@dataclass(frozen=True)
class Opinion:
    """Predictions of one classifier for all clips. ``words`` ``[N, V]``: probabilities of the vocabulary; ``valence``
    ``[N]`` in units of the sets' largest values, or None when it has learnt no valence."""

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


@dataclass(frozen=True)
class LabelAgreement:
    """How far a description and the ensemble agree. ``emotion``: share of the wheels; None: its votes are split.
    ``sentiment``: same polarity; None: no majority, or no classifier has learnt valence."""

    emotion: float | None
    sentiment: bool | None

    def emotion_kept(self, spec: AgreementConfig) -> bool:
        """True if rule E keeps it."""
        return spec.undecided == "keep" if self.emotion is None else self.emotion > spec.wheels

    def sentiment_kept(self, spec: AgreementConfig) -> bool:
        """True if rule S keeps it."""
        return spec.undecided == "keep" if self.sentiment is None else self.sentiment


def compare(labels: ClipLabels, votes: ClipVotes, wheels: Wheels, *, spec: AgreementConfig) -> LabelAgreement:
    """Compare one description's labels with the votes on its clip.

    On a wheel they agree when the majority's group is among the labels' groups. A wheel on which less than ``votes``
    of the classifiers agree is undecided; so is the clip when most wheels are.
    """
    groups = [set(column) for column in zip(*(wheels.groups(label) for label in labels.labels), strict=True)]
    decided = [m.share >= spec.votes for m in votes.wheels]
    emotion: float | None = None
    if sum(decided) > spec.wheels * len(decided):
        agreeing = [
            sure and bool(groups) and majority.choice in groups[i]
            for i, (majority, sure) in enumerate(zip(votes.wheels, decided, strict=True))
        ]
        emotion = sum(agreeing) / len(agreeing)
    sentiment = None
    if votes.polarity is not None and votes.polarity.share >= spec.votes:
        sentiment = labels.polarity == votes.polarity.choice
    return LabelAgreement(emotion, sentiment)


def high_level(
    labels: Mapping[str, ClipLabels], votes: Mapping[str, ClipVotes], wheels: Wheels, *, spec: AgreementConfig
) -> tuple[dict[str, LabelAgreement], dict[str, str]]:
    """The agreement of every description that has votes, and name → reason of those that the rule drops.

    Raises ConfigError when the rule asks for sentiment and no classifier has learnt any.
    """
    if "S" in spec.rule and votes and all(v.polarity is None for v in votes.values()):
        raise ConfigError(
            f"captioning.agreement.rule is {spec.rule}, but the ensemble has learnt no valence; add a set with valence "
            "(CMUMOSI, SIMS …) to captioning.crowd.sets and train it again, or use rule: E"
        )
    found: dict[str, LabelAgreement] = {}
    dropped: dict[str, str] = {}
    for name, said in labels.items():
        if name not in votes:
            continue
        agreement = found[name] = compare(said, votes[name], wheels, spec=spec)
        reasons = []
        if "E" in spec.rule and not agreement.emotion_kept(spec):
            reasons.append(_emotion_reason(agreement, said, votes[name]))
        if "S" in spec.rule and not agreement.sentiment_kept(spec):
            reasons.append(_sentiment_reason(agreement, said, votes[name]))
        if reasons:
            dropped[name] = "; ".join(reasons)
    return found, dropped


def _emotion_reason(agreement: LabelAgreement, said: ClipLabels, votes: ClipVotes) -> str:
    if agreement.emotion is None:
        return f"emotion: the ensemble is not of one mind ({', '.join(votes.words)})"
    listed = ", ".join(said.labels) or "no label"
    return f"emotion: the description says {listed}, the ensemble {votes.emotion}"


def _sentiment_reason(agreement: LabelAgreement, said: ClipLabels, votes: ClipVotes) -> str:
    if agreement.sentiment is None:
        return f"sentiment: the ensemble is not of one mind ({', '.join(votes.polarities) or 'no vote'})"
    assert votes.polarity is not None
    return f"sentiment: the description is {said.polarity or 'of no polarity'}, the ensemble {votes.polarity.choice}"
