"""Data sets: samples with labels and media of each split, and parts of a split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.config.schema import Config
from affectgpt.core.crops import AS_PUBLISHED, Crops
from affectgpt.core.errors import ConfigError, DataError, did_you_mean
from affectgpt.core.runtime import logger
from affectgpt.core.seeds import seeded
from affectgpt.core.tables import read_table
from affectgpt.core.types import Sample
from affectgpt.datasets import custom
from affectgpt.datasets.label_files import load_labels, load_samples, place_samples, stored_crops
from affectgpt.datasets.table import DATASETS, HYBRID, DatasetRow, get_row

if TYPE_CHECKING:
    from affectgpt.config.schema import Config, DatasetConfig


def hold_out(samples: Sequence[Sample], config: Config) -> tuple[list[Sample], list[Sample]]:
    """A training split → what is trained on, and the seeded ``run.valid_ratio`` of it that is held out."""
    if config.run.valid_ratio == 0 or len(samples) < 2:
        return list(samples), []
    held = keep_some(samples, count=round(len(samples) * config.run.valid_ratio), seed=config.run.seed + 1)
    names = {sample.name for sample in held}
    return [sample for sample in samples if sample.name not in names], held


def keep_fraction(samples: Sequence[Sample], *, ratio: float, seed: int) -> list[Sample]:
    """A seeded random fraction of the samples, ``int(n * ratio)`` (wire) but at least one, in their order."""
    return keep_some(samples, count=int(len(samples) * ratio), seed=seed)


def keep_some(samples: Sequence[Sample], *, count: int, seed: int) -> list[Sample]:
    """``count`` seeded random samples, at least one and at most all of them, in their order."""
    if count >= len(samples):
        return list(samples)
    kept = sorted(seeded("ratio", seed).sample(range(len(samples)), max(1, count)))
    return [samples[i] for i in kept]


def open_dataset(config: Config | str | Path, name: str) -> EmotionDataset:
    """The data set called ``name`` in any case: a row of the table, or a block under ``datasets:`` that names files.

    ``config``: a configuration, or the path of one. No file of the set is read yet. Raises DataError with the nearest
    name for an unknown one, ConfigError naming a wrong key.
    """
    from affectgpt.config.load import load_config
    from affectgpt.config.schema import DatasetConfig

    if isinstance(config, str | Path):
        config = load_config(config)
    key, block = next(
        ((key, block) for key, block in config.datasets.items() if key.lower() == name.strip().lower()),
        (name, DatasetConfig()),
    )
    root = Path(config.paths.dataset_root)
    if name in DATASETS:
        return _Published(get_row(name), key, block, dataset_root=root)
    if block.path or block.test_path or block.columns or block.folders:
        return _Custom(key, block, dataset_root=root, where=config.where)
    known = [*(row.name for row in DATASETS.values()), *(other for other in config.datasets if other != key)]
    own = f" A set of your own is described by datasets.{key}.path or .test_path." if key in config.datasets else ""
    raise DataError(f"unknown data set {name!r}.{did_you_mean(name.strip(), known)}{own}")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a data set's own files. ``sample`` is empty where it concerns the whole set."""

    what: str  # files, label, subtitle, or a medium
    kind: str  # missing, unreadable
    reason: str
    sample: str = ""

    @classmethod
    def of(cls, what: str, error: DataError) -> Fault:
        """The fault that an error describes."""
        return cls(what, "missing" if str(error).endswith("no such file") else "unreadable", str(error))


