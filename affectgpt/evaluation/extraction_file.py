"""Files of extracted labels, and the record beside each of how it was made.

``X-openset.npz`` holds string arrays ``filenames`` and ``fileitems`` (wire), ``X-openset.meta.json`` what made it, and
``X-openset.journal.jsonl``, while it is being made, the items that are finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.config.paths import answers_record
from affectgpt.core.errors import DataError, shortened
from affectgpt.core.files import atomic_path, write_json
from affectgpt.core.journal import Journal
from affectgpt.core.npz import read_npz
from affectgpt.core.runtime import logger
from affectgpt.evaluation.extract_llm import EARLIER_PROMPTS

META_VERSION = 1
UNKNOWN = "unknown extractor (no meta file)"
_WORDING = ("prompt_sha256", "cleaning")  # settings: what is asked, and how a reply is cleaned


def labels_path(answers_path: Path, suffix: str = "") -> Path:
    """``X.npz`` → ``X-openset.npz``; with the suffix ``-direct``, ``X-openset-direct.npz``."""
    return answers_path.with_name(f"{answers_path.stem}-openset{suffix}.npz")


def sentiment_path(answers_path: Path, suffix: str = "") -> Path:
    """``X.npz`` → ``X-openset-sentiment.npz``; with the suffix ``-direct``, ``X-openset-direct-sentiment.npz``."""
    return answers_path.with_name(f"{answers_path.stem}-openset{suffix}-sentiment.npz")


def meta_path(path: Path) -> Path:
    """The record beside an extraction file."""
    return path.with_suffix(".meta.json")


def journal_path(path: Path) -> Path:
    """The finished items of an extraction file that is not written yet."""
    return path.with_suffix(".journal.jsonl")


def read_answers(path: Path) -> dict[str, str]:
    """``name2reason`` of an answers file, name → answer, in its order. Raises DataError when it is anything else."""
    values = read_npz(path)
    answers = values.get("name2reason")
    if not isinstance(answers, dict):
        found = ", ".join(values) or "none"
        raise DataError(f"{path}: not an answers file: it should hold a dict under the key name2reason; keys: {found}")
    if not answers:
        raise DataError(f"{path}: name2reason is empty, there is no answer to read")
    wrong = [name for name, answer in answers.items() if not isinstance(name, str) or not isinstance(answer, str)]
    if wrong:
        first = ", ".join(f"{shortened(name)} ({shortened(answers[name])})" for name in wrong[:3])
        raise DataError(f"{path}: {len(wrong)} of {len(answers)} answers are not text: {first}; answer these again")
    return {str(name): str(answer) for name, answer in answers.items()}


def unreadable(answers_path: Path) -> frozenset[str]:
    """Names that inference left out because their files could not be read, by its record beside the answers."""
    try:
        record = json.loads(answers_record(answers_path).read_text(encoding="utf-8"))
        return frozenset(map(str, record.get("failed", ())))
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{answers_record(answers_path)}: damaged ({error}); delete it") from error


def read_items(path: Path) -> dict[str, str]:
    """An extraction file, name → item, in its order. Raises DataError when it is anything else."""
    values = read_npz(path)
    columns = []
    for key in ("filenames", "fileitems"):
        column = values.get(key)
        if not isinstance(column, np.ndarray) or column.ndim != 1 or column.dtype.kind != "U":
            found = ", ".join(values) or "none"
            raise DataError(f"{path}: should hold a string array under the key {key}; keys: {found}")
        columns.append([str(value) for value in column])
    names, items = columns
    if len(names) != len(items) or len(set(names)) != len(names):
        raise DataError(
            f"{path}: {len(names)} filenames ({len(set(names))} different) and {len(items)} fileitems; "
            "each name should have one item. Delete the file to extract again"
        )
    return dict(zip(names, items, strict=True))


def checked_items(path: Path, *, answers: Path) -> dict[str, str]:
    """``read_items``, after ``check_source``."""
    check_source(path, answers=answers)
    return read_items(path)


def write_items(path: Path, items: Mapping[str, str], *, meta: Mapping[str, Any]) -> None:
    """Write an extraction file and its record.

    The record goes first and holds the hash of the file to come: a kill between the two leaves a record that does
    not fit, never a file whose origin is unknown.
    """
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, filenames=np.array(list(items)), fileitems=np.array(list(items.values())))
        write_json(meta_path(path), {**meta, "items": len(items), "file_sha256": file_sha256(temporary)})


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content_sha256(table: Mapping[str, str]) -> str:
    """Hash of names and texts, whatever the file that holds them is compressed with."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def settings_key(settings: Mapping[str, Any]) -> str:
    """Hash of everything that decides what an extraction file holds."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def read_meta(path: Path) -> dict[str, Any] | None:
    """The record beside an extraction file; None where there is none (the published files have none)."""
    try:
        meta = json.loads(meta_path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{meta_path(path)}: damaged ({error}); delete it and {path.name} to extract again") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("settings"), dict):
        raise DataError(f"{meta_path(path)}: no record of an extraction; delete it and {path.name} to extract again")
    return meta


def describe(path: str | Path) -> str:
    """Which extractor made a file, in a few words for a report.

    ``direct``, ``votes of 7 files, at least 3``, ``transformers Qwen2.5-7B-Instruct, seed 42`` (and ``, earlier wording
    of the prompt`` where it was not asked as published) or ``unknown extractor (no meta file)``.
    """
    meta = read_meta(Path(path))
    if meta is None:
        return UNKNOWN
    settings = meta["settings"]
    words = str(settings.get("extractor", "?"))
    if settings.get("model"):
        words += f" {settings['model']}"
    if isinstance(settings.get("voters"), dict):
        needed = f"at least {settings['at_least']}" if "at_least" in settings else "majority"
        words += f" of {len(settings['voters'])} files, {needed}"
    if isinstance(settings.get("sampling"), dict):
        words += f", seed {settings['sampling'].get('seed')}"
    if settings.get("prompt_sha256") in EARLIER_PROMPTS:
        words += ", earlier wording of the prompt"
    return words


def check_source(path: Path, *, answers: Path) -> None:
    """Raise DataError where an extraction file was made from other answers than those that are beside it now.

    A file without a record (published) passes, and so does one whose answers are not there.
    """
    meta = read_meta(path)
    settings = meta["settings"] if meta is not None else {}
    made_from = {"answers_sha256": answers}
    if "labels_sha256" in settings:  # polarity words are made from labels, and those from answers
        labels = path.with_name(path.name.replace("-sentiment.npz", ".npz"))
        made_from = {"labels_sha256": labels}
        if labels.exists():
            check_source(labels, answers=answers)
    for key, source in made_from.items():
        if key not in settings or not source.exists():
            continue
        if content_sha256(read_answers(source) if source == answers else read_items(source)) != settings[key]:
            raise DataError(
                f"{path}: was extracted from other contents than {source.name} has now. Extract again: evaluation.py "
                "--overwrite (with --extractor direct, no language model is needed)"
            )


def is_reusable(path: Path, *, settings: Mapping[str, Any], names: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the extraction file at ``path`` is what ``settings`` would make; False: make it.

    A file without a record counts as published and is taken as it is, if it holds these names. So is one that differs
    in nothing but an earlier wording of the prompt, with a warning. One made otherwise is never taken: False with
    ``overwrite``, else DataError saying what differs.
    """
    if not path.exists():
        return False
    if Journal.peek_key(journal_path(path)) == settings_key(settings):
        return False  # replacing it under these settings was begun, and killed
    meta = read_meta(path)
    if meta is None:
        differences = _name_differences(path, names)
        if not differences and not overwrite:
            return True
    elif meta.get("file_sha256") != file_sha256(path):
        differences = ["the file itself was changed after it was made"]
    else:
        differences = _differences(meta["settings"], settings)
        if not differences:
            return True
        if meta["settings"].get("prompt_sha256") in EARLIER_PROMPTS and not overwrite:
            wording = {key: settings.get(key) for key in _WORDING}
            if not _differences({**meta["settings"], **wording}, settings):
                logger.warning(
                    "%s: was extracted with an earlier wording of the prompt, and stays as it is; --overwrite extracts "
                    "it again as published", path,
                )  # fmt: skip
                return True
    if overwrite:
        return False
    raise DataError(
        f"{path}: made otherwise than asked for: {'; '.join(differences)}. "
        "Say --overwrite (overwrite=True) to extract again, or delete the file, or give the settings it was made with; "
        "evaluation-scoreonly.py scores it as it is"
    )


def _name_differences(path: Path, names: Mapping[str, Any]) -> list[str]:
    found = read_items(path)
    missing = [name for name in names if name not in found]
    extra = [name for name in found if name not in names]
    words = [f"no item for {len(missing)} answers (first: {', '.join(missing[:3])})"] if missing else []
    return words + ([f"{len(extra)} items without an answer (first: {', '.join(extra[:3])})"] if extra else [])


def _differences(made: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key: it has a, asked for b`` for every setting that differs, in nested sections too."""
    words = []
    for key in sorted({*made, *asked}):
        old, new = made.get(key), asked.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            words += _differences(old, new, f"{prefix}{key}.")
        elif old != new and not (key == "model_sha256" and (old is None or new is None)):  # weights not at hand
            words.append(f"{prefix}{key}: it has {_short(key, old)}, asked for {_short(key, new)}")
    return words


def _short(key: str, value: Any) -> str:
    return str(value)[:12] + "…" if key.endswith("sha256") and value else repr(value)
