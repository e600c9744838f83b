"""``affectgpt COMMAND …``: the console script; each command is the parser of ``affectgpt.cli.<module>``."""

from __future__ import annotations

import importlib
import sys

from affectgpt.cli.common import run_cli
from affectgpt.core.errors import did_you_mean

# command → (module of affectgpt.cli, what it does)
COMMANDS = {
    "train": ("train", "train from a configuration (train.py)"),
    "infer": ("infer", "answers on data sets (inference_hybird.py)"),
    "ask": ("ask", "answers of any other multimodal LLM on data sets, by a server or a folder"),
    "sample": ("sample", "answer for one video (inference_sample.py)"),
    "serve": ("serve", "an OpenAI-compatible server, and a page to drop clips on"),
    "evaluate": ("evaluate", "extract labels and score (evaluation.py)"),
    "score": ("score", "score labels that are extracted already (evaluation-scoreonly.py)"),
    "consensus": ("consensus", "labels that several checkpoints, runs or samples agree on, as a run"),
    "leaderboard": ("leaderboard", "all runs beside the paper's tables, as one HTML page"),
    "export_task": ("export_task", "data sets as a task folder of lmms-eval"),
    "submission": ("submission", "the CSV files of the MER2025 challenge, tracks 2 and 3, from a result file"),
    "doctor": ("doctor", "why are my scores below the published ones?"),
    "check_data": ("check_data", "are the data sets complete and readable?"),
    "preprocess": ("preprocess", "face crops, sound and subtitles of raw clips"),
    "caption": ("caption", "annotate unlabelled clips: descriptions, filters, a training set, a report"),
    "crowd": ("crowd", "emotion and sentiment classifiers on stored features: train, predict"),
    "export": ("export", "a checkpoint as safetensors and a peft adapter, or merged, and back"),
    "params": ("params", "count a model's parameters; no weights are needed"),
    "extract_features": ("extract_features", "compute the frozen encoders' outputs once"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; without one, list them."""
    return run_cli(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: list[str] | None) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: affectgpt COMMAND [ARGUMENT ...]\n\ncommands (affectgpt COMMAND --help says more):")
        for name, (_, what) in COMMANDS.items():
            print(f"  {name:16} {what}")
        return 0
    if argv[0] == "--version":
        from affectgpt import __version__

        print(f"affectgpt {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: unknown command {argv[0]!r}.{did_you_mean(argv[0], COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"affectgpt.cli.{COMMANDS[argv[0]][0]}")
    return module.main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
