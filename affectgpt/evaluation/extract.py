"""Emotion labels from a model's answers: through a language model as published (paper, appendix E), or directly.

``extract_file`` writes ``X-openset.npz`` and its record beside ``X.npz`` (see results.py), and while it works
``X-openset.journal.jsonl``, the items that are finished.
"""

from __future__ import annotations

import hashlib
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
from affectgpt.evaluation import labels as reader
from affectgpt.evaluation import results
from affectgpt.evaluation.metrics.base import METRICS
from affectgpt.textllm.base import CLIENTS, Sampling, TextLLM, TextReply, open_client

LABELS, POLARITY = "labels", "polarity"  # the two steps; the second, for sentiment data sets, reads the first's items

# Characters of an item; 512 tokens of a label list are a third of it. The file's array gives every item the room of the
# longest one, so that a single reply of many megabytes would take tens of gigabytes.
MAX_ITEM = 8192

LABELS_PROMPT = (
    "Please assume the role of an expert in the field of emotions. "
    "We provide clues that may be related to the emotions of the characters. "
    "Based on the provided clues, please identify the emotional states of the main character. "
    "The main character is the one with the most detailed clues. "
    "Please separate different emotional categories with commas and output only the clearly identifiable emotional "
    "categories in a list format. If none are identified, please output an empty list. "
    "Input: We cannot recognize his emotional state; Output: [] "
    "Input: His emotional state is happy, sad, and angry; Output: [happy, sad, angry] "
    "Input: {text}; Output: "
)
# The published prompt is one string over several indented lines: the blanks between its pieces are part of it.
POLARITY_PROMPT = (" " * 13).join(
    [
        "Please act as an expert in the field of emotions.",
        "We provide a few words to describe the emotions of a character.",
        "Please choose the most likely sentiment from the given candidates: [positive, negative, neutral]",
        "Please direct output answer without analyzing process.",
        "Input: [joyful]; Output: positive",
        "Input: []; Output: neutral",
        "Input: {text}; Output: ",
    ]
)
_PROMPTS = {LABELS: LABELS_PROMPT, POLARITY: POLARITY_PROMPT}
CLEANING_VERSION = 3  # part of a result's settings: raise it when a reply is read as another item
_LEADING = ("输入", "输出", "翻译", "让我们来翻译一下：", "output", "Output", "input", "Input")

# Called with the index of a text, its item, and what was odd about it (None mostly).
OnItem = Callable[[int, str, str | None], None]


class Extractor(ABC):
    """Turns texts into items: answers into ``[a, b]``, and those into positive, negative or neutral."""

    name: str
    suffix: str = ""  # of the file name, see results.suffix_of
    journaled = True

    @abstractmethod
    def settings(self, step: str) -> dict[str, Any]:
        """Everything of the extractor that decides an item of this step."""

    def details(self) -> dict[str, Any]:
        """Recorded but not compared: folders, versions."""
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


def direct_items(answers: Mapping[str, str], *, polarity: bool) -> tuple[dict[str, str], list[str]]:
    """Items of answers (by name) as the direct extractor gives them, and the names that it could not read.

    An empty answer is a missing one: it has no item.
    """
    items, unread = {}, []
    for name, answer in answers.items():
        labels = reader.read_labels(answer)
        if labels is None:
            unread.append(name)
        if answer.strip():
            items[name] = reader.polarity(labels or []) if polarity else f"[{', '.join(labels or [])}]"
    return items, unread


def clean_reply(reply: str) -> str:
    """A reply without a leading Input or Output (also in Chinese), the colon after it, and newlines.

    As published: each prefix is removed once at most, in this order, upper and lower case apart, and only where the
    text begins with it at that moment.
    """
    text = reply.strip()
    for prefix in _LEADING:
        text = text.removeprefix(prefix)
    text = text.strip().removeprefix(":").removeprefix("：").strip()
    return text.replace("\n", "").strip()


