"""Subtitles of a clip, from a file beside it."""

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
    """The text of ``NAME.srt`` or ``NAME.vtt`` beside a clip (in capitals too); None when there is neither."""
    for suffix in (".srt", ".SRT", ".vtt", ".VTT"):
        path = video.with_suffix(suffix)
        if path.is_file():
            return read_subtitle_file(path)
    return None


def read_subtitle_file(path: Path) -> str:
    """The spoken text of an .srt or .vtt file: cues joined by spaces; empty for a file without any cue (silence).

    Cue numbers, times and settings, the tags of SubRip and WebVTT and ASS overrides are left out, HTML entities are
    resolved; any other ``<`` and ``>`` is text. Lines of rolling captions, which every cue repeats from the one before,
    are taken once. Raises DataError when the file is not UTF-8 or holds text but no cue.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8; save the subtitle file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    starts = [i for i, line in enumerate(lines) if _TIMES.match(line)]
    if not starts:
        if any(line and not line.startswith(_VTT_HEADINGS) for line in lines):
            raise DataError(f"{path}: holds no subtitle cue (a line with 00:00:01,000 --> 00:00:02,000)")
        return ""
    cues: list[list[str]] = []
    for start, following in zip(starts, [*starts[1:], len(lines)], strict=True):
        # a cue ends at a blank line, or, in files without, at the number before the next time
        cue: list[str] = []
        for at in range(start + 1, following):
            is_number = at == following - 1 and following < len(lines) and lines[at].isdigit()
            if not lines[at] or is_number:
                break
            cue.append(_plain(lines[at]))
        cues.append([line for line in cue if line])
    pairs = list(zip([[], *cues], cues, strict=False))  # each cue with the one before
    rolling = any(len(cue) > 1 and before and before[-1] == cue[0] for before, cue in pairs)
    spoken: list[str] = []
    for before, cue in pairs:
        counts = range(min(len(cue), len(before)), 0, -1) if rolling else ()
        repeated = next((n for n in counts if before[-n:] == cue[:n]), 0)
        spoken += cue[repeated:]
    return " ".join(spoken)


def _plain(line: str) -> str:
    """A line of a cue without its markup. Tags go first: ``&lt;i&gt;`` is text."""
    line = _TAG.sub("", _BREAK.sub(" ", line))
    return _ENTITY.sub(lambda found: html.unescape(found[0]), line).strip()
