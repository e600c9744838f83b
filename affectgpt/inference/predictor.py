"""One clip in four lines: ``Predictor.from_config(…)("clip.mp4", subtitle="…").labels``."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affectgpt.config.load import load_config
from affectgpt.config.paths import select_checkpoints
from affectgpt.config.schema import Config
from affectgpt.core.crops import AS_PUBLISHED, CHANNELS, Crops, file_crops
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.types import Modality, Sample
from affectgpt.inference.flags import EMPTY, REPEATING, UNFINISHED
from affectgpt.inference.session import GenerationSession
from affectgpt.media.audio import FIRST_CHANNEL, NO_AUDIO_TRACK
from affectgpt.media.guard import Decoder
from affectgpt.preprocess.detect import FaceDetector
from affectgpt.preprocess.faces import face_crops
from affectgpt.preprocess.subtitles import beside
from affectgpt.processing.modes import get_mode
from affectgpt.processing.questions import render_question
from affectgpt.results.files import parse_labels

# The released recipes: on these a description begins with "In the text" (published README).
RELEASED = (
    "emercoarse_highlevelfilter4_outputhybird_bestsetup_bestfusion_lz",
    "mercaptionplus_outputhybird_bestsetup_bestfusion_frame_lz",
)
ODD_DESCRIPTION = "description_not_in_the_text"
TURNED = "picture_turned"
SEVERAL = "several_people"
_CLEAR, _FOUND = 0.9, 0.5  # mean confidence of the surest face in each frame: nothing is odd; there are faces
NOTES = {
    NO_AUDIO_TRACK: "the video has no audio track; the model heard silence",
    FIRST_CHANNEL: "the sound has more than two channels; the model heard the first",
    TURNED: "faces are clearer when the picture is turned: is the video upside down or sideways?",
    SEVERAL: "several people's faces are in the picture; the answer is about one of them",
    EMPTY: "the answer is empty",
    UNFINISHED: "the answer never stopped and was cut at inference.max_new_tokens",
    REPEATING: "the answer repeats itself",
    ODD_DESCRIPTION: 'a description of the released models begins with "In the text", this one does not: the weights '
    "or the code may be wrong; run `affectgpt doctor`",
}
# Encoder outputs of a clip's media, and what was odd about the media.
Encoded = tuple[Mapping[Modality, torch.Tensor], tuple[str, ...]]


@dataclass
class Reply:
    """What the model says of one clip. ``description`` asks the second question when it is first looked at."""

    answer: str
    labels: list[str]
    question: str
    flags: tuple[str, ...] = ()
    video: str = ""
    subtitle: str = ""
    _describe: Callable[[], Reply] | None = field(default=None, repr=False)
    _described: Reply | None = field(default=None, repr=False)

    def describe(self) -> Reply:
        """The answer to the description question, asked once (this reply itself where another question was given)."""
        if self._described is None:
            self._described = self if self._describe is None else self._describe()
        return self._described

    @property
    def description(self) -> str:
        """The text of the answer to the description question."""
        return self.describe().answer

    @property
    def notes(self) -> list[str]:
        """What is odd about the clip or the answer, in words."""
        notes = []
        for flag in self.flags:
            kind, _, which = flag.partition(": ")
            notes.append(NOTES.get(kind, kind) + (f" ({which})" if which else ""))
        return notes

    def as_dict(self) -> dict[str, Any]:
        """Video, subtitle, question, answer, labels and notes, as plain containers; the description if it was asked."""
        result: dict[str, Any] = {
            "video": self.video, "subtitle": self.subtitle, "question": self.question, "answer": self.answer,
            "labels": self.labels, "notes": self.notes,
        }  # fmt: skip
        if self._described is not None and self._described is not self:
            result["description"] = self._described.answer
            result["notes"] += [note for note in self._described.notes if note not in result["notes"]]
        return result


def check_inputs(mode: str, *, video: Any, audio: Any, face: Any) -> None:
    """Raises DataError when what is given (None: it is not) is not all that an input mode takes."""
    given = {Modality.AUDIO: audio or video, Modality.FACE: face or video}
    lacking = [medium.value for medium in get_mode(mode).media if given.get(medium, video) is None]
    if lacking:
        raise DataError(
            f"input mode {mode} takes {' and '.join(lacking)}, which nothing gives: give --video_path, or an input "
            "mode that does without, e.g. --outside_face_or_frame=audio_text with --audio_path"
        )


class Predictor:
    """Answers for single clips. Build it once, call it often, from any number of threads.

    Media are read and faces detected side by side; the model serves one thread at a time. A clip that fails, or a
    thread that is interrupted, leaves the others alone, and no answer depends on what is asked beside it.
    """

    def __init__(
        self,
        session: GenerationSession,
        *,
        recognise: Callable[[Path], str] | None = None,
        face_framing: str = "loose",
        keep_features: bool = False,
    ) -> None:
        if not isinstance(session, GenerationSession):
            raise ConfigError(
                f"Predictor({session!r}): expected a GenerationSession; Predictor.from_config(FILE) builds one"
            )
        self.session = session
        self.face_framing = face_framing  # of the crops made here: loose or tight, see preprocess/faces
        self._kept: dict[Sample, Encoded] | None = {} if keep_features else None
        self.recognise = recognise  # a sound or video file → what is said in it
        self._recognising = threading.RLock()
        self._detector: FaceDetector | None = None
        self._decoder = Decoder()

    @classmethod
    def from_config(
        cls,
        cfg_path: str | Path,
        *,
        checkpoint: str | Path | None = None,
        options: Iterable[str] = (),
        mode: str | None = None,
        recognise: Callable[[Path], str] | None = None,
        face_framing: str = "loose",
        keep_features: bool = False,
    ) -> Predictor:
        """Build the model of a configuration and lay a checkpoint over it (default: the last that inference would run).

        ``keep_features``: clips are encoded once, however often they are asked about, by whatever checkpoints.
        """
        options = list(options)
        if checkpoint is not None:
            options += [f"inference.ckpt_name={checkpoint}", "inference.ckpt_root="]
        config = load_config(cfg_path, options)
        chosen = select_checkpoints(config)[-1]
        session = GenerationSession.from_config(config, mode=mode)
        session.use(chosen.path)
        return cls(session, recognise=recognise, face_framing=face_framing, keep_features=keep_features)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        config: Config | None = None,
        mode: str | None = None,
        recognise: Callable[[Path], str] | None = None,
        face_framing: str = "loose",
        keep_features: bool = False,
    ) -> Predictor:
        """The same of a folder that ``affectgpt export --hf`` wrote; ``config`` says how answers are drawn."""
        session = GenerationSession.from_pretrained(folder, config=config, mode=mode)
        return cls(session, recognise=recognise, face_framing=face_framing, keep_features=keep_features)

    def use(self, checkpoint: str | Path) -> None:
        """Lay another checkpoint over the model. Raises CheckpointError when it does not fill it."""
        self.session.use(Path(checkpoint))

    def __call__(
        self,
        video: str | Path | None = None,
        *,
        subtitle: str | None = None,
        audio: str | Path | None = None,
        face: str | Path | None = None,
        face_channels: str | None = None,
        question: str | None = None,
    ) -> Reply:
        """Answer about one clip: open-vocabulary labels, or ``question``.

        The audio is the video's own track unless ``audio`` names a file; faces are detected unless ``face`` names an
        npy ``[N, H, W, 3]`` uint8, whose channel order is that of its folder's record (crops.json), else
        ``face_channels``, else bgr. No video is needed where the input mode takes nothing of it. ``subtitle=None``: the
        .srt or .vtt file beside the video (or sound), else what ``recognise`` hears, else none. Raises DataError naming
        the file when something cannot be read or no face is found.
        """
        check_inputs(self.session.mode, video=video, audio=audio, face=face)
        for option, path in (("--video_path", video), ("--audio_path", audio), ("--face_npy", face)):
            if path is not None and not Path(path).is_file():
                raise DataError(f"{option} {path}: no such file")
        if face_channels is not None and (face is None or face_channels not in CHANNELS):
            raise ConfigError(
                f"--face_channels {face_channels}: "
                + ("goes with --face_npy" if face is None else f"allowed: {', '.join(CHANNELS)}")
            )
        crops = AS_PUBLISHED
        if face is not None:
            crops = file_crops(face, claimed=face_channels, claimed_by="--face_channels")
        sample = Sample(
            name=Path(video or audio or face or "text").stem,
            dataset="clip",
            video=None if video is None else Path(video),
            audio=None if audio is None else Path(audio),
            face=None if face is None else Path(face),
            crops=crops,
        )
        sample = replace(sample, subtitle=self._subtitle(sample) if subtitle is None else subtitle)
        features, flags = self._encoded(sample)

        def ask(text: str) -> Reply:
            return self._ask(sample, text, features=features, flags=flags)

        reply = ask(question or render_question("ovlabel"))
        if question is None:
            reply._describe = lambda: ask(render_question("description"))
        return reply

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

    def _encoded(self, sample: Sample) -> Encoded:
        if self._kept is None:
            return self._encode(sample)
        if sample not in self._kept:
            self._kept[sample] = self._encode(sample)
        return self._kept[sample]

    def _encode(self, sample: Sample) -> Encoded:
        """Encoder outputs of a clip's media, for any number of questions, and what was odd about the media."""
        odd: tuple[str, ...] = ()
        with tempfile.TemporaryDirectory(prefix="affectgpt-") as folder:
            if sample.face is None and Modality.FACE in get_mode(self.session.mode).media:
                sample = replace(sample, face=Path(folder) / "faces.npy", crops=Crops("rgb", self.face_framing))
                crops, odd = self._faces(sample.video)
                np.save(sample.face, crops)
            features, flags = self.session.features(sample)
        return features, odd + flags

    def _faces(self, video: Path | None) -> tuple[np.ndarray, tuple[str, ...]]:
        """Crops of the speaker; flagged when a turned picture shows faces better, an error when only that shows any."""
        assert video is not None
        self._detector = self._detector or FaceDetector()
        try:
            taken: list[str] = []
            crops = face_crops(
                video, framing=self.face_framing, detector=self._detector, decoder=self._decoder, note=taken.append
            )
        except DataError as error:
            if "no face" not in str(error):
                raise
            turned = self._better_turned(video)
            hint = (
                f"there is one when the picture is turned by {turned} degrees: turn the video first"
                if turned
                else "give crops with --face_npy, or use a recipe that takes frames"
            )
            raise DataError(f"{error}; {hint}") from error
        odd = tuple(f"{SEVERAL}: {which}" for which in taken)
        return crops, odd + ((TURNED,) if self._better_turned(video) else ())

    def _better_turned(self, video: Path) -> int:
        """Degrees by which the picture must be turned for faces to be clearer; 0 when they are clear as it is."""
        assert self._detector is not None
        frames, _ = self._decoder.native_frames(video, n_frames=4, start=0, count=4, longest_side=640)

        def confidence(turns: int) -> float:
            found = [self._detector(np.ascontiguousarray(np.rot90(frame, turns))) for frame in frames]
            return sum(faces[0].confidence for faces in found if faces) / len(frames)

        upright = confidence(0)
        if upright > _CLEAR:
            return 0
        best = max((2, 1, 3), key=confidence)
        return best * 90 if confidence(best) > max(_FOUND, 2 * upright) else 0

    def _ask(
        self, sample: Sample, question: str, *, features: Mapping[Modality, torch.Tensor], flags: tuple[str, ...]
    ) -> Reply:
        known = {modality: _constant(z) for modality, z in features.items()}
        ((answer,),) = self.session.answer([sample], question, features=known)
        flags = (*flags, *answer.flags)
        if (
            question == render_question("description")
            and self.session.config.name in RELEASED
            and not answer.text.startswith("In the text")
        ):
            flags += (ODD_DESCRIPTION,)
        return Reply(
            answer=answer.text,
            labels=parse_labels(answer.text),
            question=question,
            flags=flags,
            video=str(sample.video or ""),
            subtitle=sample.subtitle,
        )


def _constant(value: torch.Tensor) -> Callable[[Sample], tuple[torch.Tensor, tuple[str, ...]]]:
    return lambda _: (value, ())
