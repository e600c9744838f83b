"""``python -m examples.demo --rl``: reinforcement learning that two CPU cores can carry, on drawn clips.

In the plain demo one right word scores 100, so that rewards have nothing to teach. Here supervised training learns what
machine labels often are: the right emotion and a wrong one, in any order. Rewards by what is true of the training
clips then teach to say the right one alone. Held-out clips have faces and voices that no training clip has.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.core.errors import AffectGPTError
from examples.demo import pipeline as demo

if TYPE_CHECKING:
    import numpy as np

SFT, GRPO = "demo_cpu_planted", "demo_cpu_grpo"
HELD_OUT = 160  # clips
SET = "OVMERDPlus"
# Arm → what it changes. ``random`` comes with a file that registers the reward (benchmarks/grpo_random.py).
ARMS: dict[str, tuple[str, ...]] = {
    "wheel": (),
    "random": ("grpo.rewards.wheel=0", "grpo.rewards.random=1"),
    "shuffled": ("datasets.clean.path=shuffled-{seed}.csv",),
    # Recognition gets better first; then more and more is listed, until the guard stops it. Long, fast and without KL,
    # so that there is something to stop: a start that always says two labels rarely tries three.
    "recall": (
        "grpo.rewards.wheel=0",
        "grpo.rewards.recall=1",
        "grpo.kl=0",
        "run.iters_per_epoch=90",
        "run.init_lr=3e-3",
        "run.min_lr=3e-3",
    ),
}
VIEWS = ("plain", "faces", "voices")  # held-out clips as they are, with faces dealt to others, with voices dealt


@dataclass(frozen=True)
class Place:
    """Where it lives; models and corpus are the same for all seeds, labels and trainings are not."""

    root: Path = Path("output/demo-rl")
    models: Path = Path("models")
    recipes: Path = Path("train_configs")
    seed: int = 0
    workers: int = 2

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"

    def options(self, *more: str) -> list[str]:
        """``--options`` that lead a shipped recipe here."""
        items = [
            f"paths.dataset_root={self.dataset}", f"paths.features_root={self.root / 'features'}",
            f"paths.output_root={self.root / f'seed{self.seed}'}", f"run.seed={self.seed}",
        ]  # fmt: skip
        for name, folder in (("CLIP_VIT_LARGE", "clip"), ("HUBERT_LARGE", "hubert"), ("Qwen25", "qwen2")):
            items.append(f"paths.folders.{name}={self.models / f'demo-{folder}'}")
        return ["--options", *items, *more]

    def recipe(self, name: str) -> list[str]:
        """The arguments that name a recipe."""
        return ["--cfg-path", str(self.recipes / f"{name}.yaml")]


@dataclass
class ArmResult:
    """What one training came to. Summands ``[N, C]`` and labels per answer on the held-out clips, by view."""

    arm: str
    seed: int
    seconds: float
    stopped: str = ""  # why the guard stopped it
    log: Path | None = None
    checkpoint: Path | None = None
    summands: dict[str, np.ndarray] = field(default_factory=dict)
    labels: dict[str, float] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)

    def f(self, view: str = "plain") -> float:
        """F_s of a view, 0..1."""
        return self.values(view)["f"]

    def values(self, view: str = "plain") -> dict[str, float]:
        """F_s, precision and recall of a view."""
        found = metric().aggregate(self.summands[view].sum(axis=0))
        return {key: float(value) for key, value in found.items()}


def metric() -> Any:
    """That of open-vocabulary labels, by the built-in lexicon."""
    from affectgpt.evaluation.lexicon import grouping_of, load_builtin
    from affectgpt.evaluation.metrics.base import METRICS

    return METRICS.get("fine-grained")(grouping_of(load_builtin()))


def run(place: Place) -> None:
    """One seed of the wheel arm, and its report."""
    from examples.demo.rl_report import write_rl_report

    began = time.perf_counter()
    print("Reinforcement learning on drawn clips: everything is synthetic.", flush=True)
    prepare(place)
    start = supervised(place)
    result = reinforced(place, "wheel", start)
    report = place.root / "report.html"
    write_rl_report(report, rows=table([start], [result]), curves=curves([result]), notes=[])
    gain = 100 * (result.f() - start.f())
    print(
        f"\nheld-out F_s {100 * start.f():.1f} -> {100 * result.f():.1f} ({gain:+.1f}), labels per answer "
        f"{start.labels['plain']:.2f} -> {result.labels['plain']:.2f}\nreport: {report}   "
        f"({(time.perf_counter() - began) / 60:.1f} minutes)"
    )


def prepare(place: Place) -> None:
    """Tiny models, clips, the tables of this seed, and the encoders' outputs, where they are missing."""
    from affectgpt.cli import extract_features
    from examples.demo.corpus import PartSpec, make_corpus
    from examples.demo.language import EMOTIONS, FELT
    from examples.demo.models import make_models

    parts = (
        PartSpec("MERCaptionPlus", "train", 240, EMOTIONS, False, "train"),
        PartSpec(SET, "test", HELD_OUT, FELT, True, "open"),
    )
    bar = demo._bar
    make_models(place.models, workers=place.workers, progress=bar("tiny models", "model"))
    make_corpus(place.dataset, parts=parts, workers=place.workers, progress=bar("synthetic clips", "clip"))
    write_tables(place)
    stored = place.root / "features" / SET.lower() / "test"
    if not stored.is_dir():
        for name, arguments in ((SFT, []), (GRPO, []), (SFT, ["--datasets", SET, "--split", "test"])):
            demo.call("extract_features", extract_features.main, [*place.recipe(name), *arguments, *place.options()])


