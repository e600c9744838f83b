"""Finding result files: ``{base_root}-{data set, lower case}/{run}/{checkpoint}.npz`` and the labels beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from affectgpt.core.errors import ConfigError, DataError, did_you_mean, printable
from affectgpt.core.runtime import logger
from affectgpt.datasets.table import DatasetRow
from affectgpt.evaluation import extraction_file as files

LLM, DIRECT = "llm", "direct"  # how labels were extracted; each has its own file names
SUFFIXES = {LLM: "", DIRECT: "-direct"}

_FILE = re.compile(r"(?P<stem>.+?)(?P<kind>-openset(?:-direct)?(?:-sentiment)?)?\.npz")
_EPOCH = re.compile(r"checkpoint_(\d+)(?:_|$)")
_SAMPLE = re.compile(r"sample_\d+_(?P<stem>.+)")


@dataclass(frozen=True)
class ResultFile:
    """One checkpoint's results on one data set. ``kinds``: which of its files exist ("" is the answers file)."""

    folder: Path
    stem: str
    kinds: frozenset[str]

    @property
    def epoch(self) -> int | None:
        """The epoch in a name such as ``checkpoint_000030_loss_0.602``, or of what was sampled from it; else None."""
        match = _EPOCH.match(self.sample_of or self.stem)
        return int(match[1]) if match else None

    @property
    def sample_of(self) -> str | None:
        """The checkpoint of a name such as ``sample_02_checkpoint_000030_loss_0.602``: one of several answers that were
        sampled from it, in a run of their own. None for any other name."""
        match = _SAMPLE.fullmatch(self.stem)
        return match["stem"] if match else None

    @property
    def answers(self) -> Path:
        """The answers file, there or not."""
        return self.folder / f"{self.stem}.npz"

    def extracted(self, extraction: str, *, polarity: bool) -> Path:
        """The extraction file that a metric reads, there or not."""
        return (files.sentiment_path if polarity else files.labels_path)(self.answers, SUFFIXES[extraction])

    def has(self, extraction: str, *, polarity: bool) -> bool:
        """Whether that file is there."""
        return f"-openset{SUFFIXES[extraction]}{'-sentiment' if polarity else ''}" in self.kinds


def results_folder(base_root: str | os.PathLike[str], row: DatasetRow) -> Path:
    """The folder that holds all runs on one data set."""
    return Path(f"{os.fspath(base_root)}-{row.name.lower()}")


def list_runs(base_root: str | os.PathLike[str], row: DatasetRow) -> dict[str, list[ResultFile]]:
    """Run → its result files by epoch, then name. Folders without any are left out; no folder gives no run."""
    folder = results_folder(base_root, row)
    if not folder.is_dir():
        return {}
    runs = {}
    for run in os.scandir(folder):
        if not is_text(run.name):
            logger.warning("%s: its name is not UTF-8, so it is left out; rename it", printable(run.path))
        elif run.is_dir():
            runs[run.name] = _result_files(Path(run.path))
    return {name: found for name, found in sorted(runs.items()) if found}


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8: any other could be written into no report."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _result_files(folder: Path) -> list[ResultFile]:
    kinds: dict[str, set[str]] = {}
    for entry in os.scandir(folder):
        if not is_text(entry.name):
            logger.warning("%s: its name is not UTF-8, so it is left out; rename it", printable(entry.path))
            continue
        match = _FILE.fullmatch(entry.name)
        if match and not entry.name.startswith("."):  # a dot: half of a file, being written
            kinds.setdefault(match["stem"], set()).add(match["kind"] or "")
    found = [ResultFile(folder, stem, frozenset(k)) for stem, k in kinds.items()]
    return sorted(found, key=lambda file: (file.epoch is None, file.epoch or 0, file.stem))


def _weight(found: Iterable[Sequence[ResultFile]]) -> tuple[int, int]:
    """Files named ``checkpoint_*`` without a dash decide (wire); where no run has one, all result files."""
    everything = [file for group in found for file in group]
    named = sum(file.stem.startswith("checkpoint_") and "-" not in file.stem for file in everything)
    return (named, 0) if named else (0, len(everything))


def choose_run(
    runs: Mapping[str, Mapping[str, Sequence[ResultFile]]], wanted: str | None, *, flag: str = "--run"
) -> str:
    """One run for a whole table. ``runs``: data set → run → files.

    ``wanted`` is a run's name or the beginning of one (a configuration's name). Without it: the run with most result
    files over these data sets. Raises DataError when several have equally many, or none fits.
    """
    names = sorted({name for of_set in runs.values() for name in of_set})
    if not names:
        raise DataError("no run with result files in any of these data sets; run inference first, or see --base-root")
    if wanted in names:
        return str(wanted)
    candidates = [name for name in names if wanted is None or name.startswith(wanted)]
    if not candidates:
        raise DataError(f"no run {wanted!r}.{did_you_mean(str(wanted), names)}")
    weights = {name: _weight(of_set[name] for of_set in runs.values() if name in of_set) for name in candidates}
    most = max(weights.values())
    best = [name for name, weight in weights.items() if weight == most]
    if len(best) > 1:
        listed = "\n".join(
            f"  {name}  ({', '.join(f'{ds}: {len(r[name])}' for ds, r in runs.items() if name in r)})" for name in best
        )
        raise DataError(
            f"{len(best)} runs have equally many result files ({sum(most)}); choose one with {flag} NAME:\n{listed}"
        )
    return best[0]


@dataclass(frozen=True)
class CheckpointChoice:
    """Which result files of a run are scored. Epochs filter files named by epoch only; a name picks that file."""

    epochs: tuple[range, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> CheckpointChoice:
        """``30-60``, ``30-60/5``, ``30,45``, a file's name without ``.npz``, or several of these with commas."""
        epochs, names = [], []
        for part in filter(None, (p.strip() for p in (text or "").split(","))):
            match = re.fullmatch(r"(\d+)(?:-(\d+)(?:/([1-9]\d*))?)?", part)
            if not match:
                names.append(part.removesuffix(".npz"))
                continue
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise ConfigError(f"--checkpoints {part}: the range is empty, its end is before its beginning")
            epochs.append(range(first, last + 1, int(match[3] or 1)))
        return cls(tuple(epochs), tuple(names))

    def lacking(self, found: Sequence[ResultFile]) -> list[int]:
        """Epochs that were asked for one by one (``45``, ``30-60/5``; a plain range is a filter) and are not there."""
        there = {file.epoch for file in found}
        exact = [epoch for epochs in self.epochs if len(epochs) == 1 or epochs.step > 1 for epoch in epochs]
        return sorted({epoch for epoch in exact if epoch not in there})

    def pick(self, found: Sequence[ResultFile], *, where: str) -> list[ResultFile]:
        """The chosen ones of a run's files. Raises DataError when there is none, or a name is unknown."""
        stems = [file.stem for file in found]
        for name in self.names:
            if name not in stems:
                raise DataError(f"{where}: no result file {name!r}.{did_you_mean(name, stems)}")
        if not self.epochs and not self.names:
            return list(found)
        picked = [
            file
            for file in found
            if file.stem in self.names
            or (file.epoch is None and not self.names)
            or any(file.epoch in epochs for epochs in self.epochs)
        ]
        if not picked:
            there = ", ".join(str(file.epoch) for file in found if file.epoch is not None)
            raise DataError(f"{where}: no checkpoint in the epochs asked for; there are {there}")
        return picked
