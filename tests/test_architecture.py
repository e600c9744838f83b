"""Import rules of the package: no cycles, ``core`` at the bottom, ``cli`` at the top, and a fast ``--help``."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "affectgpt"
MODULES = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(path: Path) -> set[str]:
    """Names of the modules that a file imports, inside functions too, but not for type checkers alone."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                names.update(alias.name for alias in child.names)
            if isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                names.update({child.module or "", *(f"{child.module}.{alias.name}" for alias in child.names)})
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return names


IMPORTS = {name: imported_modules(path) & set(MODULES) - {name} for name, path in MODULES.items()}


def subpackage(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_core_imports_no_other_subpackage_and_nothing_imports_cli():
    assert subpackage("affectgpt.core.errors") == "core" and sum(map(len, IMPORTS.values())) > 300
    wrong = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if (subpackage(module) == "core" != subpackage(other)) or (subpackage(other) == "cli" != subpackage(module))
    ]
    assert not wrong


def test_no_files_import_each_other_in_a_cycle():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(IMPORTS[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(IMPORTS):
        visit(name, ())


def test_importing_commands_configuration_and_scores_loads_no_heavy_library():
    light = [name for name in MODULES if subpackage(name) in ("core", "config", "cli", "textllm", "evaluation")]
    heavy = ("torch", "transformers", "cv2", "librosa", "vllm")
    code = f"import sys\nfor m in {light!r}: __import__(m)\nprint([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
