"""Annotation files of others, as they are published → one row of cells per sample.

Tables (.csv, .xlsx), whose cells are text ("None" and "NA" are words, 00012 stays), and JSON in the shapes that
instruction sets come in: a list of objects (LLaVA, EmoVIT, VideoChat), such a list inside an object (MiniGPT-4,
WavCaps), an object name → object (MERR), and an object per line (.jsonl). A ``dialogue`` cell holds several questions
about one file; each becomes a sample: LLaVA has them as
``[{"from": "human", "value": …}, {"from": "gpt", "value": …}]``, VideoChat as ``[{"q": …, "a": …}]``.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from affectgpt.core.errors import DataError, did_you_mean, shortened
from affectgpt.core.files import parse_json
from affectgpt.core.names import check_name
from affectgpt.core.tables import check_headings

DIALOGUE = "dialogue"
_MEDIA_MARK = re.compile(r"\s*<(?:image|video|audio|ImageHere|VideoHere|AudioHere)>\s*")  # ours stand elsewhere
_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")
_LISTS = ("ovlabel",)  # roles whose cell may be a JSON list
_SPARE = 8  # cells that a row may have behind the last heading, where a spreadsheet left empty ones
_AS_TEXT: dict[str, Any] = {  # how pandas reads a CSV file; its Python engine knows a short row from empty cells
    "header": None, "dtype": object, "keep_default_na": False, "skip_blank_lines": False, "encoding": "utf-8-sig",
    "engine": "python",
}  # fmt: skip


def read_annotations(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Sample name and role → cell of a file; ``columns`` is role → heading, with ``name`` first among the roles.

    A file other than CSV may have no names: then they are the records' numbers. A ``dialogue`` becomes samples of the
    roles ``question``, ``answer`` and ``file``. Raises DataError naming file, line or record, and sample.
    """
    is_csv = path.suffix.lower() == ".csv"
    if is_csv and DIALOGUE in columns:
        raise DataError(f"{path}: a dialogue column needs a JSON file")
    records = _rows(path, tuple(columns.values())) if is_csv else _records(path, columns["name"])
    numbered = "" if is_csv else (
        ", or leave columns.name out (with columns.file for the media): samples are numbered then"
    )  # fmt: skip
    seen: set[str] = set()
    for number, (where, record) in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise DataError(
                f"{where}: expected an object with {', '.join(columns.values())}; found {shortened(record)}"
            )
        name = _name(record, columns["name"], where, number)
        cells = {role: _cell(record, role, heading, where) for role, heading in columns.items() if role != "name"}
        turns = cells.pop(DIALOGUE, None)
        if turns is None:
            samples = [(name, cells)]
        else:
            shared = {"file": name, **cells}
            samples = [
                (f"{name}_{turn}", {**shared, "question": question, "answer": answer})
                for turn, (question, answer) in enumerate(_turns(turns, where), start=1)
            ]
        for sample, values in samples:
            if sample in seen:
                raise DataError(f"{where}: sample {sample!r} is there twice; remove one{numbered}")
            seen.add(sample)
            yield sample, values


def _name(record: Mapping[str, Any], heading: str, where: str, number: int) -> str:
    if heading in record:
        name = "" if record[heading] is None else str(record[heading])
        folder = "; a folder belongs into the column that columns.file names" if "/" in name else ""
        return check_name(name, source=where, to_do=f"give another name{folder}")
    if heading != "name":
        raise DataError(f"{where}: no {heading!r}.{did_you_mean(heading, record)}")
    return f"{number:08d}"  # nobody said what names a sample


def _cell(record: Mapping[str, Any], role: str, heading: str, where: str) -> Any:
    if heading not in record:
        raise DataError(f"{where}: no {heading!r}.{did_you_mean(heading, record)}")
    value = record[heading]
    if role == DIALOGUE:
        return value
    if isinstance(value, list) and role in _LISTS:
        try:
            return json.dumps(value, ensure_ascii=False)
        except RecursionError:
            raise DataError(f"{where}: {heading!r} is nested too deeply, expected a list of labels") from None
    if isinstance(value, list | dict):
        raise DataError(f"{where}: {heading!r} is {shortened(value)}, expected a text")
    return "" if value is None else str(value)


