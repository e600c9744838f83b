"""A task folder for lmms-eval: its models answer the clips, the scores come from this package.

lmms-eval reads ``merunibench_X.yaml``, whose functions are in ``utils.py`` of the folder; these call what is here.
Answers are read directly, without a language model, and are kept as tables that ``evaluation.py --answers`` takes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.core.errors import DataError
from affectgpt.core.files import atomic_path, write_json, write_text
from affectgpt.core.runtime import logger
from affectgpt.datasets.table import get_row
from affectgpt.evaluation.extract import direct_items
from affectgpt.evaluation.lexicon import find_lexicon, grouping_of
from affectgpt.evaluation.metrics.base import METRICS
from affectgpt.evaluation.score import Truth, make_metric, score_items

if TYPE_CHECKING:
    from affectgpt.datasets.base import EmotionDataset
    from affectgpt.mllm.prompts import Prompt

GROUP = "merunibench"
READABLE = "readable"  # share of the answers that could be read directly
_SETTINGS = "affectgpt.json"

_YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_messages: !function utils.doc_to_messages
doc_to_target: ""
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: 512
  temperature: 0
  top_p: 1.0
  num_beams: 1
  do_sample: false
metric_list:
  - metric: {metric}
    aggregation: !function utils.score
    higher_is_better: true
  - metric: readable
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1.0
"""
_UTILS = '''\
"""The functions that lmms-eval calls: clips as separate parts, scores by the package affectgpt (installed beside)."""

from pathlib import Path

from affectgpt.evaluation import lmms_task

FOLDER = Path(__file__).resolve().parent


def doc_to_messages(doc, lmms_eval_specific_kwargs=None):
    return lmms_task.messages(doc)


def doc_to_visual(doc):
    return [doc[medium] for medium in ("video", "audio") if doc.get(medium)]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["text"]


def process_results(doc, results):
    return lmms_task.result_of(doc, results)


def score(results):
    return lmms_task.aggregate(results, folder=FOLDER)
'''


def write_task(
    folder: Path, datasets: Sequence[EmotionDataset], prompt: Prompt, media: Sequence[str], *, lexicon: str
) -> tuple[list[str], int]:
    """Write the folder for data sets of the table; the names of the tasks, the group first, and the number of clips.

    A clip names its files by absolute path, the empty text for a medium that is not sent. Raises DataError naming clips
    whose files are missing.
    """
    tasks, clips = [], 0
    files: dict[Path, str] = {}  # written at the end, so that an error leaves none
    for dataset in datasets:
        row = get_row(dataset.name)
        lines, missing = [], []
        for sample in dataset.samples("test", labels=False):
            doc = {"name": sample.name, "dataset": row.name}
            doc["text"] = prompt.text(sample.subtitle if "subtitle" in media else "")
            for medium, path in (("video", sample.video), ("audio", sample.audio)):
                path = path if medium in media else None
                doc[medium] = str(path.resolve()) if path else ""
                if path and not path.is_file():
                    missing.append(f"{sample.name} ({path})")
            lines.append(json.dumps(doc, ensure_ascii=False) + "\n")
        if missing:
            raise DataError(
                f"{row.name}: {len(missing)} media files are missing, first {', '.join(missing[:3])}. affectgpt "
                "preprocess takes sound from videos; or leave the medium out of --media"
            )
        task = f"{GROUP}_{row.name.lower()}"
        data = folder.resolve() / "data" / f"{row.name.lower()}.jsonl"
        files[data] = "".join(lines)
        metric = METRICS.get(row.task).keys[0]
        # a path as JSON is a path as YAML, whatever characters it has
        files[folder / f"{task}.yaml"] = _YAML.format(task=task, data=json.dumps(str(data)), metric=metric)
        tasks.append(task)
        clips += len(lines)
    files[folder / f"{GROUP}.yaml"] = f"group: {GROUP}\ntask:\n" + "".join(f"  - {task}\n" for task in tasks)
    files[folder / "utils.py"] = _UTILS
    for path, text in files.items():
        write_text(path, text)
    write_json(folder / _SETTINGS, {"dataset_root": str(datasets[0].dataset_root.resolve()), "lexicon": lexicon})
    return [GROUP, *tasks], clips


def messages(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The message about a clip: video and sound as separate parts, then the text."""
    parts = [{"type": medium, "url": doc[medium]} for medium in ("video", "audio") if doc.get(medium)]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": doc["text"]}]}]


def result_of(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """The part of one answer that lmms-eval keeps: everything that the score of the whole set is made of."""
    row = get_row(doc["dataset"])
    answer = " ".join(str(results[0] if results else "").split())
    metric = METRICS.get(row.task)
    _, unread = direct_items({doc["name"]: answer}, polarity=metric.polarity)
    entry = {"dataset": row.name, "name": doc["name"], "answer": answer}
    return {metric.keys[0]: entry, READABLE: 0.0 if unread or not answer else 1.0}


def aggregate(results: Sequence[Mapping[str, str]], *, folder: Path) -> float:
    """The primary metric of a data set in percent, over the clips that were answered.

    The answers are written to ``answers/DATASET.csv`` in the folder. An empty answer counts as no label. Raises
    DataError for answers of several data sets or several answers to a clip.
    """
    names = {result["dataset"] for result in results}
    answers = {result["name"]: result["answer"] for result in results}
    if len(names) != 1 or len(answers) != len(results):
        raise DataError(
            f"{len(results)} answers to {len(answers)} clips of {', '.join(sorted(names)) or 'no data set'}"
        )
    settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    row = get_row(names.pop())
    table = folder / "answers" / f"{row.name.lower()}.csv"
    with atomic_path(table) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("name", "answer"))
        writer.writerows(answers.items())
    metric = make_metric(row, grouping_of(find_lexicon(settings["lexicon"])))
    truth = Truth.load(row, dataset_root=settings["dataset_root"])
    items, unread = direct_items(answers, polarity=metric.polarity)
    items = {name: item or ("neutral" if metric.polarity else "[]") for name, item in items.items()}
    score = score_items(items, truth, metric, source=table, checkpoint="lmms-eval", allow_missing=True)
    if unread or score.left_out:
        logger.warning(
            "%s: %d of %d answers cannot be read directly and count as no label (evaluation.py --answers %s reads them "
            "with a language model); %d clips have no answer",
            row.name, len(unread), len(answers), table, score.left_out,
        )  # fmt: skip
    return 100 * score.primary
