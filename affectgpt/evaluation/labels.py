"""The label parser: emotion labels and polarity in answers, extracted items and replies of language models.

``read_labels`` reads what an answer *claims*: a denied label ("not sad", "no signs of anger"), a thought in ``<think>``
tags, a confidence or a refusal is no label. The sentences are those of processing/questions.py and their obvious
variants; nothing was fitted to released answers or labels. The polarity of a word comes from ``polarity_words.toml``.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

WORDS_FILE = Path(__file__).with_name("polarity_words.toml")
RULES_VERSION = 4  # part of a result's settings: raise it when the rules below read an answer in another way
POLARITIES = ("positive", "negative", "neutral")
NOT_TRAINED_FORM = "answer not of the trained form"

MAX_LABEL_WORDS = 5  # a longer item is a clause, not a label
MAX_ANSWER = 2**15  # characters; no model of ours writes as many
_MAX_READ = 2**16  # characters of all statements of an answer: a statement may hold others, which are read again
_MAX_ITEM = 200  # characters; a longer item is no label, and is not looked at: patterns are slow on long ones
_SHORT_ANSWER = 60  # words; in a longer one "he is …" is a description, not an answer


def _pattern(*parts: str, flags: int = 0) -> re.Pattern[str]:
    """A regular expression from its parts, upper and lower case alike."""
    return re.compile("".join(parts), re.IGNORECASE | flags)


# Characters that mean the same as an ASCII one.
_ASCII: dict[int, int | str] = dict(str.maketrans("，、；：（）［］｛｝＂’‘“”＝", ',,;:()[]{}"\'\'""='))
_ASCII |= {ord(quote): '"' for quote in "「」『』【】《》"}
_ASCII |= {ord("。"): ". ", ord("！"): "! ", ord("？"): "? "}
_BLANKS = re.compile(r"\s{32,}")
_CONTRACTIONS = {"'s": " is", "'re": " are", "'d": " would"}
_CONTRACTION = _pattern(r"\b(it|he|she|that|they|we|i)('s|'re|'d)\b")
_MARKUP = re.compile(r"~~[^~\n]{0,200}~~|```\w*|[*_`]{1,3}(?=\S)|(?<=\S)[*_`]{1,3}|^\s*[#>]+\s*", re.MULTILINE)
_BULLET = r"(?:^|\s+|(?<=\[))(?:\(?(?:\d{1,2}[.)]|[a-h]\))|[-•‣·–][ \t]|[①-⑳])\s*(?=[^\W\d])"
_PARENTHESES = re.compile(r"\s*\([^()]{0,200}\)")  # a confidence, a gloss, an aside
_PERCENT = _pattern(
    r"\s*(?:,?\s*\b(?:with|at|confidence|probability|score)\b[^,;.]{0,40}?)?[:=~-]?\s*(\d+(?:\.\d+)?)\s*%?",
    r"(?:\s*(?:confidence|sure|certain)\b)?\s*$",
)
_GLOSS = re.compile(r"\s*\(\s*([^\W\d_][^()\d]{0,40})\)")  # in "calm (sad)" both are claimed
_NO = _pattern(r"[^,;\n:=]{1,60}[:=]\s*(?:no|false|absent)\b")  # "angry: no"
_YES = _pattern(r"\s*[:=]\s*(?:yes|true|present)\b")
_REPEATED = _pattern(r"(.)\1{3,}|^(.{1,20}?)(?:\s*\2){2,}$")
_CONFIDENCE = _pattern(r"^(?:confidence|probability|certainty|intensity|score|valence|arousal)\b")
_TAG = _pattern(r"</?[a-z_]{1,20}>")
_THOUGHT = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflections?|analysis|rationale|scratchpad)"
_THOUGHT_START = _pattern(rf"<{_THOUGHT}>|<\|begin_of_thought\|>")
_THOUGHT_END = _pattern(rf"</{_THOUGHT}>|<\|end_of_thought\|>")
_BOXED = _pattern(r"\\boxed\s*\{(?:\\text\s*\{)?([^{}]*)\}")
_ANSWER_TAG = _pattern(r"<answer>(.*?)(?:</answer>|$)", flags=re.DOTALL)
_LABEL_TAG = _pattern(r"<(?:emotions?|labels?|sentiment|emotional_states?)>([^<>]*)</")
_LABEL_KEY = _pattern(
    r"emotion|label|sentiment|feeling|mood|\bstate|affect|answer|class|category|predict|result|output"
)
_PLACE_KEY = _pattern(
    r"(?:primary|secondary|main|dominant|name|value|type|first|second|text|word)\b"
)  # in a label's value
_OTHER_KEY = _pattern(
    r"^(?:not?|non|other)[_ -]|^not?$|exclu|ruled|absent|alternativ|question|"
    r"confiden|probab|score|reason|expla|intens|evidence|analysis|descri|thought|negative_?label|reject"
)

_REFUSAL = _pattern(
    r"^\W*(?:(?:i(?:'m| am) (?:very |so |really )?)?sorry\b|i apologi[sz]e|apologies\b|my apologies",
    r"|unfortunately,? (?:i|it|the)\b|i'm (?:not able|unable|not sure)",
    r"|i (?:can(?:no|')t|am (?:not able|unable)|do(?:n't| not) (?:know|have|see)|have no|could(?:n't| not))\b",
    r"|as an? (?:ai|language|large|artificial)\b|please (?:provide|share|upload|give)|抱歉|对不起|很抱歉|我无法|无法)",
)
_SUBJECT = (
    r"(?:emotional\s+(?:states?|labels?)|emotions?|feelings?|mood|sentiment(?:\s+(?:states?|labels?))?"
    r"|(?:most\s+)?likely\s+(?:labels?|emotions?)|(?:final\s+|correct\s+)?answer|labels?|prediction|output)"
)
_VERB = (
    r"(?:(?:is|are|was|were|includes?|seems?|appears?|remains?|(?:can|could|would|may|might|must|should)\s+be)\b"
    r"(?:\s*(?:to\s+be|best|most\s+likely|likely|probably|primarily|mainly|mostly|clearly|identified|recogni[sz]ed"
    r"|classified|described|summari[sz]ed|categori[sz]ed|labell?ed|as)\b)*|isn't|aren't|wasn't|weren't)"
)
_EXPRESSED = r"(?:conveyed|expressed|shown|displayed|detected|depicted|portrayed|felt|here)"
_CHANGE = r"(?:shifts|changes|moves|turns|goes)\s+(?:from\s+[\w\s]{1,30}?\s)?(?:in)?to\b"  # what it ends in is claimed
# "The character's emotional state is …", "Her sentiment states are: …", "The most likely label is …", "Emotion: …"
_STATEMENT = _pattern(
    rf"\b{_SUBJECT}(?:\s+{_EXPRESSED})?(?:\s+(?:of|in|for|by)\s+(?:the|this|that)\s+\w+(?:\s+in\s+(?:the|this)\s+\w+)?)?",
    rf"\s*(?:{_VERB}\s*:?|{_CHANGE}|[:=→])\s*|(?:情绪|情感|心情|答案|标签)(?:状态|标签)?\s*(?:是|为|[:=])\s*",
)
_TRAINED = _pattern(
    rf"\b(?:character's|but|however,?)\s+(?:the\s+|his\s+|her\s+)?{_SUBJECT}\s+{_VERB}|\bmost likely label is\b"
)
# "The man in the video seems …": read in short answers, and only words whose polarity is known
_PERSON = _pattern(
    r"\b(?:he|she|they|^(?:it|this)(?!\s+\w+\s+that\b)|(?:the|this|that)\s+(?:(?!other|second)\w+\s+)?(?:person|character|speaker|subject"
    r"|individual|protagonist|man",
    r"|woman|boy|girl|child|lady|guy))(?:\s+in\s+(?:the|this)\s+\w+)?\s+(?:is|are|was|feels?|felt|seems?|appears?|looks?",
    r"|sounds?|shows?|expresses|displays|exhibits|conveys|experiences"
    r"|isn't|(?:may|might|could|must)\s+be)\b(?:\s*(?:to\s+be|feeling|likely|probably|clearly))*\s+",
)
_REVERSED = _pattern(  # "Sadness is the dominant emotion."
    rf"^\s*(.{{1,80}}?)\s+(?:is|are|seems?\s+to\s+be)\s+(?:the|his|her|their)\s+(?:\w+\s+){{0,3}}{_SUBJECT}\b"
)
_LEAD_IN = _pattern(  # "Sure, here is the answer: sad", "I think sad"
    r"^(?:(?:sure|ok(?:ay)?|certainly|of course|overall|in my opinion|in conclusion)\b[,.!:]?\s*",
    r"|(?:here is|here are|this is|it is|it (?:could|may|might|must|would) be)\b\s*(?:the answer|the list)?:?\s*",
    r"|(?:most likely|probably)\s*:\s*",
    r"|i (?:think|believe|guess|would say)(?: that)?\b\s*(?:it is\b)?:?\s*)+",
)
_VALENCE = _pattern(r"\bvalence\s+score\s+is\s*:?\s*([-+\u2212]?\d+(?:\.\d+)?)")
_SENTENCE_END = re.compile(r"\.(?:\s|$)|[!?\n]")
_CLAUSE_START = _pattern(r"[.!?,;:\n]|\b(?:so|thus|hence|therefore|and|but)\b")
# before a statement in its clause: it is denied, asked or unknown
_HYPOTHETICAL = _pattern(
    r"\b(?:not|no|never|cannot|can't|couldn't|don't|doesn't|didn't|isn't|unable|hard|difficult|impossible|unclear",
    r"|whether|if|as\s+though|(?:might|may|could|would)\s+(?:think|believe|expect)|false|wrong"
    r"|doubt|deny|denies|unlikely|is\s+the|are\s+the)\b(?!\s+only)",
)
_REASON = _pattern(  # what follows a list and is none of its items
    r"\s*(?:\b(?:because|since|due to|as a result|which|while|when|whereas|based on|however|although|though|despite",
    r"|given|judging)\b|\b(?:indicat|suggest)\w+",
    r"|\bas (?:he|she|they|the|shown|seen|indicated|evidenced|expressed|reflected)\b)",
)
_SEPARATOR = _pattern(
    r"\s*((?:[,;]\s*|\bbut\s+)(?:it|he|she|they)\s+(?:is|are|seems?|appears?|looks?|feels?)\b|[,;:/|&+]",
    r"|\b(?:and(?:\s+also)?|or|nor|but(?:\s+(?:also|rather|instead))?|as well as|along with",
    r"|with (?:an? )?(?:hint|touch|trace|bit|mix|mixture|element|undertone|degree)s? of",
    r"|with (?:some|traces? of|hints? of|a bit of|a little)|mixed with|accompanied by|yet)\b)\s*",
)
_CLOSING = ("or", "nor", "but", "and", "yet")  # separators that end a list
_PRONOUNS = ("it ", "he ", "she ", "they ")  # "not sad, it is angry"
_DENIAL = _pattern(
    r"\b(?:(?P<one>not)|no(?:t any)?|never|neither|without(?: any)?|with no|lacks?(?: any)?|lacking|devoid",
    r"|free (?:of|from)|absence of|lack of|rather than|instead of|far from|no longer|isn't|aren't|wasn't|hardly",
    r"|unlike|as opposed to|except)\b|不是|没有|并非",
)
_LEADING = _pattern(
    r"^(?:(?:also|both|either|mainly|primarily|mostly|probably|possibly|likely|perhaps|maybe|potentially|feeling|feels",
    r"|very|being|so|too|really|truly|fairly|pretty|moderately|predominantly|chiefly|largely|increasingly|definitely",
    r"|certainly|clearly|visibly|apparently|undoubtedly|strongly|absolutely|completely|totally|kind of|sort of",
    r"|slightly|somewhat|quite|rather|extremely|mildly|deeply|highly|a (?:little )?bit(?: of)?|a little|an?|the|some",
    r"|most likely|to be|as|(?:somewhere )?between",
    r"|(?:a |some )?(?:sense|feeling|feelings|mix|mixture|combination|hint|touch|degree|state|one|that) of)\s+)+",
)
_NO_LABEL = _pattern(
    r"^(?:unknown|unclear|none|null|nan|undefined|error|n/?a|nothing",
    r"|not (?:clear|known|specified|mentioned|sure|certain)\b.*|(?:can)?not (?:be )?",
    r"(?:determined|identified|recogni[sz]ed)|cannot .*",
    r"|(?:not enough|insufficient) .*|difficult to .*|hard to .*|unable to .*determine.*|)$",
)
_NOT_A_LABEL = _pattern(  # words that begin no label, and those that are none by themselves
    r"^(?:i|we|you|there|what|who|why|how|this|that|it|please|hello|hi|hey|thanks?|the|and|of|to|user|assistant)\b",
    rf"|^(?:very|yes|no|he|she|they|{_SUBJECT})$",
)
_QUOTES = "'\"`*[](){}<>#. "
_NEGATOR = _pattern(r"\b(?:not|no|never|without|lack of|lacks?|lacking|isn't|didn't|doesn't|free of)\b")
_WORD = re.compile(r"[a-z][a-z'-]*")
_LETTERS = re.compile(r"[^\W\d_]{2}|[\u3400-\u9fff]")


def parse_item(item: str) -> tuple[str, ...]:
    """The labels of an extracted item, or of an ``openset`` cell, as published (wire): ``[happy, 'calm']``.

    A bracket is removed only as the very first or last character. Labels are not lower-cased.
    """
    item = item.removeprefix("[").removesuffix("]")
    # interned: a few thousand words make up all lists
    return tuple(sys.intern(part) for part in (piece.strip() for piece in re.split("['\",]", item)) if part)


def read_labels(answer: str) -> list[str] | None:
    """The labels that an answer claims, in its order and without repeats.

    Read are ``The character's emotional state is a, b.``, ``The most likely label is x.``, ``The valence score is
    0.50.`` (its sign, as positive, negative or neutral), other such sentences inside a longer answer (all of them), a
    bare list (``[a, b]``, ``a, b``, bullets), JSON, and the same inside ``<answer>`` tags.

    None: the answer claims no label in a form that can be read without a language model (free text, a refusal, a
    thought without an answer), or it is longer than ``MAX_ANSWER``. An empty list: the answer says that there is
    nothing to recognise.
    """
    if len(answer) > MAX_ANSWER:
        return None
    text = _without_long_blanks(answer.translate(_ASCII).strip())
    if not text:
        return []
    answered = _without_thoughts(text)
    if answered is None or (not _LETTERS.search(answered) and not answered.startswith("[")):
        return None
    labels = _read_json(answered)
    if labels is None:
        labels = _read_text(_without_long_blanks(answered))
    elif not labels and answered[0] == "{":
        return None
    if labels is None:
        return None
    return list({label.lower(): label for label in reversed(labels)}.values())[::-1]


def _without_long_blanks(text: str) -> str:
    """Shorten runs of blanks, which say nothing and take patterns more than the square of their length."""
    return _BLANKS.sub(lambda run: "\n" if "\n" in run[0] else " ", text)


def _without_thoughts(text: str) -> str | None:
    """The part behind ``</think>`` and inside ``<answer>``; None where there is none."""
    *_, end = None, *_THOUGHT_END.finditer(text)
    text = text[end.end() :] if end else text
    if start := _THOUGHT_START.search(text):  # a thought that never ends
        text = text[: start.start()]
    if boxed := _BOXED.findall(text):
        text = boxed[-1]
    if parts := _ANSWER_TAG.findall(text):
        text = parts[-1]
    tagged = _LABEL_TAG.findall(text)
    text = ", ".join(tagged) if tagged else _TAG.sub(" ", text)
    return text.strip() or None


def _read_json(text: str) -> list[str] | None:
    """Labels in the values of label-like keys; None where the text holds no JSON, or none of it is a label."""
    start, end = min((text.find(c) for c in "{[" if c in text), default=-1), max(text.rfind(c) for c in "}]")
    if start < 0 or end < start:
        return None
    value: Any = None
    for parse in (json.loads, ast.literal_eval):  # models write Python's quotes, too
        try:
            value = parse(text[start : end + 1])
            break
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    if isinstance(value, list) and value and all(isinstance(entry, (str, dict)) for entry in value):
        return list(_json_labels(value, named=True))
    if isinstance(value, dict):
        return list(_json_labels(value, named=False)) or ([] if text[0] == "{" and text[-1] == "}" else None)
    return None


def _json_labels(value: Any, *, named: bool, depth: int = 0) -> Iterator[str]:
    """The labels of a JSON value; ``named``: it stands under a label-like key, so that its texts are labels."""
    if depth > 8:
        return
    if isinstance(value, str) and named:
        yield from read_labels(value) or []
    elif isinstance(value, list):
        scores = [_confidence(entry) for entry in value]
        best = max((score for score in scores if score is not None), default=0.0)
        for entry, score in zip(value, scores, strict=True):
            if score is None or score >= best / 2:
                yield from _json_labels(entry, named=named, depth=depth + 1)
    elif isinstance(value, dict):
        keys = [key for key in value if isinstance(key, str) and not _OTHER_KEY.search(key)]
        numbers = [entry for entry in value.values() if isinstance(entry, (int, float))]
        if len(keys) == len(numbers) == len(value) and not any(map(_LABEL_KEY.search, keys)):
            best = max(numbers, default=0)  # label → confidence
            yield from (key for key in keys if value[key] and value[key] >= best / 2)
            return
        for key in keys:
            inside = bool(_LABEL_KEY.search(key)) or (
                named and (not isinstance(value[key], str) or _PLACE_KEY.match(key) is not None)
            )
            yield from _json_labels(value[key], named=inside, depth=depth + 1)


def _confidence(entry: Any) -> float | None:
    """The confidence that a JSON object states."""
    for key, value in entry.items() if isinstance(entry, dict) else ():
        if isinstance(value, (int, float)) and re.search("score|conf|prob", str(key), re.IGNORECASE):
            return float(value)
    return None


def _read_text(text: str) -> list[str] | None:
    text = _CONTRACTION.sub(lambda found: found[1] + _CONTRACTIONS[found[2].lower()], _MARKUP.sub("", text))
    # the points of a list become items; behind a whole sentence, sentences
    text = re.sub(rf"([.!]){_BULLET}", "\\1\n", text, flags=re.MULTILINE)
    text = re.sub(_BULLET, ", ", text, flags=re.MULTILINE).strip().lstrip(", ")
    if _REFUSAL.match(text) and not _TRAINED.search(text):
        return None
    labels: list[str] = []
    readable = False
    read = 0
    for match in _STATEMENT.finditer(text):
        sentence, end = _first_sentence(text[match.end() :])
        read += len(sentence)
        if read > _MAX_READ:
            return None
        if end == "?" or _HYPOTHETICAL.search(_clause_before(text, match.start())):
            continue
        claimed = _claims("not " + sentence if match[0].rstrip().endswith("n't") else sentence)
        if claimed is not None:
            readable = True
            labels += claimed
    for match in _VALENCE.finditer(text):
        readable = True
        value = float(match[1].replace("\u2212", "-"))
        labels.append("positive" if value > 0 else "negative" if value < 0 else "neutral")
    if labels and all(label.startswith("not ") for label in labels):  # "Her emotion is not sad. She is calm."
        return labels + _of_persons(text)
    if readable:
        return labels
    bare = _bare_list(_LEAD_IN.sub("", text))
    if bare is not None or len(text.split()) > _SHORT_ANSWER:
        return bare
    return _of_persons(text) or None


def _of_persons(text: str) -> list[str]:
    """Labels in sentences about a person, and in sentences turned round ("Sadness is the dominant emotion.")."""
    labels: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+|\n", text):
        if sentence.rstrip().endswith("?"):
            continue
        reverse, person = _REVERSED.match(sentence), _PERSON.search(sentence)
        if reverse and not _DENIAL.search(reverse[1]):
            labels += _known(_claims(reverse[1]))
        elif person and not _HYPOTHETICAL.search(_clause_before(sentence, person.start())):
            rest = _first_sentence(sentence[person.end() :])[0]
            labels += _known(_claims(("not " if "n't" in person[0] else "") + rest))
    return labels


def _known(labels: list[str] | None) -> list[str]:
    """Those whose polarity is known: what a person is or does may be anything else."""
    known = [label for label in labels or [] if label_polarity(label) is not None]
    return [label for label in known if not label.lower().startswith("not ")]


def _first_sentence(text: str) -> tuple[str, str]:
    """The text up to the end of its first sentence, and what ends it."""
    end = _SENTENCE_END.search(text)
    return (text[: end.start()], end[0].strip()) if end else (text, "")


def _clause_before(text: str, at: int) -> str:
    """Return the text between the last punctuation or conjunction and ``at``, at most 80 characters."""
    return _CLAUSE_START.split(text[max(at - 80, 0) : at])[-1]


def _claims(text: str) -> list[str] | None:
    """The claimed items of a list in prose; None when nothing in it is claimed, [] when it says that there is nothing.

    A denial ("no", "without", "rather than" …) reaches to the next "but" or ";". "not" alone denies one item, and all
    up to an "or" or "nor"; an item that is denied alone is kept as ``not …``, a label that people give too.
    """
    if reason := _REASON.search(text):
        text = text[: reason.start()]
    text = _plain_scores(text)
    text = re.sub(r"\bn/a\b", "none", text, flags=re.IGNORECASE)
    text = re.sub(r"\bnot (?:only|just|merely)\b", "", text, flags=re.IGNORECASE)
    text = re.sub(r"\banything but\b", "without", text, flags=re.IGNORECASE)
    text = re.sub(r"\bless ([\w -]{1,40}?) than\b", r"not \1 but", text, flags=re.IGNORECASE)
    pieces = _SEPARATOR.split(text)  # item, separator, item …
    items, separators = pieces[::2], ["", *(separator.lower() for separator in pieces[1::2])]
    labels: list[tuple[str, float | None]] = []
    denied = ""  # or "one" (an item), "all"
    says_nothing = False
    closings = [""]  # of each item: the next separator behind it that ends a list
    for separator in reversed(separators[1:]):
        closings.append(separator if separator.lstrip(", ").startswith((*_CLOSING, ";", *_PRONOUNS)) else closings[-1])
    followers = [*separators[1:], ""]
    for item, separator, following, closing in zip(items, separators, followers, reversed(closings), strict=True):
        # "not interested, bored" denies one, "not surprised, angry or sad" all three
        goes_on = separator.startswith(("or", "nor", "and")) or closing.startswith(("or", "nor"))
        if (
            separator.startswith(("but", "yet", ";"))
            or separator.lstrip(",; ").startswith(_PRONOUNS)
            or (denied == "one" and not goes_on)
        ):
            denied = ""
        denial = _DENIAL.search(item)
        before, after = (item[: denial.start()], item[denial.end() :]) if denial else (item, "")
        nothing = _NO_LABEL.match(" ".join(item.split()).strip(_QUOTES)) is not None
        says_nothing |= nothing and not denied and bool(item.strip(_QUOTES))
        if not denied and not nothing:
            label, score = _label(before)
            labels += [(label, score)] if label else []
        if denial and not nothing:
            if not denied and denial["one"] and not before.strip() and following != "and":
                label, score = _label(after)
                if label and not closing.startswith(("or", "nor", "but", "yet", *_PRONOUNS)):
                    labels.append((f"not {label}", score))
            denied = "all" if denied == "all" or not denial["one"] else "one"
    labels = [(label, score) for label, score in labels if score != 0]
    scores = [score for _, score in labels if score is not None]
    if len(scores) > 1:  # a distribution over labels: those at least half as likely as the likeliest
        labels = [(label, score) for label, score in labels if score is None or score >= max(scores) / 2]
    if labels:
        return [label for label, _ in labels]
    return [] if says_nothing or not any(item.strip(_QUOTES) for item in items) else None


def _plain_scores(text: str) -> str:
    """Write confidences of labels in one form (``sad (90%)`` and ``sad: 90%`` → ``sad 90%``) and take asides away."""
    text = _GLOSS.sub(lambda found: f", {found[1]}" if found[1].strip().lower() in polarity_words() else "", text)
    text = _PARENTHESES.sub("", re.sub(r"\s*\(\s*(\d+(?:\.\d+)?\s*%?)\s*\)", r" \1", text))
    text = re.sub(r"\s*[:=]\s*(?=\d)", " ", _YES.sub("", _NO.sub("", text)))
    return re.sub(r"(?<=[\d%])\s+(?=[^\W\d_])(?!confiden|sure|certain)", ", ", text)  # "sad 0.9 calm 0.4"


def _label(item: str) -> tuple[str, float | None]:
    """An item without hedges, quotes and confidence, and that confidence; empty where it is no label."""
    item = _LEADING.sub("", " ".join(item.split()).strip(_QUOTES)).strip(_QUOTES)
    score = None
    if len(item) > _MAX_ITEM:
        return "", score
    if percent := _PERCENT.search(item):
        score, item = float(percent[1]), item[: percent.start()].strip(_QUOTES)
    item = _LEADING.sub("", item).strip(_QUOTES + "!")
    item = re.sub(r"\s+(?:emotions?|emotional states?)$", "", item, flags=re.IGNORECASE)
    if (
        _NO_LABEL.match(item)
        or _CONFIDENCE.match(item)
        or _NOT_A_LABEL.match(item)
        or not _LETTERS.search(item)
        or _REPEATED.search(item[:100])
    ):
        return "", score
    if item.lower() not in polarity_words():
        # "angry at his boss" is angry; "fear of success" is one label
        head = re.split(r"\s+(?:at|about|towards?|in|during|throughout|by|with|from|overall)\b", item, maxsplit=1)[0]
        if _is_known(head):
            item = head
    return (item, score) if len(item.split()) <= MAX_LABEL_WORDS else ("", score)


def _is_known(label: str) -> bool:
    """Return whether the polarity of a word is known, also behind an adverb ("pleasantly surprised")."""
    return label.lower() in polarity_words() or re.sub(r"^\w+ly ", "", label.lower()) in polarity_words()


def _bare_list(text: str) -> list[str] | None:
    """Labels of an answer that is nothing but a list: in brackets, or short items, or a single word."""
    body = _plain_scores(text).strip().rstrip(".!").strip(_QUOTES)
    if text.startswith("[") and text.rstrip(".").endswith("]"):
        return _claims(body) if body else []
    body = ", ".join(line for line in body.splitlines() if line.strip())
    if re.search(r"[.!?]\s", body):
        return None
    for piece in _SEPARATOR.split(body)[::2]:
        item = " ".join(_DENIAL.sub("", piece).split())
        if len(_LEADING.sub("", item)) > _MAX_ITEM:
            return None
        item = _PERCENT.sub("", item).strip()
        if len(item.split()) > 2 and not _is_known(_LEADING.sub("", item)):
            return None
    return _claims(body)


_BRACKETED = re.compile(r"\[([^\[\]]*)\]")
_CHINESE_POLARITIES = {
    "积极": "positive", "正面": "positive", "消极": "negative", "负面": "negative", "中性": "neutral",
}  # fmt: skip


def _after_output(text: str) -> str:
    """The part behind the last ``Output:`` of a reply that repeats the prompt's form."""
    return re.split(r"\boutput\s*:|输出\s*:", text, flags=re.IGNORECASE)[-1]


