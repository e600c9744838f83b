"""Clips in four lines: ``Predictor.from_config(…)("clip.mp4", subtitle="…").labels``."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch

from affectgpt.config.load import load_config
from affectgpt.config.paths import select_checkpoints
from affectgpt.config.schema import Config
from affectgpt.core.crops import AS_PUBLISHED, CHANNELS, Crops, file_crops
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.types import Modality, Sample
from affectgpt.evaluation.labels import NOT_TRAINED_FORM, read_labels
from affectgpt.inference.session import EMPTY, REPEATING, UNFINISHED, GenerationSession, SampleAnswer
from affectgpt.media.audio import FIRST_CHANNEL, NO_AUDIO_TRACK
from affectgpt.media.given import as_file, is_path, medium_name, named
from affectgpt.media.guard import Decoder
from affectgpt.preprocess.faces import FaceDetector, Person, check_person, face_crops
from affectgpt.preprocess.subtitles import beside
from affectgpt.processing.modes import get_mode
from affectgpt.processing.processor import Example, FeatureOf
from affectgpt.processing.prompt import SHORTENED
from affectgpt.processing.questions import asks_for_labels, render_question

ODD_DESCRIPTION = "description_not_in_the_text"
TURNED = "picture_turned"
SEVERAL = "several_people"
NOTES = {
    NO_AUDIO_TRACK: "the video has no audio track; the model heard silence",
    FIRST_CHANNEL: "the sound has more than two channels; the model heard the first",
    TURNED: "faces are clearer when the picture is turned: is the video upside down or sideways?",
    SEVERAL: "several people's faces are in the picture; the answer is about one of them",
    SHORTENED: "the subtitle was too long for the prompt; its end was left out",
    EMPTY: "the answer is empty",
    UNFINISHED: "the answer never stopped and was cut at inference.max_new_tokens",
    REPEATING: "the answer repeats itself",
    NOT_TRAINED_FORM: "the answer is not of the trained form; no label could be read from it",
    ODD_DESCRIPTION: 'a description of the released models begins with "In the text", this one does not: the weights '
    "or the code may be wrong; run `affectgpt doctor`",
}


@dataclass
class Reply:
    """The model's answer about one clip. ``description`` asks the second question when it is first looked at."""

    answer: str
    labels: list[str]
    question: str
    flags: tuple[str, ...] = ()
    video: str = ""
    subtitle: str = ""
    error: None = field(default=None, repr=False)  # see Unanswered
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
        """Oddities of the clip or the answer, in words."""
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


@dataclass(frozen=True)
class Unanswered:
    """A clip of a list that could not be answered: ``error`` says why, and whoever asks for its answer gets it raised.

    ``reply.error`` is None for those that were answered.
    """

    error: DataError
    video: str = ""
    subtitle: str = ""

    def __getattr__(self, name: str) -> Any:
        if name in ("answer", "labels", "flags", "notes", "describe", "description"):
            raise DataError(str(self.error)) from self.error
        raise AttributeError(name)

    def as_dict(self) -> dict[str, Any]:
        """Video, subtitle and the error's text."""
        return {"video": self.video, "subtitle": self.subtitle, "error": str(self.error)}


_CLEAR, _FOUND = 0.9, 0.5  # mean confidence of the surest face in each frame: nothing is odd; there are faces


class GivenClip(NamedTuple):
    """Media of one clip as a caller gives them: as paths, bytes or open files. ``Predictor`` says what each may
    be."""

    video: Any = None
    audio: Any = None
    face: Any = None
    subtitle: str | None = None
    face_channels: str | None = None
    person: str | int | None = None

    @property
    def name(self) -> str:
        """Name of its video, or nothing."""
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
        """Raise ConfigError for what is wrong with a call, whatever is in the files."""
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
        """Read what ``files`` gave; crops of its faces are stored in ``folder``."""
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


# The released recipes: on these a description begins with "In the text" (published README).
RELEASED = (
    "emercoarse_highlevelfilter4_outputhybird_bestsetup_bestfusion_lz",
    "mercaptionplus_outputhybird_bestsetup_bestfusion_frame_lz",
)
_READERS = 4  # clips of a list that are read at once
# Encoder outputs of a clip's media, and what was odd about the media.
Encoded = tuple[Mapping[Modality, torch.Tensor], tuple[str, ...]]


