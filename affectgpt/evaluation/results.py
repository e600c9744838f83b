"""Result files: their names, their contents, and finding those of a run (wire).

``{base_root}-{data set, lower case}/{run}/X.npz`` holds a checkpoint's answers (``name2reason``). Beside it:

- ``X-openset.npz``: labels that a language model extracted; ``X-openset-direct.npz``: labels that were read directly;
  ``X-openset-NAME.npz``: by an extractor of one's own; with ``-sentiment`` polarity words. String arrays ``filenames``
  and ``fileitems``.
- ``X-openset.meta.json``: the record of an extraction. The published files have none.
- ``X-answers.meta.json``, ``X-answers.failed.csv``, ``X-answers.partN.jsonl``: the record of the answers, the samples
  without one, and, while inference runs, what each process has finished.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.config.paths import answers_record as meta_path
from affectgpt.config.paths import beside_answers as beside
from affectgpt.config.paths import run_name
from affectgpt.core.errors import ConfigError, DataError, did_you_mean, printable, shortened
from affectgpt.core.files import atomic_path, locked, parse_json, write_json
from affectgpt.core.journal import Journal
from affectgpt.core.names import check_name
from affectgpt.core.npz import read_npz, write_npz
from affectgpt.core.runtime import logger
from affectgpt.core.tables import read_table
from affectgpt.datasets.table import DatasetRow
from affectgpt.evaluation.labels import NOT_TRAINED_FORM, read_labels

KEY = "name2reason"
ANSWER_FORMATS = (".csv", ".jsonl", ".npz")
EXPORTS = ("csv", "jsonl")
LLM, DIRECT = "llm", "direct"  # how labels were extracted; each has its own file names
RECORD_VERSION = 1
UNKNOWN = "unknown extractor (no meta file)"

_FILE = re.compile(r"(?P<stem>.+?)(?P<kind>-openset(?:-(?!sentiment)\w+)?(?:-sentiment)?)?\.npz")
_EPOCH = re.compile(r"checkpoint_(\d+)(?:_|$)")
_SAMPLE = re.compile(r"sample_\d+_(?P<stem>.+)")


def suffix_of(extraction: str) -> str:
    """Return what the names of an extraction's files have after ``-openset``: nothing for LLM, else its name."""
    return "" if extraction == LLM else f"-{extraction}"


# Answers


def result_path(base_root: str | Path, *, dataset: str, checkpoint: Path, draw: int | None = None) -> Path:
    """``{base_root}-{data set, lower case}/{checkpoint folder}/{checkpoint file}.npz``.

    ``draw``: one of several answers of the checkpoint, ``…/{checkpoint folder}_samples/sample_{draw}_{file}.npz``; its
    name must not begin with ``checkpoint_``, which published scoring takes for a result of its own.
    """
    folder = Path(f"{base_root}-{dataset.lower()}")
    if draw is not None:
        return folder / f"{run_name(checkpoint)}_samples" / f"sample_{draw}_{checkpoint.stem}.npz"
    return folder / run_name(checkpoint) / f"{checkpoint.stem}.npz"


def write_answers(path: str | Path, answers: Mapping[str, str]) -> None:
    """Write name → answer atomically, as one pickled dict under ``name2reason``."""
    write_npz(path, **{KEY: dict(answers)})


def read_answers(path: str | Path) -> dict[str, str]:
    """Name → answer of a result file. Raises DataError naming the file when it is damaged or of another form."""
    content = read_npz(path)
    answers = content.get(KEY)
    if not isinstance(answers, dict):
        keys = ", ".join(content) or "none"
        raise DataError(f"{path}: not an answers file: it should hold a dict under the key {KEY}; keys: {keys}")
    wrong = [name for name, answer in answers.items() if not isinstance(name, str) or not isinstance(answer, str)]
    if wrong:
        first = ", ".join(f"{shortened(name)} ({shortened(answers[name])})" for name in wrong[:3])
        raise DataError(f"{path}: {len(wrong)} of {len(answers)} answers are not text: {first}; answer these again")
    return {str(name): str(answer) for name, answer in answers.items()}


