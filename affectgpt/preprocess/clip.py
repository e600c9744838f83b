"""One raw clip → what a data set holds of it: face crops, sound, and a picture to look at."""

from __future__ import annotations

import io
import multiprocessing
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.core.crops import FRAMINGS, PUBLISHED, in_order, read_record, write_record
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.files import atomic_path
from affectgpt.core.names import check_name
from affectgpt.core.runtime import logger
from affectgpt.core.types import SAMPLE_RATE, VIDEO_SUFFIXES
from affectgpt.media.guard import Decoder
from affectgpt.preprocess.faces import FaceDetector, face_crops

if TYPE_CHECKING:
    import numpy as np

NO_SOUND = "no sound track"
_FLAGS = {"framing": "--face-framing"}  # entry of the record → flag of the command, where that is another


@dataclass(frozen=True, slots=True)
class ClipFolders:
    """Paths of the results of a folder of clips: the layout of the published data sets."""

    root: Path

    @property
    def faces(self) -> Path:
        """``openface_face``: the face crops, and the record of how they are stored (see core/crops)."""
        return self.root / "openface_face"

    def face(self, name: str) -> Path:
        """``openface_face/NAME.npy``, uint8 ``[n, 112, 112, 3]``."""
        return self.faces / f"{name}.npy"

    def audio(self, name: str) -> Path:
        """``audio/NAME.wav``, 16 kHz mono."""
        return self.root / "audio" / f"{name}.wav"

    def sheet(self, name: str) -> Path:
        """``sheets/NAME.png``: the crops side by side."""
        return self.root / "sheets" / f"{name}.png"

    @property
    def subtitles(self) -> Path:
        """``subtitle.csv``: name, english."""
        return self.root / "subtitle.csv"


def claim(
    places: ClipFolders,
    *,
    frames: int,
    channels: str | None,
    framing: str | None,
    person: str | int | None = None,
) -> dict[str, Any]:
    """How the crops of this run are made, noted in their folder; None: as those that are there, else the default.

    Raises ConfigError when crops are there that were made otherwise, DataError for a damaged record.
    """
    folder = places.faces
    settings = {
        "frames": frames, "channels": channels or PUBLISHED, "framing": framing or FRAMINGS[0], "person": person or 0,
    }  # fmt: skip
    if not folder.is_dir() or not any(folder.rglob("*.npy")):
        write_record(folder, {key: value for key, value in settings.items() if key != "person" or value != 0})
        return settings
    path, found = read_record(folder)
    if found is None:
        if channels not in (None, PUBLISHED):
            raise ConfigError(
                f"{folder}: holds face crops without a record ({path.name}), which count as {PUBLISHED}; this run has "
                f'--channels {channels}. If they are {channels}, write {{"channels": "{channels}"}} into {path}'
            )
        found = {"channels": PUBLISHED}
    asked_for = {"frames": frames, "channels": channels, "framing": framing, "person": person}
    for name, asked in asked_for.items():
        there = found.get(name, 0 if name == "person" else None)
        if there is None or there == asked:
            continue
        flag = _FLAGS.get(name, f"--{name}")
        if asked is not None or there == "openface":
            raise ConfigError(
                f"{folder}: its crops were made with {flag} {there}, this run has {flag} {settings[name]}; keep to "
                "that, or give another --out"
            )
        if there != settings[name]:
            logger.info("%s: holds crops made with %s %s; this run keeps to it", folder, flag, there)
            settings[name] = there
    write_record(folder, found)
    return settings


