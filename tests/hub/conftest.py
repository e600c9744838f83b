"""A tiny model as a folder that transformers loads, and what its checkpoint answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_chat import QUESTION
from tiny_world import World, write_corpus, write_run

from affectgpt.cli.main import main


@pytest.fixture(scope="session")
def world(tiny_models, tmp_path_factory) -> World:
    made = World(tmp_path_factory.mktemp("world"), tiny_models)
    write_corpus(made.root / "dataset", 6)
    write_run(made.run_folder, made.config(), (12,))
    return made


@pytest.fixture(scope="session")
def exported(world, tmp_path_factory):
    """``exported()`` or ``exported("--adapter")`` → a folder that ``affectgpt export --hf`` wrote."""
    made: dict[tuple[str, ...], Path] = {}

    def build(*options: str) -> Path:
        if options not in made:
            out = tmp_path_factory.mktemp("hub") / "tiny-affectgpt"
            checkpoint = world.checkpoints()[0].path
            command = ["export", "--hf", "--checkpoint", str(checkpoint), "--cfg-path", str(world.yaml)]
            assert main([*command, "--out", str(out), *options]) == 0
            made[options] = out
        return made[options]

    return build


@pytest.fixture(scope="session")
def clips(world) -> list[dict]:
    """Media and subtitles of the corpus's clips, as files."""
    from affectgpt.datasets.base import open_dataset

    samples = open_dataset(world.config(), "OVMERDPlus").samples("test", labels=False)
    return [{"face": str(s.face), "audio": str(s.audio), "subtitle": s.subtitle} for s in samples]


@pytest.fixture(scope="session")
def answers(world, clips) -> list[str]:
    """Greedy answers of the checkpoint itself, by the session that the published commands use."""
    import torch

    from affectgpt.datasets.base import open_dataset
    from affectgpt.inference.session import GenerationSession

    config = world.config("inference.decoding=greedy")
    session = GenerationSession.from_config(config, device=torch.device("cpu"))
    session.use(world.checkpoints()[0].path)
    samples = open_dataset(config, "OVMERDPlus").samples("test", labels=False)
    examples = [session.processor(sample, question=QUESTION) for sample in samples]
    found = [session.generate([example], seeds=[0])[0].text for example in examples]
    assert len(set(found)) > 3
    return found
