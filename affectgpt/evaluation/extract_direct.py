"""Labels and polarity without a language model, from answers of the form the model was trained to give.

Nothing here was fitted to released answers or labels: the sentences are those of processing/questions.py and their
obvious variants, the polarity of a word comes from ``polarity_words.toml``.
"""

from __future__ import annotations

import functools
import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

WORDS_FILE = Path(__file__).with_name("polarity_words.toml")
RULES_VERSION = 1  # part of a result's settings: raise it when the rules below read an answer in another way

MAX_LABEL_WORDS = 5  # a longer item is a clause, not a label
MAX_ANSWER = 2**15  # characters; no model of ours writes as many
_MAX_READ = (
    2**20
)  # characters of an answer's statements, together: statements inside statements are read again and again

# "The character's emotional state is …", "Her sentiment states are: …", "The most likely label is …"
_STATEMENT = re.compile(
    r"\b(?:emotional\s+(?:states?|labels?)|emotions?|sentiment(?:\s+(?:states?|labels?))?|(?:most\s+)?likely\s+labels?)"
    r"(?:\s+of\s+(?:the|this)\s+\w+)?\s*(?:\b(?:is|are|includes?|can\s+be\s+described\s+as)\b\s*:?|:)\s*",
    re.IGNORECASE,
)
_VALENCE = re.compile(r"\bvalence\s+score\s+is\s*:?\s*([-+\u2212]?\d+(?:\.\d+)?)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)|[!?。！？\n]")
_CLAUSE = re.compile(
    r"\s*(?:\b(?:because|since|due to|as a result|which|while|when|whereas|based on|but|however)\b"
    r"|\b(?:indicat|suggest)\w+|\bas (?:he|she|they|the)\b)",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"\s*(?:[,;:/|&、，；：]|\b(?:and|or|as well as|along with)\b)\s*", re.IGNORECASE)
_LEADING = re.compile(
    r"^(?:(?:also|both|either|mainly|primarily|mostly|probably|possibly|likely|perhaps|maybe|potentially|feeling|feels"
    r"|very|slightly|somewhat|quite|rather|extremely|mildly|deeply|highly|a bit|a little|an?|the"
    r"|(?:a |some )?(?:sense|feeling|feelings|mix|mixture|combination|hint|touch|degree|state|one|that) of)\s+)+",
    re.IGNORECASE,
)
_NO_LABEL = re.compile(
    r"^(?:unknown|unclear|none|n/?a|not (?:clear|known|specified|mentioned)|(?:can)?not (?:be )?"
    r"(?:determined|identified|recogni[sz]ed)|cannot .*|difficult to .*|hard to .*|unable to .*determine.*|)$",
    re.IGNORECASE,
)
_BLANKS = re.compile(r"\s{32,}")
_QUOTES = "'\"“”‘’`*[](){}<>#. "
_NEGATOR = re.compile(
    r"\b(?:not|no|never|without|lack of|lacks?|lacking|isn't|didn't|doesn't|free of)\b", re.IGNORECASE
)
_WORD = re.compile(r"[a-z][a-z'-]*")


def direct_labels(answer: str) -> list[str] | None:
    """The labels in an answer of the trained form, in its order and without repeats.

    Read are ``The character's emotional state is a, b.``, ``The most likely label is x.``, ``The character's sentiment
    state is x.``, ``The valence score is 0.50.`` (its sign, as positive, negative or neutral), such sentences inside a
    longer answer (all of them), and a bare list (``[a, b]`` or ``a, b``). None: the answer is of no such form, and
    reading it takes a language model; or it is longer than ``MAX_ANSWER``. An empty list: the answer says that there
    is nothing to recognise.
    """
    if len(answer) > MAX_ANSWER:
        return None
    # long blanks say nothing, and reading them takes the square of their length
    text = _BLANKS.sub(lambda run: "\n" if "\n" in run[0] else " ", answer.replace("’", "'").strip())
    if not text:
        return []
    found: list[str] = []
    readable = False
    read = 0
    for match in _STATEMENT.finditer(text):
        sentence = _first_sentence(text[match.end() :])
        read += len(sentence)
        if read > _MAX_READ:
            return None
        labels = _split_labels(sentence)
        if labels is not None:
            readable = True
            found += labels
    for match in _VALENCE.finditer(text):
        readable = True
        value = float(match[1].replace("\u2212", "-"))
        found.append("positive" if value > 0 else "negative" if value < 0 else "neutral")
    if not readable:
        bare = _bare_list(text)
        if bare is None:
            return None
        found = bare
    return list({label.lower(): label for label in reversed(found)}.values())[::-1]


