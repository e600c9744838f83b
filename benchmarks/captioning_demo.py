"""Planted faults: what each filter of the annotation pipeline finds, and what filtering is worth in training.

    python benchmarks/captioning_demo.py [--seeds 0-3] [--root output/captioning-demo] [--no-training]

Everything is synthetic (see examples/demo). Once: tiny encoders, three human-labelled sets of other persons, and an
ensemble of five classifiers trained on them. For each fault seed: a new corpus of 480 clips with true descriptions,
into which faults are planted: 20 % get the description of a clip with another emotion, 10 % the sound of another clip,
5 % a description of one short sentence. The fault table is outside the pipeline's input folder and is read only to
score. The thresholds (``SETTINGS``) were set on fault seed 0; seeds 1-3 are the report. The same tiny recipe is then
trained on what each rule keeps (as table 4 of the paper), with equally many steps, and scored on held-out persons.

Ends with status 1 when the high-level filter keeps less than 90 % of the right or drops less than 80 % of the wrong
over the reported seeds, or when E+S does not train better than no filter on the mean of these seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where tests load this file

from records import Run, add_out_argument

from affectgpt.cli.common import run_cli
from affectgpt.core.files import write_json, write_text
from affectgpt.core.runtime import one_thread
from examples.demo import pipeline as demo

TUNED_ON = 0  # the fault seed that the settings were fixed on
CLIPS, TESTED = 480, 231
SHARES = {"wrong": 0.20, "voice": 0.10, "short": 0.05}
# data set → clips of its training split, seed of its corpus: other persons than those who are judged
HUMAN = {"MER2023": (720, 1000), "MELD": (720, 1001), "SIMS": (720, 1002)}
MELD_WORDS = {"happy": "joy", "sad": "sadness", "angry": "anger", "surprise": "surprise", "worried": "fear"}
RULES = ("none", "low", "E", "S", "E+S")
SETTINGS = """
  speaker: {source: estimate, estimate_threshold: 0.45}
  length: {sigmas: 2.5, fit: robust}
  crowd: {sets: [MER2023, MELD, SIMS], epochs: 60, batch: 64, neutral_band: 0.4, folder: "ROOT/crowd"}
  agreement: {votes: 0.7, wheels: 0.5, undecided: keep, lexicon: builtin}
