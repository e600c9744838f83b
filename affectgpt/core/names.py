"""Names of samples, runs and files that others chose: checked before they become part of a path."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from affectgpt.core.errors import UNSHOWN, AffectGPTError, DataError

LONGEST_NAME = 255  # bytes of a file or folder name, on every usual file system
_MEDIA_SUFFIX = ".jpeg"  # the longest that a sample's name gets


def check_name(
    name: str,
    *,
    source: Path | str,
    line: int | None = None,
    what: str = "sample name",
    suffix: str = _MEDIA_SUFFIX,
    error: type[AffectGPTError] = DataError,
    to_do: str = "give another name",
) -> str:
    """The name itself, when it is fit to be the name of a file or folder and with ``suffix`` no longer than one may be.

    Every name that becomes part of a path comes through here. ``what`` it names, and the ``source`` (and line) that
    gave it, are said in the error, and what is ``to_do``; ``error`` is the kind that is raised.
    """
    wrong = None
    if name in ("", ".", "..") or "/" in name or "\\" in name or UNSHOWN.search(name):
        wrong = "is not a file stem (empty, '.', '..', '/', '\\' and control characters are refused)"
    elif (size := len(f"{name}{suffix}".encode())) > LONGEST_NAME:
        wrong = f"has {size} bytes{f' with {suffix}' if suffix else ''}; file systems take {LONGEST_NAME}"
    if wrong:
        shown = name if len(name) <= 60 else f"{name[:60]}…"
        place = source if line is None else f"{source}, line {line}"
        raise error(f"{place}: {what} {shown!r} {wrong}; {to_do}")
    return name


def check_below(file: str, *, source: Path | str, folder: str) -> str:
    """The path of a file in ``folder`` (in words) or below it, such as ``part1/0001.jpg``; DataError for any other.

    Every part of it is a name as ``check_name`` takes them.
    """
    if not file or file.startswith("/") or ".." in file.split("/"):
        raise DataError(f"{source}: file {file!r} must be below {folder}")
    for part in PurePosixPath(file).parts:
        check_name(part, source=source, what="file name", suffix="")
    return file
