"""Rows of many requests, answered together by one session in one thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from affectgpt.core.errors import AffectGPTError
from affectgpt.core.runtime import logger
from affectgpt.core.types import Modality, Sample
from affectgpt.inference.engines.base import Answer, Decoding
from affectgpt.inference.session import GenerationSession
from affectgpt.processing.processor import Example
from affectgpt.processing.prompt import GENERATION_LENGTH

_LOST = ("CUDA error", "CUDA driver error", "HIP error", "device-side assert", "illegal memory access", "NCCL error")
_PAUSE = 0.02  # seconds after a batch in which its clients may ask again
_STREAM_EVERY = 128  # tokens up to which each one is shown at once; then every fourth, because decoding takes longer


def is_device_lost(error: BaseException) -> bool:
    """True for an error after which the GPU answers nothing in this process; running out of memory is none."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return False
    accelerator = getattr(torch, "AcceleratorError", ())
    return isinstance(error, accelerator) or (isinstance(error, RuntimeError) and any(w in str(error) for w in _LOST))


class ShuttingDownError(AffectGPTError):
    """The server ends and does not begin with this request."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


@dataclass(eq=False)
class Clip:
    """A clip whose media are read. Its encoder outputs are computed with its first row, for all of them."""

    sample: Sample
    example: Example
    features: Mapping[Modality, Any] | None = None


@dataclass(eq=False)
class Row:
    """One answer to one question about a clip. To cancel ``answer`` ends the row at its next token.

    ``on_text`` is called in the batcher's thread with each new piece of the answer's text, before the answer is set.
    """

    clip: Clip
    question: str
    seed: int
    decoding: Decoding  # its max_new_tokens is this row's own: a batch is as long as its longest row
    on_text: Callable[[str], None] | None = None
    answer: Future[Answer] = field(default_factory=Future)
    prompt_tokens: int = 0  # set when it is answered
    streamed: str = ""  # what on_text was called with
    kept_ids: list[int] | None = None  # the answer's ids where the row reached its own limit

    @property
    def batch_key(self) -> Decoding:
        """The settings that rows of one batch share."""
        return replace(self.decoding, max_new_tokens=0)

    def finish(self, result: Answer | Exception) -> None:
        """Set the answer or its error; nothing happens where there is one already."""
        with suppress(InvalidStateError):
            if isinstance(result, Exception):
                self.answer.set_exception(result)
            else:
                self.stream(result.text)
                self.answer.set_result(result)

    def stream(self, text: str) -> None:
        """Pass on what is new in the text so far; nothing if a later token changed what was passed on."""
        if self.on_text and not self.answer.cancelled() and text.startswith(self.streamed) and text != self.streamed:
            new, self.streamed = text[len(self.streamed) :], text
            self.on_text(new)


class Batcher:
    """Takes rows from any thread and answers as many together as wait, in the order in which they came.

    A batch starts when it is full, or as soon as nothing that could join it is being read (``count_reading``), or after
    ``wait`` seconds, whichever comes first. After a batch its clients have a moment to ask again: otherwise a request
    that was late for it would be answered alone, and be late again for the next one. No answer depends on what else is
    in its batch: rows have their own seeds. Rows of a batch that fails are asked again one by one.
    """

    def __init__(
        self,
        session: GenerationSession,
        *,
        wait: float,
        max_rows: int | None = None,
        count_reading: Callable[[], int] = lambda: 0,
    ) -> None:
        self.session, self.wait, self.max_rows, self.count_reading = session, wait, max_rows, count_reading
        self.batches: deque[int] = deque(maxlen=1000)  # rows of the latest batches
        self.lost: Exception | None = None  # the error with which the GPU was lost: nothing is answered any more
        self.on_lost: Callable[[], None] = lambda: None
        self._rows: deque[Row] = deque()
        self._running: list[Row] = []
        self._changed = threading.Condition()
        self._draining = self._closed = False
        self._ended = 0.0  # when the last batch was answered
        self._thread = threading.Thread(target=self._run, name="affectgpt-batcher", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue rows. Raises ShuttingDownError."""
        with self._changed:
            if self._draining:
                raise ShuttingDownError
            self._rows.extend(rows)
            self._changed.notify_all()

    def notify(self) -> None:
        """Look again at ``count_reading``."""
        with self._changed:
            self._changed.notify_all()

    def drain(self) -> None:
        """Finish what runs and refuse what waits."""
        with self._changed:
            self._draining = True
            waiting, self._rows = list(self._rows), deque()
            self._changed.notify_all()
        for row in waiting:
            row.finish(ShuttingDownError())

    def close(self) -> None:
        """Drain, and end the rows that still run at their next token."""
        self.drain()
        with self._changed:
            self._closed = True
            for row in self._running:
                row.answer.cancel()
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while (rows := self._next_batch()) is not None:
            try:
                self._answer(rows)
                self._ended = time.monotonic()
            except Exception as error:  # the thread must live; the clients get the error
                logger.exception("a batch failed")
                for row in rows:
                    row.finish(error)

    def _next_batch(self) -> list[Row] | None:
        """Wait for rows; None when the batcher is closed."""
        with self._changed:
            while not self._rows:
                if self._closed:
                    return None
                self._changed.wait()
            end = time.monotonic() + self.wait
            size = self.max_rows or self.session.batch_size(
                GENERATION_LENGTH - self.session.config.inference.max_new_tokens
            )
            while self._rows and len(self._rows) < size:
                until = end if self.count_reading() else min(end, self._ended + _PAUSE)
                if (left := until - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            if not self._rows:  # drained meanwhile
                return []
            # Rows of one batch share their decoding settings; rows with others wait for the next batch.
            key = self._rows[0].batch_key
            self._running = [row for row in self._rows if row.batch_key == key][:size]
            self._rows = deque(row for row in self._rows if row not in self._running)
            return self._running

    def _answer(self, rows: Sequence[Row]) -> None:
        ready = []
        for row in rows:
            if row.answer.cancelled():
                continue
            try:
                if row.clip.features is None:
                    row.clip.features = self.session.encode_example(row.clip.example)
                ready.append(row)
            except Exception as error:
                self._fail([row], error)
        if not ready:
            return
        self.batches.append(len(ready))
        try:
            self._generate(ready)
        except Exception as error:
            if len(ready) == 1 or is_device_lost(error):
                self._fail(ready, error)
                return
            logger.warning("a batch of %d failed (%s): its rows are asked one by one", len(ready), type(error).__name__)
            for row in ready:
                self._answer([row])

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        for row in rows:
            row.finish(error)
        if is_device_lost(error) and self.lost is None:
            logger.error("the GPU is lost, nothing can be answered any more: %s", error)
            self.lost = error
            self.drain()
            self.on_lost()

    def _generate(self, rows: Sequence[Row]) -> None:
        examples = []
        for row in rows:
            with self.session.lock:
                example = self.session.processor.text(row.clip.sample, question=row.question)
            row.prompt_tokens = len(example.input_ids)
            examples.append(replace(example, features=dict(row.clip.features or {})))
        answers = self.session.generate(
            examples,
            seeds=[row.seed for row in rows],
            decoding=replace(rows[0].decoding, max_new_tokens=max(row.decoding.max_new_tokens for row in rows)),
            on_token=[self._watch(row) for row in rows],
        )
        for row, answer in zip(rows, answers, strict=True):
            if row.kept_ids is not None:  # the engine's own answer goes on with padding
                with self.session.lock:
                    text = self.session.processor.decode(row.kept_ids)
                answer = Answer(text=text, tokens=len(row.kept_ids), stopped=False)
            row.finish(answer)

    def _watch(self, row: Row) -> Callable[[list[int]], bool]:
        """Callback of the engine with the row's ids so far; returns True where the row ends."""
        processor, most = self.session.processor, row.decoding.max_new_tokens
        longest_stop = max([1, *map(len, processor.stop_sequences)])
        row.kept_ids = None

        def watch(ids: list[int]) -> bool:
            if row.answer.cancelled():
                return True
            # An engine that cannot stream gives all ids at once: its stop may lie anywhere.
            kept, stopped = processor.cut(ids if len(ids) > most else ids[-longest_stop:])
            if len(ids) > most:
                row.kept_ids = kept[:most] if len(kept) > most else None
            elif len(ids) == most and not stopped:
                row.kept_ids = list(ids)
            if row.on_text and (len(ids) <= _STREAM_EVERY or len(ids) % 4 == 0):
                # What a later token may complete or take back is held back: half a character, a stop sequence, spaces.
                row.stream(processor.decode(row.kept_ids or ids).rstrip("#\ufffd").rstrip())
            return stopped or row.kept_ids is not None

        return watch
