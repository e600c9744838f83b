"""The sound of a video as the wav file that data sets have: 16 kHz, mono, 16 bits."""

from __future__ import annotations

import io
from pathlib import Path

from affectgpt.core.files import atomic_path
from affectgpt.core.types import SAMPLE_RATE
from affectgpt.media.guard import Decoder


def extract_audio(video: Path | str, wav: Path | str, *, decoder: Decoder | None = None) -> Path | None:
    """Write a video's sound track to ``wav``, atomically; None, and no file, when the video has no sound track.

    Raises DataError naming the video when its sound cannot be decoded.
    """
    import soundfile

    samples = (decoder or Decoder()).track(video)
    if samples is None:
        return None
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    wav = Path(wav)
    with atomic_path(wav) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return wav
