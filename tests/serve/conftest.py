"""A served tiny model on the loopback address, once for all tests of the server."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")
pytest.importorskip("uvicorn", reason="the extra [web] is not installed")

from drawn_clip import write_clip
from served import FRAMES, client_of, running
from tiny_world import World, write_run


@pytest.fixture(scope="session")
def served_world(tiny_models, tmp_path_factory) -> World:
    made = World(tmp_path_factory.mktemp("served"), tiny_models)
    write_run(made.run_folder, made.config(), (11,))
    return made


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Drawn clips 0.mp4 … 7.mp4, and silent.mp4."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(8):
        write_clip(folder / f"{i}.mp4", seed=i)
    write_clip(folder / "silent.mp4", sound=False)
    return folder


@pytest.fixture(scope="session")
def predictor(served_world):
    """Takes frames: no face has to be found, so that requests are quick."""
    from affectgpt.inference.predictor import Predictor

    return Predictor.from_config(served_world.yaml, mode=FRAMES)


@pytest.fixture(scope="session")
def server(predictor, clips, tmp_path_factory):
    with running(predictor, media_root=clips, work_dir=tmp_path_factory.mktemp("work") / "private") as made:
        yield made


@pytest.fixture
def client(server):
    return client_of(server)
