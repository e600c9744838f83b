"""A person's decisions go over the filters', and are never lost."""

from __future__ import annotations

import csv

import pytest

from affectgpt.captioning.review import SHOWN
from affectgpt.cli import caption
from affectgpt.core.errors import DataError


def run(world, *flags: str) -> int:
    return caption.main(["--cfg-path", str(world.yaml), *flags])


def rows_of(world) -> list[dict[str, str]]:
    with (world.work / "review.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def fill(world, rows: list[dict[str, str]]) -> None:
    with (world.work / "review.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_decisions_and_corrections_are_honoured_and_kept(world, capsys):
    world_rows = {}
    assert run(world, "--review") == 0
    rows = rows_of(world)
    assert len(rows) == len(world.truth) and set(SHOWN) < set(rows[0])
    assert [float(row["doubt"]) for row in rows] == sorted((float(row["doubt"]) for row in rows), reverse=True)
    before = world.read("clips.csv")
    kept = [name for name, row in before.items() if row["verdict"] == "kept"]
    drop, fix = kept[0], kept[1]
    for row in rows:
        if row["name"] == drop:
            row["decision"], row["note"] = "drop", "blurred"
        if row["name"] == fix:
            row["new_description"] = "A person wrote this. So the person's emotional state is proud."
        world_rows[row["name"]] = row
    fill(world, rows)
    assert run(world, "--review") == 0
    after = world.read("clips.csv")
    assert after[drop]["verdict"] == "dropped" and after[drop]["reason"] == "person: blurred"
    assert after[fix]["verdict"] == "kept" and after[fix]["labels"] == "proud"
    others = [name for name in before if name not in (drop, fix)]
    assert [after[n]["verdict"] for n in others] == [before[n]["verdict"] for n in others]
    table = (world.work / "dataset/mer2025-dataset/track3_train_mercaptionplus.csv").read_text()
    assert "A person wrote this." in table and f"{drop}," not in table
    again = {row["name"]: row for row in rows_of(world)}
    assert again[drop] == world_rows[drop] and again[fix] == world_rows[fix]
    assert len(again) == len(rows)


def test_a_person_may_keep_what_a_filter_dropped(world):
    run(world, "--review")
    before = world.read("clips.csv")
    dropped = [name for name, row in before.items() if row["verdict"] == "dropped"]
    rows = rows_of(world)
    if not dropped:  # make one: a wrong description
        pytest.fail("the small world has no clip that a filter drops")
    for row in rows:
        row["decision"] = "KEEP " if row["name"] == dropped[0] else ""
    fill(world, rows)
    run(world)
    assert world.read("clips.csv")[dropped[0]]["verdict"] == "kept"


def test_another_word_is_told_with_its_place(world):
    run(world, "--review")
    rows = rows_of(world)
    rows[3]["decision"] = "maybe"
    fill(world, rows)
    with pytest.raises(DataError, match=rf"review\.csv, clip '{rows[3]['name']}': decision is 'maybe'"):
        run(world)


def test_a_person_may_describe_a_clip_that_no_model_could(world):
    run(world, "--review")
    rows = rows_of(world)
    rows[0]["new_description"] = "A hand-written one. So the person's emotional state is calm."
    fill(world, rows)
    name = rows[0]["name"]
    descriptions = world.work.parent / "descriptions.csv"
    lines = (world.input / "descriptions.csv").read_text().splitlines(keepends=True)
    descriptions.write_text("".join(line for line in lines if not line.startswith(name)))
    options = ["--options", f"captioning.merge.file={descriptions}"]
    assert run(world, *options) == 0
    row = world.read("clips.csv")[name]
    assert (row["verdict"], row["labels"]) == ("kept", "calm") and world.read("failed.csv") == {}
