"""The clips to annotate: names, subtitles, where their media lie. Nothing is opened but the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from affectgpt.config.captioning import CaptioningFile, InputConfig
from affectgpt.core.errors import DataError
from affectgpt.core.types import Sample
from affectgpt.data.csvfile import read_table
from affectgpt.data.readers import Folder

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm")


@dataclass(frozen=True)
class Clip:
    """One clip: the sample as data rooms know it, and its Chinese subtitle where there is one."""

    sample: Sample
    chinese: str = ""

    @property
    def name(self) -> str:
        """File stem."""
        return self.sample.name


def load_clips(spec: InputConfig, *, title: str, limit: int | None = None) -> list[Clip]:
    """The clips of the input folder in the order of the table that names them, at most ``limit``.

    ``title``: their data set's name in the feature store. Raises DataError naming file, line and sample.
    """
    root = Path(spec.root)
    if not root.is_dir():
        raise DataError(
            f"captioning.input.root: {root} is no folder; make one from raw videos with affectgpt preprocess, or set it"
        )
    path = root / spec.subtitles
    columns = (spec.subtitle_column, spec.chinese_column) if spec.chinese_column else (spec.subtitle_column,)
    subtitles = read_table(path, key="name", columns=columns)
    names = list(read_table(root / spec.names, key="name", columns=())) if spec.names else list(subtitles)
    if not names:
        raise DataError(f"{path}: names no clip")
    for name in names:
        if name not in subtitles:
            raise DataError(f"{path}: no row for clip {name!r}; add one (an empty cell means no subtitle)")
    videos = Folder(root / spec.video, suffixes=VIDEO_SUFFIXES)
    audios = Folder(root / spec.audio, suffixes=(".wav",))
    faces = Folder(root / spec.face, suffixes=(".npy",))
    return [
        Clip(
            Sample(
                name=name, dataset=title, subtitle=subtitles[name][0],
                video=videos.find(name), audio=audios.find(name), face=faces.find(name),
            ),
            chinese=subtitles[name][1] if spec.chinese_column else "",
        )
        for name in names[:limit]
    ]  # fmt: skip


def samples(clips: Sequence[Clip]) -> list[Sample]:
    """The clips as the data room knows them."""
    return [clip.sample for clip in clips]


def work_folder(config: CaptioningFile) -> Path:
    """Where everything of this configuration goes."""
    return Path(config.captioning.work or Path(config.paths.output_root) / config.name)
