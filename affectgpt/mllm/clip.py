"""A clip's media, decoded here, and the conversation that asks about them: for a server, or for a model in a folder.

Video and sound go as separate parts. Servers lose the sound inside a video without a word.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from affectgpt.core.errors import DataError
from affectgpt.core.types import SAMPLE_RATE, Sample
from affectgpt.media.encode import jpeg_of, mp4_of, wav_of, within_one
from affectgpt.media.guard import Decoder
from affectgpt.media.reader import read_sound
from affectgpt.mllm.prompts import AUDIO, SUBTITLE, VIDEO, Prompt
from affectgpt.textllm.base import Conversation
from affectgpt.textllm.messages import user_message

if TYPE_CHECKING:
    import numpy as np

MOST_FRAMES = 100  # where frames per second decide
MOST_SECONDS = 600  # of sound; no model of today takes more, and several requests are in memory at a time


@dataclass(frozen=True)
class MediaOptions:
    """How clips are read and sent. ``frames`` uniform ones, or ``fps`` per second (at most 100), none longer than
    ``longest_side`` pixels; ``as_frames``: as pictures instead of a video; ``audio_part``: see ``user_message``."""

    media: tuple[str, ...]
    frames: int = 8
    fps: float | None = None
    longest_side: int = 448
    as_frames: bool = False
    audio_part: str = "input_audio"

    def sent(self, *, server: bool) -> dict[str, str]:
        """Medium → what is sent of it, in words, for the record."""
        many = f"{self.frames} uniform" if self.fps is None else f"{self.fps:g} per second, at most {MOST_FRAMES},"
        form = "JPEG pictures" if self.as_frames and server else "pictures" if self.as_frames else "a video"
        video = f"{many} frames, longest side at most {self.longest_side}, as {form}"
        if server and not self.as_frames:
            video += " (mp4, H.264, at the pace of the clip)"
        audio = f"the whole sound, mono, {SAMPLE_RATE} Hz"
        if server:
            audio += f", wav of 16 bits as {self.audio_part}"
        said = {VIDEO: video, AUDIO: audio, SUBTITLE: "in the text"}
        return {medium: said[medium] for medium in self.media}


@dataclass(frozen=True)
class ClipMedia:
    """Decoded media: frames uint8 ``[T, H, W, 3]`` at ``fps``, sound float32 ``[n]`` at 16 kHz within ±1."""

    frames: np.ndarray | None = None
    fps: float = 1.0
    sound: np.ndarray | None = None
    flags: tuple[str, ...] = ()

    def without(self, medium: str) -> ClipMedia:
        """The same clip with one medium taken away."""
        return ClipMedia(
            None if medium == VIDEO else self.frames, self.fps, None if medium == AUDIO else self.sound, self.flags
        )

    @property
    def there(self) -> Collection[str]:
        """The media that it has."""
        return [medium for medium, value in ((VIDEO, self.frames), (AUDIO, self.sound)) if value is not None]


def read_clip(sample: Sample, options: MediaOptions, decoder: Decoder) -> ClipMedia:
    """Decode what is to be sent of a clip. Raises DataError naming data set, sample and file."""
    frames, fps, sound = None, 1.0, None
    flags: tuple[str, ...] = ()
    try:
        if VIDEO in options.media:
            if sample.video is None:
                raise DataError("no video file is known")
            seconds = decoder.probe(sample.video).seconds
            count = options.frames
            if options.fps is not None:
                count = min(MOST_FRAMES, max(1, math.ceil(seconds * options.fps)))
            frames, _ = decoder.native_frames(
                sample.video, n_frames=count, start=0, count=count, longest_side=options.longest_side
            )
            if not len(frames):
                raise DataError(f"{sample.video}: the video has no frames")
            fps = len(frames) / seconds if seconds > 0 else 1.0
        if AUDIO in options.media:
            sound, flags = read_sound(sample, decoder)
            if sound is not None and len(sound) > MOST_SECONDS * SAMPLE_RATE:
                raise DataError(
                    f"its sound is {len(sound) / SAMPLE_RATE:,.0f} s long; at most {MOST_SECONDS} s are sent. Cut it up"
                )
            sound = None if sound is None else within_one(sound)
    except DataError as error:
        raise DataError(f"{sample.dataset}: sample {sample.name!r}: {error}") from error
    return ClipMedia(frames, fps, sound, flags)


def prompt_text(sample: Sample, prompt: Prompt, options: MediaOptions) -> str:
    """The text that goes with a clip."""
    return prompt.text(sample.subtitle if SUBTITLE in options.media else "")


def server_conversation(text: str, clip: ClipMedia, options: MediaOptions) -> Conversation:
    """The message for an OpenAI-compatible server: frames as mp4 or JPEG pictures, sound as wav, then the text."""
    frames = [] if clip.frames is None else list(clip.frames)
    return [
        user_message(
            text,
            images=[jpeg_of(frame) for frame in frames] if options.as_frames else [],
            video=None if clip.frames is None or options.as_frames else mp4_of(clip.frames, fps=clip.fps),
            audio=None if clip.sound is None else wav_of(clip.sound),
            audio_part=options.audio_part,
        )
    ]


def folder_conversation(text: str, clip: ClipMedia, options: MediaOptions) -> Conversation:
    """The message for a model in a folder: the same parts as arrays, as transformers' processors take them."""
    parts: list[dict[str, Any]] = []
    if clip.frames is not None and options.as_frames:
        parts += [{"type": "image", "image": frame} for frame in clip.frames]
    elif clip.frames is not None:
        parts.append({"type": "video", "video": clip.frames, "fps": clip.fps})
    if clip.sound is not None:
        parts.append({"type": "audio", "audio": clip.sound})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