class LLMExtractor(Extractor):
    """The published extraction: a prompt per answer, and a second one per label list for sentiment data sets."""

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
            "prompt_sha256": hashlib.sha256(_PROMPTS[step].encode()).hexdigest(),
            "cleaning": CLEANING_VERSION,
            "sampling": self.sampling.as_dict(),
        }

    def details(self) -> dict[str, Any]:
        """The model's folder and the versions of what ran it."""
        return self.client.details()

    def run(self, step: str, texts: Sequence[str], *, on_item: OnItem) -> None:
        """Ask the model; replies arrive in any order."""

        def on_result(index: int, reply: TextReply) -> None:
            read = reader.read_reply_labels if step == LABELS else reader.read_reply_polarity
            item, tolerantly = read(reply.text, clean_reply(reply.text))
            note = "reply not of the published form, read tolerantly" if tolerantly else None
            if reply.truncated:
                note = f"reply cut at {self.sampling.max_tokens} tokens"
            on_item(index, item, note)

        prompts = [_PROMPTS[step].replace("{text}", text) for text in texts]  # an answer, or a label list
        conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
        self.client.chat_many(conversations, sampling=self.sampling, on_result=on_result)

    def close(self) -> None:
        """Free the model or the connections."""
        self.client.close()


def extractor_names() -> list[str]:
    """The names that ``get_extractor`` takes."""
    return [*EXTRACTORS.names(), *CLIENTS.names()]


def get_extractor(name: str, *, sampling: Sampling | None = None, **client_settings: Any) -> Extractor:
    """The extractor called ``name``; nothing is loaded before it has something to do.

    ``client_settings`` go to the text LLM client: ``model`` for transformers and vllm (a folder), ``model``,
    ``base_url``, ``concurrency`` … for openai. Those of ``EXTRACTORS`` take none. Raises ConfigError for an
    unknown name.
    """
    if name not in CLIENTS:
        extractor = EXTRACTORS.get(name)()
        extractor.suffix = results.suffix_of(name)
        return extractor
    return LLMExtractor(open_client(name, **client_settings), sampling=sampling)


@dataclass(frozen=True)
class Extraction:
    """The files that ``extract_file`` made or found."""

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
    answers = results.read_answers(answers_path)
    if not answers:
        raise DataError(f"{answers_path}: name2reason is empty, there is no answer to read")
    empty = [name for name, answer in answers.items() if not answer.strip()]
    if empty and not allow_empty:
        raise DataError(
            f"{answers_path}: {len(empty)} of {len(answers)} answers are empty (first: {', '.join(empty[:3])}); "
            "answer these clips again, or say --allow-missing (allow_empty=True)"
        )
    path = results.items_path(answers_path, extractor.suffix)
    source = {"answers_sha256": results.content_sha256(answers)}
    computed = _extract_step(
        path, LABELS, answers, extractor=extractor, source=source, source_name=answers_path.name, overwrite=overwrite
    )
    sentiment = None
    if METRICS.get(task).polarity:
        sentiment = results.items_path(answers_path, extractor.suffix, polarity=True)
        items = results.read_items(path)
        # The items of a file that was made otherwise must not turn up under this extractor's name.
        source = {"labels_sha256": results.content_sha256(items), "labels_by": results.describe(path)}
        computed += _extract_step(
            sentiment, POLARITY, items, extractor=extractor, source=source, source_name=path.name, overwrite=overwrite
        )
    return Extraction(path, sentiment, extractor=results.describe(sentiment or path), computed=computed)


