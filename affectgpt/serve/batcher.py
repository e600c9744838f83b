"""Rows of many requests, answered together by one session in one thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
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
_TURN = 0.02  # seconds in which a client that was just answered asks again


def is_device_lost(error: BaseException) -> bool:
    """Whether an error means that the GPU answers nothing any more in this process; running out of memory does not."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return False
    accelerator = getattr(torch, "AcceleratorError", ())
    return isinstance(error, accelerator) or (isinstance(error, RuntimeError) and any(w in str(error) for w in _LOST))


class RefusedError(AffectGPTError):
    """The server ends and does not begin with this request any more."""


@dataclass(eq=False)
class Clip:
    """A clip whose media are read. Its encoder outputs are made with its first row, for all of them."""

    sample: Sample
    example: Example
    features: Mapping[Modality, Any] | None = None


@dataclass(eq=False)
class Row:
    """One answer to one question about a clip. ``max_new_tokens`` of ``decoding`` are this row's own.

    ``on_ids``: called in the batcher's thread with all of the answer's ids so far. ``done``: with the answer, or with
    what went wrong. A row that is ``cancelled`` ends at its next token, and ``done`` is not called.
    """

    clip: Clip
    question: str
    seed: int
    decoding: Decoding
    done: Callable[[Answer | Exception], None]
    on_ids: Callable[[list[int]], None] | None = None
    cancelled: bool = False
    prompt_tokens: int = 0  # known when it is answered
    _kept: list[int] | None = field(default=None, repr=False)  # the ids where the row itself ended

    @property
    def key(self) -> Decoding:
        """What rows of one batch share; lengths are each row's own."""
        return replace(self.decoding, max_new_tokens=0)


class Batcher:
    """Takes rows from any thread and answers as many together as wait, in the order in which they came.

    A batch starts when it is full, or as soon as nothing that could join it is being read (``being_read``), or after
    ``wait`` seconds, whichever comes first. After a batch its clients have a moment to ask again: else who was late for
    it would be answered alone, and late again for the next one. No answer depends on what else is in its batch: rows
    have seeds of their own. What fails in a batch is asked again one by one.
    """

    def __init__(
        self,
        session: GenerationSession,
        *,
        wait: float,
        max_rows: int | None = None,
        being_read: Callable[[], int] = lambda: 0,
    ) -> None:
        self.session, self.wait, self.max_rows, self.being_read = session, wait, max_rows, being_read
        self.batches: deque[int] = deque(maxlen=1000)  # rows of the latest batches
        self._rows: deque[Row] = deque()
        self._changed = threading.Condition()
        self._running: list[Row] = []
        self._draining = self._closed = False
        self._ended = 0.0  # when the last batch was answered
        self.lost: Exception | None = None  # the error with which the GPU was lost: nothing is answered any more
        self.on_lost: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="affectgpt-batcher", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue rows. Raises RefusedError when the server is ending."""
        with self._changed:
            if self._draining or self._closed:
                raise RefusedError("the server is shutting down")
            self._rows.extend(rows)
            self._changed.notify_all()

    def drain(self) -> None:
        """Finish what runs; whatever waits is refused."""
        with self._changed:
            self._draining = True
            waiting, self._rows = list(self._rows), deque()
            self._changed.notify_all()
        for row in waiting:
            _tell(row, RefusedError("the server is shutting down"))

    def close(self) -> None:
        """Drain, and end the rows that still run at their next token."""
        self.drain()
        with self._changed:
            self._closed = True
            for row in self._running:
                row.cancelled = True
            self._changed.notify_all()
        self._thread.join()

    def notify(self) -> None:
        """Something that was being read is read, or is given up."""
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            rows = self._next()
            if rows is None:
                return
            try:
                self._answer(rows)
                self._ended = time.monotonic()
            except Exception as error:  # the thread must live; whoever waits gets the error
                logger.exception("a batch failed")
                for row in rows:
                    _tell(row, error)

    def _next(self) -> list[Row] | None:
        with self._changed:
            while not self._rows:
                if self._closed:
                    return None
                self._changed.wait()
            end = time.monotonic() + self.wait
            size = self.max_rows or self.session.batch_size(
                GENERATION_LENGTH - self.session.config.inference.max_new_tokens
            )
            while len(self._rows) < size:
                until = end if self.being_read() else min(end, self._ended + _TURN)
                if (left := until - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            if not self._rows:  # drained
                return []
            key = self._rows[0].key
            taken = [row for row in self._rows if row.key == key][:size]
            chosen = set(map(id, taken))
            self._rows = deque(row for row in self._rows if id(row) not in chosen)
            self._running = taken
        return taken

    def _answer(self, rows: Sequence[Row]) -> None:
        ready = []
        for row in rows:
            if row.cancelled:
                continue
            try:
                if row.clip.features is None:
                    row.clip.features = self.session.encode_example(row.clip.example)
            except Exception as error:
                _tell(row, error)
                if is_device_lost(error):
                    self._lose(error)
            else:
                ready.append(row)
        if not ready:
            return
        self.batches.append(len(ready))
        try:
            self._generate(ready)
        except Exception as error:
            if len(ready) == 1 or is_device_lost(error):
                for row in ready:
                    _tell(row, error)
                if is_device_lost(error):
                    self._lose(error)
                return
            logger.warning("a batch of %d failed (%s): its rows are asked one by one", len(ready), type(error).__name__)
            for row in ready:
                self._answer([row])

    def _lose(self, error: Exception) -> None:
        """The GPU is lost: refuse what waits, and whatever comes."""
        if self.lost is None:
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
        longest = max(row.decoding.max_new_tokens for row in rows)
        answers = self.session.generate(
            examples,
            seeds=[row.seed for row in rows],
            decoding=replace(rows[0].decoding, max_new_tokens=longest),
            on_token=[self._watch(row) for row in rows],
        )
        for row, answer in zip(rows, answers, strict=True):
            if row._kept is not None:  # at its own limit; what the engine saw there is padding
                with self.session.lock:
                    text = self.session.processor.decode(row._kept)
                answer = Answer(text=text, tokens=len(row._kept), stopped=False)
            _tell(row, answer)

    def _watch(self, row: Row) -> Callable[[list[int]], bool]:
        """What the engine calls with the row's ids: it ends where it is stopped, cancelled, or as long as it may be."""
        processor = self.session.processor
        tail = max([1, *map(len, processor.stop_sequences)])
        row._kept = None

        def watch(ids: list[int]) -> bool:
            if row.cancelled:
                return True
            stopped = processor.cut(ids[-tail:] if len(ids) <= row.decoding.max_new_tokens else ids)[1]
            if not stopped and len(ids) >= row.decoding.max_new_tokens:
                row._kept = ids[: row.decoding.max_new_tokens]
            elif stopped and len(ids) > row.decoding.max_new_tokens:  # all ids at once, of an engine that cannot stream
                cut = processor.cut(ids)[0]
                row._kept = cut[: row.decoding.max_new_tokens] if len(cut) > row.decoding.max_new_tokens else None
            if row.on_ids is not None:
                row.on_ids(row._kept or ids)
            return stopped or row._kept is not None

        return watch


def _tell(row: Row, outcome: Answer | Exception) -> None:
    if not row.cancelled:
        row.done(outcome)
