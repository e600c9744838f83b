"""The output of a run: the training set in the layout that training reads, and tables of every clip and failure."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from affectgpt.captioning.describe import work_folder
from affectgpt.captioning.filters import length
from affectgpt.captioning.pipeline import HIGH, LENGTH, PERSON, SPEAKER, State
from affectgpt.config.captioning import STEPS, AskConfig, CaptioningFile
from affectgpt.core.errors import DataError
from affectgpt.core.files import write_json, write_text
from affectgpt.core.runtime import logger
from affectgpt.datasets.table import get_row

MARKER = "captioning.json"  # in a data-set folder: made here, may be written again


def write_dataset(config: CaptioningFile, state: State) -> Path:
    """Write the kept clips as MER-Caption+ is laid out, media folders linked; returns the data set's folder.

    Raises DataError when the folder holds tables that were not made here.
    """
    row = get_row("MERCaptionPlus")
    assert row.openset_file and row.reason_file
    root = Path(f"{config.captioning.output or work_folder(config) / 'dataset'}{state.suffix}") / row.root
    tables = (row.openset_file, row.reason_file, row.subtitle_file)
    taken = [name for name in tables if (root / name).exists()]
    if taken and not (root / MARKER).exists():
        raise DataError(
            f"{root}: holds {', '.join(taken)}, which this pipeline did not make; set captioning.output to "
            "another folder"
        )
    kept = state.kept
    write_json(root / MARKER, {"made by": "affectgpt caption", "configuration": config.name, "clips": len(kept)})
    labels = [(c.name, f"[{', '.join(state.labels[c.name].labels)}]") for c in kept]
    write_text(root / row.openset_file, to_csv(("name", "openset"), labels))
    write_text(root / row.reason_file, to_csv(("name", "reason"), [(c.name, state.descriptions[c.name]) for c in kept]))
    write_text(
        root / row.subtitle_file,
        to_csv(("name", "chinese", "english"), [(c.name, c.chinese, c.sample.subtitle) for c in kept]),
    )
    spec = config.captioning.input
    for folder, name in ((spec.video, row.video_dir), (spec.audio, row.audio_dir), (spec.face, row.face_dir)):
        _link(Path(spec.root) / folder, root / name)
    return root


def _link(source: Path, target: Path) -> None:
    """A link to a media folder. A link to elsewhere is made again; a folder that is there stays."""
    if not source.is_dir() or (target.exists() and (not target.is_symlink() or target.samefile(source))):
        return
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()), target_is_directory=True)
    except OSError as error:  # a file system without links
        logger.warning("%s: cannot be linked (%s); copy or move %s there", target, error.strerror or error, source)


def write_tables(config: CaptioningFile, state: State) -> dict[str, Any]:
    """Write ``clips.csv``, ``failed.csv`` and ``counts.json`` into the work folder; returns what the last holds.

    Their names have the run's suffix (see ``pipeline.Run``).
    """
    work = work_folder(config)
    write_text(
        work / f"clips{state.suffix}.csv", to_csv(_CLIP_COLUMNS, (_clip_row(state, clip.name) for clip in state.clips))
    )
    write_text(
        work / f"failed{state.suffix}.csv",
        to_csv(
            ("name", "step", "reason", "tried again"),
            [(f.name, f.step, f.reason, "next run" if f.again else "with --retry-failed") for f in state.failures],
        ),
    )
    found: dict[str, Any] = {
        "counts": counts(state),
        "costs": costs(config, state),
        "cut at max_tokens": {step: len(a.truncated) for step, a in state.answers.items() if a.truncated},
    }
    write_json(work / f"counts{state.suffix}.json", found)
    return found


_CLIP_COLUMNS = (
    "name", "verdict", "reason", "words", "speaker", "labels", "polarity", "crowd_words", "crowd_polarities",
    "emotion_agreement", "sentiment_agreement", "description",
)  # fmt: skip


def _clip_row(state: State, name: str) -> tuple[Any, ...]:
    description = state.descriptions.get(name, "")
    labels, votes, agreement = state.labels.get(name), state.votes.get(name), state.agreements.get(name)
    speaker = state.speakers.scores.get(name) if state.speakers else None
    return (
        name, *state.verdict(name), length(description) if description else "",
        "" if speaker is None else f"{speaker:.3f}", ", ".join(labels.labels) if labels else "",
        labels.polarity if labels else "", ", ".join(votes.words) if votes else "",
        ", ".join(votes.polarities) if votes else "",
        "" if agreement is None or agreement.emotion is None else f"{agreement.emotion:.2f}",
        "" if agreement is None or agreement.sentiment is None else str(agreement.sentiment), description,
    )  # fmt: skip


def counts(state: State) -> dict[str, int]:
    """Clips left after each step, in the order of the steps."""
    by_filter = Counter(filter_ for filter_, _ in state.dropped.values())
    left = len(state.descriptions)
    found = {"clips": len(state.clips)}
    for kind in ("acoustic", "visual"):
        if kind in state.answers:
            found[f"with {kind} clues"] = len(state.answers[kind].texts)
    found["described"] = left
    if state.done >= STEPS.index("low_level"):
        for filter_, title in ((SPEAKER, "after the speaker filter"), (LENGTH, "after the length filter")):
            left -= by_filter[filter_]
            found[title] = left
    if state.done >= STEPS.index("high_level"):
        left -= by_filter[HIGH] + by_filter[PERSON]
        lost = left - len(state.kept)
        found["after the ensemble and a person's review"] = left
        if lost:
            found["of these waiting for labels or features"] = lost
        found["kept"] = len(state.kept)
    return found


def costs(config: CaptioningFile, state: State) -> dict[str, dict[str, float]]:
    """The cost of each step so far, all runs together: requests, tokens, seconds of requests, and money."""
    spec = config.captioning
    prices: dict[str, AskConfig] = {"acoustic": spec.audio, "visual": spec.visual, "merge": spec.merge}
    found = {}
    for step, answers in state.answers.items():
        if not answers.costs:
            continue
        found[step] = dict(answers.costs)
        if step in prices:
            price = prices[step]
            found[step]["price"] = (
                found[step]["prompt_tokens"] * price.price_prompt + found[step]["reply_tokens"] * price.price_reply
            ) / 1e6
    return found


def to_csv(header: Iterable[str], rows: Iterable[tuple[Any, ...]]) -> str:
    """CSV text with unix line ends, as the published files have."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()
