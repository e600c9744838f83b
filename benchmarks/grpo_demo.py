"""What rewards teach, over arms and seeds, on drawn clips: the proof that the policy learns and is not fooling us.

    python benchmarks/grpo_demo.py [--arms wheel,random,shuffled,recall] [--seeds 0-2] [--root output/demo-rl]
    python benchmarks/grpo_demo.py --report-only [--root output/demo-rl]      judge, report and record what is there

Arms: the wheel reward; random rewards; the truth of other clips; recall alone, which the guard must stop. Every seed
has planted labels and a supervised start of its own. Results are kept in ROOT/results.json and added to; the report is
ROOT/report.html. The record, too, has all results that there are, with the commit and day of their trainings; it is
written once every arm has some. Ends with status 1 when something that is promised (see ``PROMISES``) is missed. A few
minutes an arm and seed on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where tests load this file

from records import PACKAGES, Run, add_out_argument

from affectgpt.cli.common import run_cli
from affectgpt.core.errors import DataError
from affectgpt.core.files import write_json
from examples.demo import rl as demo_rl

RANDOM = Path(__file__).with_name("grpo_random.py")
KEY = ("arm", "seed")


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def gains(rows: list[dict], arm: str, key: str = "gain") -> list[float]:
    """The gains of one arm's finished seeds."""
    return [row[key] for row in rows if row["arm"] == arm and key in row]


PROMISES = {
    "wheel: F_s rises by 8 points on the mean": lambda r: mean(gains(r, "wheel")) >= 8,
    "wheel: paired interval above 0 in five of six (or all)": lambda r: (
        sum(low > 0 for low in gains(r, "wheel", "low")) >= len(gains(r, "wheel")) - (len(gains(r, "wheel")) >= 6)
    ),
    "random: gains 2 points at most on the mean": lambda r: mean(gains(r, "random")) <= 2,
    "shuffled truth: less than half of the wheel's gain": lambda r: (
        mean(gains(r, "shuffled")) < mean(gains(r, "wheel")) / 2
    ),
    "recall alone: stopped by the guard": lambda r: all(row["stopped"] for row in r if row["arm"] == "recall"),
    "other faces: the wheel's gain shrinks": lambda r: mean(gains(r, "wheel", "gain_faces")) < mean(gains(r, "wheel")),
    "other voices: the wheel's gain shrinks": lambda r: (
        mean(gains(r, "wheel", "gain_voices")) < mean(gains(r, "wheel"))
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run the arms and seeds that were asked for, and judge all results that there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default="wheel,random,shuffled,recall")
    parser.add_argument("--seeds", default="0-2", help="A-B, or one")
    parser.add_argument("--root", type=Path, default=Path("output/demo-rl"))
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--report-only", action="store_true", help="train nothing; judge, report and record")
    add_out_argument(parser, "grpo_demo")
    args = parser.parse_args(argv)
    # what was trained in this call says nothing of what the record has
    bench = Run(parser, args, places=("arms", "seeds", "root", "models", "report_only"))

    from affectgpt.core.runtime import setup_logging
    from examples.demo.rl_report import write_rl_report

    setup_logging()
    kept = args.root / "results.json"
    if args.report_only and not kept.is_file():
        raise DataError(f"no file {kept}: nothing was trained there yet; --root says where, or leave --report-only out")
    found = json.loads(kept.read_text()) if kept.is_file() else {"rows": [], "curves": []}
    if not args.report_only:
        train(args, found, kept)
    rows = sorted(found["rows"], key=lambda row: (list(demo_rl.ARMS).index(row["arm"]), row["seed"]))
    there = {row["arm"] for row in rows}
    # A promise is judged as soon as all the arms that it speaks of have been run.
    verdicts = {
        what: holds(rows)
        for what, holds in PROMISES.items()
        if all(arm in there for arm in demo_rl.ARMS if arm in what)
    }
    notes = [f"{'kept' if good else 'MISSED'}: {what}" for what, good in verdicts.items()]
    curves = [(title, log_at(args.root, log)) for title, log in found["curves"]]
    write_rl_report(args.root / "report.html", rows=rows, curves=curves, notes=notes)
    print("\n".join([*notes, f"report: {args.root / 'report.html'}"]))
    lacking = [arm for arm in demo_rl.ARMS if arm not in there]
    if lacking and args.out is None:
        print(f"not recorded: no results of {', '.join(lacking)} yet; --out FILE records it", file=sys.stderr)
    else:
        numbers = {"rows": rows, "mean_gains_points": means(rows), "promises": verdicts}
        bench.record("grpo_demo", numbers, model="demo", settings={}, **made_with([log for _, log in curves]))
    return 0 if all(verdicts.values()) else 1


def train(args: argparse.Namespace, found: dict, kept: Path) -> None:
    """Run the arms and seeds, and add each one's row and curve to ``found`` and to the file ``kept``."""
    first, _, last = args.seeds.partition("-")
    for seed in range(int(first), int(last or first) + 1):
        place = replace(demo_rl.Place(), root=args.root, models=args.models, seed=seed)
        demo_rl.prepare(place)
        start = demo_rl.supervised(place)
        for arm in args.arms.split(","):
            result = demo_rl.reinforced(place, arm, start, imports=[RANDOM] if arm == "random" else ())
            (row,) = demo_rl.table([start], [result])
            found["rows"] = [r for r in found["rows"] if [r[k] for k in KEY] != [row[k] for k in KEY]] + [row]
            found["curves"] = [c for c in found["curves"] if c[0] != f"{arm}, seed {seed}"]
            found["curves"] += [[title, str(log)] for title, log in demo_rl.curves([result])]
            write_json(kept, found)
            print(json.dumps(row), flush=True)


def means(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Arm → its mean gains over finished seeds."""
    keys = ("gain", "gain_faces", "gain_voices")
    return {arm: {key: mean(gains(rows, arm, key)) for key in keys} for arm in demo_rl.ARMS if gains(rows, arm)}


def log_at(root: Path, log: str) -> Path:
    """A training's log. Where results were made in another folder, or another clone, it is looked for below ROOT."""
    path = Path(log)
    if path.is_file() or root.name not in path.parts:
        return path
    parts = path.parts
    return root.joinpath(*parts[len(parts) - parts[::-1].index(root.name) :])


def made_with(logs: list[Path]) -> dict[str, Any]:
    """Last day, commits and versions of the trainings, from the ``run.json`` beside their logs, if there is any."""
    runs = [json.loads(log.with_name("run.json").read_text()) for log in logs if log.with_name("run.json").is_file()]
    if not runs:
        return {}
    commits = {run["git"][:8] + "+changes" * run["git"].endswith("+changes") for run in runs if run["git"]}
    last = max(runs, key=lambda run: run["began"])
    used = {name: last["versions"][name] for name in ("python", *PACKAGES)}
    return {"date": last["began"][:10], "commit": ", ".join(sorted(commits)), "versions": used}


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(run_cli(main))
