"""Rewards of reinforcement learning: a registry, each between 0 and 1.

A reward is a function ``(reply, truth, grader) -> number``, or None where it says nothing of a clip (its labels are of
another kind). One of your own is registered in a file that ``imports:`` of the configuration names:

>>> @REWARDS.register("short")
... def short(reply, truth, grader):
...     return 1 / max(len(reply.labels), 1)

An answer that is empty, or of which no label can be read, earns 0 by every reward, whatever these say.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from affectgpt.core.errors import ConfigError
from affectgpt.core.registry import Registry
from affectgpt.core.types import Grades, Labels
from affectgpt.evaluation.extract import LABELS, Extractor
from affectgpt.evaluation.labels import parse_item, polarity, read_labels
from affectgpt.evaluation.lexicon import Grouping

REWARDS = Registry("reward")
_THOUGHT = re.compile(r"\s*<think>(?P<think>.*)</think>\s*<answer>(?P<answer>.*)</answer>\s*", re.DOTALL)
_TAGS = re.compile(r"</?(?:think|answer)>")
_SENTENCE = re.compile(
    r"(?:The character's (?:emotional|sentiment) state is|The most likely label is) [^.\n]+\.|"
    r"The valence score is [-+]?\d+(?:\.\d+)?\."
)
_READ = ("dual", "alignment")  # rewards that read the labels of the thinking
_CANDIDATES, _LOOKED_AT, _LONGEST = 30, 200, 6  # of the search for the best constant answer
SENTENCE = "The character's emotional state is {}."


@dataclass(frozen=True)
class RewardTruth:
    """The human annotation of a clip. ``kind``: fine-grained, basic, sentiment; ``mask``: the groups of its labels."""

    kind: str
    labels: tuple[str, ...] = ()
    mask: int = 0
    positive: bool = False


@dataclass(frozen=True)
class Reply:
    """One drawn answer as the rewards see it.

    ``answer``: the part that labels are read from, ``labels``: these, in the answer's order (none: not readable);
    ``thinking``, ``thought``: the part before it and its labels, where answers have one; ``tokens`` of ``max_tokens``.
    """

    text: str
    answer: str
    labels: tuple[str, ...]
    thinking: str = ""
    thought: tuple[str, ...] = ()
    well_formed: bool = False
    tokens: int = 0
    max_tokens: int = 1


Reward = Callable[[Reply, RewardTruth, "Grader"], float | None]


def truth_of(labels: Labels, grouping: Grouping) -> RewardTruth | None:
    """The truth of a clip's labels; None where no answer to it can be scored.

    That is a clip without labels, with labels that no wheel knows (an empty list is neutral, as published), or with a
    valence of 0, which the metric leaves out.
    """
    if labels.ovlabels is not None or labels.emotion is not None:
        kind = "basic" if labels.ovlabels is None else "fine-grained"
        words = (str(labels.emotion),) if labels.ovlabels is None else labels.ovlabels or ("neutral",)
        mask = grouping.mask(words)
        return RewardTruth(kind, words, mask) if mask else None
    if labels.valence:
        return RewardTruth("sentiment", positive=labels.valence > 0)
    return None


def split_thinking(text: str) -> tuple[str, str] | None:
    """``<think>A</think><answer>B</answer>`` → A, B; None where the text has another form, a part is empty, or a tag
    stands twice."""
    match = _THOUGHT.fullmatch(text)
    if match is None or _TAGS.search(match["think"]) or _TAGS.search(match["answer"]):
        return None
    thinking, answer = match["think"].strip(), match["answer"].strip()
    return (thinking, answer) if thinking and answer else None


def read_reply(text: str, *, think: bool, tokens: int = 0, max_tokens: int = 1) -> Reply:
    """Read an answer as rewards see it. With ``think`` another form than that of ``split_thinking`` cannot be
    read: labels that stand in a thinking alone are no answer."""
    thinking, answer = "", text.strip()
    if think:
        parts = split_thinking(text)
        if parts is None:
            return Reply(text, "", (), tokens=tokens, max_tokens=max_tokens)
        thinking, answer = parts
    labels = _words(answer)
    well_formed = bool(labels) and (think or _SENTENCE.fullmatch(answer) is not None)
    thought = _words(thinking) if thinking else ()
    return Reply(text, answer, labels, thinking, thought, well_formed, tokens, max_tokens)


def _words(text: str) -> tuple[str, ...]:
    """The labels in a text, lower case; what has no letter is none."""
    return tuple(label.lower() for label in read_labels(text) or () if any(map(str.isalpha, label)))


class Grader:
    """Rewards of drawn answers. ``weights``: reward → weight, 0 for one that is measured alone.

    ``reader``: a language model that reads the labels of a thinking; not given: the rules of the direct extraction.
    Raises ConfigError for an unknown reward or a negative weight.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        grouping: Grouping,
        think: bool = False,
        length_penalty: str = "none",
        max_tokens: int = 1,
        overlong: int = 32,
        reader: Extractor | None = None,
    ) -> None:
        self.weights = dict(weights)
        self.rewards: dict[str, Reward] = {}
        for name, weight in weights.items():
            self.rewards[name] = REWARDS.get(name)
            if not weight >= 0 or math.isinf(weight):
                raise ConfigError(f"grpo.rewards.{name} is {weight}; allowed: 0 or more")
            if name in _READ and not think:
                raise ConfigError(f"grpo.rewards.{name} reads a thinking: set grpo.think: true")
        if not any(weights.values()):
            raise ConfigError("grpo.rewards: all weights are 0: nothing would be learnt")
        if length_penalty not in PENALTIES:
            raise ConfigError(f"grpo.length_penalty is {length_penalty!r}; allowed: {', '.join(PENALTIES)}")
        self.grouping, self.think, self.penalty = grouping, think, PENALTIES[length_penalty]
        self.max_tokens, self.overlong, self.reader = max_tokens, overlong, reader
        self._thoughts: dict[str, tuple[str, ...]] = {}  # thinking → labels, as the reader gave them

    def replies(self, answers: Iterable[Any], *, read: bool = True) -> list[Reply]:
        """Answers (``text``, ``ids``) as the rewards see them; ``read``: with the reader, where there is one."""
        replies = [
            read_reply(answer.text, think=self.think, tokens=len(answer.ids), max_tokens=self.max_tokens)
            for answer in answers
        ]
        if not (read and self.reader and set(_READ) & set(self.rewards)):
            return replies
        new = list(dict.fromkeys(r.thinking for r in replies if r.thinking and r.thinking not in self._thoughts))

        def on_item(index: int, item: str, note: str | None) -> None:
            del note
            self._thoughts[new[index]] = parse_item(item.lower())

        if new:
            self.reader.run(LABELS, new, on_item=on_item)
        return [replace(reply, thought=self._thoughts.get(reply.thinking, ())) for reply in replies]

    def rewards_of(self, reply: Reply, truth: RewardTruth, *, read: bool = True) -> dict[str, float | None]:
        """Each reward of one reply; None: it says nothing of this clip (or reads a thinking, without ``read``).

        Raises ConfigError naming a reward whose value is not a finite number.
        """
        factor = self.penalty(len(reply.labels), max(len(truth.labels), 1)) if truth.labels else 1.0
        values: dict[str, float | None] = {}
        for name, reward in self.rewards.items():
            value = None if name in _READ and not read else reward(reply, truth, self)
            if value is not None:
                if not math.isfinite(value):
                    raise ConfigError(f"grpo.rewards.{name} gave {value} for the answer {reply.text[:80]!r}")
                value = 0.0 if not reply.labels else float(value)
                value *= 1.0 if name in FORMAL else factor
            values[name] = value
        return values

    def grade(self, truths: Sequence[RewardTruth], answers: Sequence[Sequence[Any]], *, read: bool = True) -> Grades:
        """Rewards of G answers to each of C clips."""
        flat = self.replies([answer for group in answers for answer in group], read=read)
        C, G = len(truths), len(answers[0]) if answers else 0
        K = len(self.rewards)
        values, there = np.zeros((K, C, G)), np.zeros((K, C), dtype=bool)
        labels, readable = np.zeros((C, G)), np.zeros((C, G), dtype=bool)
        precision, recall = np.full((C, G), np.nan), np.full((C, G), np.nan)
        for at, reply in enumerate(flat):
            c, g = divmod(at, G)
            for k, value in enumerate(self.rewards_of(reply, truths[c], read=read).values()):
                if value is not None:
                    values[k, c, g], there[k, c] = value, True
            labels[c, g], readable[c, g] = len(reply.labels), bool(reply.labels)
            if truths[c].mask:
                precision[c, g], recall[c, g], _ = self.shares(reply.labels, truths[c].mask)
        weights = np.array(list(self.weights.values()))[:, None] * there
        return Grades(tuple(self.rewards), values, weights, labels, precision, recall, readable)

    def shares(self, labels: Iterable[str], truth: int) -> tuple[float, float, float]:
        """Precision, recall and F of labels against a truth's groups, mean over the wheels that know the truth."""
        grouping = self.grouping
        mask = grouping.mask(labels)
        rows = []
        for shared, given, true in zip(
            grouping.sizes(mask & truth), grouping.sizes(mask), grouping.sizes(truth), strict=True
        ):
            if true:
                p, r = shared / max(given, 1), shared / true
                rows.append((p, r, 2 * p * r / (p + r) if p + r else 0.0))
        if not rows:
            return 0.0, 0.0, 0.0
        p, r, f = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        return p, r, f

    def best_constant(self, truths: Sequence[RewardTruth]) -> str:
        """The answer that earns most when it is given to every clip, media unseen: labels of the truths, added one by
        one as long as the mean reward rises (on at most 200 clips)."""
        if all(truth.kind == "sentiment" for truth in truths):
            return self.constant_text((max(("positive", "negative"), key=lambda word: self._earns((word,), truths)),))
        counts = Counter(label for truth in truths for label in truth.labels)
        candidates = [label for label, _ in counts.most_common(_CANDIDATES)]
        some = truths[:: max(1, len(truths) // _LOOKED_AT)]
        chosen: tuple[str, ...] = ()
        best = -math.inf
        while candidates and len(chosen) < _LONGEST:
            value, label = max((self._earns((*chosen, label), some), label) for label in candidates)
            if value <= best:
                break
            best, chosen = value, (*chosen, label)
            candidates.remove(label)
        return self.constant_text(chosen)

    def constant_text(self, labels: Sequence[str]) -> str:
        """Labels as an answer of the trained form."""
        sentence = SENTENCE.format(", ".join(labels))
        return f"<think>-</think><answer>{sentence}</answer>" if self.think else sentence

    def earns(self, text: str, truth: RewardTruth) -> float:
        """The weighted sum of the rewards of one text, without what reads a thinking."""
        values = self.rewards_of(read_reply(text, think=self.think, max_tokens=self.max_tokens), truth, read=False)
        return sum(self.weights[name] * value for name, value in values.items() if value is not None)

    def _earns(self, labels: Sequence[str], truths: Sequence[RewardTruth]) -> float:
        return sum(self.earns(self.constant_text(labels), truth) for truth in truths) / max(len(truths), 1)


def _penalty(factor: Callable[[int, int], float]) -> Callable[[int, int], float]:
    """A factor for n given and m true labels that counts only for n > m."""
    return lambda given, true: factor(given, true) if given > true else 1.0


# Factors for n given and m true labels: all labels count, those that no wheel knows and synonyms too.
PENALTIES: Mapping[str, Callable[[int, int], float]] = {
    "none": lambda given, true: 1.0,
    "p1": _penalty(lambda given, true: 1 / (given - true + 1)),
    "p2": _penalty(lambda given, true: true / given),
    # log m / log n is 0 for every n at m = 1, so both are one more
    "p3": _penalty(lambda given, true: math.log(true + 1) / math.log(given + 1)),
}
FORMAL = ("format", "tokens", "overlong")  # rewards of form and length, which no length penalty lowers


@REWARDS.register("wheel")
def wheel(reply: Reply, truth: RewardTruth, grader: Grader) -> float | None:
    """F of the answer's groups, mean over the wheels that know the truth (the paper's metric, of one clip)."""
    return grader.shares(reply.labels, truth.mask)[2] if truth.kind == "fine-grained" else None


@REWARDS.register("precision")
def precision(reply: Reply, truth: RewardTruth, grader: Grader) -> float | None:
    """The share of the answer's groups that are true."""
    return grader.shares(reply.labels, truth.mask)[0] if truth.kind == "fine-grained" else None


@REWARDS.register("recall")
def recall(reply: Reply, truth: RewardTruth, grader: Grader) -> float | None:
    """The share of the true groups that the answer has."""
    return grader.shares(reply.labels, truth.mask)[1] if truth.kind == "fine-grained" else None


@REWARDS.register("hit")
def hit(reply: Reply, truth: RewardTruth, grader: Grader) -> float | None:
    """1 where the answer has the one true label (basic emotions), else 0; mean over the wheels. More labels never lower
    it, unless there is a length penalty."""
    return grader.shares(reply.labels, truth.mask)[1] if truth.kind == "basic" else None


@REWARDS.register("polarity")
def polarity_met(reply: Reply, truth: RewardTruth, grader: Grader) -> float | None:
    """1 where the answer is positive exactly if the truth is (sentiment), else 0."""
    if truth.kind != "sentiment":
        return None
    return float((polarity(reply.labels) == "positive") == truth.positive)


@REWARDS.register("format")
def formatted(reply: Reply, truth: RewardTruth, grader: Grader) -> float | None:
    """1 for an answer exactly of the trained form (one sentence, or a thinking and an answer), else 0."""
    return float(reply.well_formed)


@REWARDS.register("dual")
def dual(reply: Reply, truth: RewardTruth, grader: Grader) -> float | None:
    """F of the labels that the thinking names."""
    return grader.shares(reply.thought, truth.mask)[2] if truth.kind == "fine-grained" else None


@REWARDS.register("alignment")
def alignment(reply: Reply, truth: RewardTruth, grader: Grader) -> float | None:
    """Jaccard index of the groups of thinking and answer, mean over the wheels that know one of them."""
    grouping = grader.grouping
    ours, theirs = grouping.mask(reply.labels), grouping.mask(reply.thought)
    pairs = zip(grouping.sizes(ours & theirs), grouping.sizes(ours | theirs), strict=True)
    shares = [both / either for both, either in pairs if either]
    return sum(shares) / len(shares) if shares else 0.0


@REWARDS.register("tokens")
def tokens(reply: Reply, truth: RewardTruth, grader: Grader) -> float | None:
    """1 for no token, falling to 0 at ``grpo.max_new_tokens``: what tokens cost, times the weight."""
    return 1 - min(reply.tokens / reply.max_tokens, 1.0)


@REWARDS.register("overlong")
def overlong(reply: Reply, truth: RewardTruth, grader: Grader) -> float | None:
    """1, falling to 0 over the last ``grpo.overlong`` tokens before ``grpo.max_new_tokens`` (DAPO, equation 13)."""
    return min(max((reply.max_tokens - reply.tokens) / grader.overlong, 0.0), 1.0)
