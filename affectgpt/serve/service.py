"""A model for many requests: settings, and what every request of the API and the page goes through."""

from __future__ import annotations

import ipaddress
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from affectgpt.core.errors import AffectGPTError, ConfigError, DataError
from affectgpt.core.types import Modality
from affectgpt.evaluation.lexicon import Lexicon, find_lexicon, grouping_of
from affectgpt.inference.engines.base import Decoding, sample_seed
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
from affectgpt.media.limits import MediaLimits
from affectgpt.preprocess.faces import check_person
from affectgpt.processing.modes import get_mode
from affectgpt.processing.prompt import GENERATION_LENGTH
from affectgpt.processing.questions import render_question
from affectgpt.serve.batcher import Batcher, Clip, Row, ShuttingDownError
from affectgpt.serve.media import PrivateFolders, RequestMedia

TOY_PARAMETERS = 20_000_000  # up to which a model is one of the demo's
_MAX_CHOICES = 8  # n
_READERS = 8  # clips that are read at once: as many can be answered together
_DECODE_SECONDS = 30.0  # for one step of decoding a file
_DECODE_MEMORY = 8 << 30  # bytes of address space of a decoding process


@dataclass(frozen=True)
class ServeSettings:
    """Address, access and limits of a server. Raises ConfigError for what is not safe."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    no_auth: bool = False
    allowed_hosts: tuple[str, ...] = ()  # names by which the server may be called, besides its address
    media_root: Path | None = None  # file: URLs are taken below it
    work_dir: Path | None = None  # private folders of requests; default: below the system's temporary folder
    media: MediaLimits = field(default_factory=MediaLimits)
    megabytes: float = 64.0  # of one medium
    memory_megabytes: float = 1024.0  # of all request bodies that are held
    waiting: int = 64  # requests whose body has arrived and that have no answer yet; one more gets 429
    batch_wait: float = 0.25  # seconds that a batch waits for requests that are still being read
    max_batch: int | None = None  # rows; None: as many as the memory takes
    body_timeout: float = 120.0  # seconds for a request's body to arrive
    request_timeout: float = 300.0  # seconds for an answer
    drain_timeout: float = 60.0  # seconds that running answers have after SIGTERM

    def __post_init__(self) -> None:
        if not self.is_loopback and self.api_key is None and not self.no_auth:
            raise ConfigError(
                f"--host {self.host}: other machines could use this server. Give a key (--api-key-env NAME, the name "
                "of an environment variable that holds it), or --no-auth where everybody who reaches it may"
            )
        if self.api_key is not None and self.no_auth:
            raise ConfigError("--no-auth and --api-key-env exclude each other")
        if self.api_key is not None and len(self.api_key) < 8:
            raise ConfigError("--api-key-env: the key has fewer than 8 characters")
        if self.media_root is not None and not self.media_root.is_dir():
            raise ConfigError(f"--media-root {self.media_root}: no such folder")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"--port {self.port}: expected 0 to 65535")

    @property
    def is_loopback(self) -> bool:
        """True if only this machine reaches the server."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def body_bytes(self) -> int:
        """Limit of a request's body: its media in base64, and a megabyte of text."""
        return int(self.megabytes * 2**20) * 4 // 3 + 2**20

    @property
    def uploads_megabytes(self) -> float:
        """Limit of the page's uploads together: eight clips of the largest size."""
        return 8 * self.megabytes + 1


class BusyError(AffectGPTError):
    """The server has as many unanswered requests as it takes."""


@dataclass(frozen=True)
class Question:
    """A question about a clip. Media are URLs (str) or uploads of the page (Path); both are untrusted.

    ``text=None`` asks for labels; ``describe`` for a description beside them. Decoding settings that are None are the
    model's own.
    """

    video: str | Path | None = None
    audio: str | Path | None = None
    subtitle: str | None = None
    text: str | None = None
    person: str | int | None = None
    describe: bool = False
    n: int = 1
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None


@dataclass(eq=False)
class Choice:
    """One of a question's ``n`` answers, and the description that was asked for beside it."""

    index: int
    row: Row
    description: Row | None

    @property
    def rows(self) -> list[Row]:
        """The one or two rows."""
        return [self.row] if self.description is None else [self.row, self.description]


