"""Low-level filter, first half: does the visible person speak (paper, section 2.2: TalkNet)?

Scores come from a CSV file, as any active-speaker tool can be made to write, or from the estimate of this file. The
estimate is simple and is marked as such wherever it is shown: the larger the correlation between a movement of the
mouth region and the loudness of the sound, the likelier the seen person is the heard one.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from affectgpt.captioning.describe import Clip
from affectgpt.config.captioning import SpeakerConfig
from affectgpt.core.errors import ConfigError, DataError, did_you_mean
from affectgpt.core.journal import Journal
from affectgpt.media.audio import read_wave
from affectgpt.media.video import probe_faces, read_faces

_VERSION = 1  # of the estimate: part of its journal's key
_MOST_CROPS = 96
_SIZE = 64  # pixels: side of the crops that are looked at
_MOUTH = (slice(38, 61), slice(16, 48))  # rows and columns of the mouth region in a crop of that size
_COMPONENTS = 3
_THREADS = 4


@dataclass
class SpeakerScores:
    """Scores by clip, why others have none, and the clips that the filter drops, with the reason."""

    source: str
    threshold: float
    scores: dict[str, float] = field(default_factory=dict)
    unscored: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def judge_speakers(clips: Sequence[Clip], spec: SpeakerConfig, *, folder: Path) -> SpeakerScores | None:
    """Which clips the speaker filter drops; None when it is off.

    Raises ConfigError or DataError naming the score file and what is wrong in it.
    """
    if spec.source == "off":
        return None
    found = _from_csv(clips, spec) if spec.source == "csv" else _estimates(clips, spec, folder=folder)
    for name, score in found.scores.items():
        if score < found.threshold:
            found.dropped[name] = f"not the speaker: {found.source} {score:.2f}, below {found.threshold:g}"
    if spec.missing == "drop":
        found.dropped.update({name: f"speaker unknown: {why}" for name, why in found.unscored.items()})
    return found


def _from_csv(clips: Sequence[Clip], spec: SpeakerConfig) -> SpeakerScores:
    if not spec.file:
        raise ConfigError("captioning.speaker.file: give the CSV file of active-speaker scores, or source: estimate")
    sums = read_scores(Path(spec.file), name_column=spec.name_column, score_column=spec.score_column)
    found = SpeakerScores("active-speaker score", spec.threshold)
    for clip in clips:
        if clip.name in sums:
            found.scores[clip.name] = sums[clip.name]
        else:
            found.unscored[clip.name] = f"{spec.file}: no row for it"
    if clips and not found.scores:
        raise DataError(f"{spec.file}: has a score for none of the {len(clips)} clips, first {clips[0].name!r}")
    return found


def read_scores(path: Path, *, name_column: str, score_column: str) -> dict[str, float]:
    """Mean score by clip of a CSV file with a row per clip or per frame. DataError naming file, line and cell."""
    values: dict[str, list[float]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            for column in (name_column, score_column):
                if column not in (reader.fieldnames or ()):
                    raise DataError(f"{path}: no column {column!r}.{did_you_mean(column, reader.fieldnames or ())}")
            for row in reader:
                text = row[score_column] or ""
                try:
                    score = float(text)
                except ValueError:
                    score = math.nan
                if not math.isfinite(score):
                    raise DataError(
                        f"{path}, line {reader.line_num}: score of {row[name_column]!r} is {text!r}, expected a number"
                    )
                values.setdefault(row[name_column], []).append(score)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from error
    return {name: sum(scores) / len(scores) for name, scores in values.items()}


def _estimates(clips: Sequence[Clip], spec: SpeakerConfig, *, folder: Path) -> SpeakerScores:
    from tqdm import tqdm

    found = SpeakerScores("estimated mouth-sound correlation", spec.estimate_threshold)
    with Journal(folder / "speaker-estimate.jsonl", key=f"mouth-sound {_VERSION}, from {spec.min_crops}") as journal:
        keys = {clip.name: _key(clip) for clip in clips}
        todo = [clip for clip in clips if keys[clip.name] not in journal.entries]
        with ThreadPoolExecutor(_THREADS) as pool:
            results = pool.map(lambda clip: _estimate_clip(clip, spec), todo)
            for clip, (score, why) in tqdm(
                zip(todo, results, strict=True), total=len(todo), desc="speakers", unit="clip", disable=None
            ):
                if score is not None:
                    journal.add(keys[clip.name], score)
                else:
                    found.unscored[clip.name] = why
        found.scores = {name: journal.entries[key] for name, key in keys.items() if key in journal.entries}
    return found


def _key(clip: Clip) -> str:
    """Name and sizes of the files: another clip of the same name is judged again."""
    files = (clip.sample.face, clip.sample.audio)
    sizes = [path.stat().st_size if path is not None and path.is_file() else 0 for path in files]
    return f"{clip.name}\t{sizes[0]}\t{sizes[1]}"


def _estimate_clip(clip: Clip, spec: SpeakerConfig) -> tuple[float | None, str]:
    face, audio = clip.sample.face, clip.sample.audio
    try:
        if face is None or audio is None:
            raise DataError("neither face crops nor sound are known")
        count = probe_faces(face)[0]
        if count < spec.min_crops:
            return None, f"{face}: {count} face crops, the estimate needs {spec.min_crops}"
        crops = read_faces(face, n_frames=min(count, _MOST_CROPS), size=_SIZE)  # [N, 64, 64, 3]
        return mouth_sound_correlation(crops, read_wave(audio)), ""
    except DataError as error:
        return None, str(error)


def mouth_sound_correlation(crops: np.ndarray, wave: np.ndarray) -> float:
    """How well a movement of the mouth follows the sound: 0 (not at all) to 1.

    crops uint8 ``[N, 64, 64, 3]``, uniform over the clip; wave ``[samples]`` of the same time. The mouth region's
    changes are reduced to their three principal components ``[N, 3]``; the largest absolute correlation of one of
    them with the loudness around each crop counts. A face that does not move, or silence, gives 0.
    """
    # the mean of the channels: their order does not matter
    region = crops[(slice(None), *_MOUTH)].astype(np.float32).mean(axis=3)  # [N, h, w]
    region = region.reshape(len(region), -1)
    region = region - region.mean(axis=0)
    left, size, _ = np.linalg.svd(region, full_matrices=False)
    loudness = np.array([np.sqrt(np.mean(part**2) + 1e-12) for part in np.array_split(wave, len(crops))])  # [N]
    loudness = loudness - loudness.mean()
    norm = float(np.linalg.norm(loudness))
    moving = size[:_COMPONENTS] > 1e-3 * max(float(size[0]), 1.0)  # the columns of ``left`` have norm 1
    if norm < 1e-9 or not moving.any():
        return 0.0
    return float(np.abs(left[:, :_COMPONENTS][:, moving].T @ loudness).max() / norm)
