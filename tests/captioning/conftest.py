"""A world to annotate, and servers that misbehave."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_annotation import World, make_world


@pytest.fixture(scope="session")
def small_world(tiny_models, tmp_path_factory) -> World:
    """Thirty clips, six of them with media; read only (give runs a work folder of their own)."""
    return make_world(tmp_path_factory.mktemp("annotation"), tiny_models, clips=30, media=6, human=180)


@pytest.fixture
def world(small_world, tmp_path) -> World:
    """The small world with a work folder of this test's own."""
    yaml = tmp_path / small_world.yaml.name
    yaml.write_text(small_world.yaml.read_text().replace(str(small_world.work), str(tmp_path / "work")))
    ensemble = small_world.root / "crowd"
    yaml.write_text(yaml.read_text().replace("neutral_band: 0.3", f"neutral_band: 0.3, folder: {ensemble}"))

    class Mine(World):
        @property
        def input(self) -> Path:
            return small_world.input

    return Mine(tmp_path, yaml, small_world.truth)