"""


@dataclass(frozen=True)
class Places:
    """Where everything of one fault seed lies."""

    root: Path
    seed: int

    @property
    def folder(self) -> Path:
        return self.root / f"seed-{self.seed}"

    @property
    def judged(self) -> Path:
        """The corpus: truth for scoring, and the held-out test set."""
        return self.folder / "corpus"

    @property
    def input(self) -> Path:
        """All that the pipeline sees."""
        return self.folder / "input"

    def work(self, rule: str) -> Path:
        return self.folder / f"rule-{rule}"

    def paths(self) -> list[str]:
        models = {"CLIP_VIT_LARGE": "clip", "HUBERT_LARGE": "hubert", "Qwen25": "qwen2"}
        return [f"paths.folders.{name}={self.root / 'models' / f'demo-{folder}'}" for name, folder in models.items()]


def corpus_parts():
    """The judged clips, and a test set of held-out persons."""
    from examples.demo.corpus import PARTS

    wanted = []
    for part in PARTS:
        if part.dataset == "MERCaptionPlus":
            wanted.append(replace(part, count=CLIPS))
        elif part.dataset == "MER2023":
            wanted.append(replace(part, count=TESTED) if part.split == "test" else part)
    return tuple(wanted)


def make_human_sets(root: Path) -> Path:
    """Three human-labelled sets with other label sets (six words, seven classes, valence), of other persons."""
    from affectgpt.core.npz import write_npz
    from affectgpt.datasets.table import get_row
    from examples.demo.corpus import PartSpec, make_corpus, plan_part
    from examples.demo.language import EMOTIONS

    together = root / "human"
    together.mkdir(parents=True, exist_ok=True)
    for name, (count, seed) in HUMAN.items():
        row = get_row(name)
        parts = (
            PartSpec(name, "train", count, EMOTIONS, False, f"{name.lower()}train"),
            PartSpec(name, "test", 60, EMOTIONS, True, f"{name.lower()}test"),
        )
        made = make_corpus(root / f"human-{name}", seed=seed, parts=parts)
        link = together / row.root
        if not link.is_symlink():
            link.symlink_to((root / f"human-{name}" / row.root).resolve())
        if name == "MELD" and made:  # its labels are numbers of other words
            splits = {
                row.splits[part.split]: {
                    plan.name: {"emo": row.classes.index(MELD_WORDS.get(plan.emotion, "neutral"))}
                    for plan in plan_part(part, seed=seed)
                }
                for part in parts
            }
            write_npz(link / str(row.label_file), **splits)
    return together


def plant(places: Places) -> None:
    """Make corpus, input folder and fault table of one seed, unless they are there."""
    import numpy as np

    from affectgpt.captioning.output import to_csv
    from affectgpt.core.crops import write_record
    from examples.demo.corpus import make_corpus, plan_part

    parts = corpus_parts()
    make_corpus(places.judged, seed=places.seed, parts=parts)
    write_record(places.input / "openface_face", {"channels": "rgb"})
    table = places.folder / "faults.csv"
    if table.exists():
        return
    plans = plan_part(parts[0], seed=places.seed)
    rng = np.random.default_rng([places.seed, 4242])
    order = rng.permutation(len(plans))
    kinds = dict.fromkeys((plan.name for plan in plans), "right")
    at = 0
    for kind, share in SHARES.items():
        count = round(share * len(plans))
        kinds.update({plans[i].name: kind for i in order[at : at + count]})
        at += count
    media = places.judged / "mer2025-dataset"
    for folder in ("video", "audio", "openface_face"):
        (places.input / folder).mkdir(parents=True, exist_ok=True)
    texts = []
    for plan in plans:
        kind, text, sound = kinds[plan.name], plan.description, plan.name
        others = [p for p in plans if p.emotion != plan.emotion]
        other = others[int(rng.integers(len(others)))]
        if kind == "wrong":
            text = other.description
        elif kind == "short":
            text = other.description.rpartition(". ")[2]
        elif kind == "voice":
            sound = plans[int(rng.integers(len(plans)))].name
        texts.append((plan.name, text))
        _link(media / "video" / f"{plan.name}.mp4", places.input / "video" / f"{plan.name}.mp4")
        _link(media / "audio" / f"{sound}.wav", places.input / "audio" / f"{plan.name}.wav")
        _dense_crops(plan, places.input / "openface_face" / f"{plan.name}.npy")
    write_text(places.input / "subtitle.csv", to_csv(("name", "english"), [(p.name, p.english) for p in plans]))
    write_text(places.input / "descriptions.csv", to_csv(("name", "text"), texts))
    write_text(table, to_csv(("name", "fault"), list(kinds.items())))


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    target.symlink_to(source.resolve())


def _dense_crops(plan, path: Path) -> None:
    """Face crops of every frame, as OpenFace gives them; the demo's corpus keeps only eight."""
    import numpy as np

    from affectgpt.core.files import atomic_path
    from examples.demo.clips import render_frames, render_speech

    with atomic_path(path) as temporary:
        np.save(temporary, render_frames(plan, render_speech(plan))[1])