def write_tables(place: Place) -> None:
    """planted.csv: the right emotion and a wrong one, in random order. clean.csv: what is true. shuffled-SEED.csv: the
    truth of another clip."""
    from affectgpt.core.files import write_text
    from affectgpt.core.tables import read_table
    from affectgpt.evaluation.labels import parse_item
    from examples.demo.language import FELT, OPEN_WORDS

    root = place.dataset / "mer2025-dataset"
    said = read_table(root / "subtitle_chieng.csv", key="name", columns=("english",))
    truth = {
        name: parse_item(cells[0])
        for name, cells in read_table(
            root / "track2_train_mercaptionplus.csv", key="name", columns=("openset",)
        ).items()
    }
    words = [OPEN_WORDS[emotion][0] for emotion in FELT]
    names = [name for name, labels in truth.items() if labels[0] in words]
    rng = random.Random(place.seed)
    planted, dealt = {}, names.copy()
    for name in names:
        labels = [truth[name][0], rng.choice([word for word in words if word != truth[name][0]])]
        rng.shuffle(labels)
        planted[name] = labels
    rng.shuffle(dealt)
    tables: dict[str, Mapping[str, Sequence[str]]] = {
        f"planted-{place.seed}.csv": planted, "clean.csv": {name: truth[name] for name in names},
        f"shuffled-{place.seed}.csv": {name: truth[other] for name, other in zip(names, dealt, strict=True)},
        "planted.csv": planted,
    }  # fmt: skip
    for file, given in tables.items():
        out = io.StringIO()
        rows = [(name, said[name][0], f"[{', '.join(given[name])}]") for name in names]
        csv.writer(out, lineterminator="\n").writerows([("name", "subtitle", "ovlabel"), *rows])
        if file != "planted.csv" or not (place.dataset / file).exists():
            write_text(place.dataset / file, out.getvalue())


def supervised(place: Place) -> ArmResult:
    """Supervised training on this seed's planted labels: what all its arms start from."""
    began = time.perf_counter()
    target = place.root / f"seed{place.seed}" / "start.pth"
    options = place.options(f"datasets.planted.path=planted-{place.seed}.csv")
    folder, _ = _trained(place, SFT, options, place.root / f"seed{place.seed}" / SFT)
    shutil.copy(max(folder.glob("checkpoint_*.pth")), target)
    result = ArmResult("supervised", place.seed, 0.0, checkpoint=target)
    _answer(place, result, name="checkpoint_000001_loss_0.000.pth")
    result.seconds = time.perf_counter() - began
    return result


def reinforced(place: Place, arm: str, start: ArmResult, *, imports: Sequence[Path] = ()) -> ArmResult:
    """One arm from a start; the guard may stop it, and then its last checkpoint before that is none."""
    more = [item.format(seed=place.seed) for item in ARMS[arm]]
    if imports:
        more.append(f"imports=[{', '.join(str(path.resolve()) for path in imports)}]")
    output = place.root / f"seed{place.seed}" / arm
    options = place.options(f"model.ckpt={start.checkpoint}", f"run.output_dir={output}", *more)
    folder, record = _trained(place, GRPO, options, output, start.checkpoint)
    began = time.perf_counter()
    result = ArmResult(arm, place.seed, 0.0, stopped=record["stopped"], log=folder / "log.txt")
    if not result.stopped:
        result.checkpoint = max(folder.glob("checkpoint_*.pth"))
        _answer(place, result)
    result.seconds = record["seconds"] + time.perf_counter() - began
    return result


def _trained(
    place: Place, recipe: str, options: Sequence[str], root: Path, start: Path | None = None
) -> tuple[Path, dict[str, Any]]:
    """The folder and the record of a finished training below ``root``, which is trained where it is missing.

    The record says how long it took, by which settings, and why the guard stopped it (empty: it did not).
    """
    from affectgpt.cli import train
    from affectgpt.config.load import load_config
    from affectgpt.core.files import write_json
    from examples.demo.corpus import MARKER as CORPUS_MARKER

    arguments = [*place.recipe(recipe), *options]
    digest = hashlib.sha256(repr(load_config(arguments[1], options[1:])).encode())
    digest.update((place.dataset / CORPUS_MARKER).read_bytes())
    if start is not None:
        digest.update(start.read_bytes())
    settings = digest.hexdigest()
    for marker in root.glob(f"*/{demo.MARKER}"):
        record = json.loads(marker.read_text(encoding="utf-8"))
        if record["settings"] == settings:
            return marker.parent, record
    began, before, stopped = time.perf_counter(), set(root.glob("*")), ""
    try:
        demo.call("train.py", train.main, arguments)
    except AffectGPTError as error:
        if "training stops" not in str(error):
            raise
        stopped = str(error)
        print(f"stopped by the guard: {error}", flush=True)
    (folder,) = set(root.glob("*")) - before
    record = {"settings": settings, "seconds": time.perf_counter() - began, "stopped": stopped}
    write_json(folder / demo.MARKER, record)
    return folder, record


