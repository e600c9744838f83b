"""The lexicon behind the metrics, and the grouping of labels by it: the mapping G of the paper (section 4, equation 8).

A lexicon has word forms (F1), synonyms (F2) and emotion wheels (F3). It is the published folder ``emotion_wheel/`` or
the one of this package (``builtin``); after loading, the two differ in ``comparable`` only.

A grouping maps a label set to one integer, a bit per group, all wheels side by side: union is ``|``, intersection
``&``, size ``bit_count()``. Each distinct label is mapped once.
"""

from __future__ import annotations

import csv
import os
import tomllib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.core.errors import ConfigError, DataError, did_you_mean
from affectgpt.evaluation.labels import parse_item

BUILTIN = "builtin"
BUILTIN_FILE = Path(__file__).with_name("lexicon_builtin.toml")
N_WHEELS = 5
N_RUNS = 8  # synonym lists of the published synonym.xlsx: word_run1, synonym_run1 … word_run8, synonym_run8
NOT_COMPARABLE = "built-in lexicon: not comparable with published numbers"


def clean(word: object) -> str:
    """A word as every mapping knows it: lower case, no space around it."""
    return str(word).strip().lower()


@dataclass(frozen=True)
class Wheel:
    """One emotion wheel: rows of (level 1, level 2, level 3), inner to outer."""

    name: str
    rows: tuple[tuple[str, str, str], ...]

    def groups(self, level: int) -> dict[str, str]:
        """F3: every entry → its word at ``level`` (1: the inner ring, 2: the middle ring).

        A later row overwrites an earlier one. At level 2 an entry of the inner ring goes, where the sheet first has it,
        to the alphabetically first of its words in the middle ring.
        """
        groups: dict[str, str] = {}
        first: dict[str, str] = {}  # level-1 word → the first of its level-2 words
        for one, two, _ in self.rows:
            first[one] = min(first.get(one) or two, two)
        begun: set[str] = set()
        for one, two, three in self.rows:
            if level == 1:
                groups[one] = groups[two] = groups[three] = one
                continue
            if one not in begun:
                begun.add(one)
                groups[one] = first[one]
            groups[two] = groups[three] = two
        groups.pop("", None)
        return groups


@dataclass(frozen=True, eq=False)
class Lexicon:
    """Word forms, synonyms and wheels. ``comparable``: read from files, so numbers may stand beside the paper's."""

    source: str
    comparable: bool
    forms: dict[str, frozenset[str]]  # F1: form → names
    synonyms: dict[str, frozenset[str]]  # F2: word → wheel words
    wheels: tuple[Wheel, ...]

    def wheel_words(self, label: str) -> list[str]:
        """F2(F1(label)), sorted: the words to look for in a wheel; empty for an unknown label."""
        words: set[str] = set()
        for base in self.forms.get(clean(label), ()):
            words |= self.synonyms.get(base, frozenset())
        return sorted(words)


def find_lexicon(choice: str | None, default: str | os.PathLike[str] = "emotion_wheel") -> Lexicon:
    """The lexicon a user names: a folder, ``builtin``, or None: ``emotion_wheel/``, else the built-in one."""
    if choice is None:
        choice = str(default) if Path(default).is_dir() else BUILTIN
    return load_builtin() if choice == BUILTIN else load_folder(choice)


def load_folder(folder: str | os.PathLike[str]) -> Lexicon:
    """Read a folder of the published layout: wheel1..5.xlsx, synonym.xlsx, format.csv. Unchanged files are read once.

    Raises DataError naming the file, column and what to do.
    """
    folder = Path(folder)
    files = [folder / f"wheel{k}.xlsx" for k in range(1, N_WHEELS + 1)] + [
        folder / "synonym.xlsx",
        folder / "format.csv",
    ]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"lexicon {folder}: no {', '.join(missing)}. Give the published folder emotion_wheel/ (--lexicon DIR), "
            "or --lexicon builtin (its numbers cannot be compared with published ones)"
        )
    return _load_folder(folder, tuple(file.stat().st_mtime_ns for file in files))