def read_answer_table(path: Path) -> dict[str, str]:
    """Name → answer of any model: CSV (columns name, answer), JSON lines (keys name, answer) or a result file.

    Raises DataError naming file, line and sample.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return {name: cells[0] for name, cells in read_table(path, key="name", columns=("answer",)).items()}
    if suffix == ".npz":
        return read_answers(path)
    if suffix != ".jsonl":
        formats = ", ".join(ANSWER_FORMATS)
        raise DataError(f"{path}: answers are read from {formats}, not from {suffix or 'a file without suffix'}")
    answers: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error})") from error
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "answer")):
            raise DataError(f'{where}: expected {{"name": "…", "answer": "…"}}, both text; found {line[:80]}')
        name = check_name(entry["name"], source=where)
        if name in answers:
            raise DataError(f"{where}: sample {name!r} is there twice; remove one")
        answers[name] = entry["answer"]
    if not answers:
        raise DataError(f"{path}: it holds no answer")
    return answers


def read_meta(target: Path) -> dict[str, Any]:
    """The record of a result file; empty where there is none (published results). Raises DataError when damaged."""
    path = meta_path(target)
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); delete it or put it right") from error
    if not isinstance(meta, dict):
        raise DataError(f"{path}: no record of answers; delete it or put it right")
    return meta


def export(target: Path, form: str) -> Path:
    """Write a result file as a table for people: name, answer, labels, flags; ``X-answers.csv`` or ``.jsonl``.

    Labels are those that the answer claims (see ``evaluation.labels``). Raises ConfigError and DataError.
    """
    from affectgpt.processing.questions import asks_for_labels

    if form not in EXPORTS:
        raise ConfigError(f"--export {form}: allowed: {', '.join(EXPORTS)}")
    meta = read_meta(target)
    flags: dict[str, list[str]] = {}
    for flag, names in meta.get("flags", {}).items():
        for name in names:
            flags.setdefault(name, []).append(flag)
    rows = []
    for name, answer in read_answers(target).items():
        labels = read_labels(answer)
        unread = [NOT_TRAINED_FORM] if labels is None and asks_for_labels(meta.get("question", "")) else []
        rows.append((name, answer, labels or [], flags.get(name, []) + unread))
    path = beside(target, f".{form}")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        if form == "csv":
            writer = csv.writer(handle)
            writer.writerow(("name", "answer", "labels", "flags"))
            writer.writerows((name, answer, ", ".join(labels), ", ".join(odd)) for name, answer, labels, odd in rows)
        else:
            for row in rows:
                line = dict(zip(("name", "answer", "labels", "flags"), row, strict=True))
                handle.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


class ResultShard:
    """The part of a result file that one process answers, kept in a journal of its own beside the file.

    Sample number i of ``names`` (in the order in which they are worked on) belongs to process ``i % world_size``.
    Whoever finishes last writes the file: no process waits for another, and after a kill any number of processes may
    resume, for all journals of the same ``key`` are read.
    """

    def __init__(self, target: Path, *, names: Sequence[str], key: str, rank: int = 0, world_size: int = 1) -> None:
        self.target, self.names, self.key = target, names, key
        mine = set(names[rank::world_size])
        # The number of processes may have changed since: entries of every journal count, whoever wrote them.
        self._journal = Journal(self._path(rank), key=key)
        done = self._entries()
        self.pending = {name for name in mine if "answer" not in done.get(name, {})}
        self._attempts: dict[str, int] = {}
        for name in sorted(self.pending & set(done)):  # failed before: no failure until this attempt has failed too
            self._attempts[name] = done[name].get("attempt", 0) + 1
            self._journal.add(name, {"attempt": self._attempts[name]})
        if len(self.pending) < len(mine):
            logger.info("%s: %d of %d answers are there already", target, len(mine) - len(self.pending), len(mine))

    def _path(self, rank: int | str) -> Path:
        return beside(self.target, f".part{rank}.jsonl")

    def _parts(self) -> list[Path]:
        return sorted(self.target.parent.glob(self._path("*").name.replace("[", "[[]")))

    def _entries(self) -> dict[str, Any]:
        """Merge the journals of all processes: an answer of any counts most, then the latest attempt."""

        def weight(entry: Mapping[str, Any]) -> tuple[bool, int, bool]:
            return "answer" in entry, entry.get("attempt", 0), "failed" in entry

        entries: dict[str, Any] = {}
        for part in self._parts():
            for name, value in Journal.read(part, key=self.key).items():
                if name not in entries or weight(value) > weight(entries[name]):
                    entries[name] = value
        return entries

    def add(self, name: str, *, answer: str, flags: Sequence[str], tokens: int, **costs: float) -> None:
        """Keep one answer; ``costs``: what else it took, for the record."""
        self._journal.add(name, {"answer": answer, "flags": list(flags), "tokens": tokens, **costs})

    def fail(self, name: str, reason: str) -> None:
        """Note a sample that cannot be read; the next attempt tries it again."""
        self._journal.add(name, {"failed": reason, "attempt": self._attempts.get(name, 0)})

    def finish(self, *, dataset: str, order: Sequence[str], write_meta: Callable[[Mapping[str, Any]], None]) -> bool:
        """Write the result file if no answer is missing any more; False while other processes still work.

        ``order``: the names as the file lists them. ``write_meta`` gets name → entry of everything.
        """
        self._journal.close()
        with locked(self.target.parent):
            if self.target.exists():  # another process was the last
                return True
            entries = self._entries()
            finished = {name for name, entry in entries.items() if "answer" in entry or "failed" in entry}
            missing = len(set(self.names) - finished)
            if missing:
                logger.info("%s: %d answers of other processes are awaited", self.target, missing)
                return False
            failed = {name: entries[name]["failed"] for name in order if "failed" in entries[name]}
            failed_path = beside(self.target, ".failed.csv")
            if failed:
                write_failed(failed_path, dataset, failed)
                logger.warning("%s: %d samples lack, see %s", self.target, len(failed), failed_path)
            else:
                failed_path.unlink(missing_ok=True)
            # the record first: where the file is, its record is too
            write_meta({name: entries[name] for name in order})
            write_answers(self.target, {n: entries[n]["answer"] for n in order if n not in failed})
            for part in self._parts():
                part.unlink()
        return True

    def __enter__(self) -> ResultShard:
        return self

    def __exit__(self, *exc: object) -> None:
        self._journal.close()


def write_failed(path: Path, dataset: str, failed: Mapping[str, str]) -> None:
    """Write the table of samples without an answer: data set, sample, reason."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("dataset", "sample", "reason"))
        writer.writerows((dataset, name, reason) for name, reason in failed.items())


