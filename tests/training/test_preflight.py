"""What is found before gigabytes are loaded, as a GPU machine would find it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_config

from affectgpt.cli.train import main
from affectgpt.config.load import load_config
from affectgpt.core.errors import ConfigError
from affectgpt.training.distributed import process_group

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = sorted((ROOT / "train_configs").glob("*bestsetup*.yaml"))
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has GPUs; ``gpu``: which one was made the current one."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr("affectgpt.modeling.build.build_model", lambda *_, **__: pytest.fail("a model was loaded"))
    return chosen


def test_a_gpu_with_a_number_is_the_current_one(gpu):
    """Kernels of other libraries run on the current device, which is cuda:0 where nobody says otherwise."""
    config = tiny_config(Path())
    with process_group(config.run, torch.device("cuda:1")):
        assert gpu == [torch.device("cuda:1")]
    with process_group(config.run, GPU):
        assert len(gpu) == 1


def test_ranks_of_a_machine_are_not_all_put_on_one_gpu(recipe, gpu, monkeypatch):
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: pytest.fail("a group was made"))
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, str(value))
    path = recipe(mode="textonly", device="cuda:0")
    with pytest.raises(ConfigError, match=r"run\.device is cuda:0, which 2 processes .* run\.device=cuda"):
        main(["--cfg-path", str(path)])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # a machine each: cuda:0 of every one
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    config = load_config(path)
    with process_group(config.run, torch.device("cuda:0")):
        assert gpu == [torch.device("cuda:0")]