def _first_sentence(text: str) -> str:
    end = _SENTENCE_END.search(text)
    return text[: end.start()] if end else text


def _split_labels(text: str) -> list[str] | None:
    """The items of a list in prose, clauses among them left out; None when there are clauses and no label."""
    clause = _CLAUSE.search(text)
    if clause:
        text = text[: clause.start()]
    items = [" ".join(item.split()).strip(_QUOTES) for item in _SEPARATOR.split(text)]
    items = [_LEADING.sub("", item).strip(_QUOTES) for item in items]
    items = [item for item in items if not _NO_LABEL.match(item)]
    labels = [item for item in items if len(item.split()) <= MAX_LABEL_WORDS]
    return None if items and not labels else labels


def _bare_list(text: str) -> list[str] | None:
    """Labels of an answer that is nothing but a list: in brackets, or short items with commas or a single word."""
    if text.startswith("[") and text.rstrip(".").endswith("]"):
        return _split_labels(text)
    body = text.rstrip(".")
    items = [item.strip() for item in body.split(",")]
    if "\n" in body or any(not item or len(item.split()) > 2 for item in items):
        return None
    return _split_labels(body)


def item_labels(item: str) -> list[str]:
    """The labels of an extracted item such as ``[happy, calm]``."""
    item = item.strip().removeprefix("[").removesuffix("]")
    return [label for part in re.split(r"['\",]", item) if (label := part.strip().lower())]


@functools.cache
def polarity_words() -> Mapping[str, int]:
    """Word or phrase → +1, −1 or 0, from ``polarity_words.toml``."""
    sections = tomllib.loads(WORDS_FILE.read_text(encoding="utf-8"))
    values = {"positive": 1, "negative": -1, "neutral": 0}
    return {word.replace("_", " "): values[name] for name, words in sections.items() for word in words.split()}


def words_sha256() -> str:
    """Hash of the word list, so that a result says which list made it."""
    return hashlib.sha256(WORDS_FILE.read_bytes()).hexdigest()


def label_polarity(label: str) -> int | None:
    """+1, −1 or 0 for one label; None when no word of it is known.

    A phrase counts by its last known polar word ("positive evaluation", "emotional pain"), looked for before a
    preposition first ("fear of success" is fear). "not", "no" and "lack of" turn a positive word negative and a
    negative one neutral.
    """
    words = polarity_words()
    label = label.lower().replace("’", "'").strip(_QUOTES)
    if label in words:
        return words[label]
    negated = _NEGATOR.search(label) is not None
    plain = _NEGATOR.sub(" ", label)
    head, *rest = re.split(r"\b(?:of|for|about|at|to|with|towards?|from|by|in)\b", plain, maxsplit=1)
    neutral = False
    for part in (head, *rest):
        if part.strip() in words and words[part.strip()]:
            known = [words[part.strip()]]
        else:
            known = [words[word] for word in _WORD.findall(part) if word in words]
        polar = [value for value in known if value]
        if polar:
            return min(-polar[-1], 0) if negated else polar[-1]
        neutral = neutral or bool(known)
    return 0 if neutral else None


def polarity(labels: Iterable[str]) -> str:
    """``positive``, ``negative`` or ``neutral``: the majority of the polar labels.

    Neutral and unknown labels do not vote. A tie goes to the polar label named first, since answers name the most
    evident emotion first. No polar label at all: neutral.
    """
    votes = [value for value in map(label_polarity, labels) if value]
    total = sum(votes) or (votes[0] if votes else 0)
    return "positive" if total > 0 else "negative" if total < 0 else "neutral"
