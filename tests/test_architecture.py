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
    "datasets": {"core", "config"},
    "media": {"core", "config"},
    "encoders": {"core", "config"},
    "processing": {"core", "config", "datasets", "media", "encoders"},
    "modeling": {"core", "config", "encoders"},
    "training": {"core", "config", "modeling"},
    "results": {"core", "config", "datasets"},
    "inference": {
        "core", "config", "datasets", "media", "encoders", "processing", "modeling", "preprocess", "results",
    },
    "textllm": {"core", "config"},
    "mllm": {"core", "config", "datasets", "media", "textllm", "results"},
    "evaluation": {"core", "config", "datasets", "textllm", "results"},
    "preprocess": {"core", "config", "media"},
    "captioning": {
        "core", "config", "datasets", "media", "encoders", "processing", "textllm", "evaluation", "results",
    },
    "serve": {"core", "config", "media", "processing", "inference", "preprocess", "evaluation"},
    "demo": {"core", "config", "datasets", "processing"},
}  # fmt: skip
NO_TORCH = {"core", "config", "datasets", "results", "textllm", "mllm", "evaluation"}  # torch inside functions at most
NEVER_TORCH = {"config", "datasets", "results"}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in ("cli", "__init__.py"))


def modules_of(room: str) -> list[Path]:
    return [path for path in modules() if path.relative_to(PACKAGE).parts[0] == room]


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


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_it_may(room):
    allowed = ALLOWED[room] | {room}
    seen, forbidden = 0, []
    for path in modules_of(room):
        for name in imports(path):
            target = name.removeprefix("affectgpt.")
            if name.startswith("affectgpt."):
                seen += 1
                if not any(target == a or target.startswith(a + ".") for a in allowed):
                    forbidden.append(f"{path.relative_to(PACKAGE)}: {name}")
    assert not forbidden, f"{room} may not import these; the table is in CONTRIBUTING.md"
    assert seen, f"no import of the package was found in {room}: is the table still read from the right folder?"


@pytest.mark.parametrize("room", sorted(NO_TORCH))
def test_torch_stays_inside_functions_where_it_must(room):
    heavy = {"torch", "transformers", "vllm"}
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in modules_of(room)
        if (names := {n for n in imports(path, top_level_only=True) if n.split(".")[0] in heavy})
    }
    assert modules_of(room) and not found
    if room in NEVER_TORCH:
        assert not {str(p) for p in modules_of(room) if {n for n in imports(p) if n.split(".")[0] == "torch"}}


def test_no_files_import_each_other_in_a_circle():
    """Imports inside functions count, those for type checkers alone do not."""
    names = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    graph = {
        name: {
            other
            for imported in imports(path)
            for other in (imported, imported.rpartition(".")[0])
            if other in names and other != name
        }
        for name, path in names.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join([*above[above.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
    assert len(graph) > 100 and sum(map(len, graph.values())) > 300


def test_the_import_reader_sees_what_it_must(tmp_path):
    """The two tests above can fail: an import at the top, one inside a function, one for type checkers alone."""
    path = tmp_path / "module.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nimport torch.nn\nif TYPE_CHECKING:\n    import vllm\n"
        "def f():\n    from affectgpt.cli import main\n    import transformers\n"
    )
    assert imports(path) == {"typing", "torch.nn", "affectgpt.cli", "transformers"}
    assert imports(path, top_level_only=True) == {"typing", "torch.nn"}


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