def _turns(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Questions with their answers."""
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise DataError(f"{where}: the dialogue is {shortened(value)}, expected a list of turns")
    if "from" not in value[0]:
        for turn in value:
            question, answer = (turn.get(long, turn.get(long[0])) for long in ("question", "answer"))
            if not isinstance(question, str) or not isinstance(answer, str):
                raise DataError(f"{where}: a turn is {shortened(turn)}, expected q and a (or question and answer)")
            yield _without_marks(question), answer.strip()
        return
    if len(value) % 2:
        raise DataError(f"{where}: the dialogue has {len(value)} turns; each question needs an answer")
    for asked, answered in zip(value[::2], value[1::2], strict=True):
        if asked.get("from") not in _ASKS or answered.get("from") not in _ANSWERS:
            raise DataError(f"{where}: expected turns of human and gpt by turns; found {shortened([asked, answered])}")
        yield _without_marks(str(asked.get("value", ""))), str(answered.get("value", "")).strip()


def _without_marks(question: str) -> str:
    """A question without the mark where another model's prompt has the picture."""
    return _MEDIA_MARK.sub(" ", question).strip()


def _records(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the place of a record, for messages, and the record; in an object name → object the name is put into it."""
    if path.suffix.lower() == ".xlsx":
        yield from _sheet(path)
        return
    if path.suffix.lower() not in (".json", ".jsonl"):
        raise DataError(f"{path}: expected a .csv, .xlsx, .json or .jsonl file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            for number, line in enumerate(text.splitlines(), start=1):
                if line.strip():
                    yield f"{path}, line {number}", parse_json(line)
            return
        content = parse_json(text, object_pairs_hook=_unique)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 JSON ({error})") from error
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        if content and all(isinstance(value, dict) for value in content.values()):
            for key, record in content.items():
                yield f"{path}, {key!r}", {name: key, **record}
            return
        content = lists[0] if len(lists) == 1 else None
    if not isinstance(content, list):
        raise DataError(
            f"{path}: expected a list of objects, an object that holds one such list, or an object name → object"
        )
    for number, record in enumerate(content, start=1):
        yield f"{path}, record {number}", record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file; ValueError where a name is in it twice, of which json would drop the first."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in [n for n, _ in pairs[:i]])
        raise ValueError(f"{twice!r} is there twice; remove one")
    return content


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV file under the headings of its first line, all of ``needed`` among them."""
    import pandas

    try:
        with path.open("rb") as handle:
            width = len(pandas.read_csv(handle, nrows=1, **_AS_TEXT).columns)
        with path.open("rb") as handle:
            frame = pandas.read_csv(handle, names=list(range(width + _SPARE)), **_AS_TEXT)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except pandas.errors.EmptyDataError:
        raise DataError(f"{path}: empty file; expected the columns {', '.join(needed)}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x} near offset {error.start} of a block read); "
            "save the file as UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error
    rows = frame.itertuples(index=False, name=None)
    headings = [str(heading) for heading in next(rows)[:width]]
    check_headings(path, headings, needed)
    widest = max(headings.index(heading) for heading in needed) + 1
    line = 1 + "".join(headings).count("\n")
    for row in rows:
        cells = [cell for cell in row if isinstance(cell, str)]  # what a short row lacks is not text
        line += 1 + "".join(cells).count("\n")
        if not cells:  # a blank line
            continue
        where = f"{path}, line {line}"
        if len(cells) < widest:
            raise DataError(f"{where}: {len(cells)} cells where {widest} are needed, sample {cells[0]!r}")
        if any(cells[width:]):
            raise DataError(
                f"{where}: {len(cells)} cells under {width} headings, sample {cells[headings.index(needed[0])]!r}; put "
                "text that holds commas into quotes"
            )
        yield where, dict(zip(headings, cells, strict=False))


def _sheet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of the first sheet of an Excel file, under the headings of its first row."""
    import pandas

    try:
        rows = pandas.read_excel(path, header=None, dtype=object, keep_default_na=False, na_filter=False).to_numpy()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:  # zip, XML and openpyxl's own errors
        raise DataError(f"{path}: cannot be read as an Excel file ({type(error).__name__}: {error})") from error
    if not len(rows):
        raise DataError(f"{path}: empty file")
    headings = [str(cell).strip() for cell in rows[0]]
    check_headings(path, [heading for heading in headings if heading])
    for number, row in enumerate(rows[1:], start=2):
        if any(cell != "" for cell in row):
            yield f"{path}, row {number}", dict(zip(headings, row, strict=True))
