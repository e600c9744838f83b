"""What is said in a clip: a subtitle file beside the video, or speech recognition by a model folder."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from affectgpt.core.errors import ConfigError, DataError

SUFFIXES = (".srt", ".vtt")
_TIMES = re.compile(r"^\s*(?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3}\s*-->")
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
_VTT_BLOCK = re.compile(r"^(?:NOTE|STYLE|REGION)(?:\s|$)")


def subtitle_beside(video: Path) -> Path | None:
    """``CLIP.srt`` or ``CLIP.vtt`` beside ``CLIP.mp4``; None when there is none."""
    return next((p for p in (video.with_suffix(suffix) for suffix in SUFFIXES) if p.is_file()), None)


def read_subtitle(path: Path | str) -> str:
    """The spoken text of an .srt or .vtt file in one line: no numbers, times, tags, notes.

    Raises DataError naming the file when it is not UTF-8 or has no cue.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8") from error
    cues = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.strip("\n").split("\n")
        at = next((i for i, line in enumerate(lines) if _TIMES.match(line)), None)
        if at is not None and not _VTT_BLOCK.match(lines[0]):
            cues.append(" ".join(lines[at + 1 :]))
    if not cues:
        raise DataError(f"{path}: no subtitle in it (a line such as 00:00:01,000 --> 00:00:02,500 and text below)")
    return " ".join(html.unescape(_TAG.sub("", " ".join(cues))).split())


class Recogniser:
    """Speech to text with a faster-whisper model folder; loaded when first needed."""

    def __init__(self, folder: str | Path, *, device: str = "cpu") -> None:
        if not (Path(folder) / "model.bin").is_file():
            raise ConfigError(f"--asr {folder}: no faster-whisper model folder (it has no model.bin)")
        self.folder, self.device = str(folder), device
        self._model: Any = None

    def __call__(self, media: Path) -> str:
        """What is said in a sound or video file; empty when nothing is. Raises ConfigError without faster-whisper."""
        if self._model is None:
            try:
                from faster_whisper import WhisperModel
            except ImportError:
                raise ConfigError("--asr needs faster-whisper: pip install 'affectgpt[asr]'") from None
            self._model = WhisperModel(self.folder, device=self.device, compute_type="default", local_files_only=True)
        segments, _ = self._model.transcribe(str(media))
        return " ".join(segment.text.strip() for segment in segments).strip()
