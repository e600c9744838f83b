"""What a request goes through: admitted, read, answered in a batch, explained. HTTP and the page are not known here."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from affectgpt.core.errors import AffectGPTError, DataError
from affectgpt.core.types import Modality
from affectgpt.evaluation.lexicon import Lexicon, find_lexicon, grouping_of
from affectgpt.inference.engines.base import Answer, Decoding, sample_seed
from affectgpt.inference.predictor import (
    ClipReader,
    GivenClip,
    Predictor,
    ReadClip,
    Reply,
    claimed_labels,
    odd_description,
)
from affectgpt.inference.session import answer_flags
from affectgpt.media.given import named
from affectgpt.media.guard import Decoder
from affectgpt.preprocess.faces import check_person
from affectgpt.processing.modes import get_mode
from affectgpt.processing.prompt import GENERATION_LENGTH
from affectgpt.processing.questions import render_question
from affectgpt.serve.batcher import Batcher, Clip, RefusedError, Row
from affectgpt.serve.folders import PrivateFolders
from affectgpt.serve.intake import Intake
from affectgpt.serve.settings import ServeSettings

_READERS = 8  # clips that are read at once: as many can be answered together
_EVERY_TOKEN = 128  # tokens up to which each one is shown at once; after that every fourth: decoding takes its time


class BusyError(AffectGPTError):
    """As many requests as may be are in the house."""


@dataclass(frozen=True)
class Ask:
    """A question about a clip. Media are URLs, or files that the page has uploaded: all of strangers.

    ``question=None``: labels. ``describe``: a description as well. Decoding is the model's own where it is not given.
    """

    video: str | Path | None = None
    audio: str | Path | None = None
    subtitle: str | None = None
    question: str | None = None
    person: str | int | None = None
    describe: bool = False
    n: int = 1
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None


@dataclass
class Choice:
    """One answer, with the description that was asked for beside it. ``error``: there is none."""

    index: int
    answer: Answer | None = None
    description: Answer | None = None
    error: Exception | None = None
    waits_for: int = 1


@dataclass(frozen=True)
class Piece:
    """More of a choice's answer, or of its description."""

    index: int
    text: str
    described: bool = False


# What is reported while rows are answered: pieces, and each choice when it is complete. From another thread.
Emit = Callable[[Piece | Choice], None]
Look = Callable[[ReadClip, Path | None, Path | None], None]


@dataclass(eq=False)
class Asked:
    """A request whose clip is read, and its rows once they wait."""

    ask: Ask
    clip: ReadClip
    decoding: Decoding
    question: str
    rows: list[Row] = field(default_factory=list)

    def cancel(self) -> None:
        """Nobody waits any more: rows end at their next token."""
        for row in self.rows:
            row.cancelled = True

    @property
    def prompt_tokens(self) -> int:
        """Of the prompts that were read by the model, each once."""
        return sum({row.question: row.prompt_tokens for row in self.rows}.values())


