"""docs/quickstart.ipynb: committed without outputs, and every cell of it runs on a CPU."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path

import pytest

from affectgpt.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def cells(kind: str) -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_it_is_committed_without_outputs():
    found = cells("code")
    assert len(found) >= 10
    for cell in found:
        assert cell["outputs"] == [] and cell["execution_count"] is None and "execution" not in cell["metadata"]


def test_its_commands_are_there_and_its_code_is_plain_python():
    named = set()
    for cell in cells("code"):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "affectgpt":
                named.add(node.args[0].value)
    assert named - {"--version"} <= COMMANDS.keys() and {"train", "infer", "evaluate"} <= named


def test_it_says_what_is_drawn_and_what_was_not_run():
    text = " ".join("".join("".join(cell["source"]) for cell in cells("markdown")).split())
    assert "synthetic" in text and "could not be tried" in text and "non-commercial" in text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_cell_runs(tmp_path, monkeypatch):
    """From nothing: models, clips, training, an answer, scores."""
    pytest.importorskip("ipykernel", reason="needs ipykernel: pip install -e '.[docs]'")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install -e '.[docs]'")
    import nbformat

    monkeypatch.setenv("AFFECTGPT_QUICKSTART", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if (ROOT / "models" / "Qwen2.5-7B-Instruct").is_dir():  # the last one would take an hour on a CPU
        notebook.cells = [cell for cell in notebook.cells if "Qwen2.5-7B-Instruct" not in cell.source]
    there = set((ROOT / "output").iterdir())
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}  # where Jupyter starts it
    nbclient.NotebookClient(notebook, timeout=1500, kernel_name="python3", resources=place).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert "clips: 166" in text
    first, last = map(float, re.search(r"loss (\S+) -> (\S+) in 80 steps", text).groups())
    assert 0 < last < 0.9 * first
    assert re.search(r"labels: +\['\w+.*'\]\nanswer: +\S.*\ndescription: +\S", text)
    assert "<FaceHere>" in text and "<MultiHere>" in text and "I don't know!" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert "people in the picture: 1" in text
    hit, low, high = map(float, re.search(r"HIT (\S+) \[(\S+), (\S+)\] on 40 held-out clips", text).groups())
    dealt = float(re.search(r"dealt to other clips: +(\S+)", text)[1])
    assert low <= hit <= high and hit > dealt
    assert 0.9 < float(re.search(r"labels per answer: +(\S+)", text)[1]) < 3
    assert set((ROOT / "output").iterdir()) == there  # all of it was made where the test said