# Extracted labels


def items_path(answers: Path, suffix: str = "", *, polarity: bool = False) -> Path:
    """The extraction file of ``X.npz``: ``X-openset.npz``, with the suffix ``-direct`` ``X-openset-direct.npz``; with
    ``polarity`` the same with ``-sentiment``."""
    return answers.with_name(f"{answers.stem}-openset{suffix}{'-sentiment' if polarity else ''}.npz")


def holds_items(path: Path) -> bool:
    """True for an npz file of extracted labels, False for a file of answers."""
    return path.suffix.lower() == ".npz" and "fileitems" in read_npz(path)


def read_items(path: Path) -> dict[str, str]:
    """An extraction file, name → item, in its order. Raises DataError when it is anything else."""
    values = read_npz(path)
    columns = []
    # string arrays only: an array of objects would be a pickle
    for key in ("filenames", "fileitems"):
        column = values.get(key)
        if not isinstance(column, np.ndarray) or column.ndim != 1 or column.dtype.kind != "U":
            keys = ", ".join(values) or "none"
            raise DataError(f"{path}: should hold a string array under the key {key}; keys: {keys}")
        columns.append([str(value) for value in column])
    names, items = columns
    if len(names) != len(items) or len(set(names)) != len(names):
        raise DataError(
            f"{path}: {len(names)} filenames ({len(set(names))} different) and {len(items)} fileitems; "
            "each name should have one item. Delete the file to extract again"
        )
    return dict(zip(names, items, strict=True))


