"""The ensemble of emotion and sentiment classifiers: features of clips (averaged over time), training, predictions."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from affectgpt.captioning.filters import Opinion, polarity_of
from affectgpt.config.captioning import EnsembleConfig
from affectgpt.config.schema import Config
from affectgpt.core.errors import CheckpointError, DataError
from affectgpt.core.files import atomic_path, write_json
from affectgpt.core.runtime import logger
from affectgpt.core.types import Modality, Sample
from affectgpt.modeling.checkpoint import load_torch_file
from affectgpt.processing.features import FeatureReader, crops_of, device_type, feature_key, store_folder, without_crops

UNLABELLED = "unlabelled"  # the split under which features of the clips to annotate are stored
_REMAP = 4096  # samples after which the memory maps are opened again: touched pages count as this process's memory


@dataclass
class ClipFeatures:
    """Features of clips ``names``: visual ``[N, d_v]``, acoustic ``[N, d_a]``, float32; ``missing``: name → reason."""

    names: list[str]
    visual: np.ndarray
    acoustic: np.ndarray
    missing: dict[str, str]


def open_readers(
    config: Config, samples: Sequence[Sample], *, title: str, split: str, visual: Modality
) -> tuple[FeatureReader, FeatureReader]:
    """The stores of visual and acoustic features of the samples of one data set and split.

    Raises DataError naming the folder, and the key that differs, when they are absent or were made otherwise.
    """
    first, second = (
        FeatureReader(
            feature_folder(config, title=title, split=split, modality=modality),
            key=_key(config, split, modality, samples),
        )
        for modality in (visual, Modality.AUDIO)
    )
    return first, second


def _key(config: Config, split: str, modality: Modality, samples: Sequence[Sample]) -> dict[str, Any]:
    """The key under which features of a split are stored: splits but ``train`` are prepared as inference does."""
    processor = config.model.vis_processor.train if split == "train" else config.inference_frames
    return feature_key(
        config, modality, device_type=device_type(config), processor=processor, crops=crops_of(samples, modality)
    )


def feature_folder(config: Config, *, title: str, split: str, modality: Modality) -> Path:
    """Folder in which the features of one data set, split and medium are stored."""
    encoder = config.model.acoustic_encoder if modality is Modality.AUDIO else config.model.visual_encoder
    return store_folder(config.paths.features_root, dataset=title, split=split, modality=modality, encoder=encoder)


def encoder_keys(config: Config, visual: Modality) -> dict[str, Any]:
    """Return what the features depend on: classifiers trained on some must not judge others."""
    return {
        modality.value: without_crops(feature_key(config, modality, device_type=device_type(config)))
        for modality in (visual, Modality.AUDIO)
    }


def load_features(
    config: Config, samples: Sequence[Sample], *, title: str, split: str, visual: Modality
) -> ClipFeatures:
    """Features of the samples, averaged over time (and query tokens). Samples without are in ``missing``."""
    readers = open_readers(config, samples, title=title, split=split, visual=visual)
    return pool(readers, samples)


def pool(readers: tuple[FeatureReader, FeatureReader], samples: Sequence[Sample]) -> ClipFeatures:
    """Averages over time. Memory is that of the averages: the stores stay on disk."""
    columns = [np.empty((len(samples), reader.width), dtype=np.float32) for reader in readers]
    missing: dict[str, str] = {}
    kept: list[int] = []
    opened = list(readers)
    for number, sample in enumerate(samples):
        if number % _REMAP == 0:
            opened = [copy.copy(reader) for reader in readers]
        try:
            for column, reader in zip(columns, opened, strict=True):
                feature, _ = reader(sample)  # [T, d] or [T, Q, d]
                column[number] = feature.reshape(-1, feature.shape[-1]).mean(dim=0).numpy()  # [d]
        except DataError as error:
            missing[sample.name] = str(error)
            continue
        kept.append(number)
    if missing:
        columns = [column[kept] for column in columns]
    bad = [i for i in range(len(kept)) if not all(np.isfinite(column[i]).all() for column in columns)]
    if bad:
        names = ", ".join(samples[kept[i]].name for i in bad[:3])
        raise DataError(f"{readers[0].folder.parent}: NaN or infinity in the features of {len(bad)} clips ({names} …)")
    return ClipFeatures([samples[i].name for i in kept], columns[0], columns[1], missing)


def unstored(config: Config, samples: Sequence[Sample], *, title: str, split: str, modality: Modality) -> list[str]:
    """Names of samples that the store knows nothing of; all of them where it is not there."""
    folder = feature_folder(config, title=title, split=split, modality=modality)
    if not (folder / "key.json").exists():
        return [sample.name for sample in samples]
    return FeatureReader(folder, key=_key(config, split, modality, samples)).missing(samples)


EMOTION, VALENCE = "emotion", "valence"


@dataclass(frozen=True)
class Head:
    """Lessons of one data set: emotion words, or valence divided by ``scale`` (the set's largest absolute value)."""

    dataset: str
    task: str  # EMOTION or VALENCE
    classes: tuple[str, ...] = ()
    scale: float = 1.0

    @property
    def size(self) -> int:
        """Number of outputs of the head."""
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
    """Return what decides a training besides its lessons."""
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
    """Return whether a folder holds a whole ensemble."""
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
