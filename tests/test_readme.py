"""What the README tells people to type is accepted: every command with its flags, every option, every YAML block."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from affectgpt.cli.main import COMMANDS
from affectgpt.config.captioning import CaptioningFile
from affectgpt.config.load import load_config
from affectgpt.config.schema import Config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SCRIPTS = {
    "train.py": "train",
    "inference_hybird.py": "infer",
    "inference_sample.py": "sample",
    "evaluation.py": "evaluate",
    "evaluation-scoreonly.py": "score",
}
CAPTIONING = ("caption", "crowd")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def shell_lines() -> list[str]:
    """Every command of the shell blocks, and of the backticked ones in tables and text, on one line."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:affectgpt|make|python|torchrun) [^`]+)`", re.sub(r"```.*?```", "", README, flags=re.S))
    return [line.split(" #")[0].strip() for line in lines if line.split("#")[0].strip()]


def calls() -> list[tuple[str, list[str]]]:
    """(command, arguments) of everything that is a command of this project."""
    found = []
    for line in shell_lines():
        line = line.replace("=…", "=train_configs/demo_cpu.yaml").replace(" …", " all").replace("\\|", "|")
        words = [w for w in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
        words = [w for w in words if not w.startswith("[") and not w.endswith("]")]  # optional parts of a table
        for at, word in enumerate(words):
            name = Path(word).name
            if name in SCRIPTS:
                found.append((SCRIPTS[name], words[at + 1 :]))
                break
            if name == "affectgpt" and at + 1 < len(words) and words[at + 1] != "COMMAND":
                found.append((words[at + 1], words[at + 2 :]))
                break
    return found


def test_the_readme_shows_every_published_script_and_most_commands():
    """The reader of this file's shell blocks works: else the tests below would have nothing to look at."""
    shown = {command for command, _ in calls()}
    assert shown >= set(SCRIPTS.values()) and shown <= set(COMMANDS)
    assert shown >= set(COMMANDS) - {"demo"}


def written(path: str, folder: Path) -> Path:
    """A configuration of this repository; or ``mine.yaml``, whose content the README shows, in ``folder``."""
    if (ROOT / path).is_file():
        return ROOT / path
    [block] = [block for block in blocks("yaml") if f"`{path}`" in README.split(block)[0].rsplit("\n\n", 2)[-2]]
    base = yaml.safe_load(block)["extends"]
    (folder / path).write_text(block.replace(base, str(ROOT / base)), "utf-8")
    return folder / path


@pytest.mark.parametrize(("command", "arguments"), calls(), ids=lambda x: x if isinstance(x, str) else " ".join(x)[:60])
def test_every_command_is_accepted(command, arguments, tmp_path):
    arguments = [word.split("|")[0] for word in arguments]
    args = importlib.import_module(f"affectgpt.cli.{COMMANDS[command][0]}").build_parser().parse_args(arguments)
    path = getattr(args, "cfg_path", None)
    if path and Path(path).suffix == ".yaml":
        kind = CaptioningFile if command in CAPTIONING else Config
        file = written(path, tmp_path)
        assert load_config(file, getattr(args, "options", ()) or (), kind=kind).name == Path(path).stem


def mentioned_options() -> list[str]:
    """`section.key=value` in running text, e.g. ``run.max_epoch=3``."""
    found = re.findall(r"[`\"]((?:run|model|inference|paths|datasets)\.[\w.]+=[^`\"]*)[`\"]", README)
    return sorted({option for option in found if "…" not in option})


def test_every_option_is_accepted():
    options = mentioned_options()
    assert len(options) >= 8
    for option in options:
        load_config(ROOT / "train_configs" / "demo_cpu.yaml", [option])


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.split()[0])
def test_every_yaml_block_is_accepted(block, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(block, "utf-8")
    given = yaml.safe_load(block)
    if "extends" in given:
        path.write_text(block.replace(given["extends"], str(ROOT / given["extends"])), "utf-8")
    config = load_config(path)
    assert set(given) - {"extends"} <= set(vars(config)) and set(given.get("datasets", {})) <= set(config.datasets)


def test_every_named_key_exists():
    """Backticked keys without a value, e.g. ``paths.dataset_root``."""
    keys = sorted(set(re.findall(r"`((?:run|model|inference|paths)\.\w+)`", README)))
    for key in keys:
        section, name = key.split(".")
        if name == "json":  # run.json, the record of a run
            continue
        assert name in vars(getattr(Config(name="x"), section)), key
    assert keys


def test_every_file_and_make_target_exists():
    paths = set(
        re.findall(r"(?<![\w/])(?:train_configs|benchmarks|tests|docs|affectgpt|constraints)/[\w./*-]*\w", README)
    )
    paths |= set(re.findall(r"\]\((?!https?:)([^)#]+)", README))
    assert len(paths) > 20
    for path in paths:
        assert list(ROOT.glob(path)), path
    targets = {word for line in shell_lines() for word in line.split()[1:2] if line.startswith("make ")}
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert targets >= {"demo", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
