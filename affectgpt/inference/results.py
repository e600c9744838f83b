"""Result files: where they lie and what is in them (SPEC section 6, wire)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from affectgpt.core.errors import DataError
from affectgpt.core.npz import read_npz, write_npz

KEY = "name2reason"


def result_path(base_root: str | Path, *, dataset: str, checkpoint: Path) -> Path:
    """``{base_root}-{data set, lower case}/{checkpoint folder}/{checkpoint file}.npz``."""
    return Path(f"{base_root}-{dataset.lower()}") / checkpoint.parent.name / f"{checkpoint.stem}.npz"


def write_answers(path: str | Path, answers: Mapping[str, str]) -> None:
    """Write name → answer atomically, as one pickled dict under ``name2reason``."""
    write_npz(path, **{KEY: dict(answers)})


def read_answers(path: str | Path) -> dict[str, str]:
    """Read name → answer. Raises DataError naming the file when it is damaged or of another form."""
    content = read_npz(path)
    answers = content.get(KEY)
    if not isinstance(answers, dict):
        raise DataError(f"{path}: expected the key {KEY!r} with a dict; found {', '.join(content) or 'nothing'}")
    return {str(name): str(answer) for name, answer in answers.items()}
