"""Train the ensemble: several classifiers that differ by seed and by the sets they learn from (paper, section 2.2)."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, mse_loss

from affectgpt.captioning.ensemble import EMOTION, EnsembleClassifier, Head, LabelledSet, sets_of
from affectgpt.config.captioning import EnsembleConfig
from affectgpt.core.errors import CheckpointError, DataError
from affectgpt.core.files import atomic_path, write_json
from affectgpt.core.runtime import logger
from affectgpt.modeling.checkpoint import load_torch_file

RECORD = "crowd.json"
_VERSION = 1


def settings_of(spec: EnsembleConfig, sets: Sequence[LabelledSet], encoders: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides the classifiers: hyper-parameters, lessons, encoders."""
    lessons = {}
    for lesson in sets:
        digest = hashlib.sha256("\n".join(lesson.names).encode() + lesson.targets.tobytes())
        lessons[lesson.head.dataset] = {"head": _plain(lesson.head), "clips": len(lesson), "sha256": digest.hexdigest()}
    return {"version": _VERSION, **_chosen(spec), "sets": lessons, "encoders": dict(encoders)}


def _chosen(spec: EnsembleConfig) -> dict[str, Any]:
    """What decides a training besides its lessons."""
    return {key: value for key, value in asdict(spec).items() if key not in ("folder", "sets", "neutral_band")}


def train_ensemble(
    spec: EnsembleConfig, sets: Sequence[LabelledSet], *, folder: Path, encoders: Mapping[str, Any]
) -> list[EnsembleClassifier]:
    """Train the classifiers that ``folder`` lacks; they are saved one by one, so that a stopped run can resume.

    Raises DataError when the sets teach no emotion at all, CheckpointError when the folder holds another ensemble.
    """
    if not any(lesson.head.task == EMOTION for lesson in sets):
        raise DataError("captioning.crowd.sets: none of them has emotion words; the ensemble needs at least one")
    settings = settings_of(spec, sets, encoders)
    _claim(folder, settings)
    ensemble = []
    for number in range(spec.models):
        path = model_path(folder, number)
        if not path.exists():
            started = time.perf_counter()
            chosen = [sets[i] for i in sets_of(number, [s.head for s in sets], leave_out=spec.leave_out)]
            model, best = train_one(spec, chosen, seed=spec.seed + number)
            # Through a Python file: torch's own writer ends the process when the disk is full.
            with atomic_path(path) as temporary, temporary.open("wb") as handle:
                torch.save(model.as_file(), handle)
            names = ", ".join(lesson.head.dataset for lesson in chosen)
            logger.info(
                "classifier %d of %d (%s): epoch %d, held-back score %.3f, %.1f s",
                number + 1, spec.models, names, best["epoch"], best["score"], time.perf_counter() - started,
            )  # fmt: skip
        ensemble.append(load_one(path))
    return ensemble


def train_one(
    spec: EnsembleConfig, sets: Sequence[LabelledSet], *, seed: int
) -> tuple[EnsembleClassifier, dict[str, float]]:
    """One classifier and its best epoch, by the mean held-back score of its heads (accuracy; for valence of the sign).

    All clips of all sets are kept in memory as whole tensors; a batch mixes sets, each head learns from its own clips.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = tuple(lesson.head for lesson in sets)
    visual = torch.from_numpy(np.concatenate([s.visual for s in sets]))  # [N, d_v]
    acoustic = torch.from_numpy(np.concatenate([s.acoustic for s in sets]))  # [N, d_a]
    of_head = torch.cat([torch.full((len(s),), i) for i, s in enumerate(sets)])  # [N]
    targets = torch.cat([torch.from_numpy(s.targets.astype(np.float32)) for s in sets])  # [N]: class or valence
    back = _held_back(of_head, part=spec.held_back, generator=generator)
    learnt = torch.nonzero(~back).squeeze(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EnsembleClassifier(
            d_visual=visual.shape[1], d_acoustic=acoustic.shape[1], heads=heads, hidden=spec.hidden,
            dropout=spec.dropout,
        )  # fmt: skip
        model.standardise_by(visual[learnt], acoustic[learnt])
        optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, weight_decay=spec.weight_decay)
        best: dict[str, float] = {"epoch": 0, "score": -1.0}
        state = {}
        for epoch in range(1, spec.epochs + 1):
            model.train()
            order = learnt[torch.randperm(len(learnt), generator=generator)]
            for batch in order.split(spec.batch):
                loss = _loss(model(visual[batch], acoustic[batch]), heads, of_head[batch], targets[batch])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            score = _score(model, visual[back], acoustic[back], of_head[back], targets[back])
            if score > best["score"]:
                best = {"epoch": epoch, "score": score}
                state = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval(), best


def _held_back(of_head: torch.Tensor, *, part: float, generator: torch.Generator) -> torch.Tensor:
    """bool ``[N]``: the clips that pick the best epoch, at least one of every set with two or more."""
    back = torch.zeros(len(of_head), dtype=torch.bool)
    for head in of_head.unique():
        members = torch.nonzero(of_head == head).squeeze(1)
        count = min(max(1, round(part * len(members))), len(members) - 1)
        back[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return back


def _loss(
    outputs: Sequence[torch.Tensor], heads: Sequence[Head], of_head: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of the emotion heads and squared error of the valence heads, each on its own clips."""
    total = outputs[0].new_zeros(())
    for number, (output, head) in enumerate(zip(outputs, heads, strict=True)):
        mine = of_head == number
        if not mine.any():
            continue
        if head.task == EMOTION:
            total = total + cross_entropy(output[mine], targets[mine].long(), reduction="sum")
        else:
            total = total + mse_loss(output[mine].squeeze(1), targets[mine], reduction="sum")
    return total / len(of_head)


