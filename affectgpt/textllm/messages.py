"""Messages of a conversation, with images and audio where a server takes them."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from affectgpt.core.errors import DataError
from affectgpt.textllm.base import Conversation, Message, TextLLMError

_AUDIO_FORMATS = ("wav", "mp3", "flac", "ogg", "m4a")


def user_message(text: str, *, images: Sequence[str | Path | bytes] = (), audio: str | Path | None = None) -> Message:
    """One user message: text, after images (files, or the bytes of JPEG pictures) and an audio file, sent inside it.

    Media become the parts of the OpenAI chat format (``image_url`` with a data URL, ``input_audio``).
    Raises DataError for a file that is missing or of no known kind.
    """
    if not images and audio is None:
        return {"role": "user", "content": text}
    parts: list[dict[str, Any]] = [_image_part(image) for image in images]
    if audio is not None:
        parts.append(_audio_part(Path(audio)))
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def _image_part(image: str | Path | bytes) -> dict[str, Any]:
    if isinstance(image, bytes):
        return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_encoded(image)}"}}
    path = Path(image)
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not kind.startswith("image/"):
        raise DataError(f"{path}: no image by its name; give .jpg, .png or .webp")
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{_base64(path)}"}}


def _audio_part(path: Path) -> dict[str, Any]:
    kind = path.suffix.lstrip(".").lower()
    if kind not in _AUDIO_FORMATS:
        raise DataError(f"{path}: no audio by its name; give one of {', '.join(_AUDIO_FORMATS)}")
    return {"type": "input_audio", "input_audio": {"data": _base64(path), "format": kind}}


def _base64(path: Path) -> str:
    try:
        return _encoded(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def text_of(content: Any) -> str | None:
    """The text of a reply's content: a string, or a list of parts whose text parts belong together; None without any.

    Halves of characters, which no file in UTF-8 can hold, become U+FFFD.
    """
    if isinstance(content, list):
        parts = [p for p in content if isinstance(p, dict) and p.get("type", "text") in ("text", "output_text")]
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        content = "".join(texts) if texts else None
    return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(content, str) else None


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
