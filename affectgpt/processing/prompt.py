"""The one place where a prompt is made: its text, its ids, what of a training sample is learnt (wire)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from affectgpt.core.errors import DataError
from affectgpt.core.types import IGNORE_INDEX, Modality
from affectgpt.processing.modes import get_mode

END_OF_ANSWER = "###"
CHAT_MEDIA = ("face", "video", "audio", "image")  # parts of a chat
SHORTENED = "subtitle_shortened"  # a flag of an example
GENERATION_LENGTH = 2000  # tokens, prompt and answer together
MAX_NEW_TOKENS = 1200
_QUESTION = "Now, please answer my question based on all the provided information. {question} ###Assistant: "
_PLACEHOLDER = re.compile("<(" + "|".join(m.placeholder[1:-1] for m in Modality) + ")>")
_SPECIAL = re.compile(r"<(\|[^<>|\s]{1,40}\||/?s|/?(?:Multi|Audio|Video|Image|Subtitle))>")
_TURN = re.compile("#{3,}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def quote_text(text: str) -> str:
    """Text of others (a subtitle, a user's question) made safe inside a prompt.

    A media placeholder would splice media where none belongs, ``###`` is the mark between turns, an LLM's special
    token (``<|im_end|>``, ``</s>``) or one of the prompt's own tags would end what it stands in, and control characters
    are noise: ``<FaceHere>`` becomes ``< FaceHere >``, ``###`` becomes ``# # #``, ``</Subtitle>`` becomes
    ``< /Subtitle >``, a control character (tab and newline stay) a space. Any other text is returned unchanged.
    """
    text = _PLACEHOLDER.sub(r"< \1 >", text)
    text = _SPECIAL.sub(r"< \1 >", text)
    text = _TURN.sub(lambda run: " ".join(run[0]), text)
    return _CONTROL.sub(" ", text)


def render_prompt(mode: str, *, subtitle: str, question: str, sample: str = "") -> str:
    """The whole prompt, placeholders once each. It ends in a space (a token of its own).

    Raises ConfigError for an unknown mode and DataError naming ``sample`` when a mode that quotes the subtitle gets
    something that is no text.
    """
    row = get_mode(mode)
    if row.has_subtitle and not isinstance(subtitle, str):
        raise DataError(
            f"sample {sample!r}: mode {mode} quotes the subtitle, which must be text (an empty one is fine); "
            f"found {subtitle!r}"
        )
    sentences = row.sentences
    if row.has_subtitle:
        sentences = tuple(s.replace("{subtitle}", quote_text(subtitle)) for s in sentences)
    return row.lead + "".join(sentences) + _QUESTION.replace("{question}", quote_text(question))


def chat_template(mode: str) -> str:
    """The published prompt of an input mode as a Jinja template for chats.

    Of the last user message: the text is the question, ``{"type": "subtitle", "subtitle": …}`` what is said. Where its
    media stand in the prompt is the mode's to say, not their order in the message.
    """
    row = get_mode(mode)
    head, _, rest = (row.lead + "".join(row.sentences)).partition("{subtitle}")
    question, _, tail = _QUESTION.partition("{question}")
    said = "{{- ns.subtitle -}}" if row.has_subtitle else ""
    return (
        "{%- set ns = namespace(question='', subtitle='') -%}"
        "{%- for message in messages if message['role'] == 'user' -%}"
        "{%- if message['content'] is string -%}{%- set ns.question = message['content'] -%}{%- else -%}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'text' -%}{%- set ns.question = part['text'] -%}"
        "{%- elif part['type'] == 'subtitle' -%}{%- set ns.subtitle = part['subtitle'] -%}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}{%- endfor -%}"
        f"{{{{- {head!r} -}}}}{said}{{{{- {rest + question!r} -}}}}{{{{- ns.question -}}}}{{{{- {tail!r} -}}}}"
    )


def repeat_placeholders(prompt: str, n_tokens: Mapping[Modality, int]) -> str:
    """Each placeholder repeated as often as its connector gives tokens, as done before tokenising."""
    for modality in Modality:
        prompt = prompt.replace(modality.placeholder, modality.placeholder * n_tokens.get(modality, 1))
    return prompt


def encode_prompt(
    prompt: str, *, tokenizer: Any, n_tokens: Mapping[Modality, int], max_length: int, sample: str, limit: str = ""
) -> list[int]:
    """A prompt → its ids, each placeholder repeated ``n_tokens`` times, without bos, cut on the right.

    ``tokenizer`` knows the five placeholders. Raises DataError naming ``sample`` when the cut takes one of them;
    ``limit`` says what sets the length: a training's ``model.max_length`` where it is not given.
    """
    text = repeat_placeholders(prompt, n_tokens)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    limit = limit or f"or raise model.max_length, which is {max_length}"
    return _cut(ids, ids[:max_length], tokenizer=tokenizer, sample=sample, limit=limit)


def encode_training(
    prompt: str, answer: str, *, tokenizer: Any, n_tokens: Mapping[Modality, int], max_length: int, sample: str
) -> tuple[list[int], list[int]]:
    """``[bos] prompt answer### [eos]`` and its labels: nothing of bos and prompt is learnt.

    Prompt and answer are tokenised apart and cut at ``max_length`` each. Raises DataError naming ``sample`` when both
    together (without bos and eos) are longer than that.
    """
    prompt_ids = encode_prompt(prompt, tokenizer=tokenizer, n_tokens=n_tokens, max_length=max_length, sample=sample)
    answer_ids = tokenizer(answer + END_OF_ANSWER, add_special_tokens=False).input_ids[:max_length]
    total = len(prompt_ids) + len(answer_ids)
    if total > max_length:
        raise DataError(
            f"sample {sample!r}: prompt ({len(prompt_ids)} tokens) and answer ({len(answer_ids)}) are {total} tokens, "
            f"model.max_length is {max_length}; shorten the text or raise it"
        )
    ids = [tokenizer.bos_token_id, *prompt_ids, *answer_ids, tokenizer.eos_token_id]
    labels = [IGNORE_INDEX] * (1 + len(prompt_ids)) + ids[1 + len(prompt_ids) :]
    return ids, labels


def encode_generation(
    prompt: str,
    *,
    tokenizer: Any,
    n_tokens: Mapping[Modality, int],
    sample: str,
    max_length: int = GENERATION_LENGTH,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[int]:
    """A prompt → ids to continue: no bos, cut on the right at ``max_length``, then on the left so that the answer fits.

    Raises DataError naming ``sample`` when a cut takes a placeholder or leaves no room.
    """
    room = max_length - max_new_tokens
    if room < 1:
        raise DataError(
            f"inference.max_new_tokens {max_new_tokens} leaves no room for a prompt: it must be below {max_length}"
        )
    limit = (
        f"or lower inference.max_new_tokens: prompt and answer share {max_length} tokens, and {max_new_tokens} of them "
        "are the answer's"
    )
    ids = encode_prompt(
        prompt, tokenizer=tokenizer, n_tokens=n_tokens, max_length=max_length, sample=sample, limit=limit
    )  # fmt: skip
    return _cut(ids, ids[-room:], tokenizer=tokenizer, sample=sample, limit=limit)


def _cut(ids: list[int], kept: list[int], *, tokenizer: Any, sample: str, limit: str) -> list[int]:
    if len(kept) == len(ids):
        return ids
    for modality in Modality:
        token = tokenizer.convert_tokens_to_ids(modality.placeholder)
        lost = ids.count(token) - kept.count(token)
        if lost:
            raise DataError(
                f"sample {sample!r}: its prompt has {len(ids)} tokens; cutting it to {len(kept)} removes {lost} of "
                f"its {modality.placeholder}. Shorten the subtitle or the question, {limit}."
            )
    return kept


def text_and_media(chat: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A chat with its text quoted and without media, and the media of its user messages."""
    media: dict[str, Any] = {}
    said: list[dict[str, Any]] = []
    for message in chat:
        content = message["content"]
        if isinstance(content, str):
            said.append({"role": message["role"], "content": quote_text(content)})
            continue
        parts = []
        for part in content:
            kind = part.get("type")
            if kind in ("text", "subtitle"):
                parts.append({"type": kind, kind: quote_text(str(part[kind]))})
            elif kind in CHAT_MEDIA:
                media[kind] = next((part[key] for key in (kind, "path", "url") if part.get(key) is not None), None)
            else:
                raise DataError(f"a chat's part has type {kind!r}; allowed: text, subtitle, {', '.join(CHAT_MEDIA)}")
        said.append({"role": message["role"], "content": parts})
    return said, media
