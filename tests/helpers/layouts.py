"""Tiny media and a tiny copy of every data set's layout, made in a temporary folder."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from affectgpt.config.schema import Config, DatasetConfig, PathsConfig
from affectgpt.core.npz import write_npz
from affectgpt.datasets.base import EmotionDataset, open_dataset
from affectgpt.datasets.table import DATASETS

NAMES = ("sample_00000000", "Ses05F_impro01_F000", "00012", "名字_1")
# what make_layout can write; a row with a label reader of its own is tested beside that reader
KINDS = ("npz_word", "npz_index", "npz_valence", "csv_open", "names_only")
READ_ROWS = [row for row in DATASETS.values() if row.label_kind in KINDS and (row.label_file or row.openset_file)]


def write_video(path: Path, *, frames: int = 20, width: int = 64, height: int = 48, sound: bool = True, rate: int = 10):
    """An H.264/AAC mp4 whose frames differ; ``frames`` 0: sound only."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        if frames:
            video = container.add_stream("libx264", rate=rate)
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        if sound:
            audio = container.add_stream("aac", rate=16000, layout="mono")
        for i in range(frames):
            image = np.full((height, width, 3), 12 * i % 256, dtype=np.uint8)
            image[:, : width // 2, 0] = 255 - 10 * i % 256
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(video.encode(frame))
        if frames:
            container.mux(video.encode())
        if sound:
            seconds = max(frames / rate, 1.0)
            wave = (8000 * np.sin(np.arange(int(16000 * seconds)) / 10)).astype(np.int16)
            for at in range(0, len(wave), 1024):
                frame = av.AudioFrame.from_ndarray(wave[None, at : at + 1024], format="s16", layout="mono")
                frame.rate, frame.pts, frame.time_base = 16000, at, Fraction(1, 16000)
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def write_sound(path: Path, *, seconds: float = 2.5, rate: int = 16000, channels: int = 1):
    """A sine as 16-bit wav."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(np.arange(int(rate * seconds)) * 440 * 2 * np.pi / rate)
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate, subtype="PCM_16")
    return path


def write_faces(path: Path, *, n: int = 12, size: int = 112):
    """Face crops that differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, (np.arange(n * size * size * 3, dtype=np.uint32) % 251).astype(np.uint8).reshape(n, size, size, 3))
    return path


def write_csv(path: Path, header, rows, *, encoding: str = "utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


@dataclass(frozen=True)
class Layout:
    """A copy of one data set: its root folder and which names each split has."""

    dataset_root: Path
    root: Path
    names: dict[str, tuple[str, ...]]


def opened(name: str, root: Path, **block) -> EmotionDataset:
    """A data set below a folder, with the keys of its block, if it has any."""
    blocks = {name: DatasetConfig(**block)} if block else {}
    return open_dataset(Config(name="test", datasets=blocks, paths=PathsConfig(dataset_root=str(root))), name)


def make_layout(row, dataset_root: Path, *, media: bool = False) -> Layout:
    """Label and subtitle files (and media) of one row, as published; every split has NAMES."""
    root = dataset_root / row.root
    root.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(row.splits, NAMES)
    if row.label_kind == "names_only":
        names["train"] = NAMES[:2]  # those with a truth
    if row.label_kind.startswith("npz_"):
        value = {
            "npz_word": lambda i: {"emo": ("happy", "sad")[i % 2], "val": -10},
            "npz_index": lambda i: {"emo": np.int64(i % len(row.classes)), "val": 0},
            "npz_valence": lambda i: {"emo": 0, "val": np.float64((-1.0, 0.0, 0.4, 1.0)[i % 4])},
        }[row.label_kind]
        if row.split_rule:  # IEMOCAP: one corpus, sessions split it
            everybody = [f"Ses0{session}F_impro0{k}" for session in range(1, 6) for k in range(2)]
            write_npz(root / row.label_file, whole_corpus={n: value(i) for i, n in enumerate(everybody)})
            names = {"train": tuple(everybody[:8]), "test": tuple(everybody[8:])}
        else:
            corpora = {key: {n: value(i) for i, n in enumerate(NAMES)} for key in row.splits.values()}
            write_npz(root / row.label_file, **corpora)
    if row.label_kind == "names_only":
        write_csv(root / row.label_file, ["name"], [[n] for n in NAMES])
    if row.openset_file:
        rows = [[n, "['happy', 'calm']"] for n in NAMES[: 2 if row.label_kind == "names_only" else None]]
        write_csv(root / row.openset_file, ["name", "openset"], rows)
    if row.reason_file:
        write_csv(root / row.reason_file, ["name", "reason"], [[n, f"{n} smiles, and is glad."] for n in NAMES])
    everyone = list(dict.fromkeys(n for split in names.values() for n in split))
    header = ["name", *dict.fromkeys(["chinese", "english", row.subtitle_column])]
    subtitles = [[n, *("" if i == 1 else f"{column} {n}" for column in header[1:])] for i, n in enumerate(everyone)]
    write_csv(root / row.subtitle_file, header, subtitles)
    if media:
        for name in everyone:
            write_video(root / row.video_dir / (name + row.video_suffixes[0]))
            write_sound(root / row.audio_dir / f"{name}.wav")
            in_folder = row.root == "mer2025-dataset"
            write_faces(root / row.face_dir / (f"{name}/{name}.npy" if in_folder else f"{name}.npy"))
    return Layout(dataset_root, root, names)


class Makers:
    """The functions above, for tests."""

    video = staticmethod(write_video)
    sound = staticmethod(write_sound)
    faces = staticmethod(write_faces)
    csv = staticmethod(write_csv)
    layout = staticmethod(make_layout)
    names = NAMES


class PlainPixels:
    def __call__(self, frames):
        import torch

        return torch.from_numpy(frames).permute(0, 3, 1, 2).float()


class PlainWave:
    def __call__(self, clips):
        import torch

        return torch.from_numpy(clips)
