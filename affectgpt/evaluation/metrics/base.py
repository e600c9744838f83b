"""The interface of a metric: numbers per sample that add up, and an aggregate of their sums.

That split gives a score, its bootstrap interval and a paired test with the same few lines: a resample only weighs the
summands differently.
"""

from __future__ import annotations

import inspect
import json
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from affectgpt.core.errors import AffectGPTError, ConfigError, shortened
from affectgpt.core.registry import Registry

if TYPE_CHECKING:
    from affectgpt.core.types import Labels
    from affectgpt.evaluation.lexicon import Grouping, GroupSets


class Metric(Protocol):
    """Scores one task. ``keys``: what it gives, primary first, with ``titles``. ``polarity``: reads polarity words.
    ``truth_column``: what a user's own table calls the truth (a role of datasets/custom)."""

    truth_column: str
    keys: tuple[str, ...]
    titles: tuple[str, ...]
    polarity: bool

    def __init__(self, grouping: Grouping | None) -> None:
        """``grouping``: the groups of the lexicon, for a metric on groups."""
        ...

    @staticmethod
    def truth(labels: Labels) -> Any | None:
        """The truth of a sample, None where it has none, so that it is not scored."""
        ...

    def summands(self, truth: Sequence[Any], predicted: Sequence[str]) -> np.ndarray:
        """Summands ``[N, C]`` (float64) of N samples; a sample that does not count is a row of zeros.

        ``predicted``: what was extracted of each answer: an item such as ``[happy, calm]``, or a polarity word.
        """
        ...

    def aggregate(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Sums ``[..., C]`` → each key's value ``[...]`` (0..1; NaN where nothing counts)."""
        ...

    def per_sample(self, summands: np.ndarray) -> np.ndarray:
        """How well each sample was met, ``[N]`` (0..1; NaN: it does not count), for showing the worst ones."""
        ...

    def detail(self, sums: np.ndarray) -> dict[str, Any]:
        """Further numbers of one checkpoint for a report, from sums ``[C]``: per-view values and counts."""
        ...


def check_class(what: str, metric: Any) -> None:
    """ConfigError for a class that lacks something of ``Metric``; ``what`` describes it."""
    for part, kind, expected in (
        ("keys", tuple, "a tuple of names such as ('hit',), the primary one first"),
        ("titles", tuple, "a tuple with a heading for each of the keys"),
        ("polarity", bool, "True where the metric reads polarity words, else False"),
        ("truth_column", str, "what a table of one's own calls the truth, such as 'emotion'"),
    ):
        value = getattr(metric, part, None)
        words = value if isinstance(value, tuple) else ()
        if not isinstance(value, kind) or value in ((), "") or not all(isinstance(w, str) and w for w in words):
            raise ConfigError(f"{what}: {part} must be {expected}; found {_form(value)}")
    if len(metric.titles) != len(metric.keys) or len(set(metric.keys)) < len(metric.keys):
        raise ConfigError(
            f"{what}: keys must differ, and each needs a title; found keys {', '.join(metric.keys)} and titles "
            f"{', '.join(metric.titles)}"
        )
    for part in ("truth", "summands", "aggregate", "per_sample", "detail"):
        if not callable(getattr(metric, part, None)):
            raise ConfigError(f"{what}: it needs a method {part}, see affectgpt.evaluation.metrics.base.Metric")
    for function, expected in (
        (metric, "__init__ must take one argument, the grouping"),
        (metric.truth, "truth must be a static method of one argument, the labels of a sample"),
    ):
        try:
            inspect.signature(function).bind(None)
        except TypeError as error:
            raise ConfigError(f"{what}: {expected} ({error})") from error


METRICS = Registry("metric", "affectgpt.evaluation.metrics", check=check_class)  # by task


def summed(
    task: str, metric: Metric, truth: Sequence[Any], predicted: Sequence[str]
) -> tuple[np.ndarray, dict[str, float], dict[str, Any]]:
    """Apply a metric to N samples: summands ``[N, C]``, each key's value, and the detail (empty where a value is NaN).

    Raises ConfigError naming the metric, its file, and what it gives that is not what ``Metric`` says.
    """
    n, what = len(truth), METRICS.described(task)

    def call(name: str, *arguments: Any) -> Any:
        try:
            return getattr(metric, name)(*arguments)
        except AffectGPTError:
            raise
        except Exception as error:  # the user's code may raise anything
            place = traceback.extract_tb(error.__traceback__)[-1]
            shapes = " and ".join(f"{type(x).__name__} {list(np.shape(x))}" for x in arguments)
            raise ConfigError(
                f"{what}: {name} fails on {shapes} ({place.filename}:{place.lineno}): {type(error).__name__}: {error}"
            ) from error

    summands = call("summands", truth, predicted)
    if not _is_array(summands) or summands.ndim != 2 or len(summands) != n or not summands.shape[1]:
        raise ConfigError(f"{what}: summands must give a float array [{n}, C], found {_form(summands)}")
    if not np.isfinite(summands).all():
        row = int(np.argmin(np.isfinite(summands).all(axis=1)))
        raise ConfigError(
            f"{what}: summands must be finite, with a row of zeros for a sample that does not count; found "
            f"{summands[row].tolist()} for truth {shortened(truth[row])} and {shortened(predicted[row])}"
        )
    sums = summands.sum(axis=0)
    values = _values(what, metric, call("aggregate", sums), shape=())
    # intervals, chance levels and tests ask for many sums at once
    pair = _values(what, metric, call("aggregate", np.stack([sums, sums])), shape=(2,))
    for key in metric.keys:
        if not np.allclose(pair[key], values[key], equal_nan=True):
            raise ConfigError(
                f"{what}: aggregate must read the last axis of sums [..., C], as in sums[..., 0]; found {key} "
                f"{values[key].item()} for one row of sums, {pair[key].tolist()} for two that equal it"
            )
        if np.isfinite(values[key]) and not -1e-9 <= values[key] <= 1 + 1e-9:
            raise ConfigError(
                f"{what}: aggregate must give numbers from 0 to 1, which reports show in percent; found {key} "
                f"{values[key].item()}"
            )
    met = call("per_sample", summands)
    if not _is_array(met) or met.shape != (n,):
        raise ConfigError(f"{what}: per_sample must give a float array [{n}], found {_form(met)}")
    plain = {key: float(values[key]) for key in metric.keys}
    if not all(map(np.isfinite, plain.values())):
        return summands, plain, {}
    detail = call("detail", sums)
    try:
        json.dumps(dict(detail))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{what}: detail must give a dict of plain numbers, words and lists; found {shortened(detail)} ({error})"
        ) from error
    return summands, plain, dict(detail)