class _Read(NamedTuple):
    """A clip whose media are encoded. ``sample`` names files that may be gone by now."""

    video: str
    sample: Sample
    features: Mapping[Modality, torch.Tensor]
    flags: tuple[str, ...]


class Predictor:
    """Answers for clips, one or a list at a time. Build it once, call it often, from any number of threads.

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
        self.reader = ClipReader(session, recognise=recognise, face_framing=face_framing)
        self._kept: dict[tuple[Sample, str | int | None], Encoded] | None = {} if keep_features else None

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

    @overload
    def __call__(
        self,
        video: list[Any] | tuple[Any, ...],
        *,
        subtitle: Sequence[str | None] | None = None,
        audio: Sequence[Any] | None = None,
        face: Sequence[Any] | None = None,
        face_channels: str | None = None,
        person: str | int | Sequence[str | int | None] | None = None,
        question: str | None = None,
    ) -> list[Reply | Unanswered]: ...

    @overload
    def __call__(
        self,
        video: Any = None,
        *,
        subtitle: str | None = None,
        audio: Any = None,
        face: Any = None,
        face_channels: str | None = None,
        person: str | int | None = None,
        question: str | None = None,
    ) -> Reply: ...

    def __call__(
        self,
        video: Any = None,
        *,
        subtitle: Any = None,
        audio: Any = None,
        face: Any = None,
        face_channels: str | None = None,
        person: Any = None,
        question: str | None = None,
    ) -> Reply | list[Reply | Unanswered]:
        """Answer about one clip, or a list of clips: open-vocabulary labels, or ``question``.

        A medium is a path, the bytes of a file, or a file opened with ``rb`` (at most 1 GB; the format is recognised by
        the content). The audio is the video's own track unless ``audio`` is given; where the input mode needs no
        picture of the video, that may be a sound file. Faces are detected unless ``face`` is an npy ``[N, H, W, 3]``
        uint8, whose channel order is that of its folder's record (crops.json), else ``face_channels``, else bgr.
        ``person``: whose face where there are several: ``left``, ``middle``, ``right``, or a number: 0 is the most
        prominent person (default). No video is needed where the input mode takes nothing of it. ``subtitle=None``: the
        .srt or .vtt file beside the video (or sound), else what ``recognise`` hears, else none. Raises DataError naming
        the file when something cannot be read, or no face or no such person is found.

        With lists (``video``, ``audio``, ``face`` and ``subtitle`` alike, one item for each clip; ``person`` may be one
        for all) the result is a list in their order, with the answers of single calls. Clips are read side by side and
        answered in batches. In the place of a clip that cannot be answered is an ``Unanswered``, which has the
        ``error``; whatever concerns all clips is raised.
        """
        clips = clips_of(
            video=video, audio=audio, face=face, subtitle=subtitle, face_channels=face_channels, person=person
        )
        if clips is None:
            clip = GivenClip(video, audio, face, subtitle, face_channels, person)
            self.reader.check(clip)
            return _pick(partial(self._replies, [self._read(clip)], question), 0)
        for clip in clips:
            self.reader.check(clip)
        return self._answer_all(clips, question)

    def _answer_all(self, clips: Sequence[GivenClip], question: str | None) -> list[Reply | Unanswered]:
        """Read side by side, answer longest prompts first in batches; what is broken costs the others nothing."""

        def read(clip: GivenClip) -> _Read | Unanswered:
            try:
                found = self._read(clip)
                with self.session.lock:  # a subtitle that is too long
                    self.session.processor.text(found.sample, question=question or render_question("ovlabel"))
                return found
            except DataError as error:
                return Unanswered(error, clip.name, clip.subtitle or "")

        readers = ThreadPoolExecutor(max(1, min(_READERS, len(clips))), thread_name_prefix="affectgpt-clip")
        try:
            replies: list[_Read | Reply | Unanswered] = list(readers.map(read, clips))
        finally:
            readers.shutdown(cancel_futures=True)
        at = [i for i, found in enumerate(replies) if isinstance(found, _Read)]
        at.sort(key=lambda i: -len(replies[i].sample.subtitle.encode()))  # type: ignore[union-attr]
        answered = self._replies([replies[i] for i in at], question)  # type: ignore[misc]
        for i, reply in zip(at, answered, strict=True):
            replies[i] = reply
        return replies  # type: ignore[return-value]

    def _read(self, clip: GivenClip) -> _Read:
        """Encoder outputs of a clip."""
        with self.reader.files(clip) as (sample, folder, made):
            features, flags = self._encoded(sample, clip.person, folder, keep=not made)
        return _Read(clip.name, sample, features, flags)

    def _encoded(self, sample: Sample, person: str | int | None, folder: Path, *, keep: bool) -> Encoded:
        if self._kept is None or not keep:
            return self._encode(sample, person, folder)
        key = (sample, check_person(person))
        if key not in self._kept:
            self._kept[key] = self._encode(sample, person, folder)
        return self._kept[key]

    def _encode(self, sample: Sample, person: str | int | None, folder: Path) -> Encoded:
        """Encoder outputs of a clip's media, for any number of questions, and what was odd about the media."""
        clip = self.reader.media(sample, person, folder)
        return self.session.encode_example(clip.example), clip.flags

    def _replies(self, clips: Sequence[_Read], question: str | None) -> list[Reply | Unanswered]:
        """Replies to clips in their order; those that were answered together are also described together."""
        replies: list[Reply | Unanswered] = []
        for batch in self._ask(clips, question or render_question("ovlabel")):
            if question is None:
                asked = clips[len(replies) : len(replies) + len(batch)]
                described = cache(partial(self._replies, asked, render_question("description")))
                for i, reply in enumerate(batch):
                    if isinstance(reply, Reply):
                        reply._describe = partial(_pick, described, i)
            replies += batch
        return replies

    def _ask(self, clips: Sequence[_Read], question: str) -> Iterator[list[Reply | Unanswered]]:
        """Replies batch by batch, in order. A batch is halved until a clip that cannot be answered is alone."""
        features = {id(clip.sample): clip.features for clip in clips}

        def known(modality: Modality) -> FeatureOf:
            return lambda sample: (features[id(sample)][modality], ())

        done = 0
        media = get_mode(self.session.mode).media
        try:
            for answers in self.session.answer(
                [clip.sample for clip in clips], question, features={modality: known(modality) for modality in media}
            ):
                batch = clips[done : done + len(answers)]
                done += len(answers)
                yield [self._reply(clip, answer, question) for clip, answer in zip(batch, answers, strict=True)]
        except DataError as error:
            if len(clips) == 1:
                yield [Unanswered(error, clips[0].video, clips[0].sample.subtitle)]
                return
            rest = clips[done:]
            half = -(-len(rest) // 2)
            for part in (rest[:half], rest[half:]):
                yield from self._ask(part, question)

    def _reply(self, clip: _Read, answer: SampleAnswer, question: str) -> Reply:
        labels, odd = claimed_labels(question, answer.text)
        odd += odd_description(self.session.config.name, question, answer.text)
        return Reply(
            answer=answer.text,
            labels=labels,
            question=question,
            flags=(*clip.flags, *answer.flags, *odd),
            video=clip.video,
            subtitle=clip.sample.subtitle,
        )


def claimed_labels(question: str, answer: str) -> tuple[list[str], tuple[str, ...]]:
    """The labels that an answer claims, and a flag where a question for labels got an answer of another form."""
    labels = read_labels(answer)
    unread = labels is None and asks_for_labels(question)
    return labels or [], (NOT_TRAINED_FORM,) if unread else ()


def odd_description(config_name: str, question: str, answer: str) -> tuple[str, ...]:
    """A flag where a released model's description begins otherwise than all of its training's did."""
    asked = question == render_question("description") and config_name in RELEASED
    return (ODD_DESCRIPTION,) if asked and not answer.startswith("In the text") else ()


def _pick(replies: Callable[[], list[Reply | Unanswered]], i: int) -> Reply:
    reply = replies()[i]
    if isinstance(reply, Unanswered):
        raise reply.error
    return reply