@dataclass(eq=False)
class PreparedQuestion:
    """A question whose clip is read, and its choices once they are queued."""

    question: Question
    text: str
    decoding: Decoding
    clip: ReadClip
    choices: list[Choice] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """The rows of all choices."""
        return [row for choice in self.choices for row in choice.rows]

    def cancel(self) -> None:
        """End the rows at their next token: nobody waits for them."""
        for row in self.rows:
            row.answer.cancel()

    def usage(self) -> dict[str, int]:
        """Tokens of the prompts, each counted once, and of the answers."""
        prompt = sum({row.question: row.prompt_tokens for row in self.rows}.values())
        completion = sum(row.answer.result().tokens for row in self.rows)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


OnText = Callable[[int, str], None]  # index of a choice, its new text; called from the batcher's thread
Inspect = Callable[[ReadClip, Path | None, Path | None], None]  # clip, its video and its sound file


class Service:
    """Admits, reads and answers questions with one model. All methods may be called from any thread."""

    def __init__(self, predictor: Predictor, settings: ServeSettings, *, model: str) -> None:
        self.settings, self.model = settings, model
        self.session = predictor.session
        self.decoder = Decoder(time_limit=_DECODE_SECONDS, memory=_DECODE_MEMORY)
        # All media are decoded in processes with limits of time and memory, also those that the processor reads itself.
        self.session.processor.media.decoder = self.decoder
        self.reader = ClipReader(
            self.session, recognise=predictor.reader.recognise, face_framing=predictor.reader.face_framing,
            decoder=self.decoder,
        )  # fmt: skip
        self.media = RequestMedia(
            self.decoder, settings.media, max_megabytes=settings.megabytes, root=settings.media_root
        )
        self.folders = PrivateFolders(settings.work_dir)
        self.lexicon: Lexicon = find_lexicon(None)
        self.grouping = grouping_of(self.lexicon)
        checkpoint = self.session.checkpoint
        self.fingerprint = f"affectgpt_{sample_seed(model, '' if checkpoint is None else checkpoint.name) % 2**32:08x}"
        self.active = 0  # requests that were admitted and have no answer yet
        self._reading = 0
        self._lock = threading.Lock()
        self._draining = False
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="affectgpt-read")
        self.batcher = Batcher(
            self.session, wait=settings.batch_wait, max_rows=settings.max_batch, count_reading=lambda: self._reading
        )

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold one of the places for requests. Raises BusyError, and ShuttingDownError when the server is ending."""
        with self._lock:
            if self._draining:
                raise ShuttingDownError
            if self.active >= self.settings.waiting:
                raise BusyError("too many requests are waiting; try again in a moment")
            self.active += 1
        try:
            yield
        finally:
            with self._lock:
                self.active -= 1

    def read(self, question: Question, *, inspect: Inspect | None = None) -> Future[PreparedQuestion]:
        """Check a question and read its media, in a private folder that is removed afterwards.

        ``inspect`` is called while the files are there. Raises, and the future raises, DataError and ConfigError.
        """
        text = question.text or render_question("ovlabel")
        decoding = self._decoding(question)
        with self._lock:
            self._reading += 1  # a batch waits for clips that are being read
        future = self._readers.submit(
            lambda: PreparedQuestion(question, text, decoding, self._read(question, inspect))
        )  # fmt: skip
        future.add_done_callback(self._finish_reading)  # also called where it is cancelled before it begins
        return future

    def _finish_reading(self, _: Future[PreparedQuestion]) -> None:
        with self._lock:
            self._reading -= 1
        self.batcher.notify()

    def answer(self, prepared: PreparedQuestion, on_text: OnText | None = None) -> None:
        """Queue a question's choices; ``on_text``: of a streamed answer. Raises ShuttingDownError."""
        question = prepared.question
        clip = Clip(prepared.clip.sample, prepared.clip.example)
        base = secrets.randbits(62) if question.seed is None else question.seed
        description = render_question("description")
        describe = question.describe and prepared.text != description

        def new_row(index: int, text: str, on_text: Callable[[str], None] | None = None) -> Row:
            # The first choice has the seed of a question with n = 1, so that both have the same answer.
            seed = sample_seed("serve", base, text, *((index,) if index else ()))
            return Row(clip, text, seed, prepared.decoding, on_text)

        for index in range(question.n):
            row = new_row(index, prepared.text, None if on_text is None else partial(on_text, index))
            prepared.choices.append(Choice(index, row, new_row(index, description) if describe else None))
        self.batcher.submit(prepared.rows)

    def explained(self, prepared: PreparedQuestion, choice: Choice) -> dict[str, Any]:
        """Labels of an answer with their groups in each wheel, description and notes. Raises the error of its rows."""
        reply = self._reply(prepared, choice.row)
        result: dict[str, Any] = {
            "labels": reply.labels, "groups": self.groups(reply.labels), "lexicon": Path(self.lexicon.source).name,
            "question": prepared.text, "subtitle": prepared.clip.sample.subtitle, "description": None,
            "notes": reply.notes,
        }  # fmt: skip
        if choice.description is not None:
            described = self._reply(prepared, choice.description)
            result["description"] = described.answer
            result["notes"] += [note for note in described.notes if note not in result["notes"]]
        elif prepared.text == render_question("description"):
            result["description"] = reply.answer
        return result

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
        with self._lock:
            self._draining = True
        self.batcher.drain()

    def close(self) -> None:
        """End, and remove all files."""
        self.drain()
        self.batcher.close()
        self._readers.shutdown(cancel_futures=True)
        self.decoder.close()
        self.folders.close()

    def _decoding(self, question: Question) -> Decoding:
        """Decoding settings of a question. Raises DataError for what the model or the server does not take."""
        most = min(self.session.config.inference.max_new_tokens, GENERATION_LENGTH - 1)
        if question.max_tokens is not None and question.max_tokens > most:
            raise DataError(f"max_tokens {question.max_tokens}: at most {most} here")
        if question.n > _MAX_CHOICES:
            raise DataError(f"n {question.n}: at most {_MAX_CHOICES} here")
        check_person(question.person)
        mode = get_mode(self.session.mode)
        for medium in mode.media:
            if question.video is None and (medium is not Modality.AUDIO or question.audio is None):
                part = "video_url part" if medium is not Modality.AUDIO else "video_url, audio_url or input_audio part"
                raise DataError(f"this model takes the {medium.value} of a clip ({mode.name}): send a {part}")
        if question.person is not None and Modality.FACE not in mode.media:
            raise DataError(f"person: this model takes no face ({mode.name})")
        changes: dict[str, Any] = {"max_new_tokens": question.max_tokens or most}
        if question.temperature is not None:
            changes |= {"greedy": question.temperature == 0, "temperature": question.temperature or 1.0}
        if question.top_p is not None:
            changes["top_p"] = question.top_p
        return replace(Decoding.from_config(self.session.config.inference), **changes)

    def _read(self, question: Question, inspect: Inspect | None) -> ReadClip:
        if self._draining:
            raise ShuttingDownError
        with self.folders.one() as folder:
            files: dict[str, Path | None] = {"video": None, "audio": None}
            flags: tuple[str, ...] = ()
            for stem, medium in (("video", question.video), ("audio", question.audio)):
                if medium is not None:
                    files[stem], odd = self.media.save(medium, folder=folder, stem=stem)
                    flags += odd
            with named({path: f"the {stem}" for stem, path in files.items() if path is not None}):
                given = GivenClip(files["video"], files["audio"], subtitle=question.subtitle, person=question.person)
                clip = self.reader.read(given, folder=folder)
                if inspect is not None:
                    inspect(clip, files["video"], files["audio"])
        # The files are gone; messages must not name them.
        sample = replace(clip.sample, name="clip", video=None, audio=None, face=None)
        return clip._replace(video="", sample=sample, flags=flags + clip.flags)

    def _reply(self, prepared: PreparedQuestion, row: Row) -> Reply:
        answer = row.answer.result()
        labels, unread = claimed_labels(row.question, answer.text)
        flags = (
            *prepared.clip.flags,
            *answer_flags(answer.text, stopped=answer.stopped or prepared.question.max_tokens is not None),
            *odd_description(self.session.config.name, row.question, answer.text),
            *unread,
        )
        return Reply(answer=answer.text, labels=labels, question=row.question, flags=tuple(dict.fromkeys(flags)))
