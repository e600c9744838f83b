"""The demo's report: one HTML file with scores, loss curves and six held-out clips, all of it labelled as synthetic."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from affectgpt.core.files import write_text
from affectgpt.datasets.table import get_row
from examples.demo.clips import ClipPlan
from examples.demo.corpus import PARTS, clip_paths, plan_part
from examples.demo.language import FELT

TEMPLATE = Path(__file__).with_name("report.html")
STRIP = 5  # frames shown of a clip
COLUMNS = (("mer2023", "hit", "basic (HIT)"), ("sims", "waf", "sentiment (WAF)"), ("ovmerdplus", "f", "open (F_s)"))


@dataclass
class RecipeResult:
    """What one recipe came to. Scores are parts of 1, by question (``ovlabel``, ``description``) and data set."""

    name: str  # of the configuration
    title: str
    log: Path  # one JSON line per logged training step
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    n_labels: dict[str, float] = field(default_factory=dict)  # mean predicted labels on the basic set, by question
    answers: dict[str, dict[str, str]] = field(default_factory=dict)  # question → clip → answer, basic set
    text_only: bool = False  # it has neither face nor voice


def basic_plans(seed: int) -> list[ClipPlan]:
    """The held-out clips of the basic set."""
    return plan_part(next(p for p in PARTS if p.dataset == "MER2023" and p.split == "test"), seed=seed)


def pick_clips(plans: list[ClipPlan], count: int = 6) -> list[ClipPlan]:
    """Clips to show: chosen by what they are (emotion, where it shows, what the text does), never by the answer."""
    wanted = [("face", "plain"), ("voice", "plain"), ("both", "conflicts"), ("voice", "conflicts"), ("face", "carries")]
    picked: list[ClipPlan] = []
    for i in range(count):
        where, text = wanted[i % len(wanted)]
        emotion = FELT[i % len(FELT)]
        rest = [p for p in plans if p not in picked and p.emotion != "neutral"]
        best = max(rest, key=lambda p: 2 * (p.emotion == emotion) + (shown_in(p) == where) + (text_does(p) == text))
        picked.append(best)
    return picked


def shown_in(plan: ClipPlan) -> str:
    """Where a felt clip's emotion shows: both, face or voice."""
    if plan.face == plan.voice:
        return "both"
    return "face" if plan.face == plan.emotion else "voice"


def text_does(plan: ClipPlan) -> str:
    """What a clip's sentence does: plain, carries or conflicts."""
    if plan.text == "neutral":
        return "plain"
    return "carries" if plan.text == plan.emotion else "conflicts"


def blind_descriptions(result: RecipeResult, *, chance: float) -> dict | None:
    """What a recipe of text alone describes where its score (basic set) is below that of a blind draw: how the most
    frequent description begins, and how many of them, in percent, conclude "neutral". None where nothing is odd."""
    answers = list(result.answers.get("description", {}).values())
    score = result.scores.get("description", {}).get("mer2023", 1.0)
    if not (result.text_only and answers and score < chance):
        return None
    neutral = [answer for answer in answers if answer.rstrip().endswith(" is neutral.")]
    if 2 * len(neutral) < len(answers):
        return None
    openings = Counter(" ".join(re.findall(r"[^.]+\.", answer)[:2]) for answer in neutral)
    return {
        "score": f"{100 * score:.1f}", "neutral": f"{100 * len(neutral) / len(answers):.0f}",
        "opening": re.sub(r"\s+", " ", openings.most_common(1)[0][0]),
    }  # fmt: skip


def write_report(
    path: Path, *, results: list[RecipeResult], chance: float, dataset_root: Path, seed: int, seconds: float
) -> None:
    """Write the report.

    ``results``: the whole model first; ``chance``: HIT of a blind draw; ``seconds``: how long the demo took, 0 if
    everything was there.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        columns=[title for _, _, title in COLUMNS],
        rows=[{**_row(result), "blind": blind_descriptions(result, chance=chance)} for result in results],
        chance=f"{100 * chance:.1f}",
        curve=_loss_curves(results),
        clips=[_clip(plan, results, dataset_root) for plan in pick_clips(basic_plans(seed))],
        seed=seed,
        minutes=f"{seconds / 60:.1f}" if seconds else None,
    )
    write_text(path, page)


def _row(result: RecipeResult) -> dict:
    cells = []
    for question in ("ovlabel", "description"):
        scores = result.scores.get(question, {})
        cells += [f"{100 * scores[key]:.1f}" if key in scores else "–" for key, _, _ in COLUMNS]
    return {"title": result.title, "name": result.name, "cells": cells, "labels": result.n_labels.get("ovlabel", 0)}


def _loss_curves(results: list[RecipeResult]) -> str:
    """A PNG of training loss against steps, as base64."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.6, 3.2), dpi=140)  # lettering that a telephone shows large enough
    for result in results:
        steps, losses = read_losses(result.log)
        smooth = [sum(part) / len(part) for part in (losses[max(i - 4, 0) : i + 5] for i in range(len(losses)))]
        (line,) = axes.plot(steps, smooth, label=result.title, linewidth=1.8)
        axes.plot(steps, losses, color=line.get_color(), linewidth=0.6, alpha=0.35)
    axes.set(xlabel="step", ylabel="training loss (running mean)", ylim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    out = io.BytesIO()
    figure.savefig(out, format="png")
    pyplot.close(figure)
    return base64.b64encode(out.getvalue()).decode()


def read_losses(log: Path) -> tuple[list[int], list[float]]:
    """Steps (from 1, over all epochs) and losses of a training log."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    lines = [line for line in lines if "loss" in line and "step" in line]
    longest = max((line["step"] for line in lines), default=0)  # the last step of an epoch is always logged
    return [(line["epoch"] - 1) * longest + line["step"] for line in lines], [line["loss"] for line in lines]


def _clip(plan: ClipPlan, results: list[RecipeResult], dataset_root: Path) -> dict:
    files = clip_paths(dataset_root, get_row("MER2023"), plan.name)
    place = {"both": "face and voice", "face": "the face (the voice is even)", "voice": "the voice (the face is still)"}
    says = {"plain": "says nothing of the emotion", "carries": "agrees", "conflicts": f"sounds {plan.text} instead"}
    answers = []
    for result in results:
        for question, given in result.answers.items():
            if question == "ovlabel" or result is results[0]:
                answers.append({"title": result.title, "question": question, "text": given.get(plan.name, "–")})
    return {
        "name": plan.name,
        "strip": _strip(files["video"]),
        "sound": base64.b64encode(files["audio"].read_bytes()).decode(),  # a wav that every browser plays
        "subtitle": plan.english,
        "truth": plan.emotion,
        "where": place[shown_in(plan)],
        "text": says[text_does(plan)],
        "answers": answers,
    }


def _strip(video: Path) -> str:
    """Some frames of a clip side by side, a JPEG as base64."""
    import av
    import cv2
    import numpy as np

    with av.open(str(video)) as box:
        frames = [frame.to_ndarray(format="bgr24") for frame in box.decode(video=0)]
    chosen = np.linspace(0, len(frames) - 1, STRIP).round().astype(int)
    small = [cv2.resize(frames[i], (160, 160), interpolation=cv2.INTER_AREA) for i in chosen]
    _, data = cv2.imencode(".jpg", np.hstack(small), [cv2.IMWRITE_JPEG_QUALITY, 88])
    return base64.b64encode(data.tobytes()).decode()
