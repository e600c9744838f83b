"""Fixtures of the evaluation tests, made by small_benchmark.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_benchmark import Bench, make_bench, write_lexicon

from affectgpt.evaluation.lexicon import Lexicon, load_folder


@pytest.fixture(scope="session")
def lexicon_folder(tmp_path_factory) -> Path:
    return write_lexicon(tmp_path_factory.mktemp("lexicon") / "emotion_wheel")


@pytest.fixture(scope="session")
def lexicon(lexicon_folder: Path) -> Lexicon:
    return load_folder(lexicon_folder)


@pytest.fixture
def bench(tmp_path: Path, lexicon_folder: Path) -> Bench:
    return make_bench(tmp_path, lexicon_folder)
