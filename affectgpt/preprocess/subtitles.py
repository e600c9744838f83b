"""What is said in a clip, by a subtitle file beside it."""

from __future__ import annotations

import html
import re
from pathlib import Path

from affectgpt.core.errors import DataError

_TIMES = re.compile(r"^\s*(?:\d+:)?\d+:\d+[.,]\d+\s*-->")
# What SubRip, WebVTT and ASS define, and nothing else: people write < and > in what is said, too.
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_TAG = re.compile(
    r"""
      </?(?:[ibusc]|ruby|rt)(?:\.[^\s<>.]+)*\s*>                  # <i>, <c.yellow.bg_blue>
    | <(?:v|lang)(?:\.[^\s<>.]+)*(?:[ \t][^<>]*)?> | </(?:v|lang)>  # <v.loud Ann>, <lang en>
    | <font(?:\s+[\w-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+))*\s*/?> | </font>
    | <\d+:\d\d(?::\d\d)?[.,]\d{1,3}>                             # <00:00:01.000>: when a word begins
    | \{\\[^{}]*\}                                               # {\an8}
    """,
    re.IGNORECASE | re.VERBOSE,
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|\w{1,40});")
_VTT_HEADINGS = ("WEBVTT", "NOTE", "STYLE", "REGION", "Kind:", "Language:")


def beside(video: Path) -> str | None:
    """The text of ``NAME.srt`` or ``NAME.vtt`` beside a clip; None when there is neither."""
    for suffix in (".srt", ".vtt"):
        path = video.with_suffix(suffix)
        if path.is_file():
            return read_subtitle_file(path)
    return None


def read_subtitle_file(path: Path) -> str:
    """The spoken text of an .srt or .vtt file: cues joined by spaces.

    Cue numbers, times and settings, the tags of SubRip and WebVTT and ASS overrides are left out, HTML entities are
    resolved; any other ``<`` and ``>`` is text. Raises DataError when the file is not UTF-8 or holds no cue.
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
        spoken += [text for line in block[at + 1 :] if (text := _plain(line))]
    if not cues:
        raise DataError(f"{path}: holds no subtitle cue (a line with 00:00:01,000 --> 00:00:02,000)")
    return " ".join(spoken)


def _plain(line: str) -> str:
    """A line of a cue without its markup. Tags go first: ``&lt;i&gt;`` is text."""
    line = _TAG.sub("", _BREAK.sub(" ", line))
    return _ENTITY.sub(lambda found: html.unescape(found[0]), line).strip()
