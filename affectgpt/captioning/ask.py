"""Questions of the pipeline to language models, and their replies, which were paid for and are kept for good.

``<work>/cache/<step>-<hash>.jsonl`` holds the replies of one model under one sampling; within it a reply is found by
the clip's name and the hash of the prompt as it was sent (media go by the sizes of their files). Files only grow:
another model, sampling or prompt adds to the cache, and going back finds the old replies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from affectgpt.config.captioning import AskConfig
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.journal import Journal
from affectgpt.core.runtime import logger
from affectgpt.textllm.base import (
    Conversation,
    ConversationsFailedError,
    Sampling,
    TextLLM,
    TextLLMError,
    TextReply,
    open_client,
)  # fmt: skip
from affectgpt.textllm.messages import no_answer


@dataclass(frozen=True)
class CachedReply:
    """One entry: a reply, or why there is none (``failed``) where asking again would not help."""

    text: str = ""
    failed: str | None = None
    truncated: bool = False
    prompt_tokens: int | None = None
    reply_tokens: int | None = None
    seconds: float | None = None


class ReplyCache:
    """The journal of one step under one model and sampling. A context manager; one process at a time."""

    def __init__(self, folder: Path, *, step: str, settings: Mapping[str, Any]) -> None:
        key = digest(json.dumps({"step": step, **settings}, sort_keys=True, default=str))
        self.path = folder / f"{step}-{key[:16]}.jsonl"
        self._key = key
        self._journal: Journal | None = None
        self._entries: dict[str, Any] = Journal.read(self.path, key=key)

    def get(self, name: str, prompt_hash: str) -> CachedReply | None:
        """Return what is kept for a clip and prompt; None when nothing is."""
        value = self._entries.get(f"{name}\t{prompt_hash}")
        return None if value is None else CachedReply(**value)

    def put(self, name: str, prompt_hash: str, kept: CachedReply) -> None:
        """Keep an entry; it is on disk when this returns."""
        if self._journal is None:
            # opened at the first reply: looking into a cache neither makes a file nor waits for another process
            self._journal = Journal(self.path, key=self._key)
            self._entries = self._journal.entries
        value = {k: v for k, v in asdict(kept).items() if v not in (None, False, "") or k == "text"}
        self._journal.add(f"{name}\t{prompt_hash}", value)

    def costs(self) -> dict[str, float]:
        """Return the cost of all entries of this file: requests, prompt and reply tokens, seconds of requests."""
        found = [CachedReply(**value) for value in self._entries.values()]
        return {
            "requests": len(found),
            "prompt_tokens": sum(kept.prompt_tokens or 0 for kept in found),
            "reply_tokens": sum(kept.reply_tokens or 0 for kept in found),
            "seconds": sum(kept.seconds or 0.0 for kept in found),
        }

    def close(self) -> None:
        """Sync and close; the file stays."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def __enter__(self) -> ReplyCache:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def digest(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Request:
    """One clip's question. ``prompt`` is its text; ``media`` names what goes with it, for the hash.

    ``build`` gives the conversation when its turn comes; DataError when the clip's media cannot be read.
    """

    name: str
    prompt: str
    build: Callable[[], Conversation]
    media: str = ""

    @property
    def hash(self) -> str:
        """Hash of the prompt as it is sent."""
        return digest(f"{self.media}\n{self.prompt}")


@dataclass(frozen=True)
class FailedStep:
    """Why a clip has no result of a step; ``again``: the next run tries again."""

    name: str
    step: str
    reason: str
    again: bool


@dataclass
class Answers:
    """The knowledge of a step: texts and failures by clip, and what this run asked."""

    step: str
    texts: dict[str, str] = field(default_factory=dict)
    failures: dict[str, FailedStep] = field(default_factory=dict)
    truncated: list[str] = field(default_factory=list)  # clips whose reply was cut at max_tokens
    asked: int = 0
    reused: int = 0
    costs: dict[str, float] = field(default_factory=dict)
    stopped: TextLLMError | None = None  # the server is down, or refuses everything

    def fail(self, name: str, reason: str, *, again: bool) -> None:
        """Note that a clip has no result."""
        self.failures[name] = FailedStep(name, self.step, reason, again)


