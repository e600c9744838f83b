"""``make demo``: tiny models, a synthetic corpus, training, inference, scores and a report, on a CPU.

The steps are the published commands (train.py, inference_hybird.py, evaluation.py), run in this process with the
arguments that are printed. What is there already is not done again, so an interrupted demo resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.cli.common import ROOT, command_line, module_line
from affectgpt.core.errors import AffectGPTError, ConfigError

if TYPE_CHECKING:
    from affectgpt.config.schema import Config
    from examples.demo.report import RecipeResult

RECIPES = {
    "demo_cpu": "face, audio, text, pre-fusion",
    "demo_cpu_face": "face, audio, text, no pre-fusion",
    "demo_cpu_textonly": "text only",
}
DATASETS = "MER2023,SIMS,OVMERDPlus"
DESCRIPTION = "Please infer the person's emotional state and provide your reasoning process."
QUESTIONS = {"ovlabel": ["--zeroshot"], "description": ["--outside_user_message", DESCRIPTION]}
MARKER = "demo.json"  # in a run's folder: trained to the end, by which settings


@dataclass(frozen=True)
class Place:
    """Where one demo lives. The default is what the shipped recipes say; others are for repeated measurements."""

    root: Path = Path("output/demo")
    models: Path = Path("models")
    recipes: Path = Path("train_configs")
    seed: int = 0
    workers: int = 2

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"

    def options(self, *more: str) -> list[str]:
        """``--options`` that lead a shipped recipe here; none for the default place."""
        items = []
        if self != Place(workers=self.workers):
            items += [f"paths.dataset_root={self.dataset}", f"paths.output_root={self.root}", f"run.seed={self.seed}"]
            for name, folder in (("CLIP_VIT_LARGE", "clip"), ("HUBERT_LARGE", "hubert"), ("Qwen25", "qwen2")):
                items.append(f"paths.folders.{name}={self.models / f'demo-{folder}'}")
        items += more  # last, so that they count
        return ["--options", *items] if items else []

    def results(self, question: str) -> Path:
        """Beginning of the result folders' names."""
        return self.root / ("results" if question == "ovlabel" else "description")


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the demo."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description="From nothing to a scored tiny model on a CPU in some minutes, everything synthetic. "
        "What is there already is used again.",
    )
    parser.add_argument(
        "--rl", action="store_true",
        help="instead: reinforcement learning on clips with planted wrong labels, in output/demo-rl (some minutes)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that make models and clips (2)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the demo in the clone."""
    args = build_parser().parse_args(argv)

    from affectgpt.core.files import locked
    from affectgpt.core.runtime import setup_logging

    setup_logging()
    place: Any = Place(workers=max(args.workers, 1))
    work: Callable[[Any], None] = run
    if args.rl:
        from examples.demo import rl

        place, work = rl.Place(workers=max(args.workers, 1)), rl.run
    place.root.mkdir(parents=True, exist_ok=True)
    with locked(place.root, wait=False) as alone:
        if not alone:
            raise ConfigError(f"another demo is running in {place.root}: wait for it or end it")
        work(place)
    return 0


def run(place: Place) -> None:
    """All steps, then the report."""
    from affectgpt.core.runtime import one_thread
    from examples.demo.report import write_report

    one_thread()
    started = time.perf_counter()
    print(
        "AffectGPT demo: everything in it is synthetic (drawn faces, synthetic voices, invented sentences).\n"
        "It computes with one thread; the commands that it prints give the same numbers with OMP_NUM_THREADS=1 before "
        "them.",
        flush=True,
    )
    fresh = prepare(place)
    results = []
    for name in RECIPES:
        fresh = train(place, name) or fresh
        fresh = infer(place, name) or fresh
        results.append(evaluate(place, name))
    seconds = time.perf_counter() - started
    report = place.root / "report.html"
    write_report(
        report,
        results=results,
        chance=chance(),
        dataset_root=place.dataset,
        seed=place.seed,
        seconds=seconds if fresh else 0.0,
    )
    print(f"\n{format_table(results)}\n\nreport: {report}   ({seconds / 60:.1f} minutes)\n{next_commands(place)}")
    print(page_command(place))


def prepare(place: Place) -> bool:
    """Make the tiny models and the corpus where they are missing; whether anything was."""
    from examples.demo.corpus import make_corpus
    from examples.demo.models import make_models, missing_models

    if names := missing_models(place.models, seed=place.seed):
        print(f"\nteaching tiny models: {', '.join(names)}", flush=True)
    made = make_models(place.models, seed=place.seed, workers=place.workers, progress=_bar("tiny models", "model"))
    print(f"\ndrawing the clips that are missing in {place.dataset}", flush=True)
    clips = make_corpus(place.dataset, seed=place.seed, workers=place.workers, progress=_bar("synthetic clips", "clip"))
    return bool(made) or clips


def _bar(title: str, unit: str):
    def wrap(items: Iterator, total: int) -> Iterator:
        from tqdm import tqdm

        return tqdm(items, total=total, desc=title, unit=unit, disable=None)

    return wrap


def load(place: Place, name: str) -> tuple[Path, Config]:
    """The file and the configuration of a recipe, with this place's options."""
    from affectgpt.config.load import load_config

    path = place.recipes / f"{name}.yaml"
    return path, load_config(path, place.options()[1:])


def _settings(place: Place, name: str) -> str:
    """A hash of all that a training run depends on: recipe, models, corpus."""
    from examples.demo.corpus import MARKER as CORPUS_MARKER
    from examples.demo.models import MARKER as MODEL_MARKER
    from examples.demo.models import RECIPES as MODELS

    digest = hashlib.sha256(repr(load(place, name)[1]).encode())
    for path in [place.dataset / CORPUS_MARKER, *(place.models / model / MODEL_MARKER for model in MODELS)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def finished_run(place: Place, name: str) -> Path | None:
    """The folder of a finished training run with the present settings; None if there is none."""
    settings = _settings(place, name)
    for folder in sorted((place.root / name).glob(f"{name}*"), reverse=True):
        try:
            if json.loads((folder / MARKER).read_text(encoding="utf-8"))["settings"] == settings:
                return folder
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def train(place: Place, name: str) -> bool:
    """Train a recipe unless that is done; whether it was necessary."""
    from affectgpt.cli import train as command
    from affectgpt.core.files import write_json

    if finished_run(place, name):
        return False
    path, _ = load(place, name)
    before = set((place.root / name).glob("*"))
    call("train.py", command.main, ["--cfg-path", str(path), *place.options()])
    (folder,) = set((place.root / name).glob(f"{name}*")) - before
    write_json(folder / MARKER, {"settings": _settings(place, name), "recipe": name})
    return True


def infer(place: Place, name: str) -> bool:
    """Answer the three held-out sets with both questions; whether anything was missing."""
    from affectgpt.cli import infer as command

    path, config = load(place, name)
    run = _run(place, name)
    missing = False
    for question, arguments in QUESTIONS.items():
        folder = place.results(question)
        if all(_answers(place, question, dataset, run, config) for dataset in DATASETS.split(",")):
            continue
        missing = True
        where = [f"inference.ckpt_root={run}"]
        if question != "ovlabel" or place != Place(workers=place.workers):
            where.append(f"inference.base_root={folder}")
        options = place.options(*where)
        call(
            "inference_hybird.py", command.main, ["--cfg-path", str(path), "--dataset", DATASETS, *arguments, *options]
        )
    return missing


def _run(place: Place, name: str) -> Path:
    run = finished_run(place, name)
    if run is None:
        raise AffectGPTError(f"{place.root / name}: no finished training run of these settings")
    return run


def _answers(place: Place, question: str, dataset: str, run: Path, config: Config) -> Path | None:
    base = place.results(question)
    folder = base.with_name(f"{base.name}-{dataset.lower()}") / run.name
    return next(folder.glob(f"checkpoint_{config.run.max_epoch:06d}_loss_*[0-9].npz"), None)


def evaluate(place: Place, name: str) -> RecipeResult:
    """Extract labels, score, and gather what the report shows."""
    from affectgpt.cli import evaluate as command
    from affectgpt.core.files import naming
    from affectgpt.core.npz import read_npz
    from affectgpt.inference.session import training_mode
    from affectgpt.processing.modes import get_mode
    from examples.demo.report import COLUMNS, RecipeResult

    _, config = load(place, name)
    run = _run(place, name)
    text_only = not get_mode(training_mode(config)).media
    result = RecipeResult(name=name, title=RECIPES[name], log=run / "log.txt", text_only=text_only)
    for question in QUESTIONS:
        numbers = place.root / "scores" / f"{run.name}-{question}.json"
        numbers.parent.mkdir(parents=True, exist_ok=True)
        arguments = [
            "--output-root", str(place.root), "--base-root", str(place.results(question)),
            "--dataset-root", str(place.dataset), "--lexicon", "builtin", "--extractor", "direct",
            "--datasets", DATASETS, "--run", run.name, "--checkpoints", str(config.run.max_epoch), "--bootstrap", "0",
            "--json", str(numbers),
        ]  # fmt: skip
        text = numbers.with_suffix(".txt")
        with naming(text), text.open("w", encoding="utf-8") as out:
            call("evaluation.py", command.main, arguments, output=out)
        found = json.loads(numbers.read_text(encoding="utf-8"))["datasets"]
        result.scores[question] = {key: found[key]["best"][metric] for key, metric, _ in COLUMNS}
        answers = _answers(place, question, "MER2023", run, config)
        if answers is None:
            raise AffectGPTError(f"{place.results(question)}: no answers of {run.name} for MER2023")
        result.answers[question] = read_npz(answers)["name2reason"]
        items = read_npz(answers.with_name(f"{answers.stem}-openset-direct.npz"))["fileitems"]
        result.n_labels[question] = mean_labels(items)
    return result


def mean_labels(items: Iterable[str]) -> float:
    """Mean number of labels of extracted items such as ``[happy, calm]``."""
    counts = [sum(bool(label.strip()) for label in str(item).strip("[]").split(",")) for item in items]
    return sum(counts) / len(counts)


def call(script: str, command: Callable[[list[str]], int], arguments: list[str], output: Any = None) -> None:
    """Run one published command in this process, after printing it as one would type it."""
    print(f"\n$ {command_line(script, arguments)}", flush=True)
    with contextlib.redirect_stdout(output) if output else contextlib.nullcontext():
        code = command(arguments)
    if code > 128:  # a signal
        raise AffectGPTError(f"{script} was stopped: the same command resumes")
    if code:
        raise AffectGPTError(f"{script} ended with status {code}")


def chance() -> float:
    """HIT of an answer drawn blindly from the five emotions that count, which the basic set has equally often.

    Above one in five, because some wheels of the built-in lexicon hold surprise and worry in one group.
    """
    from affectgpt.evaluation.lexicon import Grouping, load_builtin
    from examples.demo.language import FELT

    grouping = Grouping(load_builtin())
    wheels = list(zip(*(grouping.groups(emotion) for emotion in FELT), strict=True))
    hits = [wheel.count(group) / len(wheel) for wheel in wheels for group in wheel]
    return sum(hits) / len(hits)


def format_table(results: list[RecipeResult]) -> str:
    """The comparison as text, in percent."""
    from examples.demo.report import COLUMNS, blind_descriptions

    titles = [title for _, _, title in COLUMNS]
    width = max(len(r.title) for r in results)
    head = "  ".join(f"{title:>15}" for title in titles)
    lines = [
        "Held-out clips, percent, built-in lexicon, SYNTHETIC data (not comparable with published numbers)",
        f"{'':{width}}  {'asked for labels':^49}    {'asked for a description':^49}  labels per answer",
        f"{'recipe':{width}}  {head}    {head}",
    ]
    for r in results:
        cells = ["  ".join(f"{100 * r.scores[q][key]:15.1f}" for key, _, _ in COLUMNS) for q in QUESTIONS]
        lines.append(f"{r.title:{width}}  {cells[0]}    {cells[1]}  {r.n_labels['ovlabel']:.2f}")
    lines.append(f"{'chance (blind draw)':{width}}  {100 * chance():15.1f}")
    for r in results:
        if blind := blind_descriptions(r, chance=chance()):
            lines.append(
                f"{r.title}, description: {blind['score']} % because {blind['neutral']} % of them say neutral, which "
                "hits no emotion; the report says why"
            )
    return "\n".join(lines)


def next_commands(place: Place) -> str:
    """Three commands to continue with, to be copied as they are: each works on its own after the demo."""
    from affectgpt.datasets.table import get_row

    recipe = ["--cfg-path", str(place.recipes / "demo_cpu.yaml")]
    held_out = get_row("MER2023")
    clip = min((place.dataset / held_out.root / held_out.video_dir).glob(f"*{held_out.video_suffixes[0]}"))
    run = _run(place, "demo_cpu")
    other = f"paths.output_root={place.root / 'more'}"  # the demo's own runs stay as they are
    lines = (
        "next, for example (--video_path: any video with a face):",
        command_line(
            "inference_sample.py",
            [*recipe, "--video_path", str(clip), *place.options(f"inference.ckpt_root={run}")],
        ),
        command_line("train.py", [*recipe, *place.options(other, "run.max_epoch=6")]),
        command_line(
            "inference_hybird.py",
            [*recipe, "--zeroshot", "--dataset", "OVMERDPlus", *place.options(
                f"inference.ckpt_root={run}", "inference.test_epoch=2",
                f"inference.base_root={place.root / 'more' / 'results'}",
            )],
        ),
    )  # fmt: skip
    return "\n" + "\n  ".join(lines)


def page_command(place: Place) -> str:
    """The command that shows the demo's model on a page, with the demo's held-out clips to try."""
    serve = ["serve", "--cfg-path", str(place.recipes / "demo_cpu.yaml"), "--ui"]
    options = place.options(f"inference.ckpt_root={_run(place, 'demo_cpu')}")
    install = ": pip install -e '.[page]'" if (ROOT / "pyproject.toml").is_file() else ""
    needs = "" if find_spec("gradio") else f" (needs the extra [page]{install})"
    return f"a page to drop clips on{needs}:\n  " + module_line("affectgpt.cli.main", [*serve, *options])