def read_reply_labels(reply: str, cleaned: str) -> tuple[str, bool]:
    """The item of a language model's reply to the published label prompt, and whether it had to be read tolerantly.

    ``cleaned``: the reply after the published cleaning, which stands where it is a plain list. Else thoughts, bold
    text, bullets, numbers, sentences and other punctuation are read as ``read_labels`` does; a refusal gives ``[]``.
    """
    plain = re.fullmatch(r"\[([^\[\]<>*`#，、；|:;]*)\]", cleaned)
    if plain and not re.search(r"\d[.)]\s", cleaned) and not _REFUSAL.match(plain[1].removeprefix("sorry")):
        return cleaned, False
    answered = _without_thoughts(reply.translate(_ASCII)[:MAX_ANSWER]) or ""
    output = _after_output(answered)
    inside = _BRACKETED.findall(output) if "{" not in output and not re.search(r"\]\s*,\s*[^\s\[]", output) else []
    refused = _REFUSAL.match(answered.lstrip("[")) is not None or len(reply) > MAX_ANSWER
    # what was asked for is a list: words around it are none of it ("Here are the labels: [happy, calm]")
    labels = read_labels(f"[{', '.join(inside)}]") if inside and not refused else read_labels(reply)
    if refused and answered.startswith("["):
        labels = None
    if labels is not None and [w.lower() for w in labels] == [w.lower() for w in parse_item(cleaned)]:
        return cleaned, False
    return f"[{', '.join(label.replace(',', ' ') for label in labels or [])}]", True


def read_reply_polarity(reply: str, cleaned: str) -> tuple[str, bool]:
    """positive, negative or neutral in a language model's reply, and whether it had to be read tolerantly.

    ``cleaned``: the reply after the published cleaning, which stands where it is one of the three words, and where none
    of them is claimed (it then counts as neutral, as published).
    """
    if cleaned in POLARITIES:
        return cleaned, False
    claimed = [label.lower() for label in read_labels(reply) or []]
    words = {word for word in POLARITIES if word in claimed}
    text = _after_output(_without_thoughts(reply.translate(_ASCII)[:MAX_ANSWER]) or "")
    if not words and not _REFUSAL.match(text):  # a sentence of another form
        for match in re.finditer(r"\b(positive|negative|neutral)\b|积极|正面|消极|负面|中性", text, re.IGNORECASE):
            if not _DENIAL.search(_clause_before(text, match.start())):
                words.add(_CHINESE_POLARITIES.get(match[0], match[0].lower()))
    return (words.pop(), True) if len(words) == 1 else (cleaned, True)


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
