"""High-level filter: a description stays when its labels agree with the ensemble (paper, section 2.2 and table 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from affectgpt.captioning.labels import ClipLabels
from affectgpt.captioning.votes import ClipVotes, Wheels
from affectgpt.config.captioning import AgreementConfig
from affectgpt.core.errors import ConfigError


@dataclass(frozen=True)
class LabelAgreement:
    """How far a description and the ensemble agree. ``emotion``: share of the wheels; None: its votes are split.
    ``sentiment``: same polarity; None: no majority, or no classifier has learnt valence."""

    emotion: float | None
    sentiment: bool | None

    def emotion_kept(self, spec: AgreementConfig) -> bool:
        """Whether rule E keeps it."""
        return spec.undecided == "keep" if self.emotion is None else self.emotion > spec.wheels

    def sentiment_kept(self, spec: AgreementConfig) -> bool:
        """Whether rule S keeps it."""
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