@dataclass(frozen=True, slots=True)
class ClipOutcome:
    """The outcome of one clip. ``errors`` is empty when all is there."""

    name: str
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def is_video(path: Path) -> bool:
    """Return whether a file is a clip by its name; ``._NAME.mp4`` is what macOS leaves beside one on other disks."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith("._") and path.is_file()


def find_videos(folder: Path) -> list[Path]:
    """The clips of a folder by name. Raises DataError: no folder, no clip, one name twice."""
    if not folder.is_dir():
        raise DataError(f"--video-dir {folder}: no such folder")
    videos = sorted(p for p in folder.iterdir() if is_video(p))
    if not videos:
        below = " (folders below are not looked into)" if any(p.is_dir() for p in folder.iterdir()) else ""
        raise DataError(f"--video-dir {folder}: no video in it ({', '.join(VIDEO_SUFFIXES)}){below}")
    seen: dict[str, Path] = {}
    for video in videos:
        check_name(video.stem, source=folder)
        if video.stem in seen:
            raise DataError(f"{video} and {seen[video.stem].name} have one name; rename one of them")
        seen[video.stem] = video
    return videos


class ClipProcessor:
    """Makes what is not there yet. One per process: it holds the face detector and a decoder."""

    def __init__(
        self,
        places: ClipFolders,
        *,
        n_frames: int,
        sheet: bool,
        channels: str,
        time_limit: float,
        framing: str = "loose",
        person: str | int = 0,
    ) -> None:
        self.places, self.n_frames, self.sheet, self.channels = places, n_frames, sheet, channels
        self.framing, self.person = framing, person
        self.decoder = Decoder(time_limit=time_limit)
        self._detector: FaceDetector | None = None

    def __call__(self, video: Path) -> ClipOutcome:
        """Faces, sound and sheet of one clip; each is tried even where another fails."""
        errors, notes = [], []
        name = video.stem
        try:
            self._faces(video, name)
        except DataError as error:
            errors.append(str(error))
        if not self.places.audio(name).exists():
            try:
                if extract_audio(video, self.places.audio(name), decoder=self.decoder) is None:
                    notes.append(NO_SOUND)
            except DataError as error:
                errors.append(str(error))
        return ClipOutcome(name, tuple(dict.fromkeys(errors)), tuple(notes))

    def _faces(self, video: Path, name: str) -> None:
        import numpy as np

        target, sheet = self.places.face(name), self.places.sheet(name)
        if not target.exists():
            self._detector = self._detector or FaceDetector()
            crops = face_crops(
                video, n_frames=self.n_frames, framing=self.framing, person=self.person, detector=self._detector,
                decoder=self.decoder,
            )  # fmt: skip
            with atomic_path(target) as temporary:
                np.save(temporary, in_order(crops, stored="rgb", wanted=self.channels))
        if self.sheet and not sheet.exists():
            write_sheet(np.load(target, mmap_mode="r", allow_pickle=False), sheet, channels=self.channels)


def write_sheet(crops: np.ndarray, path: Path, *, channels: str = "rgb", columns: int = 8) -> None:
    """A PNG of crops ``[n, H, W, 3]`` in rows of ``columns``, at most 64 of them, evenly chosen."""
    import cv2
    import numpy as np

    chosen = np.unique(np.linspace(0, len(crops) - 1, min(len(crops), 64)).astype(int))
    height, width = crops.shape[1:3]
    rows = -(-len(chosen) // columns)
    picture = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for at, i in enumerate(chosen):
        top, left = at // columns * height, at % columns * width
        picture[top : top + height, left : left + width] = crops[i] if channels == "bgr" else crops[i][..., ::-1]
    ok, encoded = cv2.imencode(".png", picture)
    if not ok:
        raise DataError(f"{path}: the picture could not be encoded")
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def extract_audio(video: Path | str, wav: Path | str, *, decoder: Decoder | None = None) -> Path | None:
    """Write a video's sound track to ``wav``, atomically; None, and no file, when the video has no sound track.

    Raises DataError naming the video when its sound cannot be decoded.
    """
    import soundfile

    samples = (decoder or Decoder()).track(video)
    if samples is None:
        return None
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    wav = Path(wav)
    with atomic_path(wav) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return wav


_processor: dict[int, ClipProcessor] = {}  # process id → its processor: what a pool's worker keeps between clips


def start_worker(places: ClipFolders, options: dict) -> None:
    """Initialise a pool's worker; it ends when its parent does, however that was ended."""
    import cv2

    threading.Thread(target=_leave_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    _processor[os.getpid()] = ClipProcessor(places, **options)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def process(video: Path) -> ClipOutcome:
    """Process one clip in a pool's worker."""
    return _processor[os.getpid()](video)