@torch.no_grad()
def _score(
    model: EnsembleClassifier,
    visual: torch.Tensor,
    acoustic: torch.Tensor,
    of_head: torch.Tensor,
    targets: torch.Tensor,
) -> float:
    model.eval()
    scores = []
    for number, (output, head) in enumerate(zip(model(visual, acoustic), model.heads, strict=True)):
        mine = of_head == number
        if head.task == EMOTION:
            right = output[mine].argmax(dim=1) == targets[mine].long()
        else:
            mine &= targets != 0
            right = (output[mine].squeeze(1) > 0) == (targets[mine] > 0)
        if len(right):
            scores.append(right.float().mean().item())
    return sum(scores) / max(len(scores), 1)


def model_path(folder: Path, number: int) -> Path:
    """The file of one classifier."""
    return folder / f"classifier_{number:02d}.pt"


def load_one(path: Path) -> EnsembleClassifier:
    """A saved classifier. CheckpointError naming the file when it is missing or damaged."""
    try:
        return EnsembleClassifier.from_file(load_torch_file(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such classifier; train the ensemble: affectgpt crowd train") from None
    except Exception as error:  # torch raises many kinds on damaged files
        raise CheckpointError(
            f"{path}: damaged ({type(error).__name__}); remove it and train the ensemble again"
        ) from error


def load_ensemble(
    folder: Path, *, spec: EnsembleConfig, encoders: Mapping[str, Any]
) -> tuple[list[EnsembleClassifier], dict[str, Any]]:
    """The ensemble of a folder and its record.

    CheckpointError when it is missing or unfinished, of other encoders, or was trained otherwise than ``spec`` says.
    """
    from affectgpt.processing.features import differing

    record = read_record(folder)
    if record is None:
        raise CheckpointError(f"{folder}: no ensemble of classifiers; train one: affectgpt crowd train")
    wanted = {**_chosen(spec), "sets": sorted(name.lower() for name in spec.sets)}
    found = {key: record["settings"].get(key) for key in wanted}
    found["sets"] = sorted(name.lower() for name in record["settings"]["sets"])
    difference = differing(found, wanted)
    if difference is not None:
        raise CheckpointError(
            f"{folder}: holds an ensemble of other settings: {difference}. Give captioning.crowd the settings it was "
            "trained with, or another folder"
        )
    difference = differing(record["settings"]["encoders"], encoders)
    if difference is not None:
        raise CheckpointError(f"{folder}: the ensemble was trained on other features: {difference}. Train it again")
    return [load_one(model_path(folder, i)) for i in range(record["settings"]["models"])], record


def finished(folder: Path) -> bool:
    """Whether a folder holds a whole ensemble."""
    record = read_record(folder)
    return record is not None and all(model_path(folder, i).exists() for i in range(record["settings"]["models"]))


def read_record(folder: Path) -> dict[str, Any] | None:
    """``crowd.json`` of a folder; None when there is none."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["settings"]["models"]
        return record
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove {folder} and train the ensemble again") from error


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    from affectgpt.processing.features import differing

    record = read_record(folder)
    plain = json.loads(json.dumps(settings, default=str))
    if record is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RECORD, {"settings": plain})
        return
    difference = differing(record["settings"], plain)
    if difference is not None:
        raise CheckpointError(
            f"{folder}: holds an ensemble of other settings: {difference}. Move it away, or set captioning.crowd.folder"
        )


def _plain(head: Head) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(head)))
