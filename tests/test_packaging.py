"""One list of packages: the conda environment and the constraints add nothing that pyproject.toml does not know."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower()


def test_the_conda_environment_installs_the_project_with_all_extras():
    (pip,) = [item["pip"] for item in ENVIRONMENT["dependencies"] if isinstance(item, dict)]
    constraints, package = pip
    assert (ROOT / constraints.removeprefix("-c ")).is_file()
    extras = re.fullmatch(r"-e \.\[(.+)\]", package)[1].split(",")
    assert set(extras) == set(PROJECT["optional-dependencies"])


def test_its_python_is_one_that_the_project_takes():
    (python,) = [i for i in ENVIRONMENT["dependencies"] if isinstance(i, str) and i.startswith("python=")]
    lowest = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    assert tuple(map(int, python.removeprefix("python=").split("."))) >= lowest


def test_constraints_name_packages_of_the_project_only():
    listed = PROJECT["dependencies"] + [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    known = {name_of(r) for r in listed}
    for file in sorted((ROOT / "constraints").glob("*.txt")):
        lines = [line for line in file.read_text("utf-8").splitlines() if line and not line.startswith("#")]
        assert lines and {name_of(line) for line in lines} <= known, file.name
        assert not {"torchvision", "torchaudio"} & {name_of(line) for line in lines}