class EmotionDataset(ABC):
    """A data set: its files, what its labels can teach, what its questions name, and how it is scored.

    ``name``: as results and stores spell it. ``block``: its section of the configuration, the defaults where it has
    none. ``splits``: those that it has files for. ``task``: the metric that scores it (``train``: none does; empty: its
    block does not say).
    """

    def __init__(
        self, name: str, key: str, block: DatasetConfig, *, dataset_root: Path, splits: tuple[str, ...], task: str
    ) -> None:
        self.name, self.key, self.block, self.dataset_root = name, key, block, dataset_root
        self.splits, self.task = splits, task
        self._read: dict[tuple[str, bool], list[Sample]] = {}

    def __repr__(self) -> str:
        counts = {split: len(samples) for (split, _), samples in self._read.items()}
        splits = [f"{split}: {counts[split]} samples" if split in counts else split for split in self.splits]
        return f"<EmotionDataset {self.name} ({', '.join(splits)})>"

    @property
    @abstractmethod
    def label_types(self) -> tuple[str, ...]:
        """The label types that its labels can teach. Raises ConfigError where a block's columns give none."""

    @property
    def learnt_types(self) -> tuple[str, ...]:
        """The label types that training asks for: those of the set, or the one that its block names."""
        return self.label_types if self.block.label_type == HYBRID else (self.block.label_type,)

    def samples(self, split: str, *, labels: bool = True) -> list[Sample]:
        """The samples of a split in file order; files are read once, media are not opened.

        Without ``labels`` a file of a user's own needs no column of them (published label files give the names).
        Raises ConfigError where it has no such split, DataError naming file and sample.
        """
        key = (split, labels)
        if key not in self._read:
            self._read[key] = self._load(split, labels=labels)
        return list(self._read[key])

    def candidate_labels(self) -> list[str]:
        """The emotion words of the training split, sorted: what the question with candidates lists."""
        return sorted({s.labels.emotion for s in self.samples("train") if s.labels.emotion is not None})

    def value_range(self) -> tuple[float, float] | None:
        """Smallest and largest valence of the training split, integers as such; None where no sample has one."""
        values = [s.labels.valence for s in self.samples("train") if s.labels.valence is not None]
        return (min(values), max(values)) if values else None

    def expected(self, split: str) -> int | None:
        """Published number of samples of a split; None if it is not known."""
        return None

    @abstractmethod
    def folders(self) -> dict[str, Path]:
        """Medium (video, audio, face, image) → the folder of its files."""

    @abstractmethod
    def crops(self) -> Crops:
        """How the face crops are stored. Raises DataError where the folder's record is damaged or contradicted."""

    @abstractmethod
    def scored_row(self, truth_columns: Mapping[str, str]) -> DatasetRow:
        """The test split as a row with its truth; ``truth_columns``: task → the column that holds its truth.

        Raises ConfigError naming the key where a block does not say how it is scored.
        """

    @abstractmethod
    def survey(self, split: str) -> tuple[list[Sample], list[Fault]]:
        """The samples of a split as far as its files can be read, and what is wrong with these, each by name."""

    @abstractmethod
    def _load(self, split: str, *, labels: bool) -> list[Sample]: ...

    def _folder_faults(self, *, said_by: str = "") -> list[Fault]:
        """Media folders that are not there: once, not for every sample."""
        return [
            Fault(medium, "missing", f"{said_by.format(medium)}no folder {folder}")
            for medium, folder in self.folders().items()
            if not folder.is_dir()
        ]


