"""The prompts of label extraction and how replies are cleaned (paper, appendix E)."""

from __future__ import annotations

import hashlib

from affectgpt.textllm.base import Conversation

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

# Hashes of the prompts that were asked before, with two sentences exchanged and single blanks: files made so are there.
EARLIER_PROMPTS = frozenset(
    {
        "86a30de9cce7cc8d2e8ca9afeecddb95178a6a957b9dc81f7652e8cbd57a13eb",
        "7914d64684063d52ff4a4ab5ec77585c76f01868a999e2739ea479ac75537aef",
    }
)

CLEANING_VERSION = 3  # part of a result's settings: raise it when a reply is read as another item
_LEADING = ("输入", "输出", "翻译", "让我们来翻译一下：", "output", "Output", "input", "Input")


def conversation(prompt: str, text: str) -> Conversation:
    """One user message: ``prompt`` with ``text`` (an answer, or a label list) in its last slot."""
    return [{"role": "user", "content": prompt.replace("{text}", text)}]


def prompt_sha256(prompt: str) -> str:
    """Hash of a prompt, so that a result says which wording made it."""
    return hashlib.sha256(prompt.encode()).hexdigest()


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
