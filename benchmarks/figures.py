"""Measured figures of README.md and docs/: written from the records in benchmarks/results, never by hand.

    python benchmarks/figures.py              fills the blocks of README.md and docs/**/*.md
    python benchmarks/figures.py --check      changes nothing; 1, with a diff, where a page is not what the records give

A block stands between two lines of its own, anywhere outside fenced code, on any number of pages:

    <!-- figures: NAME -->
    <!-- /figures -->

Its content is replaced. NAME is one of ``BLOCKS`` (benchmarks/figure_blocks.py). A block
whose record is missing names the benchmark to run.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where tests load this file

from figure_blocks import BLOCKS
from figure_parts import MissingRecordError, Records
from records import RESULTS, ROOT

from affectgpt.cli.common import run_cli
from affectgpt.core.errors import DataError

MARK = re.compile(r"<!--\s*(?:figures:\s*(?P<name>[\w-]+)|(?P<end>/figures))\s*-->")
LIKE_A_MARK = re.compile(r"<!--\s*/?figures\b")


def pages_of(root: Path) -> list[Path]:
    """The pages that may have blocks."""
    return [path for path in (root / "README.md", *sorted((root / "docs").rglob("*.md"))) if path.is_file()]


def filled(text: str, records: Records, *, page: str) -> str:
    """A page with every block as the records give it. Raises DataError for marks that do not pair or are unknown."""
    kept: list[str] = []
    opened, fence = None, ""
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        bare = line.strip()
        if opened is None and (ticks := re.match(r"(`{3,}|~{3,})", bare)):
            fence = "" if fence and bare.startswith(fence) else fence or ticks[1]
        mark = None if fence else MARK.fullmatch(bare)
        where = f"{page}, line {number}"
        if mark is None:
            if not fence and LIKE_A_MARK.match(bare):
                wanted = "<!-- figures: NAME --> or <!-- /figures -->, a line of its own"
                raise DataError(f"{where}: {bare!r} is not a mark; expected {wanted}")
            if opened is None:
                kept.append(line)
        elif mark["end"]:
            if opened is None:
                raise DataError(f"{where}: <!-- /figures --> closes no block")
            kept.append(line)
            opened = None
        else:
            name = mark["name"]
            if opened is not None:
                raise DataError(f"{where}: block {name!r} begins before {opened!r} has its <!-- /figures -->")
            if name not in BLOCKS:
                raise DataError(f"{where}: no block {name!r}; there are {', '.join(BLOCKS)}")
            # blank lines: without them Markdown takes a table for a part of the comment
            kept += [line, "\n", made(name, records, where=where), "\n\n"]
            opened = name
    if opened is not None:
        raise DataError(f"{page}: block {opened!r} has no <!-- /figures -->")
    return "".join(kept)


def made(name: str, records: Records, *, where: str) -> str:
    """A block; where a record is missing, the command that leaves it. Raises DataError, also where a record was left by
    another version of its benchmark."""
    before = set(records.used)
    try:
        return BLOCKS[name](records)
    except MissingRecordError as error:
        print(f"{where}: block {name!r}: {error}", file=sys.stderr)
        return f"N{str(error)[1:]}."
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        read = ", ".join(sorted(records.used - before or records.used))
        raise DataError(
            f"{where}: block {name!r}: a record ({read}) has not what it shows ({type(error).__name__}: {error}); run "
            "its benchmark again"
        ) from error


def update(pages: Sequence[Path], records: Records, *, check: bool, root: Path = ROOT) -> list[str]:
    """Fill the blocks of all pages. Returns a diff of each page that changes; ``check``: writes nothing."""
    from affectgpt.core.files import write_text

    # all are made before the first is written: an error leaves pages as they were
    texts = {path: path.read_text(encoding="utf-8") for path in pages}
    names = {path: path.relative_to(root).as_posix() for path in pages}
    wanted = {path: filled(text, records, page=names[path]) for path, text in texts.items()}
    diffs = []
    for path, text in wanted.items():
        if text == texts[path]:
            continue
        before, after = texts[path].splitlines(keepends=True), text.splitlines(keepends=True)
        diffs.append("".join(difflib.unified_diff(before, after, names[path], f"{names[path]}, by the records")))
        if not check:
            write_text(path, text)
    return diffs


def main(argv: list[str] | None = None) -> int:
    """Fill, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 where a page differs from the records")
    parser.add_argument("--root", type=Path, default=ROOT, help="holds README.md and docs/ (default: this clone)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="records (default: benchmarks/results)")
    args = parser.parse_args(argv)
    records = Records(args.results)
    diffs = update(pages_of(args.root), records, check=args.check, root=args.root)
    for diff in diffs:
        print(diff)
    if diffs and args.check:
        print("these pages are not what the records give: python benchmarks/figures.py writes them", file=sys.stderr)
    return int(args.check and bool(diffs))


if __name__ == "__main__":
    sys.exit(run_cli(main))
