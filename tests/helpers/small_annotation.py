"""A small world to annotate: clips with real media, human-labelled sets whose features are drawn, one configuration.

Features are prototypes plus noise: of six emotions, shown by face, voice or both. No encoder runs; the store's key is
that of the tiny models.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from affectgpt.config.captioning import CaptioningFile
from affectgpt.config.load import load_config
from affectgpt.core.npz import write_npz
from affectgpt.core.types import Modality
from affectgpt.datasets.table import get_row

EMOTIONS = ("happy", "sad", "angry", "surprise", "worried", "neutral")
MELD = {"happy": "joy", "sad": "sadness", "angry": "anger", "surprise": "surprise", "worried": "fear"}
VALENCE = {"happy": 0.8, "sad": -0.6, "angry": -0.8, "surprise": 0.0, "worried": -0.6, "neutral": 0.0}
WORDS = {"surprise": "surprised"}
T = 8


@dataclass
class World:
    """Where everything lies, and what the clips really show."""

    root: Path
    yaml: Path
    truth: dict[str, str]

    @property
    def input(self) -> Path:
        return self.root / "clips"

    @property
    def work(self) -> Path:
        return self.root / "work"

    def config(self, *options: str) -> CaptioningFile:
        return load_config(self.yaml, options, kind=CaptioningFile)

    def write_table(self, name: str, header: tuple[str, ...], rows) -> Path:
        return write_table(self.input / name, header, rows)

    def read(self, name: str, *, suffix: str = "") -> dict[str, dict[str, str]]:
        """A table of the work folder by clip."""
        with (self.work / f"{name.removesuffix('.csv')}{suffix}.csv").open(encoding="utf-8", newline="") as handle:
            return {row["name"]: row for row in csv.DictReader(handle)}


def write_table(path: Path, header: tuple[str, ...], rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


def description(emotion: str, *, filler: str = "The corners of the mouth tell a lot and the voice goes along") -> str:
    return f"{filler}. So the person's emotional state is {WORDS.get(emotion, emotion)}."


def write_media(root: Path, name: str, *, seed: int = 0) -> None:
    """A second of sound, a second of video, 20 face crops."""
    import av
    import soundfile

    rng = np.random.default_rng(seed)
    for folder in ("video", "audio", "openface_face"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    soundfile.write(root / "audio" / f"{name}.wav", rng.normal(0, 0.05, 16_000).astype(np.float32), 16_000)
    np.save(root / "openface_face" / f"{name}.npy", rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8))
    with av.open(str(root / "video" / f"{name}.mp4"), "w") as box:
        stream = box.add_stream("mpeg4", rate=Fraction(10))
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), format="rgb24")
            box.mux(stream.encode(frame))
        box.mux(stream.encode())


def make_world(root: Path, models: Path, *, clips: int, media: int = 0, human: int = 240, seed: int = 0) -> World:
    """``clips`` clips to annotate, the first ``media`` of them with files; three labelled sets of ``human`` clips."""
    rng = np.random.default_rng(seed)
    truth = {f"clip{i:04d}": EMOTIONS[i % len(EMOTIONS)] for i in range(clips)}
    world = World(root, root / "captioning_test.yaml", truth)
    for number, name in enumerate(list(truth)[:media]):
        write_media(world.input, name, seed=number)
    world.write_table("subtitle.csv", ("name", "english"), [(name, f"This is {name}.") for name in truth])
    world.yaml.write_text(f"""
run: {{device: cpu, num_workers: 0}}
captioning:
  work: {world.work}
  input: {{root: {world.input}}}
  merge: {{client: file, file: {world.input}/descriptions.csv}}
  audio: {{client: off}}
  visual: {{client: off}}
  extractor: {{name: direct}}
  speaker: {{source: off}}
  crowd: {{sets: [MER2023, MELD, SIMS], epochs: 20, hidden: 32, models: 3, neutral_band: 0.3}}
  agreement: {{lexicon: builtin}}
paths: {{dataset_root: {root}/dataset, features_root: {root}/features, models_root: {models}}}
""")
    write_table(
        world.input / "descriptions.csv", ("name", "text"), [(name, description(e)) for name, e in truth.items()]
    )
    prototypes = _prototypes(world.config(), models, rng)
    _write_features(world.config(), "captioning_test", "unlabelled", truth, prototypes, rng)
    for title in ("MER2023", "MELD", "SIMS"):
        _labelled_set(world, title, human, prototypes, rng)
    return world


def _labelled_set(world: World, title: str, count: int, prototypes, rng) -> None:
    row = get_row(title)
    corpora = {}
    root = world.root / "dataset" / row.root
    names = []
    for split, number in (("train", count), ("test", count // 4)):
        truth = {f"{title.lower()}_{split}{i:04d}": EMOTIONS[i % len(EMOTIONS)] for i in range(number)}
        names += list(truth)
        entries = {}
        for name, emotion in truth.items():
            emo = row.classes.index(MELD.get(emotion, "neutral")) if row.classes else emotion
            entries[name] = {"emo": emo, "val": VALENCE[emotion]}
        corpora[row.splits[split]] = entries
        _write_features(world.config(), title, split, truth, prototypes, rng)
    write_npz(root / str(row.label_file), **corpora)
    write_table(root / row.subtitle_file, ("name", "english"), [(name, "") for name in names])


def _prototypes(config: CaptioningFile, models: Path, rng) -> dict[Modality, dict[str, np.ndarray]]:
    import tiny

    widths = {Modality.FACE: tiny.VISUAL_WIDTHS["CLIP_VIT_LARGE"], Modality.AUDIO: tiny.ACOUSTIC_WIDTHS["HUBERT_LARGE"]}
    return {m: {e: rng.normal(0, 1, width) for e in EMOTIONS} for m, width in widths.items()}


def _write_features(config: CaptioningFile, title: str, split: str, truth: dict[str, str], prototypes, rng) -> None:
    import torch

    from affectgpt.processing.features import FeatureWriter, feature_key, store_folder

    shown = [("both", "face", "voice")[int(i)] for i in rng.integers(3, size=len(truth))]
    for modality, silent in ((Modality.FACE, "voice"), (Modality.AUDIO, "face")):
        encoder = "HUBERT_LARGE" if modality is Modality.AUDIO else "CLIP_VIT_LARGE"
        writer = FeatureWriter(
            store_folder(config.paths.features_root, dataset=title, split=split, modality=modality, encoder=encoder),
            key=feature_key(config, modality, device_type="cpu"),
        )
        for (name, emotion), where in zip(truth.items(), shown, strict=True):
            centre = prototypes[modality]["neutral" if where == silent else emotion]
            values = centre + 0.8 * rng.normal(0, 1, (T, len(centre)))
            writer.write(name, torch.from_numpy(values.astype(np.float32)))
        writer.close()
