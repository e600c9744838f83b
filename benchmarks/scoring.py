"""Time and peak memory of scoring: ``python benchmarks/scoring.py [--real OUTPUT DATASET LEXICON]``.

A benchmark of the published sizes (nine data sets, seven checkpoints each) is made in a temporary folder and scored by
the command line, each time in a new process. Beside it, on the same files: a straightforward implementation that reads
each file and maps every label again for every wheel, as sets. It has to give the same numbers. ``--scale 5`` is the
same with five times the samples, to see how cost grows. With ``--real`` the given folders of the published layout are
scored.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from records import Run, add_out_argument  # noqa: E402

RUN = "recipe_20250110100"
STEMS = [f"checkpoint_{epoch:06d}_loss_0.{90 - epoch}0" for epoch in range(30, 61, 5)]


def make(root: Path, scale: int) -> None:
    """The nine data sets with random truths, and random labels for seven checkpoints."""
    import numpy as np

    from affectgpt.core.npz import write_npz
    from affectgpt.datasets.table import MER_UNIBENCH, get_row
    from affectgpt.evaluation.lexicon import load_builtin

    rng = random.Random(0)
    words = sorted(load_builtin().forms)
    for name in MER_UNIBENCH:
        row = get_row(name)
        # the fifth character is IEMOCAP's session
        names = [f"Ses05_{name.lower()}_{i:06d}" for i in range(scale * row.counts["test"])]
        folder = root / "dataset" / row.root
        folder.mkdir(parents=True)
        if row.label_file is None:
            lists = {n: rng.sample(words, rng.randint(1, 5)) for n in names}
            (folder / str(row.openset_file)).write_text(
                "name,openset\n" + "".join(f'{n},"{labels}"\n' for n, labels in lists.items())
            )
            (folder / row.subtitle_file).write_text("name,sentence\n" + "".join(f"{n},x\n" for n in names))
        else:
            truth = {
                n: {"val": rng.uniform(-1, 1)}
                if row.task == "sentiment"
                else {"emo": rng.randrange(len(row.classes)) if row.classes else rng.choice(["happy", "sad", "angry"])}
                for n in names
            }
            write_npz(folder / row.label_file, **{row.splits["test"]: truth})
        for stem in STEMS:
            path = root / "output" / f"results-{name.lower()}" / RUN / stem
            items = [f"[{', '.join(rng.sample(words, rng.randint(1, 5)))}]" for _ in names]
            write_npz(path.with_name(stem + "-openset.npz"), filenames=np.array(names), fileitems=np.array(items))
            if row.task == "sentiment":
                polarity = [rng.choice(["positive", "negative", "neutral"]) for _ in names]
                target = path.with_name(stem + "-openset-sentiment.npz")
                write_npz(target, filenames=np.array(names), fileitems=np.array(polarity))


def straightforward(output: str, dataset: str, lexicon_choice: str) -> dict[str, dict[str, float]]:
    """HIT, F and WAF of every file, with nothing kept: each label is mapped again for every sample and wheel."""
    import numpy as np
    from sklearn.metrics import f1_score

    from affectgpt.core.npz import read_npz
    from affectgpt.datasets.label_files import load_labels
    from affectgpt.datasets.table import DATASETS
    from affectgpt.evaluation.labels import parse_item
    from affectgpt.evaluation.lexicon import find_lexicon

    lexicon = find_lexicon(lexicon_choice)

    def group(labels, wheel):
        found = set()
        for label in labels:
            groups = wheel.groups(1)
            word = next((w for w in lexicon.wheel_words(label) if w in groups), None)
            if word is not None:
                found.add(groups[word])
        return found

    scores: dict[str, dict[str, float]] = {}
    for key, row in DATASETS.items():
        folder = Path(output) / f"results-{key}"
        if row.task == "train" or not folder.is_dir():
            continue
        ending = "-openset-sentiment.npz" if row.task == "sentiment" else "-openset.npz"
        for path in sorted(folder.glob(f"*/checkpoint_*{ending}")):
            labels = load_labels(row, split="test", dataset_root=dataset)
            archive = read_npz(path)
            items = dict(zip(map(str, archive["filenames"]), map(str, archive["fileitems"]), strict=True))
            if row.task == "sentiment":
                pairs = [(v.valence > 0, items[n] == "positive") for n, v in labels.items() if v.valence != 0]
                value = f1_score(*zip(*pairs, strict=True), average="weighted")
            else:
                values = []
                for wheel in lexicon.wheels:
                    hits, precision, recall = [], [], []
                    for name, label in labels.items():
                        true = group([label.emotion] if row.task == "basic" else label.ovlabels, wheel)
                        if not true:
                            continue
                        guess = group(parse_item(items[name]), wheel)
                        hits.append(len(guess & true))
                        precision.append(len(guess & true) / len(guess) if guess else 0)
                        recall.append(len(guess & true) / len(true))
                    p, r = np.mean(precision), np.mean(recall)
                    values.append(np.mean(hits) if row.task == "basic" else 2 * p * r / (p + r))
                value = float(np.mean(values))
            scores.setdefault(key, {})[path.name.removesuffix(ending)] = float(value)
    return scores


def measure(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak memory (MB) of a new process, which must succeed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e6


def main() -> int:
    """Measure and print; 1 when the two implementations disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", nargs=3, metavar=("OUTPUT", "DATASET", "LEXICON"), help="folders of published layout")
    parser.add_argument("--scale", type=int, default=1, help="times the published number of samples (1)")
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the best counts (3)")
    parser.add_argument("--no-baseline", action="store_true", help="leave the straightforward implementation out")
    parser.add_argument("--baseline", nargs=4, help=argparse.SUPPRESS)  # this script calls itself
    add_out_argument(parser, "scoring")
    args = parser.parse_args()
    if args.baseline:
        found = straightforward(*args.baseline[:3])
        Path(args.baseline[3]).write_text(json.dumps(found))
        return 0
    bench = Run(parser, args, data=("real",))
    with tempfile.TemporaryDirectory() as work:
        if args.real:
            places = args.real
        else:
            make(Path(work), args.scale)
            places = [f"{work}/output", f"{work}/dataset", "builtin"]
        ours, theirs = Path(work) / "ours.json", Path(work) / "theirs.json"
        flags = ["--output-root", places[0], "--dataset-root", places[1], "--lexicon", places[2], "--json", str(ours)]
        files = len(list(Path(places[0]).glob("results-*/*/checkpoint_*-openset.npz")))
        print(f"{files} result files, best of {args.repeat} processes")
        command = [sys.executable, "evaluation-scoreonly.py", *flags]
        times = min(measure(command) for _ in range(args.repeat))
        without = min(measure([*command, "--bootstrap", "0", "--deals", "0"]) for _ in range(args.repeat))
        numbers: dict = {"files": files}

        def note(key: str, title: str, found: tuple[float, float]) -> None:
            numbers[key] = {"wall_seconds": found[0], "peak_mb": found[1]}
            print(f"{title:<30} {found[0]:7.2f} s  {found[1]:6.0f} MB")

        note("scoring", "evaluation-scoreonly.py", times)
        note("scoring_without_intervals_and_floors", "  without intervals and floors", without)
        if not args.real:  # votes are written beside the voters
            note("consensus", "affectgpt consensus", measure([
                sys.executable, "-m", "affectgpt.cli.main", "consensus", *flags[:-2]
            ]))  # fmt: skip
        worst = 0.0
        if not args.no_baseline:
            slow = measure([sys.executable, __file__, "--baseline", *places, str(theirs)])
            note("straightforward", "straightforward", slow)
            print(f"ratio without both             {slow[0] / without[0]:7.1f} x")
            mine = json.loads(ours.read_text())["datasets"]
            for dataset, scores in json.loads(theirs.read_text()).items():
                for stem, value in scores.items():
                    if dataset in mine and stem in mine[dataset]["checkpoints"]:
                        worst = max(worst, abs(mine[dataset]["checkpoints"][stem][mine[dataset]["metric"]] - value))
            print(f"largest difference in a score  {worst:.1e}")
            numbers |= {"wall_ratio": slow[0] / without[0], "largest_difference": worst}
        mine = json.loads(ours.read_text())["datasets"]
        numbers |= {"datasets": len(mine), "checkpoints": max(len(found["checkpoints"]) for found in mine.values())}
    if worst > 1e-9:
        return 1
    bench.record("scoring", numbers, model="none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
