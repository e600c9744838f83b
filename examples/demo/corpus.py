"""The synthetic sample corpus, in the layouts of the published data sets.

A training set (as MER-Caption+) and three held-out sets: basic (as MER2023), sentiment (as SIMS), fine-grained (as
OV-MERD+). In a third of the clips face and voice both show the emotion, in a third only the face (the voice is even),
in a third only the voice (the face hardly moves); the sentence mostly says nothing of it, and contradicts it as often
as it agrees. Held-out clips have persons and voices that no training clip has.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from affectgpt.core.crops import RECORD, write_record
from affectgpt.core.errors import DataError
from affectgpt.core.files import naming, write_json, write_text
from affectgpt.core.npz import write_npz
from affectgpt.core.runtime import logger, worker_pool
from affectgpt.datasets.table import DatasetRow, get_row
from examples.demo.clips import CHANNELS, TEXTS, ClipPlan, draw_person, make_clip, plan_clip
from examples.demo.language import EMOTIONS, FELT

VERSION = 2  # raise when a clip would come out differently
MARKER = "synthetic_corpus.json"
NEEDED_MB = 300
TRAIN_PERSONS, HELDOUT_PERSONS = 32, 20
README = """SYNTHETIC DATA

Every clip in this folder was drawn and spoken by a program (examples/demo): cartoon faces, eSpeak NG voices, invented
sentences. No person is shown or heard. The folders only have the layouts of MER2023, SIMS, OV-MERD+ and
MER-Caption+; nothing of those data sets is in them, and no score on them says anything about real people.
Made by `make demo`; may be deleted.
"""


@dataclass(frozen=True)
class PartSpec:
    """One split of one synthetic data set: how many clips, of which emotions, shown by whom."""

    dataset: str  # a row of datasets/table
    split: str  # train or test
    count: int
    emotions: tuple[str, ...]  # dealt out in turn
    held_out: bool
    label: str  # names the clips: synthetic_<label>_0001


# Ten felt clips to one neutral: neutral maps to nothing on most emotion wheels and is left out of HIT.
_MOSTLY_FELT = (*FELT, *FELT, "neutral")
PARTS = (
    PartSpec("MERCaptionPlus", "train", 240, EMOTIONS, False, "train"),
    PartSpec("MER2023", "test", 77, _MOSTLY_FELT, True, "basic"),
    PartSpec("SIMS", "test", 36, ("happy", "sad", "happy", "angry", "happy", "worried"), True, "sentiment"),
    PartSpec("OVMERDPlus", "test", 35, FELT, True, "open"),
    # the training splits of the held-out sets: MER2023's gives the candidate labels, SIMS' the range of values
    PartSpec("MER2023", "train", 6, EMOTIONS, False, "basictrain"),
    PartSpec("SIMS", "train", 6, ("happy", "sad", "angry", "worried", "happy", "neutral"), False, "sentimenttrain"),
)


def plan_part(part: PartSpec, *, seed: int) -> list[ClipPlan]:
    """The plans of one split. Emotion, place where it shows, and sentence are balanced against each other."""
    import numpy as np

    rng = np.random.default_rng([seed, 5, _number(part)])
    # Every (emotion, channel, text) once before any twice, in random order: balance without a pattern.
    cells = [(e, c, t) for e in dict.fromkeys(part.emotions) for c in CHANNELS for t in TEXTS]
    decks: dict[str, list[tuple[str, str]]] = {}
    plans = []
    for i in range(part.count):
        emotion = part.emotions[i % len(part.emotions)]
        if not decks.get(emotion):
            deck = [(c, t) for e, c, t in cells if e == emotion]
            rng.shuffle(deck)
            decks[emotion] = [(channel, text) for channel, text in deck]
        channel, text = decks[emotion].pop()
        persons = HELDOUT_PERSONS if part.held_out else TRAIN_PERSONS
        person = draw_person(seed=seed, number=int(rng.integers(persons)), held_out=part.held_out)
        plans.append(
            plan_clip(
                name=f"synthetic_{part.label}_{i + 1:04d}",
                emotion=emotion,
                channel=channel,
                text=text,
                person=person,
                seed=(seed, _number(part), i),
            )
        )
    order = rng.permutation(len(plans))
    return [plans[i] for i in order]


def _number(part: PartSpec) -> int:
    return PARTS.index(part) if part in PARTS else 1000


def clip_paths(root: Path, row: DatasetRow, name: str) -> dict[str, Path]:
    """Where the three files of a clip are."""
    base = root / row.root
    face = f"{name}/{name}.npy" if row.root == "mer2025-dataset" else f"{name}.npy"
    return {
        "video": base / row.video_dir / f"{name}.mp4",
        "audio": base / row.audio_dir / f"{name}.wav",
        "face": base / row.face_dir / face,
    }


def make_corpus(
    root: Path,
    *,
    seed: int = 0,
    parts: tuple[PartSpec, ...] = PARTS,
    workers: int = 2,
    progress: Callable[[Iterator, int], Iterator] | None = None,
) -> bool:
    """Make the corpus under ``root``; what is there already is kept. Returns whether anything had to be made.

    ``progress(iterator, total)`` may wrap the iterator over clips, for a bar. Raises DataError when ``root`` holds
    other files (they are never touched) or the disk is full.
    """
    fingerprint = {"version": VERSION, "seed": seed, "parts": [[p.dataset, p.split, p.count] for p in parts]}
    state = _claim(root, fingerprint)
    for name in dict.fromkeys(part.dataset for part in parts):  # also in a corpus of an earlier version, which had none
        folder = root / get_row(name).root / get_row(name).face_dir
        if not (folder / RECORD).is_file():
            write_record(folder, {"channels": "rgb"})
    if state.get("finished"):
        return False
    plans = {part: plan_part(part, seed=seed) for part in parts}
    jobs = [(plan, clip_paths(root, get_row(part.dataset), plan.name)) for part in parts for plan in plans[part]]
    done = _run(jobs, workers)
    for _ in progress(done, len(jobs)) if progress else done:
        pass
    for part in parts:
        if part.split == "test" or part.dataset == "MERCaptionPlus":
            splits = {p.split: plans[p] for p in parts if p.dataset == part.dataset}
            _write_tables(root / get_row(part.dataset).root, get_row(part.dataset), splits)
    write_json(root / MARKER, {**fingerprint, "finished": True})
    return True


def _claim(root: Path, fingerprint: dict) -> dict:
    """The state of the corpus folder; one made from other settings is removed, a folder that is not ours refused."""
    marker = root / MARKER
    if marker.is_file():
        try:
            state = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            state = {}
        if all(state.get(key) == value for key, value in fingerprint.items()):
            if not state.get("finished"):
                for torn in root.rglob(".*.tmp*"):  # of a run that was killed
                    torn.unlink(missing_ok=True)
            return state
        logger.info("%s was made by other settings; making it again", root)
        for row in {get_row(name).root for name, _, _ in [*state.get("parts", []), *fingerprint["parts"]]}:
            shutil.rmtree(root / row, ignore_errors=True)
    elif root.is_dir() and any(root.iterdir()):
        raise DataError(f"{root} holds files that are not the synthetic corpus ({MARKER} is missing); move them away")
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free / 1e6
    if free < NEEDED_MB:
        raise DataError(f"{root}: {free:.0f} MB free on this disk, the synthetic corpus needs {NEEDED_MB} MB")
    write_text(root / "README.txt", README)
    write_json(marker, {**fingerprint, "finished": False})
    return {}


def _make(job: tuple[ClipPlan, dict[str, Path]]) -> None:
    plan, paths = job
    with naming(paths["video"]):
        make_clip(plan, **paths)


def _start_worker() -> None:
    import cv2

    cv2.setNumThreads(1)


def _run(jobs: list, workers: int) -> Iterator[None]:
    if workers <= 1:
        yield from map(_make, jobs)
        return
    with worker_pool(workers, start=_start_worker) as pool:
        yield from pool.map(_make, jobs, chunksize=4)


def _csv(header: tuple[str, ...], rows: list[tuple]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def _write_tables(base: Path, row: DatasetRow, splits: dict[str, list[ClipPlan]]) -> None:
    """Labels and subtitles of one data set; ``splits``: train, test → plans."""
    plans = [plan for split in splits.values() for plan in split]
    if row.names_from_subtitles:
        subtitles = _csv(("name", row.subtitle_column), [(p.name, p.english) for p in plans])
    else:
        subtitles = _csv(("name", "chinese", "english"), [(p.name, p.chinese, p.english) for p in plans])
    write_text(base / row.subtitle_file, subtitles)
    if row.openset_file:
        # the published training file writes [happy, calm], the published truth of OV-MERD ['happy', 'calm']
        quote = "'" if "train" not in row.splits else ""
        opensets = [(p.name, "[" + ", ".join(f"{quote}{w}{quote}" for w in p.open_words) + "]") for p in plans]
        write_text(base / row.openset_file, _csv(("name", "openset"), opensets))
    if row.reason_file:
        write_text(base / row.reason_file, _csv(("name", "reason"), [(p.name, p.description) for p in plans]))
    if row.label_file:
        word = row.label_kind == "npz_word"
        corpora = {
            row.splits[split]: {p.name: {"emo": p.emotion if word else 0, "val": p.valence} for p in part}
            for split, part in splits.items()
        }
        write_npz(base / row.label_file, **corpora)
