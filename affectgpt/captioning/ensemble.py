"""The ensemble of classifiers that vote on clips: one classifier, the labelled sets it learns from, what it says.

A classifier is an attention fusion of face and voice with emotion and valence heads (MERBench; paper, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from affectgpt.captioning.features import ClipFeatures
from affectgpt.captioning.votes import Opinion, polarity_of
from affectgpt.core.errors import DataError
from affectgpt.core.runtime import logger
from affectgpt.core.types import Sample

EMOTION, VALENCE = "emotion", "valence"


@dataclass(frozen=True)
class Head:
    """What one data set teaches: emotion words, or valence divided by ``scale`` (the set's largest absolute value)."""

    dataset: str
    task: str  # EMOTION or VALENCE
    classes: tuple[str, ...] = ()
    scale: float = 1.0

    @property
    def size(self) -> int:
        """How many numbers the head gives."""
        return len(self.classes) if self.task == EMOTION else 1


class EnsembleClassifier(nn.Module):
    """visual ``[B, d_v]``, acoustic ``[B, d_a]`` → one output per head: logits ``[B, classes]``, or valence ``[B, 1]``.

    Each modality goes through a two-layer MLP; a softmax over modalities weighs the two; a linear head per data set
    reads the weighted sum. Inputs are standardised by the training clips' mean and deviation, kept as buffers.
    """

    visual_mean: Tensor
    visual_std: Tensor
    acoustic_mean: Tensor
    acoustic_std: Tensor

    def __init__(self, *, d_visual: int, d_acoustic: int, heads: tuple[Head, ...], hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.shape = {"d_visual": d_visual, "d_acoustic": d_acoustic, "hidden": hidden, "dropout": dropout}
        self.visual = _branch(d_visual, hidden, dropout)
        self.acoustic = _branch(d_acoustic, hidden, dropout)
        self.attention = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.weights = nn.Linear(hidden, 2)
        self.dropout = nn.Dropout(dropout)
        self.outputs = nn.ModuleList(nn.Linear(hidden, head.size) for head in heads)
        for name, width in (("visual", d_visual), ("acoustic", d_acoustic)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_std", torch.ones(width))

    def standardise_by(self, visual: Tensor, acoustic: Tensor) -> None:
        """Take mean and deviation of training clips ``[N, d]``; a constant dimension is only shifted."""
        for name, values in (("visual", visual), ("acoustic", acoustic)):
            std = values.std(dim=0, unbiased=False)
            getattr(self, f"{name}_mean").copy_(values.mean(dim=0))
            getattr(self, f"{name}_std").copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def fuse(self, visual: Tensor, acoustic: Tensor) -> tuple[Tensor, Tensor]:
        """The fused clip ``[B, hidden]`` and the weights of face and voice ``[B, 2]``."""
        seen = self.visual((visual - self.visual_mean) / self.visual_std)  # [B, hidden]
        heard = self.acoustic((acoustic - self.acoustic_mean) / self.acoustic_std)  # [B, hidden]
        weights = self.weights(self.attention(torch.cat([seen, heard], dim=-1))).softmax(dim=-1)  # [B, 2]
        fused = (torch.stack([seen, heard], dim=1) * weights.unsqueeze(-1)).sum(dim=1)  # [B, hidden]
        return fused, weights

    def forward(self, visual: Tensor, acoustic: Tensor) -> list[Tensor]:
        """One tensor per head, in the order of ``heads``."""
        fused, _ = self.fuse(visual, acoustic)
        fused = self.dropout(fused)
        return [output(fused) for output in self.outputs]

    def as_file(self) -> dict[str, Any]:
        """Everything that ``from_file`` needs, in plain containers and tensors."""
        return {"shape": self.shape, "heads": [asdict(head) for head in self.heads], "state": self.state_dict()}

    @classmethod
    def from_file(cls, content: Mapping[str, Any]) -> EnsembleClassifier:
        """A classifier as it was saved, in eval mode."""
        heads = tuple(Head(**{**head, "classes": tuple(head["classes"])}) for head in content["heads"])
        model = cls(heads=heads, **content["shape"])
        model.load_state_dict(content["state"])
        return model.eval()


def _branch(width: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU()
    )  # fmt: skip


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
        f"{title}: a set for the ensemble needs an emotion word, or a valence, for every training sample; "
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


_ROWS = 8192  # clips at a time


def opinions(ensemble: Sequence[EnsembleClassifier], visual: np.ndarray, acoustic: np.ndarray) -> list[Opinion]:
    """Each classifier's opinion on clips: visual ``[N, d_v]``, acoustic ``[N, d_a]``.

    The probability of a word is its mean over the heads that know it; valence is the mean over the valence heads.
    """
    found = []
    for model in ensemble:
        outputs = _run(model, visual, acoustic)
        vocabulary = tuple(dict.fromkeys(word for head in model.heads for word in head.classes))
        sums = np.zeros((len(visual), len(vocabulary)))
        known = np.zeros(len(vocabulary))
        valences = []
        for head, output in zip(model.heads, outputs, strict=True):
            if head.task == EMOTION:
                columns = [vocabulary.index(word) for word in head.classes]
                sums[:, columns] += output
                known[columns] += 1
            else:
                valences.append(output[:, 0])
        found.append(Opinion(vocabulary, sums / known, np.mean(valences, axis=0) if valences else None))
    return found


@torch.no_grad()
def _run(model: EnsembleClassifier, visual: np.ndarray, acoustic: np.ndarray) -> list[np.ndarray]:
    """Per head: probabilities ``[N, classes]``, or valence ``[N, 1]``."""
    parts: list[list[np.ndarray]] = [[] for _ in model.heads]
    for at in range(0, len(visual), _ROWS):
        outputs = model(torch.from_numpy(visual[at : at + _ROWS]), torch.from_numpy(acoustic[at : at + _ROWS]))
        for part, head, output in zip(parts, model.heads, outputs, strict=True):
            part.append((output.softmax(dim=1) if head.task == EMOTION else output).numpy())
    return [np.concatenate(part) for part in parts]


def split_scores(
    ensemble: Sequence[EnsembleClassifier], tests: Sequence[LabelledSet], *, neutral_band: float
) -> list[dict[str, Any]]:
    """Accuracy and weighted F1 on test splits: of each classifier that knows the set, and of their majority.

    Valence: of the sign, on clips whose truth is not 0 (as MER-UniBench counts); a neutral prediction is wrong.
    """
    rows = []
    for test in tests:
        columns = []
        for model in ensemble:
            at = next((i for i, head in enumerate(model.heads) if head.dataset == test.head.dataset), None)
            if at is not None:
                columns.append(_said(_run(model, test.visual, test.acoustic)[at], test, band=neutral_band))
        if not columns:
            continue
        if test.head.task == EMOTION:
            truth = [test.head.classes[int(i)] for i in test.targets]
            counted = list(range(len(truth)))
        else:
            truth = [polarity_of(float(v), band=0.0) for v in test.targets]
            counted = [i for i, word in enumerate(truth) if word != "neutral"]
        majority = [max(sorted(set(said)), key=said.count) for said in zip(*columns, strict=True)]
        rows.append(
            {
                "set": test.head.dataset,
                "task": test.head.task,
                "clips": len(counted),
                "classifiers": [_scores(truth, said, counted) for said in columns],
                "majority": _scores(truth, majority, counted),
            }
        )
    return rows


def _said(output: np.ndarray, test: LabelledSet, *, band: float) -> list[str]:
    if test.head.task == EMOTION:
        return [test.head.classes[i] for i in output.argmax(axis=1)]
    return [polarity_of(float(v), band=band) for v in output[:, 0]]


def _scores(truth: Sequence[str], said: Sequence[str], counted: Sequence[int]) -> dict[str, float]:
    from sklearn.metrics import f1_score

    if not counted:
        return {"accuracy": float("nan"), "f1": float("nan")}
    true = [truth[i] for i in counted]
    mine = [said[i] for i in counted]
    return {
        "accuracy": float(np.mean([a == b for a, b in zip(true, mine, strict=True)])),
        "f1": float(f1_score(true, mine, average="weighted", zero_division=0)),
    }
