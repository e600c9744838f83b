"""From any instruction set, the pairs whose text yields emotion labels (paper, table 3)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectgpt.captioning.labels import extract_labels
from affectgpt.core.errors import DataError, did_you_mean
from affectgpt.core.files import parse_json, write_text
from affectgpt.evaluation.extract import Extractor

SUFFIXES = (".csv", ".json", ".jsonl")


@dataclass(frozen=True)
class NonemptyCounts:
    """Numbers of pairs: all, with labels, without, not asked; ``stopped``: why not."""

    pairs: int
    kept: int
    empty: int
    failed: int
    stopped: Exception | None = None


def keep_nonempty(
    source: Path,
    target: Path,
    extractor: Extractor,
    *,
    columns: Sequence[str] = (),
    dialogue: str | None = None,
    folder: Path,
    dry_run: bool = False,
) -> NonemptyCounts:
    """Write the pairs of ``source`` whose text yields emotion labels to ``target``, unchanged and in their order.

    ``columns`` hold the text of a record, which is one pair. ``dialogue`` names a list of turns instead (LLaVA's
    ``conversations``, VideoChat's ``QA``), each question with its answer a pair: a record keeps those that yield
    labels. ``source``: CSV, JSON lines, or JSON in the shapes of published sets (a list, an object that holds one, an
    object name → object). What a model said is kept under ``folder``. Nothing is written while some pairs could not be
    asked. Raises DataError naming file, record and column.
    """
    if source.suffix.lower() not in SUFFIXES or target.suffix.lower() != source.suffix.lower():
        raise DataError(f"{source} → {target}: both should be {', '.join(SUFFIXES)}, and of one kind")
    if target.resolve() == source.resolve():
        raise DataError(f"{target}: would be written over itself; give another file")
    records, write = _read(source)
    pairs = {key: _pairs(record, columns, dialogue, f"{source}, record {key}") for key, record in records.items()}
    texts = {f"{key}\t{i}": text for key, found in pairs.items() for i, text in enumerate(found) if text.strip()}
    labels, (answers,) = extract_labels(texts, extractor, folder=folder, polarity=False, dry_run=dry_run)
    good = {name for name, said in labels.items() if said.labels}
    kept = {}
    for key, record in records.items():
        numbers = [i for i in range(len(pairs[key])) if f"{key}\t{i}" in good]
        if numbers:
            kept[key] = record if dialogue is None else {**record, dialogue: _turns_of(record[dialogue], numbers)}
    failed = len(answers.failures)
    if not failed and not dry_run:
        write_text(target, write(kept))
    total = sum(map(len, pairs.values()))
    return NonemptyCounts(total, len(good), total - len(good) - failed, failed, answers.stopped)


def _pairs(record: Any, columns: Sequence[str], dialogue: str | None, where: str) -> list[str]:
    """The texts of a record's pairs."""
    for column in [*columns, *([dialogue] if dialogue else [])]:
        if not isinstance(record, dict) or column not in record:
            known = record if isinstance(record, dict) else ()
            raise DataError(f"{where}: no {column!r}.{did_you_mean(column, known)}")
    if dialogue is None:
        return ["\n".join(text for column in columns for text in _strings(record[column]))]
    turns = record[dialogue]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{where}: {dialogue!r} is not a list of turns; give it with --columns if it is a text")
    if len(turns) % _per_pair(turns):
        raise DataError(f"{where}: {dialogue!r} has {len(turns)} turns; each question needs an answer")
    return ["\n".join(_strings(part)) for part in _split(turns)]


def _per_pair(turns: list[dict[str, Any]]) -> int:
    """Turns that make a pair: question and answer one after the other, or both in one."""
    return 2 if turns and ("from" in turns[0] or "role" in turns[0]) else 1


def _split(turns: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    size = _per_pair(turns)
    return [turns[at : at + size] for at in range(0, len(turns), size)]


def _turns_of(turns: list[dict[str, Any]], pairs: Sequence[int]) -> list[dict[str, Any]]:
    parts = _split(turns)
    return [turn for number in pairs for turn in parts[number]]


def _strings(value: Any) -> Iterator[str]:
    """All text in a value; of a turn not who speaks."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("from", "role"):
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


Records = dict[str, Any]  # number or name → record
Write = Callable[[Records], str]


def _read(path: Path) -> tuple[Records, Write]:
    """The records of a file, and what turns some of them into the text of such a file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    try:
        if path.suffix.lower() == ".csv":
            return _csv(text, path)
        if path.suffix.lower() == ".jsonl":
            return _numbered([parse_json(line) for line in text.splitlines() if line.strip()]), _as_lines
        content = parse_json(text)
    except ValueError as error:
        raise DataError(f"{path}: no JSON ({error})") from error
    if isinstance(content, list):
        return _numbered(content), lambda kept: _as_json(list(kept.values()))
    if isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        return dict(content), _as_json
    lists = [key for key, value in content.items() if isinstance(value, list)] if isinstance(content, dict) else []
    if len(lists) != 1:
        raise DataError(
            f"{path}: expected a list of records, an object that holds one such list, or an object name → record"
        )
    return _numbered(content[lists[0]]), lambda kept: _as_json({**content, lists[0]: list(kept.values())})


def _numbered(records: list[Any]) -> Records:
    return {str(number): record for number, record in enumerate(records, start=1)}


def _csv(text: str, path: Path) -> tuple[Records, Write]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    header = list(reader.fieldnames or ())
    rows = list(reader)
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise DataError(f"{path}, record {number}: not {len(header)} cells as the header has")

    def write(kept: Records) -> str:
        out = io.StringIO()
        writer = csv.DictWriter(out, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept.values())
        return out.getvalue()

    return _numbered(rows), write


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def _as_lines(kept: Records) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept.values())