def write_items(path: Path, items: Mapping[str, str], *, record: Mapping[str, Any]) -> None:
    """Write an extraction file and its record.

    The record goes first and holds the hash of the file to come: a kill between the two leaves a record that does
    not fit, never a file whose origin is unknown.
    """
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, filenames=np.array(list(items)), fileitems=np.array(list(items.values())))
        record = {"version": RECORD_VERSION, **record, "items": len(items), "file_sha256": file_sha256(temporary)}
        write_json(record_path(path), record)


def record_path(path: Path) -> Path:
    """The record beside an extraction file."""
    return path.with_suffix(".meta.json")


def read_record(path: Path) -> dict[str, Any] | None:
    """The record beside an extraction file; None where there is none (the published files have none)."""
    try:
        record = json.loads(record_path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{record_path(path)}: damaged ({error}); delete it and {path.name} to extract again"
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise DataError(f"{record_path(path)}: no record of an extraction; delete it and {path.name} to extract again")
    return record


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content_sha256(table: Mapping[str, Any]) -> str:
    """Hash of names and texts, whatever the file that holds them is compressed with; of settings likewise."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def describe(path: str | Path) -> str:
    """The extractor of a file in a few words for a report.

    ``direct``, ``votes of 7 files, at least 3``, ``transformers Qwen2.5-7B-Instruct, seed 42`` or ``unknown extractor
    (no meta file)``.
    """
    record = read_record(Path(path))
    if record is None:
        return UNKNOWN
    settings = record["settings"]
    words = str(settings.get("extractor", "?"))
    if settings.get("model"):
        words += f" {settings['model']}"
    if isinstance(settings.get("voters"), dict):
        needed = f"at least {settings['at_least']}" if "at_least" in settings else "majority"
        words += f" of {len(settings['voters'])} files, {needed}"
    if isinstance(settings.get("sampling"), dict):
        words += f", seed {settings['sampling'].get('seed')}"
    return words


def check_source(path: Path, *, answers: Path) -> None:
    """Raise DataError where an extraction file was made from other answers than those that are beside it now.

    A file without a record (published) passes, and so does one whose answers are not there.
    """
    record = read_record(path)
    settings = record["settings"] if record is not None else {}
    source, key = answers, "answers_sha256"
    if "labels_sha256" in settings:  # polarity words are made from labels, and those from answers
        source, key = path.with_name(path.name.replace("-sentiment.npz", ".npz")), "labels_sha256"
        if source.exists():
            check_source(source, answers=answers)
    if key not in settings or not source.exists():
        return
    if content_sha256(read_answers(source) if source == answers else read_items(source)) != settings[key]:
        raise DataError(
            f"{path}: was extracted from other contents than {source.name} has now. Extract again: evaluation.py "
            "--overwrite (with --extractor direct, no language model is needed)"
        )


# The files of a run


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
        """The answers file, there or not (of released results only the labels may have been downloaded)."""
        return self.folder / f"{self.stem}.npz"

    def extracted(self, extraction: str, *, polarity: bool) -> Path:
        """The extraction file that a metric reads, there or not."""
        return items_path(self.answers, suffix_of(extraction), polarity=polarity)

    def has(self, extraction: str, *, polarity: bool) -> bool:
        """True where that file is there."""
        return f"-openset{suffix_of(extraction)}{'-sentiment' if polarity else ''}" in self.kinds


def results_folder(base_root: str | os.PathLike[str], row: DatasetRow) -> Path:
    """The folder that holds all runs on one data set."""
    return Path(f"{os.fspath(base_root)}-{row.name.lower()}")


def _entries(folder: Path) -> Iterable[os.DirEntry[str]]:
    """The entries of a folder whose names are UTF-8; any other could be written into no report."""
    for entry in os.scandir(folder):
        if any("\ud800" <= character <= "\udfff" for character in entry.name):
            logger.warning("%s: its name is not UTF-8, so it is left out; rename it", printable(entry.path))
        else:
            yield entry


def list_runs(base_root: str | os.PathLike[str], row: DatasetRow) -> dict[str, list[ResultFile]]:
    """Run → its result files by epoch, then name. Folders without any are left out; no folder gives no run."""
    folder = results_folder(base_root, row)
    runs = {}
    for run in _entries(folder) if folder.is_dir() else ():
        if not run.is_dir():
            continue
        kinds: dict[str, set[str]] = {}
        for entry in _entries(Path(run.path)):
            match = _FILE.fullmatch(entry.name)
            if match and not entry.name.startswith("."):  # a dot: half of a file, being written
                kinds.setdefault(match["stem"], set()).add(match["kind"] or "")
        files = [ResultFile(Path(run.path), stem, frozenset(found)) for stem, found in kinds.items()]
        if files:
            runs[run.name] = sorted(files, key=lambda file: (file.epoch is None, file.epoch or 0, file.stem))
    return dict(sorted(runs.items()))


def choose_run(runs: Mapping[str, Mapping[str, Sequence[ResultFile]]], run: str | None, *, flag: str = "--run") -> str:
    """One run for a whole table. ``runs``: data set → run → files.

    ``wanted`` is a run's name or the beginning of one (a configuration's name). Without it: the run with most result
    files over these data sets. Raises DataError when several have equally many, or none fits.
    """
    names = sorted({name for of_set in runs.values() for name in of_set})
    if not names:
        raise DataError("no run with result files in any of these data sets; run inference first, or see --base-root")
    if run in names:
        return str(run)
    candidates = [name for name in names if run is None or name.startswith(run)]
    if not candidates:
        raise DataError(f"no run {run!r}.{did_you_mean(str(run), names)}")

    def weight(name: str) -> tuple[int, int]:
        """Files named ``checkpoint_*`` without a dash decide (wire); where no run has one, all result files."""
        files = [file for of_set in runs.values() for file in of_set.get(name, ())]
        named = sum(file.stem.startswith("checkpoint_") and "-" not in file.stem for file in files)
        return (named, 0) if named else (0, len(files))

    most = max(map(weight, candidates))
    best = [name for name in candidates if weight(name) == most]
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
    """The result files of a run to score. Epochs filter files named by epoch only; a name picks that file."""

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

    def lacking(self, files: Sequence[ResultFile]) -> list[int]:
        """Epochs that were asked for one by one (``45``, ``30-60/5``; a plain range is a filter) and are not there."""
        there = {file.epoch for file in files}
        exact = [epoch for epochs in self.epochs if len(epochs) == 1 or epochs.step > 1 for epoch in epochs]
        return sorted({epoch for epoch in exact if epoch not in there})

    def pick(self, files: Sequence[ResultFile], *, where: str) -> list[ResultFile]:
        """The chosen ones of a run's files. Raises DataError when there is none, or a name is unknown."""
        stems = [file.stem for file in files]
        for name in self.names:
            if name not in stems:
                raise DataError(f"{where}: no result file {name!r}.{did_you_mean(name, stems)}")
        if not self.epochs and not self.names:
            return list(files)
        picked = [
            file
            for file in files
            if file.stem in self.names
            or (file.epoch is None and not self.names)
            or any(file.epoch in epochs for epochs in self.epochs)
        ]
        if not picked:
            there = ", ".join(str(file.epoch) for file in files if file.epoch is not None)
            raise DataError(f"{where}: no checkpoint in the epochs asked for; there are {there}")
        return picked
