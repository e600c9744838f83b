"""Human-labelled sets as the crowd's lessons: features and targets in memory, whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from affectgpt.captioning.crowd_model import EMOTION, VALENCE, Head
from affectgpt.captioning.features import ClipFeatures
from affectgpt.core.errors import DataError
from affectgpt.core.runtime import logger
from affectgpt.core.types import Sample

# Features of a data set's samples (title, split, samples).
LoadFeatures = Callable[[str, str, Sequence[Sample]], ClipFeatures]


@dataclass
class LabelledSet:
    """One split of one set. ``targets`` ``[N]``: class indices int64, or valence by the head's scale float32."""

    head: Head
    names: list[str]
    visual: np.ndarray  # [N, d_v]
    acoustic: np.ndarray  # [N, d_a]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


def build_head(title: str, samples: Sequence[Sample]) -> Head:
    """The head that a training split gives. DataError when its samples have neither emotion words nor valences."""
    if samples and all(s.labels.emotion is not None for s in samples):
        return Head(title, EMOTION, classes=tuple(sorted({str(s.labels.emotion).strip().lower() for s in samples})))
    if samples and all(s.labels.valence is not None for s in samples):
        scale = max(abs(float(s.labels.valence or 0)) for s in samples)
        if scale == 0:
            raise DataError(f"{title}: every valence of its training split is 0, there is nothing to learn")
        return Head(title, VALENCE, scale=scale)
    raise DataError(
        f"{title}: a set for the crowd needs an emotion word, or a valence, for every training sample; "
        "give other names under captioning.crowd.sets"
    )


def labelled_set(head: Head, samples: Sequence[Sample], *, split: str, load: LoadFeatures) -> LabelledSet:
    """A split with its features. Samples without features, or of a class unseen in training, are left out, counted."""
    features = load(head.dataset, split, samples)
    if features.missing:
        first, reason = next(iter(features.missing.items()))
        logger.warning(
            "%s %s: %d of %d clips have no features and are left out (first: %s: %s)",
            head.dataset, split, len(features.missing), len(samples), first, reason,
        )  # fmt: skip
    by_name = {sample.name: sample for sample in samples}
    targets, kept = [], []
    for number, name in enumerate(features.names):
        target = _target(head, by_name[name])
        if target is not None:
            targets.append(target)
            kept.append(number)
    if not kept:
        raise DataError(f"{head.dataset} {split}: no clip with features and a label; run affectgpt check_data")
    if len(kept) < len(features.names):
        logger.warning(
            "%s %s: %d clips have a class that no training clip has, left out",
            head.dataset, split, len(features.names) - len(kept),
        )  # fmt: skip
    dtype = np.int64 if head.task == EMOTION else np.float32
    return LabelledSet(
        head, [features.names[i] for i in kept], features.visual[kept], features.acoustic[kept],
        np.array(targets, dtype=dtype),
    )  # fmt: skip


def _target(head: Head, sample: Sample) -> float | int | None:
    if head.task == VALENCE:
        return None if sample.labels.valence is None else float(sample.labels.valence) / head.scale
    word = str(sample.labels.emotion).strip().lower()
    return head.classes.index(word) if word in head.classes else None


def sets_of(number: int, heads: Sequence[Head], *, leave_out: int) -> list[int]:
    """The sets that classifier ``number`` learns from: all but ``leave_out``, in turn.

    Never left out is the last set with emotions, or the last with valence.
    """
    kept = list(range(len(heads)))
    for turn in range(leave_out):
        spare = [i for i in kept if sum(heads[j].task == heads[i].task for j in kept) > 1]
        if not spare:
            break
        kept.remove(spare[(number + turn) % len(spare)])
    return kept
