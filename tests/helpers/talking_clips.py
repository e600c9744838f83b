"""MER2023 in small, with real media, and a server's model that hears and sees it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from fake_llm_server import Answer
from small_annotation import write_media, write_table
from small_benchmark import MER2023_TRUTH

from affectgpt.core.npz import write_npz
from affectgpt.datasets.table import get_row


def make_clips(root: Path, *, truth: dict[str, str] = MER2023_TRUTH) -> Path:
    """The data set root with MER2023's labels, subtitles (none for m4), videos and sounds."""
    row = get_row("MER2023")
    folder = root / row.root
    write_npz(
        folder / str(row.label_file),
        **{row.splits["test"]: {name: {"emo": emotion} for name, emotion in truth.items()}, "train_corpus": {}},
    )
    rows = [(name, "" if name == "m4" else f"Said in {name}.") for name in truth]
    write_table(folder / row.subtitle_file, ("name", row.subtitle_column), rows)
    for number, name in enumerate(truth):
        write_media(folder, name, seed=number)
    return root


def parts_of(body: dict[str, Any]) -> dict[str, Any]:
    """Kind of part → its content, decoded: frames ``[T, H, W, 3]``, seconds of sound, the text."""
    content = body["messages"][-1]["content"]
    found: dict[str, Any] = {"images": 0}
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        match part["type"]:
            case "text":
                found["text"] = part["text"]
            case "image_url":
                found["images"] += 1
            case "video_url":
                found["video"] = _frames(part["video_url"]["url"].removeprefix("data:video/mp4;base64,"))
            case "input_audio":
                assert part["input_audio"]["format"] == "wav"
                found["audio"] = _sound(part["input_audio"]["data"])
            case "audio_url":
                found["audio"] = _sound(part["audio_url"]["url"].removeprefix("data:audio/wav;base64,"))
    return found


def _frames(data: str) -> Any:
    import av
    import numpy as np

    with av.open(io.BytesIO(base64.b64decode(data))) as container:
        assert not container.streams.audio
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _sound(data: str) -> Any:
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32")
    assert rate == 16_000 and samples.ndim == 1
    return samples


def a_model(
    body: dict[str, Any], truth: dict[str, str] = MER2023_TRUTH, *, ears: bool = True, eyes: bool = True
) -> Answer:
    """Knows the emotion of the clip that the subtitle names, if it is shown and heard."""
    parts = parts_of(body)
    if not eyes:
        parts.pop("video", None)
    heard = ears and "audio" in parts
    tokens = len(parts["text"]) // 4 + parts["images"] * 10 + ("video" in parts) * 80 + heard * 25
    name = next((name for name in truth if f"Said in {name}." in parts["text"]), "m4")
    seen = "video" in parts or parts["images"] or not eyes
    labels = truth[name] if seen and (heard or not ears) else "bored" if seen else "tired"
    return Answer(
        text=f"The person's emotional\n\tstate is {labels}.",
        usage={"prompt_tokens": tokens, "completion_tokens": 9, "total_tokens": tokens + 9},
    )
