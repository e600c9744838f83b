"""What blocks of figures are made of: records as they are read, tables, words for numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from affectgpt.core.errors import DataError

# Record → the command that leaves it.
COMMANDS = {
    "training": "python benchmarks/training.py",
    "inference": "python benchmarks/inference.py",
    "inference_memory": "python benchmarks/inference.py --memory",
    "data": "python benchmarks/data.py",
    "scoring": "python benchmarks/scoring.py",
    "captioning": "python benchmarks/captioning.py",
    "captioning_demo": "python benchmarks/captioning_demo.py",
    "demo_seeds": "python benchmarks/demo_seeds.py",
    "grpo": "python benchmarks/grpo.py --predict",
    "grpo_demo": "python benchmarks/grpo_demo.py",
    "serve": "python benchmarks/serve.py",
    "real_size": "python benchmarks/real_size.py",
    "released_answers": "python benchmarks/released_answers.py",
}
NOISY = 0.7  # load at the beginning above which seconds are not those of a quiet machine
NOTHING = "–"
UNTIMED = {"released_answers", "demo_seeds", "grpo_demo", "captioning_demo"}  # whose figures no load changes


class MissingRecordError(DataError):
    """A benchmark has not left its record."""


class Records:
    """The records of a folder, read when they are asked for. ``used``: those that were."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.used = folder, set[str]()
        self._read: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> dict[str, Any]:
        """A record. Raises MissingRecordError where it is missing."""
        found = self.get(name)
        if found is None:
            raise MissingRecordError(f"not measured with this version yet: `{COMMANDS[name]}`")
        return found

    def get(self, name: str) -> dict[str, Any] | None:
        """A record that may be missing, such as a GPU's."""
        self.used.add(name)
        path = self.folder / f"{name}.json"
        if name not in self._read:
            if not path.is_file():
                return None
            try:
                self._read[name] = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError(f"{path}: is not a record ({error}): run `{COMMANDS.get(name, name)}`") from None
        return self._read[name]

    def numbers(self, name: str) -> dict[str, Any]:
        """A record's numbers."""
        return self[name]["numbers"]

    @property
    def there(self) -> set[str]:
        """Names of all records of the folder."""
        return {path.stem for path in self.folder.glob("*.json")}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)


def source(records: Records, *names: str, timed: bool = True) -> str:
    """What the records were measured with; those measured alike are named together. ``timed``: seconds are shown."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for name in names:
        record = records.get(name)
        if record is not None:
            groups.setdefault(_made_with(record), {})[name] = record
    parts = []
    for line, found in groups.items():
        loads = [r["machine"]["load"] for name, r in found.items() if timed and name not in UNTIMED]
        if loads and max(loads) > NOISY:
            span = " to ".join(dict.fromkeys((f"{min(loads):.1f}", f"{max(loads):.1f}")))
            line += f", load {span} at the beginning from other work"
        partial = [f"{name} with {' '.join(r['partial'])}" for name, r in found.items() if r["partial"]]
        line += f", not a full run: {', '.join(partial)}" if partial else ""
        parts.append(line if len(groups) == 1 else f"{', '.join(found)}: {line}")
    return f"*{'; '.join(parts)}*"


def _made_with(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    words = [machine["gpu"]] if "gpu" in machine else []
    words.append(f"{machine['cores']} cores ({machine['processor']})")
    torch = record["versions"]["torch"].partition("+")[0]
    return ", ".join([*words, f"torch {torch}", f"commit {record['commit']}", record["date"]])


def script(name: str) -> str:
    """The command of a record, as a cell has it."""
    return f"`{COMMANDS[name].removeprefix('python ')}`"


def times(ratio: float) -> str:
    """A ratio in words that say no more digits than it has."""
    if ratio >= 100:
        digits = len(str(int(ratio))) - 3
        return f"{round(ratio, -digits):,.0f}"
    return f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.1f}"


def seconds(value: float) -> str:
    """Seconds, or minutes and hours where they are many."""
    if value >= 7200:
        return f"{value / 3600:.1f} h"
    if value >= 600:
        return f"{value / 60:.0f} min"
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s" if value >= 1 else f"{value:.2g} s"


def interval(found: Sequence[float] | None) -> str:
    """`` [low, high]``, empty without one."""
    return "" if found is None else f" [{found[0]:.1f}, {found[1]:.1f}]"


def words(count: int) -> str:
    """A small number as a word."""
    names = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return names[count] if count < len(names) else f"{count:,}"
