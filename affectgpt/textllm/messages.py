"""Messages of a conversation, with images, video and audio where a server takes them, and what is no answer."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from affectgpt.core.errors import DataError
from affectgpt.textllm.base import Conversation, Message, TextLLMError

_AUDIO_FORMATS = ("wav", "mp3", "flac", "ogg", "m4a")


def user_message(
    text: str,
    *,
    images: Sequence[str | Path | bytes] = (),
    video: bytes | None = None,
    audio: str | Path | bytes | None = None,
    audio_part: str = "input_audio",
) -> Message:
    """One user message: text, after images (files, or the bytes of JPEG pictures), a video (the bytes of an mp4 file)
    and sound (a file, or the bytes of a wav file), all sent inside it.

    Media become the parts of the OpenAI chat format: ``image_url`` and ``video_url`` with a data URL, ``input_audio``
    (or ``audio_part="audio_url"`` with a data URL, which vLLM and SGLang take too).
    Raises DataError for a file that is missing or of no known kind.
    """
    text = _whole_characters(text)
    if not images and audio is None and video is None:
        return {"role": "user", "content": text}
    parts: list[dict[str, Any]] = [_image_part(image) for image in images]
    if video is not None:
        parts.append({"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{_encoded(video)}"}})
    if audio is not None:
        kind, data = ("wav", _encoded(audio)) if isinstance(audio, bytes) else _audio_file(Path(audio))
        parts.append(
            {"type": "audio_url", "audio_url": {"url": f"data:audio/{kind};base64,{data}"}}
            if audio_part == "audio_url"
            else {"type": "input_audio", "input_audio": {"data": data, "format": kind}}
        )
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


# A reply that begins so is not an answer. Asking again with the same seed gives the same.
_REFUSAL = re.compile(
    r"^\W*(?:i(?:'|’)?m (?:very |so )?sorry\b|(?:sorry|unfortunately)[,.]? (?:but )?i (?:can(?:no|')t|am unable)"
    r"|i (?:can(?:no|['’])t|am (?:not able|unable) to) "
    r"(?:assist|help|provide|describe|analy[sz]e|identify|process|fulfil)"
    r"|as an ai (?:language )?model,? i (?:can|am|do)|抱歉|对不起|很抱歉)",
    re.IGNORECASE,
)


_THINK, _THOUGHT = "<think>", "</think>"


def without_thoughts(text: str) -> str:
    """A reply without what a reasoning model thinks first, up to ``</think>``, where its server leaves that in.

    Where the reply was cut before that, nothing is left.
    """
    if text.lstrip().startswith(_THINK):
        return text.partition(_THOUGHT)[2]
    return text


def no_answer(text: str) -> str | None:
    """Return why a reply's text is no answer: it is empty, or a refusal; None where it is one."""
    text = text.strip()
    if not text:
        return "the reply is empty"
    return f"the model refused: {text[:120]}" if _REFUSAL.match(text) else None


def _image_part(image: str | Path | bytes) -> dict[str, Any]:
    if isinstance(image, bytes):
        return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_encoded(image)}"}}
    path = Path(image)
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not kind.startswith("image/"):
        raise DataError(f"{path}: no image by its name; give .jpg, .png or .webp")
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{_base64(path)}"}}


def _audio_file(path: Path) -> tuple[str, str]:
    kind = path.suffix.lstrip(".").lower()
    if kind not in _AUDIO_FORMATS:
        raise DataError(f"{path}: no audio by its name; give one of {', '.join(_AUDIO_FORMATS)}")
    return kind, _base64(path)


def _base64(path: Path) -> str:
    try:
        return _encoded(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def text_of(content: Any) -> str | None:
    """The text of a reply's content: a string, or the joined text parts of a list; None without any."""
    if isinstance(content, list):
        parts = [p for p in content if isinstance(p, dict) and p.get("type", "text") in ("text", "output_text")]
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        content = "".join(texts) if texts else None
    return _whole_characters(content) if isinstance(content, str) else None


def _whole_characters(text: str) -> str:
    """Replace halves of characters, which no file in UTF-8 can hold, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def text_only(conversations: Sequence[Conversation], *, client: str) -> None:
    """Raise TextLLMError when a conversation holds anything but text, for a client that takes nothing else."""
    for number, conversation in enumerate(conversations):
        for message in conversation:
            if not isinstance(message["content"], str):
                kinds = sorted({part.get("type", "?") for part in message["content"]})
                raise TextLLMError(
                    f"conversation {number}: the {client} client takes text only, this message holds "
                    f"{', '.join(kinds)}; use the openai client with a server of a multimodal model"
                )
