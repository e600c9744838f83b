"""Emotion labels from a model's answers: through a language model as published, or directly."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectgpt import __version__
from affectgpt.core.errors import DataError, printable
from affectgpt.core.journal import Journal
from affectgpt.core.registry import Registry
from affectgpt.core.runtime import logger
from affectgpt.evaluation import extract_llm
from affectgpt.evaluation import extraction_file as files
from affectgpt.evaluation import labels as reader
from affectgpt.evaluation.metrics.base import METRICS
from affectgpt.textllm.base import CLIENTS, Sampling, TextLLM, TextReply, open_client

LABELS, POLARITY = "labels", "polarity"  # the two steps; the second, for sentiment data sets, reads the first's items

# Characters of an item; 512 tokens of a label list are a third of it. The file's array gives every item the room of the
# longest one, so that a single reply of many megabytes would take tens of gigabytes.
MAX_ITEM = 8192

# Called with the index of a text, its item, and what was odd about it (None mostly).
OnItem = Callable[[int, str, str | None], None]


class Extractor(ABC):
    """Turns texts into items: answers into ``[a, b]``, and those into positive, negative or neutral."""

    name: str
    suffix: str = ""  # of the file name
    journaled = True

    @abstractmethod
    def settings(self, step: str) -> dict[str, Any]:
        """Everything of the extractor that decides an item of this step."""

    def details(self) -> dict[str, Any]:
        """What is recorded but not compared: folders, versions."""
        return {}

    @abstractmethod
    def run(self, step: str, texts: Sequence[str], *, on_item: OnItem) -> None:
        """Call ``on_item`` once for every text, in any order, each as soon as it is finished."""

    def close(self) -> None:  # noqa: B027 - only models need it
        """Free what was loaded."""

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


EXTRACTORS = Registry("extractor", words=CLIENTS.names())  # without any text client; those are found in textllm/


@EXTRACTORS.register("direct")
class DirectExtractor(Extractor):
    """Reads answers of the trained form, see ``labels.read_labels``; another form gives ``[]`` and is counted."""

    name = "direct"
    suffix = "-direct"
    journaled = False  # thousands of items a second

    def settings(self, step: str) -> dict[str, Any]:
        """The version of the rules and, for polarity, the word list."""
        settings: dict[str, Any] = {"extractor": self.name, "step": step, "rules": reader.RULES_VERSION}
        if step == POLARITY:
            settings["words_sha256"] = reader.words_sha256()
        return settings

    def run(self, step: str, texts: Sequence[str], *, on_item: OnItem) -> None:
        """Read every text; no progress bar is needed."""
        for index, text in enumerate(texts):
            if step == POLARITY:
                on_item(index, reader.polarity(reader.parse_item(text.lower())), None)
                continue
            labels = reader.read_labels(text)
            note = reader.NOT_TRAINED_FORM if labels is None else None
            on_item(index, f"[{', '.join(labels or [])}]", note)


class LLMExtractor(Extractor):
    """The published way: a prompt per answer, and a second one per label list for sentiment data sets."""

    def __init__(self, client: TextLLM, *, sampling: Sampling | None = None) -> None:
        self.client = client
        self.name = client.name
        self.sampling = sampling or Sampling()

    def settings(self, step: str) -> dict[str, Any]:
        """Client, model, prompt, how replies are cleaned, and sampling."""
        return {
            "extractor": self.name,
            "step": step,
            **self.client.identity(),
            "prompt_sha256": extract_llm.prompt_sha256(_PROMPTS[step]),
            "cleaning": extract_llm.CLEANING_VERSION,
            "sampling": self.sampling.as_dict(),
        }

    def details(self) -> dict[str, Any]:
        """Where the model is stored and the versions of what ran it."""
        return self.client.details()

    def run(self, step: str, texts: Sequence[str], *, on_item: OnItem) -> None:
        """Ask the model; replies arrive in any order."""

        def on_result(index: int, reply: TextReply) -> None:
            read = reader.read_reply_labels if step == LABELS else reader.read_reply_polarity
            item, tolerantly = read(reply.text, extract_llm.clean_reply(reply.text))
            note = "reply not of the published form, read tolerantly" if tolerantly else None
            if reply.truncated:
                note = f"reply cut at {self.sampling.max_tokens} tokens"
            on_item(index, item, note)

        conversations = [extract_llm.conversation(_PROMPTS[step], text) for text in texts]
        self.client.chat_many(conversations, sampling=self.sampling, on_result=on_result)

    def close(self) -> None:
        """Free the model or the connections."""
        self.client.close()


_PROMPTS = {LABELS: extract_llm.LABELS_PROMPT, POLARITY: extract_llm.POLARITY_PROMPT}


def extractor_names() -> list[str]:
    """What ``get_extractor`` knows."""
    return [*EXTRACTORS.names(), *CLIENTS.names()]


def get_extractor(name: str, *, sampling: Sampling | None = None, **client_settings: Any) -> Extractor:
    """The extractor called ``name``; nothing is loaded before it has something to do.

    ``client_settings`` go to the text LLM client: ``model`` for transformers and vllm (a folder), ``model``,
    ``base_url``, ``concurrency`` … for openai. Those of ``EXTRACTORS`` take none. Raises ConfigError for an
    unknown name.
    """
    if name not in CLIENTS:
        return EXTRACTORS.get(name)()
    return LLMExtractor(open_client(name, **client_settings), sampling=sampling)


@dataclass(frozen=True)
class Extraction:
    """What ``extract_file`` made or found."""

    labels: Path
    sentiment: Path | None  # for sentiment data sets
    extractor: str  # in words, for reports
    computed: int  # items that were not there before


def extract_file(
    answers_path: str | Path,
    *,
    task: str,
    extractor: Extractor,
    overwrite: bool = False,
    allow_empty: bool = False,
) -> Extraction:
    """Write the extraction files of one answers file beside it, unless they are there.

    ``task``: that of a metric; one that reads polarity words (``sentiment``) asks for the polarity file too. A file
    made by the same extractor under the same settings from the same answers is reused, a file without a record (as
    published) is taken as it is, and any other is an error, or replaced with ``overwrite``. A killed extraction resumes
    where it stopped when it is started again. Answers of the same text are asked once. ``allow_empty``: empty answers
    give ``[]``; else an error.

    Raises DataError for answers or extraction files that cannot be used, TextLLMError when the language model fails.
    """
    answers_path = Path(answers_path)
    answers = files.read_answers(answers_path)
    empty = [name for name, answer in answers.items() if not answer.strip()]
    if empty and not allow_empty:
        raise DataError(
            f"{answers_path}: {len(empty)} of {len(answers)} answers are empty (first: {', '.join(empty[:3])}); "
            "answer these clips again, or say --allow-missing (allow_empty=True)"
        )
    path = files.labels_path(answers_path, extractor.suffix)
    computed = _extract_step(
        path, LABELS, answers, extractor=extractor, source={"answers_sha256": files.content_sha256(answers)},
        overwrite=overwrite, source_name=answers_path.name,
    )  # fmt: skip
    sentiment = None
    if METRICS.get(task).polarity:
        sentiment = files.sentiment_path(answers_path, extractor.suffix)
        items = files.read_items(path)
        # The items of a file that was made otherwise must not turn up under this extractor's name.
        source = {"labels_sha256": files.content_sha256(items), "labels_by": files.describe(path)}
        computed += _extract_step(
            sentiment, POLARITY, items, extractor=extractor, source=source, overwrite=overwrite, source_name=path.name
        )
    return Extraction(labels=path, sentiment=sentiment, extractor=files.describe(sentiment or path), computed=computed)


def _extract_step(
    path: Path,
    step: str,
    texts: Mapping[str, str],
    *,
    extractor: Extractor,
    source: Mapping[str, str],
    overwrite: bool,
    source_name: str,
) -> int:
    """Make one extraction file from ``texts`` (name → text) unless it may be reused; how many items were computed."""
    settings = {**extractor.settings(step), **source}
    if files.is_reusable(path, settings=settings, names=texts, overwrite=overwrite):
        return 0
    items: dict[str, str] = {}  # text → item
    notes: dict[str, str] = {}  # text → what was odd
    if step == LABELS:
        items = {text: "[]" for text in texts.values() if not text.strip()}
    first_name: dict[str, str] = {}
    for name, text in texts.items():
        first_name.setdefault(text, name)

    journal = Journal(files.journal_path(path), key=files.settings_key(settings)) if extractor.journaled else None
    try:
        for name, (item, note) in journal.entries.items() if journal else ():
            if name in texts:
                _keep(items, notes, texts[name], item, note)
        todo = [text for text in first_name if text not in items]
        with _progress(
            len(first_name), done=len(first_name) - len(todo), what=path.name, show=journal is not None
        ) as bar:

            def on_item(index: int, item: str, note: str | None) -> None:
                text = todo[index]
                if len(item) > MAX_ITEM:
                    item, note = item[:MAX_ITEM], f"item of more than {MAX_ITEM} characters, cut"
                if journal:
                    journal.add(first_name[text], [item, note])
                _keep(items, notes, text, item, note)
                bar.update()

            if todo:
                extractor.run(step, todo, on_item=on_item)
        found = {name: items[text] for name, text in texts.items()}
        odd: dict[str, list[str]] = {}
        for name, text in texts.items():
            if text in notes:
                odd.setdefault(notes[text], []).append(name)
        files.write_items(path, found, meta={
            "version": files.META_VERSION,
            "settings": settings,
            "source": source_name,
            "details": {"affectgpt": __version__, "python": platform.python_version(), **extractor.details()},
            "notes": {note: {"count": len(names), "first": names[:10]} for note, names in odd.items()},
        })  # fmt: skip
    except BaseException:
        if journal:
            journal.close()
        raise
    if journal:
        journal.remove()
    for note, names in odd.items():
        logger.warning("%s: %s: %d of %d (first: %s)", path, note, len(names), len(texts), ", ".join(names[:3]))
    return len(todo)


def _keep(items: dict[str, str], notes: dict[str, str], text: str, item: str, note: str | None) -> None:
    items[text] = item
    if note:
        notes[text] = note


def _progress(total: int, *, done: int, what: str, show: bool) -> Any:
    """A bar with items per second, off where the output is no terminal."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc=printable(what), unit="item", disable=None if show else True)
