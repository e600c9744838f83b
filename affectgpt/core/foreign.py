"""Text of others: names that become paths, and text that a terminal shows."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from affectgpt.core.errors import AffectGPTError, DataError

LONGEST_NAME = 255  # bytes of a file or folder name, on every usual file system
_MEDIA_SUFFIX = ".jpeg"  # the longest that a sample's name gets
# Control characters (ESC among them), marks that turn the reading direction, and halves of characters.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def check_name(
    name: str,
    *,
    source: Path | str,
    line: int | None = None,
    what: str = "sample name",
    suffix: str = _MEDIA_SUFFIX,
    error: type[AffectGPTError] = DataError,
) -> str:
    """The name itself, when it is fit to be the name of a file or folder and with ``suffix`` no longer than one may be.

    Every name that becomes part of a path comes through here. ``what`` it names, and the ``source`` (and line) that
    gave it, are said in the error; ``error`` is the kind that is raised.
    """
    wrong = None
    if name in ("", ".", "..") or "/" in name or "\\" in name or _UNSHOWN.search(name):
        wrong = "is no file stem (empty, '.', '..', '/', '\\' and control characters are refused)"
    elif (size := len(f"{name}{suffix}".encode())) > LONGEST_NAME:
        wrong = f"has {size} bytes{f' with {suffix}' if suffix else ''}; file systems take {LONGEST_NAME}"
    if wrong:
        shown = name if len(name) <= 60 else f"{name[:60]}…"
        place = source if line is None else f"{source}, line {line}"
        raise error(f"{place}: {what} {shown!r} {wrong}; give another name")
    return name


def check_below(file: str, *, source: Path | str, folder: str) -> str:
    """The path of a file in ``folder`` (in words) or below it, such as ``part1/0001.jpg``; DataError for any other.

    Every part of it is a name as ``check_name`` takes them.
    """
    if not file or file.startswith("/") or ".." in file.split("/"):
        raise DataError(f"{source}: file {file!r} must lie below {folder}")
    for part in PurePosixPath(file).parts:
        check_name(part, source=source, what="file name", suffix="")
    return file


def printable(text: str, *, lines: bool = False) -> str:
    r"""Text of others as a terminal may show it: control characters and the like are written out as ``\u001b``.

    Unescaped, a label or an answer could move the cursor, rewrite lines above or set the window's title. ``lines``:
    line ends and tabs stay. JSON stays JSON of the same meaning.
    """
    return _UNSHOWN.sub(lambda m: m[0] if lines and m[0] in "\n\t" else _SHORT.get(m[0], f"\\u{ord(m[0]):04x}"), text)