@lru_cache(maxsize=4)
def _load_folder(folder: Path, _stamps: tuple[int, ...]) -> Lexicon:
    wheels = tuple(_read_wheel(folder / f"wheel{k}.xlsx") for k in range(1, N_WHEELS + 1))
    return Lexicon(
        source=str(folder),
        comparable=True,
        forms=_forms(_read_format(folder / "format.csv")),
        synonyms=_synonyms(_read_synonyms(folder / "synonym.xlsx")),
        wheels=wheels,
    )


@lru_cache(maxsize=1)
def load_builtin() -> Lexicon:
    """The lexicon of this package, from one readable file of the same structure."""
    with BUILTIN_FILE.open("rb") as handle:
        data = tomllib.load(handle)
    wheels = []
    for wheel in data["wheels"]:
        rows: list[tuple[str, str, str]] = []
        for one, ring in wheel["rings"].items():
            for two, outer in ring.items():
                rows += [(clean(one), clean(two), clean(three)) for three in outer or [two]]
        wheels.append(Wheel(wheel["name"], tuple(rows)))
    return Lexicon(
        source=BUILTIN,
        comparable=False,
        forms=_forms((word, forms) for word, forms in data["forms"].items()),
        synonyms=_synonyms((word, near) for word, near in data["synonyms"].items()),
        wheels=tuple(wheels),
    )


def _forms(rows: Iterable[tuple[str, Iterable[str]]]) -> dict[str, frozenset[str]]:
    """F1: every form of a row, and its name, lists the name."""
    forms: dict[str, set[str]] = {}
    for raw, given in rows:
        name = clean(raw)
        for form in {name, *map(clean, given)} - {""}:
            forms.setdefault(form, set()).add(name)
    return {form: frozenset(names) for form, names in forms.items()}


def _synonyms(rows: Iterable[tuple[str, Iterable[str]]]) -> dict[str, frozenset[str]]:
    """F2: a word lists itself, each of its synonyms lists the word."""
    synonyms: dict[str, set[str]] = {}
    for raw, given in rows:
        word = clean(raw)
        for near in {word, *map(clean, given)} - {""}:
            synonyms.setdefault(near, set()).add(word)
    return {near: frozenset(words) for near, words in synonyms.items()}


_MAX_UNPACKED, _MAX_ROWS, _MAX_COLUMNS = 64 << 20, 50_000, 64  # a wheel has 300 rows, the synonyms some thousand


def _read_sheet(path: Path) -> list[list[str]]:
    """The first sheet's cells as text, a blank cell as the empty string."""
    from openpyxl import load_workbook

    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _MAX_UNPACKED:
            raise DataError(
                f"{path}: unpacks to {size / 1e6:,.0f} MB; a lexicon has at most {_MAX_UNPACKED / 1e6:.0f} MB"
            )
        book = load_workbook(path, read_only=True, data_only=True)
        # one more than is allowed: a cell far out would fill everything before it with empty ones
        sheet = book.worksheets[0].iter_rows(max_row=_MAX_ROWS + 1, max_col=_MAX_COLUMNS + 1, values_only=True)
        rows = []
        for number, row in enumerate(sheet, start=1):
            if number > _MAX_ROWS or (len(row) > _MAX_COLUMNS and row[_MAX_COLUMNS] is not None):
                raise DataError(
                    f"{path}: more than {_MAX_ROWS} rows or {_MAX_COLUMNS} columns; delete the cells far below or "
                    "right of the table"
                )
            rows.append(row)
        book.close()
    except DataError:
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, IndexError, EOFError, SyntaxError) as error:
        raise DataError(f"{path}: not a readable xlsx file ({type(error).__name__}: {error})") from error
    return [["" if cell is None else str(cell) for cell in row] for row in rows]


def _columns(path: Path, header: list[str], required: list[str]) -> list[int]:
    names = [clean(cell) for cell in header]
    absent = [name for name in required if name.lower() not in names]
    if absent:
        raise DataError(f"{path}: no column {absent[0]!r}; it has {', '.join(filter(None, names)) or 'none'}")
    return [names.index(name.lower()) for name in required]