def _extract_step(
    path: Path,
    step: str,
    texts: Mapping[str, str],
    *,
    extractor: Extractor,
    source: Mapping[str, str],
    source_name: str,
    overwrite: bool,
) -> int:
    """Make one extraction file from ``texts`` (name → text) unless it may be reused; how many items were computed."""
    from tqdm import tqdm

    settings = {**extractor.settings(step), **source}
    journal_path, key = path.with_suffix(".journal.jsonl"), results.content_sha256(settings)
    # a journal with this key: replacing the file under these settings was begun, and killed
    if path.exists() and Journal.peek_key(journal_path) != key:
        differences = _differences_of(path, settings=settings, names=texts, overwrite=overwrite)
        if not differences:
            return 0
        if not overwrite:
            raise DataError(
                f"{path}: made otherwise than asked for: {'; '.join(differences)}. "
                "Say --overwrite (overwrite=True) to extract again, or delete the file, or give the settings it was "
                "made with; evaluation-scoreonly.py scores it as it is"
            )
    first_name: dict[str, str] = {}  # text → the first name with it: equal texts are asked once
    for name, text in texts.items():
        first_name.setdefault(text, name)
    items: dict[str, tuple[str, str | None]] = {}  # text → item, and what was odd about it
    if step == LABELS:
        items = {text: ("[]", None) for text in first_name if not text.strip()}
    journal = Journal(journal_path, key=key) if extractor.journaled else None
    try:
        for name, (item, note) in journal.entries.items() if journal else ():
            if name in texts:
                items[texts[name]] = item, note
        todo = [text for text in first_name if text not in items]
        bar = tqdm(
            total=len(first_name), initial=len(first_name) - len(todo), desc=printable(path.name), unit="item",
            disable=None if journal else True,  # None: off where the output is no terminal
        )  # fmt: skip

        def on_item(index: int, item: str, note: str | None) -> None:
            if len(item) > MAX_ITEM:
                item, note = item[:MAX_ITEM], f"item of more than {MAX_ITEM} characters, cut"
            if journal:
                journal.add(first_name[todo[index]], [item, note])
            items[todo[index]] = item, note
            bar.update()

        with bar:
            if todo:
                extractor.run(step, todo, on_item=on_item)
        odd: dict[str, list[str]] = {}
        for name, text in texts.items():
            if note := items[text][1]:
                odd.setdefault(note, []).append(name)
        record = {
            "settings": settings,
            "source": source_name,
            "details": {"affectgpt": __version__, "python": platform.python_version(), **extractor.details()},
            "notes": {note: {"count": len(names), "first": names[:10]} for note, names in odd.items()},
        }
        results.write_items(path, {name: items[text][0] for name, text in texts.items()}, record=record)
    except BaseException:
        if journal:
            journal.close()
        raise
    if journal:
        journal.remove()
    for note, names in odd.items():
        logger.warning("%s: %s: %d of %d (first: %s)", path, note, len(names), len(texts), ", ".join(names[:3]))
    return len(todo)


def _differences_of(path: Path, *, settings: Mapping[str, Any], names: Mapping[str, Any], overwrite: bool) -> list[str]:
    """The reasons why an extraction file is not what ``settings`` would make; none: it is reused.

    A file without a record counts as published and is taken as it is, if it holds these names.
    """
    record = results.read_record(path)
    if record is not None:
        if record.get("file_sha256") != results.file_sha256(path):
            return ["the file itself was changed after it was made"]
        return _differences(record["settings"], settings)
    items = results.read_items(path)
    missing = [name for name in names if name not in items]
    extra = [name for name in items if name not in names]
    words = [f"no item for {len(missing)} answers (first: {', '.join(missing[:3])})"] if missing else []
    words += [f"{len(extra)} items without an answer (first: {', '.join(extra[:3])})"] if extra else []
    return words or (["no record says how it was made"] if overwrite else [])


def _differences(stored: Mapping[str, Any], requested: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key: it has a, asked for b`` for every setting that differs, in nested sections too."""

    def short(key: str, value: Any) -> str:
        return str(value)[:12] + "…" if key.endswith("sha256") and value else repr(value)

    words = []
    for key in sorted({*stored, *requested}):
        old, new = stored.get(key), requested.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            words += _differences(old, new, f"{prefix}{key}.")
        elif old != new and not (key == "model_sha256" and (old is None or new is None)):  # weights not at hand
            words.append(f"{prefix}{key}: it has {short(key, old)}, asked for {short(key, new)}")
    return words
