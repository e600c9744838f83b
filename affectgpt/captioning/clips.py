"""The clips to annotate: names, subtitles, where their media are. Nothing is opened but the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from affectgpt.config.captioning import CaptioningFile, InputConfig
from affectgpt.core.crops import folder_crops
from affectgpt.core.errors import DataError
from affectgpt.core.runtime import logger
from affectgpt.core.tables import read_table
from affectgpt.core.types import VIDEO_SUFFIXES, Sample
from affectgpt.datasets.label_files import Folder


@dataclass(frozen=True)
class Clip:
    """One clip: its sample, and its Chinese subtitle where there is one."""

    sample: Sample
    chinese: str = ""

    @property
    def name(self) -> str:
        """File stem."""
        return self.sample.name


def load_clips(spec: InputConfig, *, title: str, limit: int | None = None) -> list[Clip]:
    """The clips of the input folder, at most ``limit``: those of the names file, or of the subtitle file, in its order;
    where there is neither, all videos by name.

    ``title``: their data set's name in the feature store. Raises DataError naming file, line and sample.
    """
    root = Path(spec.root)
    if not root.is_dir():
        raise DataError(
            f"captioning.input.root: {root} is not a folder; make one from raw videos (affectgpt preprocess), or set it"
        )
    videos = Folder(root / spec.video, suffixes=VIDEO_SUFFIXES)
    stems = sorted({Path(file).stem for file in videos.files if Path(file).suffix.lower() in VIDEO_SUFFIXES})
    subtitles = _subtitles(root, spec)
    if spec.names:
        names = list(read_table(root / spec.names, key="name", columns=()))
    else:
        names = stems if subtitles is None else list(subtitles)
    source = root / (spec.names or spec.subtitles or spec.video)
    if not names:
        raise DataError(f"{source}: names no clip")
    for name in names:
        if subtitles is not None and name not in subtitles:
            raise DataError(
                f"{root / spec.subtitles}: no row for clip {name!r}; add one (an empty cell means no subtitle)"
            )
    left = sorted(set(stems) - set(names))
    if left and not spec.names:
        logger.warning(
            "%s: %d videos have no row in %s and are left out (first: %s); add rows, or set "
            "captioning.input.subtitles to nothing to go without subtitles",
            root / spec.video, len(left), spec.subtitles, ", ".join(left[:3]),
        )  # fmt: skip
    audios = Folder(root / spec.audio, suffixes=(".wav",))
    faces = Folder(root / spec.face, suffixes=(".npy",))
    crops = folder_crops(root / spec.face)
    return [
        Clip(
            Sample(
                name=name, dataset=title, subtitle=subtitles[name][0] if subtitles is not None else "",
                video=videos.find(name), audio=audios.find(name), face=faces.find(name), crops=crops,
            ),
            chinese=subtitles[name][1] if subtitles is not None and spec.chinese_column else "",
        )
        for name in names[:limit]
    ]  # fmt: skip


def _subtitles(root: Path, spec: InputConfig) -> dict[str, tuple[str, ...]] | None:
    """English (and Chinese) by name; None when there are to be none."""
    if not spec.subtitles:
        return None
    columns = (spec.subtitle_column, spec.chinese_column) if spec.chinese_column else (spec.subtitle_column,)
    return read_table(root / spec.subtitles, key="name", columns=columns)


def samples(clips: Sequence[Clip]) -> list[Sample]:
    """The clips as samples."""
    return [clip.sample for clip in clips]


def work_folder(config: CaptioningFile) -> Path:
    """Where everything of this configuration goes."""
    return Path(config.captioning.work or Path(config.paths.output_root) / config.name)
