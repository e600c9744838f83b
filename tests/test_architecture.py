"""The import table of the house: which room may import which, and what importing must not cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "affectgpt"

# room → what it may import: rooms, or single modules of a room
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "config": {"core"},
    "prompts": {"core"},
    "data": {"core", "config", "prompts"},
    "modeling": {"core", "config"},
    "training": {"core", "config", "modeling"},
    "inference": {"core", "config", "prompts", "data", "preprocess", "modeling"},
    "textllm": {"core", "config"},
    "evaluation": {"core", "config", "textllm", "data.table", "data.readers", "data.csvfile"},
    "preprocess": {"core", "config", "data.video", "data.audio", "data.guard", "data.csvfile"},
    "captioning": {"core", "config", "data", "textllm", "evaluation.extract", "evaluation.lexicon"},
    "demo": {"core", "config", "data.table"},
}
NO_TORCH = {"core", "config", "prompts", "textllm", "evaluation"}  # torch inside functions at most
NEVER_TORCH = {"config", "prompts"}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in ("cli", "__init__.py"))


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if top_level_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            if isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                found.add(child.module or "")
            visit(child)

    visit(tree)
    return found


def test_there_are_modules_in_every_room():
    rooms = {p.relative_to(PACKAGE).parts[0] for p in modules()}
    assert rooms <= set(ALLOWED), rooms - set(ALLOWED)
    assert rooms >= set(ALLOWED)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_what_it_may(path):
    room = path.relative_to(PACKAGE).parts[0]
    for name in imports(path):
        if not name.startswith("affectgpt."):
            continue
        target = name.removeprefix("affectgpt.")
        other = target.split(".")[0]
        allowed = ALLOWED[room] | {room}
        assert other in allowed or any(target == a or target.startswith(a + ".") for a in allowed), (
            f"{room} may not import {name}"
        )


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_torch_stays_inside_functions_where_it_must(path):
    room = path.relative_to(PACKAGE).parts[0]
    if room in NO_TORCH:
        assert not {
            n for n in imports(path, top_level_only=True) if n.split(".")[0] in ("torch", "transformers", "vllm")
        }
    if room in NEVER_TORCH:
        assert not {n for n in imports(path) if n.split(".")[0] == "torch"}


def test_importing_the_light_rooms_loads_no_heavy_library():
    light = [
        f"affectgpt.{'.'.join(p.relative_to(PACKAGE).with_suffix('').parts)}"
        for p in sorted(PACKAGE.rglob("*.py"))
        if p.relative_to(PACKAGE).parts[0] in ("core", "config", "prompts", "cli", "textllm", "evaluation")
        and p.name != "__init__.py"
    ]
    heavy = ("torch", "transformers", "cv2", "librosa", "vllm")
    code = f"import sys\nfor m in {light!r}: __import__(m)\nprint([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