def configuration(places: Places, human: Path) -> Path:
    """The captioning configuration of a seed."""
    path = places.folder / "captioning.yaml"
    folders = "\n".join(f"    {item.split('.')[-1].replace('=', ': ')}" for item in places.paths())
    write_text(path, f"""model: {{face_channels: rgb}}
run: {{device: cpu, num_workers: 0}}
captioning:
  input: {{root: "{places.input}"}}
  audio: {{client: off}}
  visual: {{client: off}}
  merge: {{client: file, file: "{places.input}/descriptions.csv"}}
  extractor: {{name: direct}}
{SETTINGS.replace("ROOT", str(places.root))}
paths:
  dataset_root: "{human}"
  features_root: "{places.root}/features-human"
  folders:
{folders}
""")  # fmt: skip
    return path


def annotate(places: Places, path: Path, rule: str) -> dict[str, tuple[str, str]]:
    """Run the pipeline under one rule; name → verdict and reason."""
    from affectgpt.cli import caption

    more = {"none": ["speaker.source=off", "length.use=false", "agreement.rule=off"], "low": ["agreement.rule=off"]}
    chosen = [f"captioning.{item}" for item in more.get(rule, [f"agreement.rule={rule}"])]
    options = [*chosen, f"captioning.work={places.work(rule)}", f"paths.features_root={places.folder / 'features'}"]
    if not (places.work(rule) / "clips.csv").exists():
        demo.call("caption", caption.main, ["--cfg-path", str(path), "--options", *options])
    with (places.work(rule) / "clips.csv").open(encoding="utf-8", newline="") as handle:
        return {row["name"]: (row["verdict"], row["reason"]) for row in csv.DictReader(handle)}