class Service:
    """One model for many requests. All methods may be called from any thread."""

    def __init__(self, predictor: Predictor, settings: ServeSettings, *, model: str) -> None:
        self.settings, self.model = settings, model
        self.session = predictor.session
        self.decoder = Decoder(time_limit=settings.decode_timeout, memory=settings.decode_memory)
        given = predictor.reader
        self.reader = ClipReader(
            self.session, recognise=given.recognise, face_framing=given.face_framing, decoder=self.decoder
        )
        self.session.processor.media.decoder = self.decoder
        self.intake = Intake(settings, self.decoder)
        self.folders = PrivateFolders(settings.work_dir)
        self.lexicon: Lexicon = find_lexicon(None)
        self.grouping = grouping_of(self.lexicon)
        checkpoint = self.session.checkpoint
        self.fingerprint = f"affectgpt_{sample_seed(model, '' if checkpoint is None else checkpoint.name) % 2**32:08x}"
        self._inside = self._reading = 0
        self._changed = threading.Condition()
        self._draining = False
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="affectgpt-read")
        self.batcher = Batcher(
            self.session, wait=settings.batch_wait, max_rows=settings.max_batch, being_read=lambda: self._reading
        )

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of an answer."""
        return min(self.session.config.inference.max_new_tokens, GENERATION_LENGTH - 1)

    @property
    def inside(self) -> int:
        """Requests that are in the house."""
        return self._inside

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Around a request. Raises BusyError when there are too many, RefusedError when the server is ending."""
        with self._changed:
            if self._draining:
                raise RefusedError("the server is shutting down")
            if self._inside >= self.settings.waiting:
                raise BusyError("too many requests are waiting; try again in a moment")
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def check(self, ask: Ask) -> tuple[Decoding, str]:
        """The decoding and the question of a request. Raises DataError saying what cannot be asked for."""
        most = self.max_new_tokens
        if ask.max_tokens is not None and ask.max_tokens > most:
            raise DataError(f"max_tokens {ask.max_tokens}: at most {most} here")
        if ask.n > self.settings.max_choices:
            raise DataError(f"n {ask.n}: at most {self.settings.max_choices} here")
        check_person(ask.person)
        mode = get_mode(self.session.mode)
        for medium in mode.media:
            if ask.video is None and (medium is not Modality.AUDIO or ask.audio is None):
                part = "video_url part" if medium is not Modality.AUDIO else "video_url, audio_url or input_audio part"
                raise DataError(f"this model takes the {medium.value} of a clip ({mode.name}): send a {part}")
        if ask.person is not None and Modality.FACE not in mode.media:
            raise DataError(f"person: this model takes no face ({mode.name})")
        decoding = replace(
            Decoding.from_config(self.session.config.inference), max_new_tokens=min(ask.max_tokens or most, most)
        )
        if ask.temperature is not None:
            decoding = replace(decoding, greedy=ask.temperature == 0, temperature=ask.temperature or 1.0)
        if ask.top_p is not None:
            decoding = replace(decoding, top_p=ask.top_p)
        return decoding, ask.question or render_question("ovlabel")

    def read(self, ask: Ask, *, look: Look | None = None) -> Future[Asked]:
        """Read a request's media side by side with others', in a private folder that is gone afterwards. Raises, and
        the future raises, DataError and ConfigError.

        ``look``: called with the clip, its video and its sound while they are there.
        """
        decoding, question = self.check(ask)
        with self._changed:
            self._reading += 1
        future = self._readers.submit(lambda: Asked(ask, self._read(ask, look), decoding, question))
        future.add_done_callback(self._is_read)
        return future

    def answer(self, asked: Asked, emit: Emit, *, stream: bool = False) -> None:
        """Queue a request's rows; ``emit`` is called from the batcher's thread. Raises RefusedError."""
        ask = asked.ask
        clip = Clip(asked.clip.sample, asked.clip.example)
        base = secrets.randbits(62) if ask.seed is None else ask.seed
        description = render_question("description")
        with_description = ask.describe and asked.question != description
        for index in range(ask.n):
            choice = Choice(index, waits_for=2 if with_description else 1)
            for question in (asked.question, description)[: choice.waits_for]:
                seed = sample_seed("serve", base, question, *((index,) if index else ()))
                asked.rows.append(
                    self._row(clip, question, seed, asked.decoding, choice, emit, second=question is not asked.question,
                              stream=stream)
                )  # fmt: skip
        self.batcher.submit(asked.rows)

    def explained(self, asked: Asked, choice: Choice) -> dict[str, Any]:
        """What goes with an answer: labels, groups of each label in each wheel, description, notes."""
        assert choice.answer is not None
        reply = self._reply(asked, asked.question, choice.answer)
        found: dict[str, Any] = {
            "labels": reply.labels, "groups": self.groups(reply.labels), "lexicon": Path(self.lexicon.source).name,
            "question": asked.question, "subtitle": asked.clip.sample.subtitle, "description": None,
            "notes": reply.notes,
        }  # fmt: skip
        if choice.description is not None:
            described = self._reply(asked, render_question("description"), choice.description)
            found["description"] = described.answer
            found["notes"] += [note for note in described.notes if note not in found["notes"]]
        elif asked.question == render_question("description"):
            found["description"] = reply.answer
        return found

    def groups(self, labels: Sequence[str]) -> dict[str, dict[str, str]]:
        """Label → wheel → the word of its inner ring; wheels that do not know the label are left out."""
        return {
            label: {
                wheel: group
                for wheel, group in zip(self.grouping.views, self.grouping.groups(label), strict=True)
                if group is not None
            }
            for label in labels
        }

    def drain(self) -> None:
        """Finish what runs, refuse the rest."""
        with self._changed:
            self._draining = True
        self.batcher.drain()

    def close(self) -> None:
        """End, and leave nothing behind."""
        self.drain()
        self.batcher.close()
        self._readers.shutdown(cancel_futures=True)
        self.decoder.close()
        self.folders.close()

    def _is_read(self, _: Future[Asked]) -> None:
        with self._changed:
            self._reading -= 1
        self.batcher.notify()

    def _read(self, ask: Ask, look: Look | None) -> ReadClip:
        if self._draining:
            raise RefusedError("the server is shutting down")
        with self.folders.one() as folder:
            files: dict[str, Path | None] = {"video": None, "audio": None}
            flags: tuple[str, ...] = ()
            for stem, medium in (("video", ask.video), ("audio", ask.audio)):
                if medium is not None:
                    files[stem], odd = self.intake(medium, folder=folder, stem=stem)
                    flags += odd
            with named({path: f"the {stem}" for stem, path in files.items() if path is not None}):
                given = GivenClip(files["video"], files["audio"], subtitle=ask.subtitle, person=ask.person)
                clip = self.reader.read(given, folder=folder)
                if look is not None:
                    look(clip, files["video"], files["audio"])
        sample = replace(clip.sample, name="clip", video=None, audio=None, face=None)
        return clip._replace(video="", sample=sample, flags=flags + clip.flags)

    def _row(
        self,
        clip: Clip,
        question: str,
        seed: int,
        decoding: Decoding,
        choice: Choice,
        emit: Emit,
        *,
        second: bool,
        stream: bool,
    ) -> Row:
        text = _Text(self.session.processor.decode)

        def on_ids(ids: list[int]) -> None:
            if more := text.more(ids):
                emit(Piece(choice.index, more, described=second))

        def done(outcome: Answer | Exception) -> None:
            if isinstance(outcome, Exception):
                choice.error = outcome
            elif second:
                choice.description = outcome
            else:
                choice.answer = outcome
            if stream and isinstance(outcome, Answer) and (rest := text.rest(outcome.text)):
                emit(Piece(choice.index, rest, described=second))
            choice.waits_for -= 1
            if not choice.waits_for:
                emit(choice)

        return Row(clip, question, seed, decoding, done, on_ids if stream else None)

    def _reply(self, asked: Asked, question: str, answer: Answer) -> Reply:
        labels, unread = claimed_labels(question, answer.text)
        flags = (
            *asked.clip.flags,
            *answer_flags(answer.text, stopped=answer.stopped or asked.ask.max_tokens is not None),
            *odd_description(self.session.config.name, question, answer.text),
            *unread,
        )
        return Reply(answer=answer.text, labels=labels, question=question, flags=tuple(dict.fromkeys(flags)))


class _Text:
    """A growing answer in pieces whose sum is the answer: what a later token may take back is held back."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode = decode
        self.given = ""

    def more(self, ids: Sequence[int]) -> str:
        """What can be shown of an answer with these ids, beyond what was."""
        if len(ids) > _EVERY_TOKEN and len(ids) % 4:
            return ""
        return self.rest(self.decode(ids).rstrip("#\ufffd").rstrip())

    def rest(self, text: str) -> str:
        """The text beyond what was given."""
        if not text.startswith(self.given):
            return ""
        more, self.given = text[len(self.given) :], max(text, self.given, key=len)
        return more


def usage(asked: Asked, choices: Sequence[Choice]) -> Mapping[str, int]:
    """Tokens of prompts and answers."""
    made = sum(answer.tokens for c in choices for answer in (c.answer, c.description) if answer is not None)
    return {
        "prompt_tokens": asked.prompt_tokens, "completion_tokens": made, "total_tokens": asked.prompt_tokens + made,
    }  # fmt: skip
