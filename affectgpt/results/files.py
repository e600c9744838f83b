"""Result files: where they are and what is in them (wire)."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affectgpt.config.paths import answers_record as meta_path
from affectgpt.config.paths import beside_answers as beside
from affectgpt.config.paths import run_name
from affectgpt.core.errors import ConfigError, DataError, shortened
from affectgpt.core.files import atomic_path
from affectgpt.core.npz import read_npz, write_npz
from affectgpt.evaluation.labels import NOT_TRAINED_FORM, read_labels

KEY = "name2reason"
EXPORTS = ("csv", "jsonl")


def result_path(base_root: str | Path, *, dataset: str, checkpoint: Path, draw: int | None = None) -> Path:
    """``{base_root}-{data set, lower case}/{checkpoint folder}/{checkpoint file}.npz``.

    ``draw``: one of several answers of the checkpoint, ``…/{checkpoint folder}_samples/sample_{draw}_{file}.npz``; its
    name must not begin with ``checkpoint_``, which published scoring takes for a result of its own.
    """
    if draw is not None:
        name = f"sample_{draw}_{checkpoint.stem}.npz"
        return Path(f"{base_root}-{dataset.lower()}") / f"{run_name(checkpoint)}_samples" / name
    return Path(f"{base_root}-{dataset.lower()}") / run_name(checkpoint) / f"{checkpoint.stem}.npz"


def write_answers(path: str | Path, answers: Mapping[str, str]) -> None:
    """Write name → answer atomically, as one pickled dict under ``name2reason``."""
    write_npz(path, **{KEY: dict(answers)})


def read_answers(path: str | Path) -> dict[str, str]:
    """Read name → answer. Raises DataError naming the file when it is damaged or of another form."""
    content = read_npz(path)
    answers = content.get(KEY)
    if not isinstance(answers, dict):
        raise DataError(f"{path}: expected the key {KEY!r} with a dict; found {', '.join(content) or 'nothing'}")
    for name, answer in answers.items():
        if not isinstance(name, str) or not isinstance(answer, str):
            raise DataError(f"{path}: the answer of {shortened(name)} is {shortened(answer)}, not text")
    return answers


def read_meta(target: Path) -> dict[str, Any]:
    """What made a result file; empty where that is not known (published results). Raises DataError when damaged."""
    path = meta_path(target)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); delete it or put it right") from error


def export(target: Path, form: str) -> Path:
    """A result file as a table for people: name, answer, labels, flags; ``X-answers.csv`` or ``.jsonl``.

    Labels are those that the answer claims (see ``evaluation.labels``). Raises ConfigError and DataError.
    """
    from affectgpt.processing.questions import asks_for_labels

    if form not in EXPORTS:
        raise ConfigError(f"--export {form}: allowed: {', '.join(EXPORTS)}")
    flags: dict[str, list[str]] = {}
    meta = read_meta(target)
    for flag, names in meta.get("flags", {}).items():
        for name in names:
            flags.setdefault(name, []).append(flag)
    rows = []
    for name, text in read_answers(target).items():
        labels = read_labels(text)
        unread = [NOT_TRAINED_FORM] if labels is None and asks_for_labels(meta.get("question", "")) else []
        rows.append((name, text, labels or [], flags.get(name, []) + unread))
    path = beside(target, f".{form}")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        if form == "csv":
            writer = csv.writer(handle)
            writer.writerow(("name", "answer", "labels", "flags"))
            writer.writerows((name, text, ", ".join(labels), ", ".join(odd)) for name, text, labels, odd in rows)
        else:
            for name, text, labels, odd in rows:
                row = {"name": name, "answer": text, "labels": labels, "flags": odd}
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path