class _Lazy(Sequence):
    """Conversations that are built when they are taken: media of all clips would not fit into memory."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Lazy(self._requests[index])
        return self._requests[index].build()


def sampling_of(spec: AskConfig) -> Sampling:
    """The sampling that a section asks for. TextLLMError when a number is out of its range."""
    return Sampling(
        temperature=spec.temperature, top_p=spec.top_p, repetition_penalty=spec.repetition_penalty,
        max_tokens=spec.max_tokens, seed=spec.seed,
    )  # fmt: skip


def open_asked(spec: AskConfig, *, key: str) -> TextLLM:
    """The client of a section (``key``: its name in the configuration). ConfigError when it lacks something."""
    if spec.client == "openai":
        if not spec.base_url or not spec.model:
            raise ConfigError(
                f"{key}: needs base_url (http://host:8000/v1) and model, as the server calls it; or client: file with "
                "texts that are known already"
            )
        return open_client(
            "openai", base_url=spec.base_url, model=spec.model, concurrency=spec.concurrency, timeout=spec.timeout,
            attempts=spec.attempts, requests_per_minute=spec.requests_per_minute, key_variable=spec.key_variable,
        )  # fmt: skip
    if not spec.model:
        raise ConfigError(f"{key}.model: give the folder of the language model")
    return open_client(spec.client, model=spec.model)


def ask(
    step: str,
    requests: Sequence[Request],
    *,
    client: TextLLM,
    sampling: Sampling,
    folder: Path,
    retry: bool = False,
    dry_run: bool = False,
) -> Answers:
    """Ask for what the cache under ``folder`` does not hold; every reply is kept as it arrives.

    An empty reply or a refusal is kept as a failure and not asked for again unless ``retry``; what the server could not
    answer is tried again by the next run. A server that is down ends the asking: ``Answers.stopped``.
    ``dry_run``: only look what is kept; nothing is sent, ``asked`` is what would be.
    """
    answers = Answers(step)
    settings = {"client": client.name, **client.identity(), "sampling": sampling.as_dict()}
    with ReplyCache(folder, step=step, settings=settings) as cache:
        todo = []
        for request in requests:
            kept = cache.get(request.name, request.hash)
            if kept is None or (retry and kept.failed):
                todo.append(request)
            else:
                answers.reused += 1
                _take(answers, request.name, kept)
        answers.asked = len(todo)
        if todo and not dry_run:
            _send(answers, todo, client=client, sampling=sampling, cache=cache)
        answers.costs = cache.costs()
    return answers


def _send(answers: Answers, todo: Sequence[Request], *, client: TextLLM, sampling: Sampling, cache: ReplyCache) -> None:
    from tqdm import tqdm

    done: set[int] = set()
    with tqdm(total=len(todo), desc=answers.step, unit="clip", disable=None) as bar:

        def on_result(index: int, reply: TextReply) -> None:
            request = todo[index]
            kept = judge(reply)
            cache.put(request.name, request.hash, kept)
            _take(answers, request.name, kept)
            done.add(index)
            bar.update()

        try:
            conversations: Sequence[Conversation] = _Lazy(todo)
            if client.name != "openai":  # local models take text only, and see all of it before they begin
                conversations = [request.build() for request in todo]
            client.chat_many(conversations, sampling=sampling, on_result=on_result)
        except ConversationsFailedError as error:
            for index, why in error.failed.items():
                answers.fail(todo[index].name, why.reason, again=why.again)
                if not why.again:
                    cache.put(todo[index].name, todo[index].hash, CachedReply(failed=why.reason))
            done.update(error.failed)
            answers.stopped = error if len(done) < len(todo) else None
        except TextLLMError as error:
            answers.stopped = error
    for index, request in enumerate(todo):
        if index not in done:
            answers.fail(request.name, f"not asked: {answers.stopped}", again=True)
    if answers.stopped is not None:
        logger.error("%s: stopped with %d of %d done: %s", answers.step, len(done), len(todo), answers.stopped)


def judge(reply: TextReply) -> CachedReply:
    """A reply as it is kept: text, or why it is none (empty, a refusal)."""
    return CachedReply(
        reply.text.strip(), failed=no_answer(reply.text), truncated=reply.truncated, prompt_tokens=reply.prompt_tokens,
        reply_tokens=reply.reply_tokens, seconds=reply.seconds,
    )  # fmt: skip


def _take(answers: Answers, name: str, kept: CachedReply) -> None:
    if kept.failed:
        answers.fail(name, kept.failed, again=False)
    else:
        answers.texts[name] = kept.text
        answers.failures.pop(name, None)
        if kept.truncated:
            answers.truncated.append(name)


def from_file(step: str, spec: AskConfig, names: Sequence[str], *, key: str) -> Answers:
    """Texts that are known already, from ``spec.file``; a clip without a row, or with an empty cell, is a failure."""
    from affectgpt.core.tables import read_table

    if not spec.file:
        raise ConfigError(f"{key}.file: give the CSV file (columns name, {spec.column})")
    path = Path(spec.file)
    table = read_table(path, key="name", columns=(spec.column,))
    answers = Answers(step, reused=len(names))
    for name in names:
        if name not in table:
            answers.fail(name, f"{path}: no row for it", again=True)
        elif not table[name][0].strip():
            answers.fail(name, f"{path}: the cell {spec.column!r} is empty", again=True)
        else:
            answers.texts[name] = table[name][0].strip()
    if names and not answers.texts:
        raise DataError(f"{path}: has no text for any of the {len(names)} clips, first {names[0]!r}")
    return answers