def _read_wheel(path: Path) -> Wheel:
    sheet = _read_sheet(path)
    if len(sheet) < 2:
        raise DataError(f"{path}: a wheel without rows")
    columns = _columns(path, sheet[0], ["level1", "level2", "level3"])
    rows: list[tuple[str, str, str]] = []
    above = ["", "", ""]
    for cells in sheet[1:]:
        # a blank cell stands for the value above it
        above = [
            clean(cells[c]) if c < len(cells) and clean(cells[c]) else last
            for c, last in zip(columns, above, strict=True)
        ]
        rows.append((above[0], above[1], above[2]))
    return Wheel(path.stem, tuple(rows))


def _read_synonyms(path: Path) -> Iterable[tuple[str, list[str]]]:
    sheet = _read_sheet(path)
    if not sheet:
        raise DataError(f"{path}: an empty sheet")
    columns = _columns(
        path, sheet[0], [f"{kind}_run{run}" for run in range(1, N_RUNS + 1) for kind in ("word", "synonym")]
    )
    for cells in sheet[1:]:
        for word, near in zip(columns[::2], columns[1::2], strict=True):
            if word < len(cells) and cells[word].strip():
                yield cells[word], cells[near].split(",") if near < len(cells) else []


def _read_format(path: Path) -> Iterable[tuple[str, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = [row for row in csv.reader(handle) if row]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{path}: not a readable CSV file in UTF-8 ({error})") from error
    if not rows:
        raise DataError(f"{path}: an empty file; expected the columns name, format")
    name, forms = _columns(path, rows[0], ["name", "format"])
    for row in rows[1:]:
        if len(row) <= max(name, forms):
            raise DataError(f"{path}: the row {','.join(row)!r} has too few cells")
        yield row[name], row[forms].split(",")


GROUPINGS = {
    "wheel": "emotion wheels, inner ring (the paper's metrics)",
    "wheel-level2": "emotion wheels, middle ring",
    "l1": "word forms only, no wheel (F_l1)",
    "l2": "word forms and synonyms, no wheel (F_l2)",
}


def check_grouping(name: str) -> None:
    """Raise ConfigError with the nearest name when there is no grouping of this name."""
    if name not in GROUPINGS:
        raise ConfigError(f"unknown grouping {name!r}.{did_you_mean(name, GROUPINGS)}")


@lru_cache(maxsize=16)
def grouping_of(lexicon: Lexicon, name: str = "wheel") -> Grouping:
    """The grouping of a lexicon that is called ``name`` (see GROUPINGS), built at first use and kept."""
    return Grouping(lexicon, name)


class Grouping:
    """Maps labels to groups, in one or more views (one per wheel; a single one without wheels).

    ``l1``: a label's group is the first, in alphabetical order, of its base forms. ``l2``: the first of that form's
    wheel words. ``wheel``, ``wheel-level2``: the first of the wheel words of all its base forms that the wheel knows,
    at that ring. A label without a group is dropped.
    """

    def __init__(self, lexicon: Lexicon, name: str = "wheel") -> None:
        check_grouping(name)
        self.lexicon, self.name = lexicon, name
        level = {"wheel": 1, "wheel-level2": 2}.get(name)
        self._wheel_groups = [wheel.groups(level) for wheel in lexicon.wheels] if level else None
        self.views = tuple(wheel.name for wheel in lexicon.wheels) if level else (name,)
        if self._wheel_groups is None:
            source = lexicon.forms if name == "l1" else lexicon.synonyms
            vocabularies = [frozenset().union(*source.values())]
        else:
            vocabularies = [frozenset(groups.values()) for groups in self._wheel_groups]
        # Every view gets bits for the largest vocabulary; a group gets its bit when a label first names it.
        self._width = max(map(len, vocabularies))
        self._bytes = (self._width * len(self.views) + 7) // 8
        self._bits: list[dict[str, int]] = [{} for _ in self.views]  # per view: group → bit within that view
        self._of_bases: dict[frozenset[str], tuple[str | None, ...]] = {}  # many forms have the same base words
        self._of_label: dict[str, int] = {}
        self._of_item: dict[str, tuple[tuple[str, ...], int]] = {}

    def groups(self, label: str) -> tuple[str | None, ...]:
        """The group of one label in each view; None where it has none."""
        bases = self.lexicon.forms.get(clean(label))
        if not bases:
            return (None,) * len(self.views)
        if bases not in self._of_bases:
            if self._wheel_groups is not None:
                words = self.lexicon.wheel_words(label)  # in alphabetical order, as published
                groups = tuple(
                    next((wheel[word] for word in words if word in wheel), None) for wheel in self._wheel_groups
                )
            else:
                base = min(bases)
                groups = (base if self.name == "l1" else min(self.lexicon.synonyms.get(base, ()), default=None),)
            self._of_bases[bases] = groups
        return self._of_bases[bases]

    def label_mask(self, label: str) -> int:
        """The bits of one label, all views side by side; 0 for a label that no view knows."""
        mask = self._of_label.get(label)
        if mask is None:
            mask = 0
            for view, group in enumerate(self.groups(label)):
                if group is not None:
                    bits = self._bits[view]
                    mask |= 1 << (view * self._width + bits.setdefault(group, len(bits)))
            self._of_label[label] = mask
        return mask

    def mask(self, labels: Iterable[str]) -> int:
        """The bits of a label set (order, case and repetition of labels do not matter)."""
        mask = 0
        for label in labels:
            mask |= self.label_mask(label)
        return mask

    def item(self, item: str) -> tuple[tuple[str, ...], int]:
        """Labels and bits of an extracted item such as ``[happy, calm]``; each distinct item is parsed once."""
        parsed = self._of_item.get(item)
        if parsed is None:
            labels = tuple([clean(label) for label in parse_item(item)])
            parsed = self._of_item[item] = labels, self.mask(labels)
        return parsed

    def count(self, labels: Iterable[str]) -> int:
        """The number of known groups that labels name: those that share their group in every view are one."""
        return len({self.label_mask(label) for label in labels} - {0})

    def sets(self, masks: Iterable[int]) -> GroupSets:
        """N masks as arrays."""
        # Integers are quick to combine one by one; arrays are quick for many pairs at once (chance.py).
        masks = list(masks)
        packed = b"".join([mask.to_bytes(self._bytes, "little") for mask in masks])
        flat = np.unpackbits(np.frombuffer(packed, np.uint8).reshape(len(masks), -1), axis=1, bitorder="little")
        seen = max(map(len, self._bits))  # groups that no label has had so far are no column
        views = flat[:, : self._width * len(self.views)].reshape(len(masks), len(self.views), self._width)  # [N, V, W]
        return GroupSets(views[:, :, :seen].astype(np.float32))

    def sizes(self, mask: int) -> tuple[int, ...]:
        """The number of groups in a mask, per view."""
        low = (1 << self._width) - 1
        return tuple([(mask >> (view * self._width) & low).bit_count() for view in range(len(self.views))])

    def members(self, mask: int) -> tuple[frozenset[str], ...]:
        """The groups that a mask holds, per view (for reports)."""
        low = (1 << self._width) - 1
        return tuple(
            frozenset(group for group, bit in bits.items() if (mask >> (view * self._width) & low) >> bit & 1)
            for view, bits in enumerate(self._bits)
        )


class GroupSets:
    """Sets as arrays: ``members`` ``[..., V, W]`` of 0 and 1, for V views of W groups; ``sizes`` ``[..., V]``."""

    def __init__(self, members: np.ndarray, sizes: np.ndarray | None = None) -> None:
        self.members = members
        self.sizes = members.sum(axis=-1, dtype=np.float64) if sizes is None else sizes

    def __getitem__(self, index: Any) -> GroupSets:
        """Some of the sets, or with None among the indices a dimension more to broadcast over."""
        return GroupSets(self.members[index], self.sizes[index])

    def __len__(self) -> int:
        return len(self.members)

    def shared(self, other: GroupSets) -> np.ndarray:
        """The number of groups that two sets have in common, ``[..., V]``; leading dimensions broadcast."""
        # the later of the two may know groups that no label had named before
        width = min(self.members.shape[-1], other.members.shape[-1])
        common = np.einsum("...w,...w->...", self.members[..., :width], other.members[..., :width])
        return common.astype(np.float64)
