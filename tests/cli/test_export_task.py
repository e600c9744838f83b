"""The task folder of lmms-eval: what its functions give, and its own loader and evaluator where it is installed."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_benchmark import MER2023_TRUTH
from talking_clips import make_clips

from affectgpt.cli import main as cli

# A python that has lmms-eval; by default this one, if it has.
OTHER = os.environ.get("LMMS_EVAL_PYTHON") or (sys.executable if importlib.util.find_spec("lmms_eval") else None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    make_clips(tmp_path / "dataset")
    monkeypatch.chdir(tmp_path)
    arguments = ["--datasets", "MER2023", "--dataset-root", "dataset", "--lexicon", "builtin"]
    assert cli.main(["export_task", "--lmms-eval", "tasks", *arguments]) == 0
    return tmp_path / "tasks"


def utils_of(folder: Path):
    spec = importlib.util.spec_from_file_location("exported_utils", folder / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_clips_become_docs_and_answers_a_score(folder, capsys):
    assert (folder / "merunibench.yaml").read_text("utf-8").endswith("  - merunibench_mer2023\n")
    docs = [json.loads(line) for line in (folder / "data" / "mer2023.jsonl").read_text("utf-8").splitlines()]
    assert [doc["name"] for doc in docs] == list(MER2023_TRUTH)
    assert all(
        Path(doc[medium]).is_absolute() and Path(doc[medium]).is_file() for doc in docs for medium in ("video", "audio")
    )
    utils = utils_of(folder)
    (message,) = utils.doc_to_messages(docs[0])
    assert [part["type"] for part in message["content"]] == ["video", "audio", "text"]
    assert "Said in m1." in utils.doc_to_text(docs[0]) and len(utils.doc_to_visual(docs[0])) == 2
    said = ["The person's emotional state is happy.", "I feel [anger].\n", "The emotional state is sad.", ""]
    # no wheel has a group for neutral, the truth of m4
    kept = [utils.process_results(doc, [text]) for doc, text in zip(docs, said, strict=True)]
    assert [result["readable"] for result in kept] == [1.0, 0.0, 1.0, 0.0]
    assert utils.score([result["hit"] for result in kept]) == pytest.approx(200 / 3)
    with (folder / "answers" / "mer2023.csv").open(encoding="utf-8") as handle:
        assert [row["name"] for row in csv.DictReader(handle)] == list(MER2023_TRUTH)
    # the same answers by the package's own command
    arguments = ["--datasets", "MER2023", "--dataset-root", "dataset", "--lexicon", "builtin", "--bootstrap", "0"]
    table = folder / "answers" / "mine.csv"
    table.write_text((folder / "answers" / "mer2023.csv").read_text("utf-8").replace("m4,\n", "m4,[]\n"), "utf-8")
    assert cli.main(["score", "--answers", str(table), *arguments]) == 0
    assert "66.67" in capsys.readouterr().out


def test_missing_media_are_named(folder, capsys):
    next(folder.parent.glob("dataset/*/audio/m2.wav")).unlink()
    arguments = ["--datasets", "MER2023", "--dataset-root", "dataset", "--lexicon", "builtin"]
    assert cli.main(["export_task", "--lmms-eval", "tasks", *arguments]) == 1
    assert "MER2023: 1 media files are missing, first m2 (" in capsys.readouterr().err
    assert cli.main(["export_task", "--lmms-eval", "tasks", *arguments, "--media", "video,subtitle"]) == 0


_RUN = """
import json, sys
from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

class Model(lmms):
    is_simple = False
    def generate_until(self, requests):
        answers = []
        for request in requests:
            context, to_messages, settings, number, task, split = request.args
            (message,) = to_messages(self.task_dict[task][split][number])
            assert [part["type"] for part in message["content"]] == ["video", "audio", "text"]
            happy = "m1" in message["content"][-1]["text"] or "m3" in message["content"][-1]["text"]
            answers.append("The person's emotional state is happy." if happy else "The emotional state is angry.")
        return answers
    def loglikelihood(self, requests): raise NotImplementedError
    def generate_until_multi_round(self, requests): raise NotImplementedError

found = simple_evaluate(
    model=Model(), tasks=["merunibench"], batch_size=1, bootstrap_iters=0,
    task_manager=TaskManager("ERROR", include_path=sys.argv[1], include_defaults=False),
)
print("RESULTS" + json.dumps(found["results"], default=str))
"""


@pytest.mark.slow
@pytest.mark.skipif(OTHER is None, reason="lmms-eval is not installed (LMMS_EVAL_PYTHON names a python that has it)")
def test_its_own_loader_and_evaluator(folder, tmp_path):
    root = str(Path(cli.__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1",
                   "HF_DATASETS_OFFLINE": "1"}  # fmt: skip
    done = subprocess.run(
        [str(OTHER), "-c", _RUN, str(folder)], capture_output=True, text=True, env=environment, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.partition("RESULTS")[2].splitlines()[0])
    assert results["merunibench_mer2023"]["hit,none"] == pytest.approx(200 / 3)
    assert results["merunibench_mer2023"]["readable,none"] == 1.0
