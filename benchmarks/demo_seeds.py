"""What the demo's model learns, over seeds: scores, text alone, and what shuffling faces or sounds costs.

    python benchmarks/demo_seeds.py [--seeds 0-5] [--root output/demo-seeds]

For each seed everything is made again: tiny models, corpus, training. Then the held-out basic set is answered as it is,
with the face files dealt out to other clips, and with the sound files dealt out. Ends with status 1 when a seed misses
what the demo promises (see ``PROMISES``). About four minutes a seed on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where tests load this file

from records import Run, add_out_argument

from affectgpt.cli.common import run_cli
from affectgpt.core import crops
from affectgpt.core.files import write_json
from affectgpt.core.runtime import one_thread
from examples.demo import pipeline as demo

PROMISES = {
    "at most 1.5 labels an answer": lambda r: r["labels"] <= 1.5,
    "HIT at least twice chance": lambda r: r["hit"] >= 2 * r["chance"],
    "HIT 15 points above text only": lambda r: r["hit"] >= r["text_only"] + 0.15,
    "shuffled faces lower HIT": lambda r: r["shuffled_faces"] < r["hit"],
    "shuffled sounds lower HIT": lambda r: r["shuffled_sounds"] < r["hit"],
}


def shuffled_dataset(place: demo.Place, *, folder: str, suffix: str) -> Path:
    """A copy of the basic set, made of links, in which ``folder``'s files are dealt out to other clips."""
    import numpy as np

    source = place.dataset / "mer2023-dataset-process"
    root = place.root / f"dataset-shuffled-{folder}"
    target = root / source.name
    target.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        link = target / entry.name
        if entry.name != folder and not link.is_symlink():
            link.symlink_to(entry.resolve())
    files = sorted(source.joinpath(folder).glob(f"synthetic_basic_*{suffix}"))
    order = np.random.default_rng([place.seed, 9]).permutation(len(files))
    (target / folder).mkdir(exist_ok=True)
    record = crops.read_record(source / folder)[1]
    if record is not None:
        crops.write_record(target / folder, record)
    for i, position in enumerate(order):  # one big circle: no clip keeps its own
        link = target / folder / files[position].name
        if not link.is_symlink():
            link.symlink_to(files[order[(i + 1) % len(order)]].resolve())
    return root


def score(place: demo.Place, name: str, *, dataset_root: Path, results: Path) -> tuple[float, float]:
    """HIT and mean number of labels of a recipe on the basic set under ``dataset_root``."""
    from affectgpt.cli import evaluate, infer
    from affectgpt.core.npz import read_npz

    path, config = demo.load(place, name)
    run = demo.finished_run(place, name)
    options = place.options(f"inference.ckpt_root={run}", f"inference.base_root={results}")
    options = [o for o in options if not o.startswith("paths.dataset_root=")] + [f"paths.dataset_root={dataset_root}"]
    demo.call("inference_hybird.py", infer.main, ["--cfg-path", str(path), "--dataset", "MER2023", *options])
    numbers = results.parent / f"{results.name}-{run.name}.json"
    arguments = ["--base-root", str(results), "--dataset-root", str(dataset_root), "--lexicon", "builtin"]
    arguments += ["--datasets", "MER2023", "--run", run.name, "--checkpoints", str(config.run.max_epoch)]
    arguments += ["--extractor", "direct", "--bootstrap", "0", "--json", str(numbers)]
    with Path(os.devnull).open("w") as nowhere:
        demo.call("evaluation.py", evaluate.main, arguments, output=nowhere)
    found = json.loads(numbers.read_text())["datasets"]["mer2023"]["best"]
    file = results.with_name(f"{results.name}-mer2023") / run.name / f"{found['checkpoint']}-openset-direct.npz"
    return found["hit"], demo.mean_labels(read_npz(file)["fileitems"])


def measure(place: demo.Place) -> dict:
    """Everything for one seed."""
    started = time.perf_counter()
    demo.prepare(place)
    row: dict = {"seed": place.seed, "chance": demo.chance()}
    for key, name in (("hit", "demo_cpu"), ("no_prefusion", "demo_cpu_face"), ("text_only", "demo_cpu_textonly")):
        demo.train(place, name)
        row[key], labels = score(place, name, dataset_root=place.dataset, results=place.root / "results")
        row.setdefault("labels", labels)
    for key, folder, suffix in (("shuffled_faces", "openface_face", ".npy"), ("shuffled_sounds", "audio", ".wav")):
        root = shuffled_dataset(place, folder=folder, suffix=suffix)
        row[key], _ = score(place, "demo_cpu", dataset_root=root, results=place.root / key)
    row["seconds"] = time.perf_counter() - started
    row["missed"] = [promise for promise, holds in PROMISES.items() if not holds(row)]
    return row


def main(argv: list[str] | None = None) -> int:
    """Measure each seed, print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0-5", help="A-B or one number (0-5)")
    parser.add_argument("--root", type=Path, default=Path("output/demo-seeds"))
    add_out_argument(parser, "demo_seeds")
    args = parser.parse_args(argv)
    bench = Run(parser, args, places=("root",))
    one_thread()
    first, _, last = args.seeds.partition("-")
    rows = []
    for seed in range(int(first), int(last or first) + 1):
        root = args.root / f"seed-{seed}"
        rows.append(measure(demo.Place(root=root, models=root / "models", seed=seed)))
        write_json(root / "seed.json", rows[-1])
    columns = ("hit", "no_prefusion", "text_only", "shuffled_faces", "shuffled_sounds", "chance")
    print(f"\n{'seed':>4}" + "".join(f"{c:>17}" for c in columns) + f"{'labels':>9}{'seconds':>9}")
    for row in rows:
        cells = "".join(f"{100 * row[c]:17.1f}" for c in columns)
        print(f"{row['seed']:4}{cells}{row['labels']:9.2f}{row['seconds']:9.0f}  {'; '.join(row['missed']) or 'ok'}")
    bench.record("demo_seeds", {"seeds": rows}, model="demo")
    return int(any(row["missed"] for row in rows))


if __name__ == "__main__":
    sys.exit(run_cli(main))
