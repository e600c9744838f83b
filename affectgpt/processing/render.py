"""The prompt text of a sample (SPEC 3.2, wire)."""

from __future__ import annotations

import re

from affectgpt.core.errors import DataError
from affectgpt.core.types import Modality
from affectgpt.processing.modes import get_mode

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


def repeat_placeholders(prompt: str, n_tokens: dict[Modality, int]) -> str:
    """Each placeholder repeated as often as its branch gives tokens, as done before tokenising."""
    for modality in Modality:
        prompt = prompt.replace(modality.placeholder, modality.placeholder * n_tokens.get(modality, 1))
    return prompt