def _answer(place: Place, result: ArmResult, *, name: str = "") -> None:
    """Greedy answers of a checkpoint to the held-out clips in all views, read by the rules and scored."""
    from affectgpt.cli import infer
    from affectgpt.core.npz import read_npz
    from affectgpt.datasets.table import get_row
    from affectgpt.evaluation.chance import labels_and_groups
    from affectgpt.evaluation.extract import direct_items
    from affectgpt.evaluation.score import Truth, score_items

    assert result.checkpoint is not None
    checkpoint = result.checkpoint
    if name:  # inference looks for the published names
        checkpoint = checkpoint.parent / "start" / name
        checkpoint.parent.mkdir(exist_ok=True)
        shutil.copy(result.checkpoint, checkpoint)
    truth = Truth.load(get_row(SET), dataset_root=place.dataset)
    for view in VIEWS:
        there = replace(place, root=dealt(place, view)) if view != "plain" else place
        results = place.root / f"seed{place.seed}" / "results" / f"{result.arm}-{view}"
        options = there.options(
            f"datasets.planted.path={(place.dataset / 'planted.csv').resolve()}", f"inference.ckpt_name={checkpoint}",
            f"inference.base_root={results}", "inference.test_epoch=xxx",
        )  # fmt: skip
        demo.call("inference_hybird.py", infer.main, [*place.recipe(SFT), "--dataset", SET, *options])
        file = results.with_name(f"{results.name}-{SET.lower()}") / checkpoint.parent.name / f"{checkpoint.stem}.npz"
        answers = read_npz(file)["name2reason"]
        items, _ = direct_items(answers, polarity=False)
        score = score_items(items, truth, metric(), source=file, checkpoint=file.stem, allow_missing=True)
        result.summands[view] = score.summands
        result.labels[view] = float(labels_and_groups(score.metric, score.items)[0] or 0)
        if view == "plain":
            result.answers = answers


def dealt(place: Place, view: str) -> Path:
    """A root whose held-out faces, or voices, are dealt out to other clips (links), with features of its own."""
    import numpy as np

    from affectgpt.cli import extract_features
    from affectgpt.core import crops
    from affectgpt.datasets.table import get_row

    row = get_row(SET)
    root = place.root / f"dealt-{view}"
    source, target = place.dataset / row.root, root / "dataset" / row.root
    folder, suffix = (row.face_dir, ".npy") if view == "faces" else (row.audio_dir, ".wav")
    if target.is_dir():
        return root
    target.mkdir(parents=True)
    for entry in source.iterdir():
        if entry.name != folder:
            (target / entry.name).symlink_to(entry.resolve())
    (target / folder).mkdir()
    record = crops.read_record(source / folder)[1] if view == "faces" else None
    if record is not None:
        crops.write_record(target / folder, record)
    files = sorted((source / folder).glob(f"*{suffix}"))
    order = np.random.default_rng(9).permutation(len(files))
    for i, position in enumerate(order):  # one big circle: no clip keeps its own
        (target / folder / files[position].name).symlink_to(files[order[(i + 1) % len(order)]].resolve())
    there = replace(place, root=root)
    options = there.options(f"datasets.planted.path={(place.dataset / 'planted.csv').resolve()}")
    arguments = [*place.recipe(SFT), "--datasets", SET, "--split", "test", *options]
    demo.call("extract_features", extract_features.main, arguments)
    return root


def table(starts: Sequence[ArmResult], results: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """Rows of the report: each arm and seed with its gain over its start, paired."""
    from affectgpt.evaluation.stats import compare

    by_seed = {start.seed: start for start in starts}
    rows = []
    for result in results:
        start = by_seed[result.seed]
        row: dict[str, Any] = {
            "arm": result.arm, "seed": result.seed, "minutes": result.seconds / 60, "stopped": result.stopped,
            "before": 100 * start.f(), "labels_before": start.labels["plain"],
        }  # fmt: skip
        if not result.stopped:
            values = result.values()
            paired = compare(metric(), [start.summands["plain"]], [result.summands["plain"]])
            row |= {
                "after": 100 * values["f"], "precision": 100 * values["precision"], "recall": 100 * values["recall"],
                "labels": result.labels["plain"], "gain": 100 * (values["f"] - start.f()),
                "low": 100 * paired.interval[0], "high": 100 * paired.interval[1],
                **{f"gain_{view}": 100 * (result.f(view) - start.f(view)) for view in VIEWS[1:]},
            }  # fmt: skip
        rows.append(row)
    return rows


def curves(results: Sequence[ArmResult]) -> list[tuple[str, Path]]:
    """Title and log of each training."""
    return [(f"{result.arm}, seed {result.seed}", result.log) for result in results if result.log is not None]
