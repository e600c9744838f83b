"""Groups of the published lexicon's labels under every grouping, to the letter."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from affectgpt.evaluation.lexicon import grouping_of, load_folder

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
    ("grouping", "columns"),
    [
        ("l1", ("l1",)),
        ("l2", ("l2",)),
        ("wheel", tuple(f"wheel{k}_level1" for k in range(1, 6))),
        ("wheel-level2", tuple(f"wheel{k}_level2" for k in range(1, 6))),
    ],
)
def test_every_label_has_the_published_group(
    golden: Path, merunibench: Path, grouping: str, columns: tuple[str, ...]
) -> None:
    with (golden / "groupings.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    groups = grouping_of(load_folder(merunibench / "emotion_wheel"), grouping).groups
    expected = {row["label"]: tuple(row[column] or None for column in columns) for row in rows}
    wrong = {label: (groups(label), wanted) for label, wanted in expected.items() if groups(label) != wanted}
    assert len(expected) == 3693 and not wrong, f"{len(wrong)} differ, first: {list(wrong.items())[:5]}"