def _values(what: str, metric: Metric, returned: Any, *, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Check the values of ``aggregate`` for sums ``[*shape, C]``, by key."""
    arrays = {key: np.asarray(value) for key, value in returned.items()} if isinstance(returned, Mapping) else {}
    if set(arrays) != set(metric.keys) or any(not _is_array(x) or x.shape != shape for x in arrays.values()):
        described = {key: _form(value) for key, value in arrays.items()}
        forms = ", ".join(f"{key} ({form})" for key, form in described.items()) or _form(returned)
        raise ConfigError(
            f"{what}: aggregate must give a number for each of the keys {', '.join(metric.keys)}, of sums "
            f"[{', '.join([*map(str, shape), 'C'])}] an array {list(shape)}; found {forms}"
        )
    return arrays


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def _form(value: Any) -> str:
    """A value's type and shape, for a message."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return "nothing" if value is None else f"{type(value).__name__} {shortened(value)}"


class GroupMetric:
    """A metric on sets of groups; subclasses define ``compare``.

    Both sides are encoded once, so that the same answers can be set against other truths (chance.py).
    """

    def __init__(self, grouping: Grouping) -> None:
        self.grouping = grouping

    def encode_truth(self, truth: Sequence[tuple[str, ...]]) -> GroupSets:
        """The groups of N true label sets."""
        return self.grouping.sets(map(self.grouping.mask, truth))

    def encode_items(self, items: Sequence[str]) -> GroupSets:
        """The groups of N extracted items."""
        return self.grouping.sets(self.grouping.item(item)[1] for item in items)

    def compare(self, truth: GroupSets, predicted: GroupSets) -> np.ndarray:
        """Summands ``[..., C]`` of sets whose leading dimensions broadcast."""
        raise NotImplementedError

    def summands(self, truth: Sequence[tuple[str, ...]], predicted: Sequence[str]) -> np.ndarray:
        """``[N, C]``, see ``compare``."""
        return self.compare(self.encode_truth(truth), self.encode_items(predicted))

    def precision(self, truth: GroupSets, predicted: GroupSets) -> float:
        """Mean share of an answer's groups that are true, over the samples that count, mean over the views."""
        shares = truth.shared(predicted) / np.maximum(predicted.sizes, 1)
        counted = truth.sizes > 0
        with np.errstate(invalid="ignore"):
            return float(((shares * counted).sum(axis=0) / counted.sum(axis=0)).mean())
