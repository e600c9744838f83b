"""The fixture of all inference tests."""

from __future__ import annotations

import pytest
from tiny_world import World, write_corpus, write_run


@pytest.fixture(scope="session")
def world(tiny_models, tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("world")
    made = World(root, tiny_models)
    write_corpus(root / "dataset", 10)
    write_run(made.run_folder, made.config(), (11, 12))
    return made
