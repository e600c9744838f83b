"""What the crowd says of clips, and how right it is where the truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from affectgpt.captioning.crowd_model import EMOTION, CrowdClassifier
from affectgpt.captioning.crowd_sets import LabelledSet
from affectgpt.captioning.votes import Opinion, polarity_of

_ROWS = 8192  # clips at a time


def opinions(crowd: Sequence[CrowdClassifier], visual: np.ndarray, acoustic: np.ndarray) -> list[Opinion]:
    """Each classifier's opinion on clips: visual ``[N, d_v]``, acoustic ``[N, d_a]``.

    The probability of a word is its mean over the heads that know it; valence is the mean over the valence heads.
    """
    found = []
    for model in crowd:
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
def _run(model: CrowdClassifier, visual: np.ndarray, acoustic: np.ndarray) -> list[np.ndarray]:
    """Per head: probabilities ``[N, classes]``, or valence ``[N, 1]``."""
    parts: list[list[np.ndarray]] = [[] for _ in model.heads]
    for at in range(0, len(visual), _ROWS):
        outputs = model(torch.from_numpy(visual[at : at + _ROWS]), torch.from_numpy(acoustic[at : at + _ROWS]))
        for part, head, output in zip(parts, model.heads, outputs, strict=True):
            part.append((output.softmax(dim=1) if head.task == EMOTION else output).numpy())
    return [np.concatenate(part) for part in parts]


def split_scores(
    crowd: Sequence[CrowdClassifier], tests: Sequence[LabelledSet], *, neutral_band: float
) -> list[dict[str, Any]]:
    """Accuracy and weighted F1 on test splits: of each classifier that knows the set, and of their majority.

    Valence: of the sign, on clips whose truth is not 0 (as MER-UniBench counts); a neutral prediction is wrong.
    """
    rows = []
    for test in tests:
        columns = []
        for model in crowd:
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
