"""Emotion labels and polarity of descriptions, through the evaluation room's extractor (paper, appendix E)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from affectgpt.captioning.ask import Answers, CachedReply, ReplyCache, digest
from affectgpt.config.captioning import ExtractorConfig
from affectgpt.core.errors import ConfigError
from affectgpt.core.runtime import logger
from affectgpt.evaluation.extract import LABELS, POLARITY, Extractor, get_extractor
from affectgpt.evaluation.labels import parse_item
from affectgpt.textllm.base import ConversationsFailedError, Sampling, TextLLMError


@dataclass(frozen=True)
class ClipLabels:
    """Labels of a description in its order, and their polarity (positive, negative, neutral)."""

    labels: tuple[str, ...]
    polarity: str


def open_extractor(spec: ExtractorConfig, *, key: str = "captioning.extractor") -> Extractor:
    """The extractor that a section names; nothing is loaded before it has something to do."""
    sampling = Sampling(seed=spec.seed)
    if spec.name == "direct":
        return get_extractor("direct")
    if spec.name == "openai":
        if not spec.base_url:
            raise ConfigError(f"{key}: needs base_url (http://host:8000/v1) and model; or name: direct")
        return get_extractor(
            "openai", sampling=sampling, base_url=spec.base_url, model=spec.model, concurrency=spec.concurrency,
            requests_per_minute=spec.requests_per_minute, key_variable=spec.key_variable,
        )  # fmt: skip
    return get_extractor(spec.name, sampling=sampling, model=spec.model)


def extract_labels(
    texts: Mapping[str, str], extractor: Extractor, *, folder: Path, polarity: bool = True, dry_run: bool = False
) -> tuple[dict[str, ClipLabels], list[Answers]]:
    """Labels of texts by name, and the two steps' answers (with failures and costs).

    A text is asked once whoever has it, and kept under ``folder``. ``polarity`` False: labels alone.
    """
    first = _step(LABELS, texts, extractor, folder=folder, dry_run=dry_run)
    steps = [first]
    found = {name: parse_item(item.lower()) for name, item in first.texts.items()}
    if not polarity:
        return {name: ClipLabels(labels, "") for name, labels in found.items()}, steps
    second = _step(POLARITY, first.texts, extractor, folder=folder, dry_run=dry_run)
    steps.append(second)
    words = {name: word.strip().strip(".'\"[]").lower() for name, word in second.texts.items()}
    return {name: ClipLabels(found[name], words[name]) for name in second.texts}, steps


def _step(step: str, texts: Mapping[str, str], extractor: Extractor, *, folder: Path, dry_run: bool) -> Answers:
    answers = Answers(step)
    distinct = list(dict.fromkeys(texts.values()))
    items: dict[str, str] = {}
    failed: dict[str, tuple[str, bool]] = {}  # text → reason, again
    with ReplyCache(folder, step=step, settings=extractor.settings(step)) as cache:
        todo = []
        for text in distinct:
            kept = cache.get(digest(text), "") if extractor.journaled else None
            if kept is None:
                todo.append(text)
            else:
                items[text] = kept.text
        answers.reused, answers.asked = len(items), len(todo)
        done: set[int] = set()

        def on_item(index: int, item: str, note: str | None) -> None:
            if extractor.journaled:
                cache.put(digest(todo[index]), "", CachedReply(item, truncated=note is not None))
            items[todo[index]] = item
            done.add(index)

        if todo and not (dry_run and extractor.journaled):
            try:
                extractor.run(step, todo, on_item=on_item)
            except ConversationsFailedError as error:
                failed.update({todo[i]: (why.reason, True) for i, why in error.failed.items()})
                answers.stopped = error if len(done) + len(error.failed) < len(todo) else None
            except TextLLMError as error:
                answers.stopped = error
        if extractor.journaled:
            answers.costs = cache.costs()
    if answers.stopped is not None:
        logger.error("%s: stopped with %d of %d done: %s", step, len(done), len(todo), answers.stopped)
    for name, text in texts.items():
        if text in items:
            answers.texts[name] = items[text]
        else:
            reason, again = failed.get(
                text, (f"not asked: {answers.stopped}" if answers.stopped else "not asked", True)
            )
            answers.fail(name, reason, again=again)
    return answers
