"""What the published face model's answers score: as published, without a choice on the test set, by votes, by chance.

    python benchmarks/released_answers.py [--root ../shared/merunibench]

Reads the released answers of its seven checkpoints on MER2023, CMU-MOSI and SIMS (``ROOT/output``) and on the 332 clips
of OV-MERD (``ROOT/output-ovmerd``), with the published truths (``ROOT/dataset``) and lexicon (``ROOT/emotion_wheel``),
by the commands ``affectgpt consensus`` and ``affectgpt score``. Nothing is written there. A minute on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where tests load this file

from records import ROOT, Run, add_out_argument

from affectgpt.cli.common import run_cli
from affectgpt.core.errors import DataError

RUN, VOTES = "emercoarse", "votes"  # the released run, by the beginning of its name; what the votes are written as
NINE, OVMERD = "output", "output-ovmerd"
LABELLED = {NINE: ("MER2023",), OVMERD: ("OVMERDPlus",)}  # where groups are voted on, not polarity


def link_results(source: Path, target: Path) -> None:
    """A result folder of links, so that votes are written beside the answers and not among them."""
    for folder in sorted(source.glob("results-*")):
        runs = list(folder.glob(f"{RUN}*"))
        if runs:
            (target / folder.name).mkdir(parents=True)
        for run in runs:
            (target / folder.name / run.name).symlink_to(run.resolve())


def scores(root: Path, work: Path, output: str) -> dict[str, Any]:
    """What the commands say of one result folder: the run's scores, the votes' and the paired test between them."""
    from affectgpt.cli import consensus, score

    link_results(root / output, work / output)
    places = ["--output-root", str(work / output), "--dataset-root", str(root / "dataset"),
              "--lexicon", str(root / "emotion_wheel")]  # fmt: skip
    # the released answers are on the 532 clips of OV-MERD+, the truth on the 332 of OV-MERD
    allowed = ["--allow-missing"] if output == OVMERD else []

    def said(command: Callable[[list[str]], int], *arguments: str, number: str = "") -> Any:
        target = work / f"{output}-{number}.json"
        wanted = ["--json", str(target)] if number else []
        with contextlib.redirect_stdout(io.StringIO()):
            status = command([*places, *allowed, *arguments, *wanted])
        if status:
            raise DataError(f"{command.__module__} {' '.join(arguments)} ended with status {status}")
        return json.loads(target.read_text(encoding="utf-8")) if number else None

    def votes_of(dataset: str, needed: int) -> dict[str, float]:
        """With so many votes needed for a group instead of the chosen number."""
        name = f"{VOTES}_{needed}"
        said(consensus.main, "--run", RUN, "--datasets", dataset, "--at-least", str(needed), "--name", name)
        found = said(score.main, "--run", name, "--datasets", dataset, "--bootstrap", "0", "--deals", "20", number=name)
        [column] = found["datasets"].values()
        [value] = column["checkpoints"].values()
        return {"votes_needed": needed, "percent": percent(value[column["metric"]]),
                "groups_per_answer": value["floors"]["groups"]}  # fmt: skip

    said(consensus.main, "--run", RUN)
    return {
        "needed": {d.lower(): [votes_of(d, needed) for needed in range(1, 8)] for d in LABELLED[output]},
        "single": said(score.main, "--run", RUN, number="single"),
        "votes": said(score.main, "--run", VOTES, number="votes"),
        "compare": said(score.main, "--compare", f"{RUN}/mean", VOTES, number="compare"),
        # a run alone stands with its best checkpoint
        "compare_best": said(score.main, "--compare", RUN, VOTES, number="compare_best"),
    }


def percent(value: Any) -> Any:
    """Fractions as percent, lists alike."""
    return [percent(one) for one in value] if isinstance(value, list) else None if value is None else 100 * value


def estimate(found: dict[str, Any]) -> dict[str, Any]:
    """A value of ``affectgpt score --json`` with its interval."""
    return {"percent": percent(found["value"]), "interval_percent": percent(found["interval"])}


def paired(found: dict[str, Any]) -> dict[str, Any]:
    """A paired comparison: the second side minus the first."""
    return {"points": percent(found["difference"]), "interval_points": percent(found["interval"]), "p": found["p"]}


def numbers_of(name: str, said: dict[str, Any]) -> dict[str, Any]:
    """One data set's column of the table."""
    single, votes = (said[key]["datasets"][name] for key in ("single", "votes"))
    metric, checkpoints = single["metric"], list(single["checkpoints"].values())
    [voted] = votes["checkpoints"].values()

    def mean_floor(key: str) -> float | None:
        values = [found["floors"][key] for found in checkpoints]
        return None if None in values else statistics.fmean(v[metric] if isinstance(v, dict) else v for v in values)

    others = [key for key in ("precision", "recall") if key in voted]
    return {
        "metric": metric, "clips": checkpoints[0]["samples"], "checkpoints": len(checkpoints),
        "best": {"percent": percent(single["best"][metric]), "checkpoint": single["best"]["checkpoint"]},
        "single_percent": {name: percent(found[metric]) for name, found in single["checkpoints"].items()},
        "chosen_on_a_half": estimate(single["selection"]["halves"]), "mean": estimate(single["selection"]["mean"]),
        "votes": {
            "percent": percent(voted[metric]), "interval_percent": percent(voted["interval"][metric]),
            **{f"{key}_percent": percent(voted[key]) for key in others},
        },
        "mean_of_others": {
            f"{key}_percent": percent(statistics.fmean(found[key] for found in checkpoints)) for key in others
        },
        "votes_minus_mean": paired(said["compare"]["datasets"][name]),
        "votes_minus_best": paired(said["compare_best"]["datasets"][name]),
        "groups_per_answer": {"single": mean_floor("groups"), "votes": voted["floors"]["groups"]},
        "votes_by_needed": said["needed"].get(name, []),
        "labels_per_answer": {"single": mean_floor("labels"), "votes": voted["floors"]["labels"]},
        "floor_dealt_percent": percent(mean_floor("dealt")), "floor_constant_percent": percent(mean_floor("constant")),
        "constant_answers": sorted({", ".join(a) for c in checkpoints for a in c["floors"]["constant_answers"]}),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Score, print a table, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT.parent / "shared" / "merunibench",
                        help="holds output/, output-ovmerd/, dataset/ and emotion_wheel/")  # fmt: skip
    add_out_argument(parser, "released_answers")
    args = parser.parse_args(argv)
    bench = Run(parser, args, places=("root",))
    for part in (NINE, OVMERD, "dataset", "emotion_wheel"):
        if not (args.root / part).is_dir():
            raise DataError(
                f"no folder {args.root / part}: --root says where the released answers and truths are; "
                "docs/scores.md (the released answers) says where they come from"
            )
    with tempfile.TemporaryDirectory(prefix="released-answers-") as work:
        found = {output: scores(args.root, Path(work), output) for output in (NINE, OVMERD)}
    columns = {name: numbers_of(name, said) for said in found.values() for name in said["single"]["datasets"]}
    three = found[NINE]["single"]
    best = three["best_single"]
    together = {
        "datasets": list(three["datasets"]), "best_mean_percent": percent(three["mean_best"]),
        "best_single": {"checkpoint": best, "mean_percent": percent(three["single"][best]["mean"])},
        "mean": estimate(three["selection"]["mean"]), "chosen_on_a_half": estimate(three["selection"]["halves"]),
    }  # fmt: skip
    for name, column in columns.items():
        print(f"{name:<12}" + "  ".join(
            f"{key} {column[key]['percent']:.2f}" for key in ("best", "chosen_on_a_half", "mean", "votes")
        ))  # fmt: skip
    bench.record("released_answers", {"datasets": columns, "together": together}, model="released")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
