"""A tiny recipe: a training set of drawn numbers, and a configuration file for train.py."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from training_recipe import write_recipe, write_training_set


@pytest.fixture(scope="session")
def training_set(tmp_path_factory) -> Path:
    return write_training_set(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def recipe(tmp_path, tiny_models, training_set):
    """``recipe(**run)`` writes tiny.yaml (two epochs of five steps of three samples) and gives its path."""
    return partial(write_recipe, tmp_path, models=tiny_models, dataset=training_set)