class _Published(EmotionDataset):
    """A row of the table (the package's or a user's registered one), with what its block adds."""

    def __init__(self, row: DatasetRow, key: str, block: DatasetConfig, *, dataset_root: Path) -> None:
        has_file = bool(row.label_file or row.openset_file or row.reason_file)
        if block.columns or block.folders or block.test_path or block.task or (block.path and has_file):
            raise ConfigError(
                f"datasets.{key}: {row.name} has files of its own; path, test_path, task, columns and folders are for "
                "others"
            )
        self.row = replace(row, reason_file=block.path) if block.path else row
        super().__init__(row.name, key, block, dataset_root=dataset_root, splits=tuple(row.splits), task=row.task)

    @property
    def label_types(self) -> tuple[str, ...]:
        return self.row.label_types

    def _load(self, split: str, *, labels: bool) -> list[Sample]:
        if split == "train" and split not in self.splits:
            raise ConfigError(f"datasets.{self.key}: {self.name} has no training split; it can only be tested on")
        samples = load_samples(
            self.row, split=split, dataset_root=self.dataset_root, face_channels=self.block.face_channels
        )
        return self._untested(samples) if split == "train" and self.row.without else samples

    def _untested(self, samples: list[Sample]) -> list[Sample]:
        """The samples without the test clips of the sets that the row names."""
        from affectgpt.datasets.overlap import benchmark_clips, shared_clips

        tested, absent = benchmark_clips(self.dataset_root, self.row.without)
        if absent:
            raise DataError(
                f"{self.name}: its training split leaves out the clips that {', '.join(absent)} tests on, whose label "
                f"files are not under {self.dataset_root}: put them there"
            )
        shared = shared_clips(samples, tested)
        if shared:
            logger.info("%s: %d clips left out: %s", self.name, len(shared), ", ".join(sorted(shared)))
        return [sample for sample in samples if sample.name not in shared]

    def expected(self, split: str) -> int | None:
        return self.row.counts.get(split)

    def folders(self) -> dict[str, Path]:
        root = self.dataset_root / self.row.root
        folders = {"video": self.row.video_dir, "audio": self.row.audio_dir, "face": self.row.face_dir}
        return {medium: root / folder for medium, folder in folders.items()}

    def crops(self) -> Crops:
        return stored_crops(self.row, dataset_root=self.dataset_root, face_channels=self.block.face_channels)

    def scored_row(self, truth_columns: Mapping[str, str]) -> DatasetRow:
        return self.row

    def survey(self, split: str) -> tuple[list[Sample], list[Fault]]:
        row, root = self.row, self.dataset_root / self.row.root
        if not root.is_dir():
            return [], [Fault("files", "missing", f"{root}: no such folder")]
        try:
            labels = load_labels(row, split=split, dataset_root=self.dataset_root)
        except DataError as error:
            return [], [Fault.of("label", error)]
        faults = self._folder_faults()
        if row.subtitle_file:
            path = root / row.subtitle_file
            try:
                table = read_table(path, key="name", columns=(row.subtitle_column,), doubled="last")
            except DataError as error:
                faults.append(Fault.of("subtitle", error))
            else:
                faults += [
                    Fault("subtitle", "missing", f"{path}: no row for it", name) for name in labels if name not in table
                ]
        if row.openset_file and row.reason_file:
            for name, label in labels.items():
                for value, file in ((label.ovlabels, row.openset_file), (label.description, row.reason_file)):
                    if value is None:
                        faults.append(Fault("label", "missing", f"{root / file}: no row for it", name))
        return place_samples(row, labels, subtitles={}, dataset_root=self.dataset_root), faults


class _Custom(EmotionDataset):
    """A user's own: a block that names its files (see ``datasets/custom``)."""

    def __init__(self, key: str, block: DatasetConfig, *, dataset_root: Path, where: Callable[[str], str]) -> None:
        custom.check_keys(key, block, where=where)
        self._where = where
        splits = tuple(split for split, file in (("train", block.path), ("test", block.test_path)) if file)
        super().__init__(key, key, block, dataset_root=dataset_root, splits=splits, task=block.task or "")

    @property
    def label_types(self) -> tuple[str, ...]:
        return custom.custom_label_types(self.key, self.block)

    def _load(self, split: str, *, labels: bool) -> list[Sample]:
        return custom.load_custom_samples(
            self.key, self.block, dataset_root=self.dataset_root, split=split, labels=labels, crops=self.crops()
        )

    def folders(self) -> dict[str, Path]:
        return {medium: self.dataset_root / folder for medium, folder in self.block.folders.items()}

    def crops(self) -> Crops:
        return custom.custom_crops(self.key, self.block, dataset_root=self.dataset_root)

    def scored_row(self, truth_columns: Mapping[str, str]) -> DatasetRow:
        where = self._where(f"datasets.{self.key}.task")
        if not self.task:
            raise ConfigError(f"{where}: say how its answers are scored; known: {', '.join(truth_columns)}")
        if self.task not in truth_columns:
            raise ConfigError(f"{where}: unknown {self.task!r}.{did_you_mean(self.task, truth_columns)}")
        return custom.custom_row(self.key, self.block, task=self.task, truth=truth_columns[self.task])

    def survey(self, split: str) -> tuple[list[Sample], list[Fault]]:
        faults = self._folder_faults(said_by=f"datasets.{self.key}.folders.{{}}: ")
        try:
            return custom.load_custom_samples(
                self.key, self.block, dataset_root=self.dataset_root, split=split, labels=split == "train",
                crops=AS_PUBLISHED,
            ), faults  # fmt: skip
        except DataError as error:
            return [], [*faults, Fault.of("label", error)]
