"""Clips in four lines: ``Predictor.from_config(…)("clip.mp4", subtitle="…").labels``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch

from affectgpt.config.load import load_config
from affectgpt.config.paths import select_checkpoints
from affectgpt.config.schema import Config
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.types import Modality, Sample
from affectgpt.evaluation.labels import NOT_TRAINED_FORM, read_labels
from affectgpt.inference.clips import ClipReader, GivenClip, clips_of
from affectgpt.inference.reply import ODD_DESCRIPTION, Reply, Unanswered
from affectgpt.inference.session import GenerationSession, SampleAnswer
from affectgpt.preprocess.faces import check_person
from affectgpt.processing.modes import get_mode
from affectgpt.processing.processor import FeatureOf
from affectgpt.processing.questions import asks_for_labels, render_question

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
