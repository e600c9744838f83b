"""Answers of any model, from a table: what ``--answers FILE`` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from affectgpt.core.errors import DataError
from affectgpt.core.files import parse_json
from affectgpt.core.names import check_name
from affectgpt.core.npz import read_npz, write_npz
from affectgpt.core.tables import read_table
from affectgpt.evaluation import extraction_file as files

LONGEST_ENDING = "-openset-direct-sentiment.meta.json"  # of the files that an answers file gets beside it
FORMATS = (".csv", ".jsonl", ".npz")


def read_answers(path: Path) -> dict[str, str]:
    """Name → answer of a CSV file (columns name, answer), JSON lines (keys name, answer) or an answers npz.

    Raises DataError naming file, line and sample.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return {name: cells[0] for name, cells in read_table(path, key="name", columns=("answer",)).items()}
    if suffix == ".jsonl":
        return _read_jsonl(path)
    if suffix == ".npz":
        return files.read_answers(path)
    raise DataError(f"{path}: answers are read from {', '.join(FORMATS)}, not from {suffix or 'a file without suffix'}")


def holds_items(path: Path) -> bool:
    """Whether an npz file holds extracted labels already, not answers."""
    return path.suffix.lower() == ".npz" and "fileitems" in read_npz(path)


def _read_jsonl(path: Path) -> dict[str, str]:
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


def import_answers(answers: Mapping[str, str], target: Path) -> None:
    """Write answers as a result file, unless the same ones are there. Raises DataError when others are."""
    if target.exists():
        if files.read_answers(target) != dict(answers):
            raise DataError(f"{target}: holds other answers; give these a name of their own with --run NAME")
        return
    write_npz(target, name2reason=dict(answers))


def direct_items(answers: Mapping[str, str], *, polarity: bool) -> tuple[dict[str, str], list[str]]:
    """Items as the direct extractor gives them, and the names of the answers that it could not read."""
    from affectgpt.evaluation.labels import polarity as polarity_of
    from affectgpt.evaluation.labels import read_labels

    items, unread = {}, []
    for name, answer in answers.items():
        labels = read_labels(answer)
        if labels is None:
            unread.append(name)
        if answer.strip():  # an empty answer is a missing one
            items[name] = polarity_of(labels or []) if polarity else f"[{', '.join(labels or [])}]"
    return items, unread