def count(faults: dict[str, str], verdicts: dict[str, tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Filter → kind of fault → clips that it dropped; ``reached``: clips that came as far as the ensemble."""
    found: dict[str, dict[str, int]] = {f: dict.fromkeys(("right", *SHARES), 0) for f in ("speaker", "length", "crowd")}
    found["reached"] = dict.fromkeys(("right", *SHARES), 0)
    found["all"] = dict.fromkeys(("right", *SHARES), 0)
    for name, (verdict, reason) in verdicts.items():
        kind, by = faults[name], reason.partition(":")[0] if verdict == "dropped" else ""
        found["all"][kind] += 1
        if by:
            found[by][kind] += 1
        if by not in ("speaker", "length"):
            found["reached"][kind] += 1
    return found


def train_and_score(places: Places, rule: str) -> tuple[float, int]:
    """HIT of the tiny recipe trained on what a rule keeps, and how many clips that are."""
    from affectgpt.cli import train
    from affectgpt.core.tables import read_table

    work = places.work(rule)
    clips = len(read_table(work / "dataset/mer2025-dataset/track3_train_mercaptionplus.csv", key="name", columns=()))
    result = work / "score.json"
    if not result.exists():
        path = Path("train_configs/demo_cpu.yaml")
        shared = [*places.paths(), f"paths.features_root={places.folder / 'features-training'}"]
        options = [
            f"paths.dataset_root={work / 'dataset'}", f"paths.output_root={work}", f"run.seed={places.seed}",
            "run.num_workers=0", *shared,
        ]  # fmt: skip
        runs = set((work / "demo_cpu").glob("*"))
        demo.call("train.py", train.main, ["--cfg-path", str(path), "--options", *options])
        (run,) = set((work / "demo_cpu").glob("demo_cpu*")) - runs
        write_json(result, {"hit": hit(places, work, run, path, shared), "clips": clips})
    return json.loads(result.read_text())["hit"], clips


def hit(places: Places, work: Path, run: Path, path: Path, shared: list[str]) -> float:
    """HIT of a trained run on the held-out basic set."""
    from affectgpt.cli import evaluate, infer

    options = [
        f"paths.dataset_root={places.judged}", f"paths.output_root={work}", f"inference.ckpt_root={run}",
        f"inference.base_root={work / 'results'}", *shared,
    ]  # fmt: skip
    demo.call("inference_hybird.py", infer.main,
              ["--cfg-path", str(path), "--dataset", "MER2023", "--zeroshot", "--options", *options])  # fmt: skip
    numbers = work / "hit.json"
    with Path(os.devnull).open("w") as nowhere:
        demo.call("evaluation.py", evaluate.main, [
            "--base-root", str(work / "results"), "--dataset-root", str(places.judged), "--lexicon", "builtin",
            "--datasets", "MER2023", "--run", run.name, "--checkpoints", "4", "--extractor", "direct",
            "--bootstrap", "0", "--json", str(numbers),
        ], output=nowhere)  # fmt: skip
    return json.loads(numbers.read_text())["datasets"]["mer2023"]["best"]["hit"]


def training_features(places: Places) -> None:
    """Encoder outputs of all clips and of the test set, once for all rules."""
    from affectgpt.cli import extract_features

    path = "train_configs/demo_cpu.yaml"
    shared = [*places.paths(), f"paths.features_root={places.folder / 'features-training'}", "run.num_workers=0"]
    for name, split, root in (
        ("MERCaptionPlus", "train", places.work("none") / "dataset"), ("MER2023", "test", places.judged),
    ):  # fmt: skip
        demo.call("extract_features", extract_features.main, [
            "--cfg-path", path, "--datasets", name, "--split", split, "--mode", "multiface_audio_face_text",
            "--options", f"paths.dataset_root={root}", *shared,
        ])  # fmt: skip


def measure(places: Places, human: Path, *, training: bool) -> dict:
    """Everything for one fault seed."""
    started = time.perf_counter()
    plant(places)
    path = configuration(places, human)
    with (places.folder / "faults.csv").open(encoding="utf-8", newline="") as handle:
        faults = {row["name"]: row["fault"] for row in csv.DictReader(handle)}
    row: dict = {"seed": places.seed, "counts": {}, "hit": {}, "clips": {}}
    for rule in RULES:
        row["counts"][rule] = count(faults, annotate(places, path, rule))
    if training:
        training_features(places)
        for rule in RULES:
            row["hit"][rule], row["clips"][rule] = train_and_score(places, rule)
    row["seconds"] = time.perf_counter() - started
    write_json(places.folder / "result.json", row)
    return row


def rates(rows: list[dict], rule: str) -> dict[str, float]:
    """Over all rows: precision and recall of each filter, and what the high-level filter keeps and drops."""

    def total(part: str, *kinds: str) -> int:
        return sum(row["counts"][rule][part][kind] for row in rows for kind in kinds)

    kinds = ("right", *SHARES)
    found = {}
    for filter_, target in (("speaker", "voice"), ("length", "short"), ("crowd", "wrong")):
        base = "reached" if filter_ == "crowd" else "all"
        dropped = total(filter_, *kinds)
        found[f"{filter_} precision"] = total(filter_, target) / dropped if dropped else float("nan")
        found[f"{filter_} faulty"] = 1 - total(filter_, "right") / dropped if dropped else float("nan")
        found[f"{filter_} recall"] = total(filter_, target) / max(total(base, target), 1)
        found[f"{filter_} right kept"] = 1 - total(filter_, "right") / max(total(base, "right"), 1)
    left = {kind: total("reached", kind) - total("crowd", kind) for kind in kinds}
    found["right in kept"] = left["right"] / max(sum(left.values()), 1)
    return found


def show(rows: list[dict]) -> None:
    """The tables."""
    for filter_, target in (("speaker", "another's voice"), ("length", "over-short text")):
        print(f"\n{filter_} filter: of all clips, finds {target}")
        for title, some in _groups(rows):
            r = {key: 100 * value for key, value in rates(some, "low").items()}
            print(f"  {title:22} precision {r[f'{filter_} precision']:5.1f}   recall {r[f'{filter_} recall']:5.1f}"
                  f"   right clips kept {r[f'{filter_} right kept']:5.1f}")  # fmt: skip
    print("\nhigh-level filter: of clips that reach it, finds wrong descriptions")
    for rule in ("E", "S", "E+S"):
        for title, some in _groups(rows):
            r = {key: 100 * value for key, value in rates(some, rule).items()}
            print(f"  {rule:4} {title:22} precision {r['crowd precision']:5.1f} (any fault {r['crowd faulty']:5.1f})"
                  f"   recall: wrong dropped {r['crowd recall']:5.1f}   right kept {r['crowd right kept']:5.1f}"
                  f"   right among kept {r['right in kept']:5.1f}")  # fmt: skip
    if all(row["hit"] for row in rows):
        judged = [row for row in rows if row["seed"] != TUNED_ON] or rows
        print("\ntraining on what is kept, HIT on held-out persons (clips); mean without the seed tuned on")
        print(f"  {'low':4} {'high':5}" + "".join(f"{'seed ' + str(row['seed']):>16}" for row in rows) + f"{'mean':>8}")
        for rule in RULES:
            low, high = ("-" if rule == "none" else "yes"), (rule if rule in ("E", "S", "E+S") else "-")
            cells = "".join(f"{100 * row['hit'][rule]:9.1f} ({row['clips'][rule]:4})" for row in rows)
            print(f"  {low:4} {high:5}{cells}{100 * mean_hit(judged, rule):8.1f}")


def _groups(rows: list[dict]) -> list[tuple[str, list[dict]]]:
    tuned = [row for row in rows if row["seed"] == TUNED_ON]
    rest = [row for row in rows if row["seed"] != TUNED_ON]
    groups = [(f"seed {row['seed']}" + (" (tuned on)" if row in tuned else ""), [row]) for row in rows]
    return [*groups, ("the others together", rest)] if len(rest) > 1 else groups


def mean_hit(rows: list[dict], rule: str) -> float:
    """Mean HIT over seeds."""
    return sum(row["hit"][rule] for row in rows) / len(rows)


def main(argv: list[str] | None = None) -> int:
    """Measure each seed, print the tables, say what is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0-3", help="A-B or one number (0-3)")
    parser.add_argument("--root", type=Path, default=Path("output/captioning-demo"))
    parser.add_argument("--no-training", action="store_true", help="only the filters")
    add_out_argument(parser, "captioning_demo")
    args = parser.parse_args(argv)
    bench = Run(parser, args, places=("root",))
    one_thread()

    from affectgpt.cli import crowd
    from affectgpt.core.runtime import setup_logging
    from examples.demo.models import make_models

    setup_logging()
    root = args.root.resolve()
    make_models(root / "models", seed=0)
    human = make_human_sets(root)
    first, _, last = args.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    path = configuration(Places(root, seeds[0]), human)
    demo.call("crowd", crowd.main, ["train", "--cfg-path", str(path)])
    rows = [measure(Places(root, seed), human, training=not args.no_training) for seed in seeds]
    show(rows)
    judged = [row for row in rows if row["seed"] != TUNED_ON] or rows
    found = rates(judged, "E+S")
    missed = []
    if found["crowd right kept"] < 0.9:
        missed.append("the high-level filter keeps less than 90 % of the right")
    if found["crowd recall"] < 0.8:
        missed.append("the high-level filter drops less than 80 % of the wrong")
    if not args.no_training and mean_hit(judged, "E+S") <= mean_hit(judged, "none"):
        missed.append("kept clips do not train better than all clips")
    print("\n" + ("; ".join(missed) or "all held"))
    numbers = {
        "clips": CLIPS, "tested": TESTED, "planted_ratios": SHARES, "tuned_on": TUNED_ON, "seeds": rows,
        "reported_seeds": [row["seed"] for row in judged],
        "ratios": {rule: rates(judged, rule) for rule in ("low", "E", "S", "E+S")},
        "hit_ratios": {} if args.no_training else {rule: mean_hit(judged, rule) for rule in RULES}, "missed": missed,
    }  # fmt: skip
    bench.record("captioning_demo", numbers, model="demo")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(run_cli(main))
