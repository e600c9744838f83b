"""What is said in a clip: from a subtitle file beside it, or by a Whisper model folder (extra ``asr``)."""

from __future__ import annotations

import html
import re
from pathlib import Path

from affectgpt.core.errors import ConfigError, DataError

_TIMES = re.compile(r"^\s*(?:\d+:)?\d+:\d+[.,]\d+\s*-->")
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")
_VTT_HEADINGS = ("WEBVTT", "NOTE", "STYLE", "REGION", "Kind:", "Language:")


def beside(video: Path) -> str | None:
    """The text of ``NAME.srt`` or ``NAME.vtt`` beside a clip; None when there is neither."""
    for suffix in (".srt", ".vtt"):
        path = video.with_suffix(suffix)
        if path.is_file():
            return read_subtitle_file(path)
    return None


def read_subtitle_file(path: Path) -> str:
    """The spoken text of an .srt or .vtt file: cues joined by spaces, times, numbers and tags left out.

    Raises DataError when the file is not UTF-8 or holds no cue.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8; save the subtitle file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line.strip())
        else:
            blocks.append([])
    spoken, cues = [], 0
    for block in blocks:
        at = next((i for i, line in enumerate(block) if _TIMES.match(line)), None)
        if at is None or block[0].startswith(_VTT_HEADINGS[1:4]):
            continue
        cues += 1
        spoken += [text for line in block[at + 1 :] if (text := html.unescape(_TAG.sub("", line)).strip())]
    if not cues:
        raise DataError(f"{path}: holds no subtitle cue (a line with 00:00:01,000 --> 00:00:02,000)")
    return " ".join(spoken)


class Transcriber:
    """Speech to text by a Whisper folder in CTranslate2's format. Raises ConfigError when it cannot be loaded."""

    def __init__(self, folder: Path | str, *, device: str = "auto") -> None:
        try:
            from faster_whisper import WhisperModel
        except ImportError:
            raise ConfigError("--asr needs the package faster-whisper: pip install 'affectgpt[asr]'") from None
        if not (Path(folder) / "model.bin").is_file():
            raise ConfigError(f"--asr {folder}: no Whisper folder for faster-whisper (it has no model.bin)")
        try:
            self._model = WhisperModel(str(folder), device=device, compute_type="default", local_files_only=True)
        except Exception as error:  # CTranslate2 raises RuntimeError and ValueError with its own words
            raise ConfigError(f"--asr {folder}: cannot be loaded ({error})") from error

    def __call__(self, wav: Path) -> str:
        """The text of a 16 kHz wav file; the empty string where nothing is said."""
        from affectgpt.data.audio import read_wave

        segments, _ = self._model.transcribe(read_wave(wav), beam_size=5, vad_filter=False)
        return " ".join(text for segment in segments if (text := segment.text.strip()))
