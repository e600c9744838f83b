"""One clip from what a caller hands over (paths, bytes, open files) to a sample whose media are read."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from affectgpt.core.crops import AS_PUBLISHED, CHANNELS, Crops, file_crops
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.types import Modality, Sample
from affectgpt.inference.reply import SEVERAL, TURNED
from affectgpt.inference.session import GenerationSession
from affectgpt.media.given import as_file, is_path, medium_name, named
from affectgpt.media.guard import Decoder
from affectgpt.preprocess.detect import FaceDetector
from affectgpt.preprocess.faces import Person, check_person, face_crops
from affectgpt.preprocess.subtitles import beside
from affectgpt.processing.modes import get_mode
from affectgpt.processing.processor import Example

_CLEAR, _FOUND = 0.9, 0.5  # mean confidence of the surest face in each frame: nothing is odd; there are faces


class GivenClip(NamedTuple):
    """What is given of one clip: media as paths, bytes or open files. ``Predictor`` says what each may be."""

    video: Any = None
    audio: Any = None
    face: Any = None
    subtitle: str | None = None
    face_channels: str | None = None
    person: str | int | None = None

    @property
    def name(self) -> str:
        """That of its video, or nothing."""
        return "" if self.video is None else medium_name(self.video)


class ReadClip(NamedTuple):
    """A clip whose media are read and not yet encoded. ``sample`` names files that may be gone by now.

    ``crops``: the face crops uint8 ``[N, H, W, 3]`` RGB that were taken from the video, ``people``: everybody whose
    face is in it, the most prominent first.
    """

    video: str
    sample: Sample
    example: Example
    flags: tuple[str, ...]
    crops: np.ndarray | None = None
    people: Sequence[Person] = ()


def check_inputs(mode: str, *, video: Any, audio: Any, face: Any) -> None:
    """Raises DataError when what is given (None: it is not) is not all that an input mode takes."""
    given = {Modality.AUDIO: audio or video, Modality.FACE: face or video}
    lacking = [medium.value for medium in get_mode(mode).media if given.get(medium, video) is None]
    if lacking:
        raise DataError(
            f"input mode {mode} takes {' and '.join(lacking)}, which nothing gives: give a video, or take an input "
            "mode (face_or_frame) that does without it, e.g. audio_text with a sound file"
        )


def clips_of(**given: Any) -> list[GivenClip] | None:
    """The clips that lists speak of; None where nothing is a list. Raises ConfigError when their lengths differ."""
    lists = {name: value for name, value in given.items() if isinstance(value, list | tuple)}
    if not lists:
        return None
    lengths = {name: len(value) for name, value in lists.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ConfigError(f"a list of clips has one item of each kind for each clip; found {found}")
    for name in ("video", "audio", "face", "subtitle"):
        if name not in lists and given[name] is not None:
            raise ConfigError(f"{name}: belongs to one clip, and a list of clips is given: give a list of {name}, too")
    (count,) = set(lengths.values())
    return [
        GivenClip(**{name: value[i] if name in lists else value for name, value in given.items()}) for i in range(count)
    ]


class ClipReader:
    """Reads clips for the input mode of a session; the model is not needed for it. From any number of threads."""

    def __init__(
        self,
        session: GenerationSession,
        *,
        recognise: Callable[[Path], str] | None = None,
        face_framing: str = "loose",
        decoder: Decoder | None = None,
    ) -> None:
        self.session = session
        self.recognise = recognise  # a sound or video file → what is said in it
        self.face_framing = face_framing  # of the crops made here: loose or tight, see preprocess/faces
        self._recognising = threading.RLock()
        self._detector: FaceDetector | None = None
        self._decoder = decoder or Decoder()

    def read(self, clip: GivenClip, *, folder: Path | None = None) -> ReadClip:
        """A clip's media, as a ``Predictor`` that is called with it reads them.

        ``folder``: where private files are as long as that takes (default: the system's folder for such files).
        """
        self.check(clip)
        with self.files(clip, folder) as (sample, private, _):
            return self.media(sample, clip.person, private)._replace(video=clip.name)

    def check(self, clip: GivenClip) -> None:
        """What can be wrong with a call, whatever is in the files. Raises ConfigError."""
        if clip.face_channels is not None and (clip.face is None or clip.face_channels not in CHANNELS):
            raise ConfigError(
                f"face_channels {clip.face_channels}: "
                + ("goes with face crops" if clip.face is None else f"allowed: {', '.join(CHANNELS)}")
            )
        if check_person(clip.person) is None:
            return
        if clip.face is not None or Modality.FACE not in get_mode(self.session.mode).media:
            why = (
                "goes without face crops" if clip.face is not None else f"input mode {self.session.mode} takes no face"
            )
            raise ConfigError(f"person {clip.person}: {why}")

    @contextmanager
    def files(self, clip: GivenClip, parent: Path | None = None) -> Iterator[tuple[Sample, Path, bool]]:
        """A clip as a sample, a folder for its crops, and whether it has private files: those of what is not given as
        a path, which are there within."""
        with tempfile.TemporaryDirectory(prefix="affectgpt-", dir=parent) as folder:
            given = {"video": clip.video, "audio": clip.audio, "face": clip.face}
            files = {
                part: None if medium is None else as_file(medium, folder=Path(folder), stem=part)
                for part, medium in given.items()
            }
            made = {path: medium_name(given[part]) for part, path in files.items() if path and not is_path(given[part])}
            with named(made):
                yield self._sample(clip, **files), Path(folder), bool(made)

    def _sample(self, clip: GivenClip, *, video: Path | None, audio: Path | None, face: Path | None) -> Sample:
        mode = get_mode(self.session.mode)
        check_inputs(mode.name, video=video, audio=audio, face=face)
        for what, path in (("video", video), ("audio", audio), ("face crops", face)):
            if path is not None and not path.is_file():
                raise DataError(f"{what} {path}: no such file")
        crops = AS_PUBLISHED
        if face is not None:
            crops = file_crops(face, claimed=clip.face_channels, claimed_by="--face_channels")
        pictures = {Modality.FRAME, Modality.IMAGE} | ({Modality.FACE} if face is None else set())
        if audio is None and not pictures & set(mode.media):
            video, audio = None, video  # nothing but its sound is wanted: it may be a sound file
        name = next((medium_name(m) for m in (clip.video, clip.audio, clip.face) if m is not None), "text")
        sample = Sample(name=Path(name).stem, dataset="clip", video=video, audio=audio, face=face, crops=crops)
        return replace(sample, subtitle=self._subtitle(sample) if clip.subtitle is None else clip.subtitle)

    def _subtitle(self, sample: Sample) -> str:
        source = sample.video or sample.audio
        if source is None:
            return ""
        text = beside(source)
        if text is not None:
            return text
        if self.recognise is None or not get_mode(self.session.mode).has_subtitle:
            return ""
        if sample.audio is None and not self._decoder.probe(source).audio_tracks:
            return ""
        with self._recognising:
            return self.recognise(sample.audio or source)

    def media(self, sample: Sample, person: str | int | None, folder: Path) -> ReadClip:
        """What ``files`` gave, read; crops of its faces are stored in ``folder``."""
        odd: tuple[str, ...] = ()
        crops, people = None, list[Person]()
        if sample.face is None and Modality.FACE in get_mode(self.session.mode).media:
            sample = replace(sample, face=folder / "faces.npy", crops=Crops("rgb", self.face_framing))
            crops, odd = self._faces(sample.video, person, people)
            np.save(folder / "faces.npy", crops)
        example = self.session.read(sample)
        return ReadClip("", sample, example, odd + example.flags, crops, people)

    def _faces(
        self, video: Path | None, person: str | int | None, people: list[Person]
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Crops of the speaker, and in ``people`` everybody who is there; flagged when a turned picture shows faces
        better, an error when only that shows any."""
        assert video is not None
        self._detector = self._detector or FaceDetector()
        try:
            taken: list[str] = []
            crops = face_crops(
                video, framing=self.face_framing, person=person, detector=self._detector, decoder=self._decoder,
                note=taken.append, everybody=people,
            )  # fmt: skip
        except DataError as error:
            if "no face" not in str(error):
                raise
            turned = self._better_turned(video)
            hint = (
                f"there is one when the picture is turned by {turned} degrees: turn the video first"
                if turned
                else "give its face crops, or use a recipe that takes frames"
            )
            raise DataError(f"{error}; {hint}") from error
        odd = tuple(f"{SEVERAL}: {which}" for which in taken)
        return crops, odd + ((TURNED,) if self._better_turned(video) else ())

    def _better_turned(self, video: Path) -> int:
        """Degrees by which the picture must be turned for faces to be clearer; 0 when they are clear as it is."""
        detector = self._detector
        assert detector is not None
        frames, _ = self._decoder.native_frames(video, n_frames=4, start=0, count=4, longest_side=640)

        def confidence(turns: int) -> float:
            found = [detector(np.ascontiguousarray(np.rot90(frame, turns))) for frame in frames]
            return sum(faces[0].confidence for faces in found if faces) / len(frames)

        upright = confidence(0)
        if upright > _CLEAR:
            return 0
        best = max((2, 1, 3), key=confidence)
        return best * 90 if confidence(best) > max(_FOUND, 2 * upright) else 0
