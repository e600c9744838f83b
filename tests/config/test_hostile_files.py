"""Configurations that would take all memory, all recursion or all day are refused, in words and at once."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LETTERS = "abcdefghij"
FILES = {
    "deep": ("a: " + "[" * 50_000 + "]" * 50_000, "line 1: more than 32 levels"),
    "deep and open": ("run: " + "{a: " * 50_000, "line 1: more than 32 levels"),
    "indented": ("".join(" " * i + "a:\n" for i in range(500)), "line 33: more than 32 levels"),
    "laughs": (
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in itertools.pairwise(LETTERS)),
        "line 5: more than 20000 values, aliases unfolded",
    ),
    "merged laughs": (
        "a: &a {x: 1, y: 2, z: 3}\n"
        + "".join(f"{b}: &{b} {{<<: [{', '.join(['*' + a] * 9)}]}}\n" for a, b in itertools.pairwise(LETTERS)),
        "more than 20000 values, aliases unfolded",
    ),
    "steps of aliases": (
        "k0: &k0 [x]\n" + "".join(f"k{i}: &k{i} [*k{i - 1}]\n" for i in range(1, 2_000)), "more than 32 levels"
    ),
    "within itself": ("a: &a {b: [*a]}", "line 1: *a is within itself"),
    "references": (
        "".join(f"k{i}: '${{k{i + 1}}}${{k{i + 1}}}'\n" for i in range(60)) + "k60: x", "${k1} must name a section.key"
    ),
    "references to a section": ("a: {b: 1}\nc: ['${a}', '${a}']", "${a} must name a section.key with a single value"),
    "references in references": ("a: '" + "${" * 3_000 + "'", "expected ${section.key}"),
    "large": ("a: " + "x" * 300_000, "300003 characters; a configuration has at most 262144"),
    "a large number": ("run: {seed: " + "9" * 5_000 + "}", "allowed: a whole number"),
}  # fmt: skip
OPTIONS = {
    "deep": ("run.seed=" + "[" * 50_000, "line 1: more than 32 levels"),
    "a deep key": ("run." + "a." * 9_000 + "b=1", "more than 32 levels of keys"),
    "within itself": ("run.valid_splits=[&a [*a]]", "*a is within itself"),
    "a reference to a section": ("run.seed=${datasets}", "${datasets} must name a section.key"),
    "no YAML": ("run.valid_splits=[@x]", "cannot start any token"),
    "a list over a section": ("datasets.mercaptionplus=[1]", "datasets.mercaptionplus=[1] gives a list where"),
    "a large number": ("run.seed=" + "9" * 5_000, "allowed: a whole number"),
}


def params(path: Path, *options: str) -> tuple[int, str]:
    """``affectgpt params`` on a configuration, with 4 GB of address space."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); "
        "from affectgpt.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "params", "--cfg-path", str(path), *(["--options", *options] if options else [])],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_command_ends_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(FILES["deep"][0])
    status, err = params(path)
    assert status == 1 and err == f"error: {path}, line 1: more than 32 levels\n"
    path.write_text("run: {seed: 1}\n")
    status, err = params(path, OPTIONS["deep"][0])
    assert status == 1 and err.startswith("error: --options 'run.seed=[[[[[") and err.count("\n") == 1


@pytest.mark.parametrize("kind", FILES)
def test_files(kind: str, tmp_path: Path) -> None:
    from affectgpt.config.load import load_config
    from affectgpt.core.errors import ConfigError

    text, words = FILES[kind]
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(str(path)) and words in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("kind", OPTIONS)
def test_options(kind: str, tmp_path: Path) -> None:
    from affectgpt.config.load import load_config
    from affectgpt.core.errors import ConfigError

    item, words = OPTIONS[kind]
    path = tmp_path / "a.yaml"
    path.write_text("datasets: {mercaptionplus: {}}\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, [item])
    assert words in str(error.value) and len(str(error.value)) < 500


def test_aliases_and_references_of_ordinary_use_are_read(tmp_path: Path) -> None:
    from affectgpt.config.load import load_config

    path = tmp_path / "a.yaml"
    path.write_text(
        "datasets:\n  mercaptionplus: &set {ratio: 0.5}\n  ovmerd: {<<: *set, label_type: ovlabel}\n"
        "paths: {dataset_root: '/data/${run.seed}', models_root: '${paths.output_root}/m', output_root: o}\n"
        "run: {seed: 3}\n"
    )
    config = load_config(path, ["paths.features_root=${run.seed}/f"])
    assert config.datasets["ovmerd"].ratio == 0.5 and config.datasets["ovmerd"].label_type == "ovlabel"
    assert (config.paths.dataset_root, config.paths.models_root, config.paths.features_root) == (
        "/data/3",
        "o/m",
        "3/f",
    )
