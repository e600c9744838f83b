"""From any instruction set, the pairs whose text yields emotion labels (paper, table 3)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectgpt.captioning.labels import extract_labels
from affectgpt.core.errors import DataError, did_you_mean
from affectgpt.core.files import write_text
from affectgpt.evaluation.extract import Extractor

SUFFIXES = (".csv", ".json", ".jsonl")


@dataclass(frozen=True)
class Outcome:
    """How many pairs there are, yield labels, yield none, and could not be asked; ``stopped``: why not."""

    pairs: int
    kept: int
    empty: int
    failed: int
    stopped: Exception | None = None


def keep_nonempty(
    source: Path, target: Path, extractor: Extractor, *, columns: Sequence[str], folder: Path, dry_run: bool = False
) -> Outcome:
    """Write those records of ``source`` to ``target``, unchanged and in order, whose ``columns`` yield labels.

    ``source``: CSV; a JSON list (or an object with one under ``annotations``); or JSON lines. A column may hold lists
    and objects (LLaVA's ``conversations``): all text in them counts. What a model said is kept under ``folder``.
    Nothing is written while some pairs could not be asked. Raises DataError naming file, record and column.
    """
    if source.suffix.lower() not in SUFFIXES or target.suffix.lower() != source.suffix.lower():
        raise DataError(f"{source} → {target}: both should be {', '.join(SUFFIXES)}, and of one kind")
    if target.resolve() == source.resolve():
        raise DataError(f"{target}: would be written over itself; give another file")
    records, write = _read(source)
    texts = {str(number): _text(record, columns, f"{source}, record {number + 1}") for number, record in records}
    asked = {name: text for name, text in texts.items() if text.strip()}
    labels, (answers,) = extract_labels(asked, extractor, folder=folder, polarity=False, dry_run=dry_run)
    kept = [record for number, record in records if str(number) in labels and labels[str(number)].labels]
    failed = len(answers.failures)
    if not failed and not dry_run:
        write_text(target, write(kept))
    return Outcome(len(records), len(kept), len(records) - len(kept) - failed, failed, answers.stopped)


def _text(record: Any, columns: Sequence[str], where: str) -> str:
    parts: list[str] = []
    for column in columns:
        if not isinstance(record, dict) or column not in record:
            known = record if isinstance(record, dict) else ()
            raise DataError(f"{where}: no {column!r}.{did_you_mean(column, known)}")
        parts += _strings(record[column])
    return "\n".join(parts)


def _strings(value: Any) -> Iterator[str]:
    """All text in a value; of a turn of a conversation (``from``, ``value``) the value alone."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("from", "role"):
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _read(path: Path) -> tuple[list[tuple[int, Any]], Any]:
    """Numbered records, and what turns some of them into the text of such a file."""
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
            lines = [line for line in text.splitlines() if line.strip()]
            return list(enumerate(json.loads(line) for line in lines)), _as_lines
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: no JSON ({error})") from error
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return list(enumerate(content["annotations"])), lambda kept: _as_json({**content, "annotations": kept})
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of records, or an object with such a list under 'annotations'")
    return list(enumerate(content)), _as_json


def _csv(text: str, path: Path) -> tuple[list[tuple[int, Any]], Any]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    header = list(reader.fieldnames or ())
    rows = list(reader)
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise DataError(f"{path}, record {number}: not {len(header)} cells as the header has")

    def write(kept: list[dict[str, str]]) -> str:
        out = io.StringIO()
        writer = csv.DictWriter(out, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        return out.getvalue()

    return list(enumerate(rows)), write


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def _as_lines(kept: list[Any]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
