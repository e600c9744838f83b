"""What is said in a clip, by a subtitle file beside it."""

from __future__ import annotations

import html
import re
from pathlib import Path

from affectgpt.core.errors import DataError

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
