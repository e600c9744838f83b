"""Does a model hear and see what it is sent? Servers and processors drop media without a word.

On a few clips each medium is taken away: the number of prompt tokens and the answer must change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from affectgpt.core.errors import DataError
from affectgpt.core.runtime import logger
from affectgpt.core.types import Sample
from affectgpt.mllm.clip import ClipMedia
from affectgpt.textllm.base import Conversation, Sampling, TextLLM, TextLLMError, TextReply

CLIPS = 3
_SEARCHED = 30  # clips that are opened to find some with all media
_TOKENS = 64  # of an answer; its beginning is enough
_LACKING = {"audio": "deaf", "video": "blind"}


class DeafOrBlindError(TextLLMError):
    """The model does not take in a medium that it is sent."""


@dataclass
class Sense:
    """One medium: prompt tokens with and without it by clip (None where the server does not count), and how many
    answers changed when it was taken away."""

    medium: str
    clips: list[str] = field(default_factory=list)
    tokens: list[tuple[int | None, int | None]] = field(default_factory=list)
    changed: int = 0

    @property
    def fault(self) -> str | None:
        """Why the model is deaf or blind; None where it is not."""
        same = [
            f"{clip} ({a} tokens)"
            for clip, (a, b) in zip(self.clips, self.tokens, strict=True)
            if a is not None and a == b
        ]
        if same:
            return f"the prompt has as many tokens without the {self.medium} as with it: {', '.join(same)}"
        if not self.changed:
            return f"the answers to {len(self.clips)} clips are the same without the {self.medium} as with it"
        return None

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return {
            "clips": self.clips, "prompt_tokens_with_and_without": self.tokens, "answers_changed": self.changed,
            "fault": self.fault,
        }  # fmt: skip


def probe_clips(
    samples: Iterable[Sample], media: Sequence[str], read: Callable[[Sample], ClipMedia]
) -> list[tuple[Sample, ClipMedia]]:
    """The first three clips that have all these media; clips that cannot be read are passed over here.

    Raises DataError when there is none among the first thirty.
    """
    found: list[tuple[Sample, ClipMedia]] = []
    last: DataError | None = None
    for sample, _ in zip(samples, range(_SEARCHED), strict=False):
        try:
            clip = read(sample)
        except DataError as error:
            last = error
            continue
        if all(medium in clip.there for medium in media):
            found.append((sample, clip))
        if len(found) == CLIPS:
            break
    if not found:
        reason = f" ({last})" if last else ""
        raise DataError(
            f"none of the first clips has {' and '.join(media)}{reason}, so that nothing shows whether the model takes "
            "them in. Send other --media, or say --allow-deaf"
        )
    return found


def check_senses(
    client: TextLLM,
    clips: Sequence[tuple[Sample, ClipMedia]],
    media: Sequence[str],
    converse: Callable[[Sample, ClipMedia], Conversation],
    *,
    sampling: Sampling,
) -> list[Sense]:
    """Ask about each clip with all media and without each of them, always for the likeliest tokens.

    Sampled answers would differ by chance. Raises TextLLMError when the model does not answer.
    """
    conversations: list[Conversation] = []
    for sample, clip in clips:
        conversations.append(converse(sample, clip))
        conversations += [converse(sample, clip.without(medium)) for medium in media]
    greedy = replace(sampling, temperature=0.0, max_tokens=min(sampling.max_tokens, _TOKENS))
    replies = client.chat_many(conversations, sampling=greedy)
    step = 1 + len(media)
    senses = []
    for at, medium in enumerate(media, start=1):
        sense = Sense(medium)
        for number, (sample, _) in enumerate(clips):
            whole, part = replies[number * step], replies[number * step + at]
            sense.clips.append(sample.name)
            sense.tokens.append((whole.prompt_tokens, part.prompt_tokens))
            sense.changed += _words(whole) != _words(part)
        senses.append(sense)
        if any(count is None for pair in sense.tokens for count in pair):
            logger.warning("the server does not count prompt tokens: %s is checked by the answers alone", medium)
    return senses


def refuse_faults(senses: Sequence[Sense], *, allow: bool) -> None:
    """DeafOrBlindError for a model with a fault, or a warning where the user allows it."""
    words = [f"{_LACKING[sense.medium]}: {sense.fault}" for sense in senses if sense.fault]
    if not words:
        return
    if not allow:
        raise DeafOrBlindError(
            f"the model is {'; '.join(words)}. Its answers would be those of another input than the record says. Look "
            "at the server's log and its limits (vLLM: --limit-mm-per-prompt), try --as-frames or --audio-part "
            "audio_url, leave the medium out of --media, or say --allow-deaf, which marks the run"
        )
    logger.warning("the model is %s; --allow-deaf: the run is marked", "; ".join(words))


def _words(reply: TextReply) -> str:
    return " ".join(reply.text.split())
