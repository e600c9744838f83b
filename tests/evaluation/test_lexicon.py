"""The lexicon's three mappings and the groupings made of them, worked by hand on a small lexicon."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from small_benchmark import WHEEL, write_sheet

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.evaluation.lexicon import (
    BUILTIN,
    Grouping,
    Lexicon,
    Wheel,
    find_lexicon,
    grouping_of,
    load_builtin,
    load_folder,
)


def test_forms_and_synonyms(lexicon: Lexicon) -> None:
    assert lexicon.forms["happiness"] == {"happy"} and lexicon.forms["sadly"] == {"sad"}
    assert lexicon.synonyms["merry"] == {"happy"} and lexicon.synonyms["happy"] == {"happy"}
    assert lexicon.synonyms["cheery"] == {"happy", "glad"}  # two runs merged
    assert lexicon.synonyms["irked"] == {"annoyed"}  # the word is lower-cased too
    assert "" not in lexicon.forms and "" not in lexicon.synonyms


def test_wheel_levels(lexicon: Lexicon) -> None:
    inner, middle = lexicon.wheels[0].groups(1), lexicon.wheels[0].groups(2)
    assert inner["smug"] == inner["proud"] == inner["joy"] == "joy" and inner["annoyed"] == "mad"
    assert middle["smug"] == "proud" and middle["annoyed"] == "cross"
    assert middle["joy"] == "glad" and middle["mad"] == "angry"  # the first in the alphabet of the middle ring's words


def test_level_two_goes_down_the_sheet() -> None:
    wheel = Wheel("w", (
        ("joy", "proud", "smug"), ("joy", "glad", "happy"), ("joy", "glad", "proud"),  # proud: its later place counts
        ("low", "sad", "joy"),  # joy again, in the outer ring, below its own sector
        ("glad", "warm", "kind"), ("glad", "warm", "sad"), ("joy", "zest", "keen"),  # joy is not begun a second time
        ("self", "self", "me"), ("self", "calm", "still"),  # a word of two rings: the middle one comes after the inner
    ))  # fmt: skip
    assert wheel.groups(2) == {
        "joy": "sad", "proud": "glad", "smug": "proud", "glad": "warm", "happy": "glad", "low": "sad", "sad": "warm",
        "warm": "warm", "kind": "warm", "zest": "zest", "keen": "zest", "self": "self", "me": "self", "calm": "calm",
        "still": "calm",
    }  # fmt: skip


def test_synonyms_are_those_of_the_first_form_only() -> None:
    forms = {"felt": frozenset({"feel", "fell"}), "fell": frozenset({"fell"})}
    synonyms = {"feel": frozenset({"moved", "stirred"}), "fell": frozenset({"down"})}
    wheels = (Wheel("w", (("low", "down", "flat"),)),)
    lexicon = Lexicon(source="test", comparable=False, forms=forms, synonyms=synonyms, wheels=wheels)
    assert grouping_of(lexicon, "l2").groups("Felt ") == ("moved",)
    assert grouping_of(lexicon, "l2").groups("fell") == ("down",) and grouping_of(lexicon, "l2").groups("none") == (
        None,
    )
    assert grouping_of(lexicon, "wheel-level2").groups("felt") == (
        "down",
    )  # wheels look through the words of all forms


def test_a_later_row_overwrites(tmp_path: Path, lexicon_folder: Path) -> None:
    folder = shutil.copytree(lexicon_folder, tmp_path / "lexicon")
    write_sheet(folder / "wheel1.xlsx", [("level1", "level2", "level3"), *WHEEL, ("Mad", "Sad", "Happy")])
    groups = load_folder(folder).wheels[0].groups(1)
    assert groups["happy"] == "mad" and groups["sad"] == "mad" and groups["glad"] == "joy"


@pytest.mark.parametrize(
    ("label", "groups"),
    [
        ("happy", ("joy", "joy", "joy", "joy", "up")),
        (" Merriment ", ("joy", "joy", "joy", "joy", "up")),
        ("cheer", ("joy", "joy", "joy", "joy", "up")),  # glad comes before happy
        ("blues", ("low", "low", "low", "low", "down")),
        ("smugness", ("joy", "joy", "joy", "joy", None)),  # the fifth wheel has no smug
        ("odd", (None,) * 5),  # a form without a wheel word
        ("neutral", (None,) * 5),
        ("glad", (None,) * 5),  # in a wheel, but in no row of forms
    ],
)
def test_groups(lexicon: Lexicon, label: str, groups: tuple[str | None, ...]) -> None:
    assert grouping_of(lexicon).groups(label) == groups


def test_groupings_without_a_wheel_and_at_level_two(lexicon: Lexicon) -> None:
    assert grouping_of(lexicon, "l1").groups("merriment") == ("merry",)
    assert grouping_of(lexicon, "l2").groups("merriment") == ("happy",)
    assert grouping_of(lexicon, "l1").groups("odd") == ("odd",) and grouping_of(lexicon, "l2").groups("odd") == (None,)
    assert grouping_of(lexicon, "wheel-level2").groups("smug") == ("proud",) * 4 + (None,)
    with pytest.raises(ConfigError, match="Did you mean 'wheel'"):
        grouping_of(lexicon, "whel")


def test_masks_are_sets(lexicon: Lexicon) -> None:
    grouping = grouping_of(lexicon)
    mask = grouping.mask(["happy", "merry", "anger", "odd"])
    assert grouping.sizes(mask) == (2, 2, 2, 2, 2)
    assert grouping.members(mask) == (frozenset({"joy", "mad"}),) * 4 + (frozenset({"up", "down"}),)
    assert grouping.item("['Happy', \"irate\"]") == (("happy", "irate"), grouping.mask(["happy", "angry"]))


def test_the_mapping_is_built_once(lexicon_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lexicon = load_folder(lexicon_folder)
    assert load_folder(str(lexicon_folder)) is lexicon and grouping_of(lexicon) is grouping_of(lexicon)
    grouping = Grouping(lexicon)
    grouping.mask(["happy"])
    monkeypatch.setattr(grouping, "groups", lambda label: pytest.fail(f"{label} is mapped again"))
    grouping.mask(["happy"])


def test_a_changed_folder_is_read_again(tmp_path: Path, lexicon_folder: Path) -> None:
    folder = shutil.copytree(lexicon_folder, tmp_path / "lexicon")
    assert "joyous" not in load_folder(folder).forms
    with (folder / "format.csv").open("a") as handle:
        handle.write("happy,joyous\n")
    os.utime(folder / "format.csv", ns=(1, 1))
    assert load_folder(folder).forms["joyous"] == {"happy"}


def test_errors_name_file_and_column(tmp_path: Path, lexicon_folder: Path) -> None:
    folder = shutil.copytree(lexicon_folder, tmp_path / "lexicon")
    (folder / "wheel3.xlsx").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"wheel3\.xlsx: not a readable xlsx"):
        load_folder(folder)
    write_sheet(folder / "wheel3.xlsx", [("level1", "level2"), ("a", "b")])
    with pytest.raises(DataError, match=r"wheel3\.xlsx: no column 'level3'"):
        load_folder(folder)
    (folder / "wheel3.xlsx").unlink()
    with pytest.raises(DataError, match=r"no wheel3\.xlsx.*--lexicon builtin"):
        load_folder(folder)


def test_default_lexicon(tmp_path: Path, lexicon_folder: Path) -> None:
    assert find_lexicon(None, default=lexicon_folder).comparable
    assert find_lexicon(None, default=tmp_path / "nothing").source == BUILTIN
    assert find_lexicon(BUILTIN) is load_builtin() and not load_builtin().comparable


class TestBuiltin:
    def test_five_wheels_from_named_literature(self) -> None:
        import tomllib

        from affectgpt.evaluation.lexicon import BUILTIN_FILE

        wheels = tomllib.loads(BUILTIN_FILE.read_text(encoding="utf-8"))["wheels"]
        assert len(wheels) == len({wheel["name"] for wheel in wheels}) == 5
        assert all(wheel["source"].startswith("after ") for wheel in wheels)

    @pytest.mark.parametrize(
        "words",
        [
            "happy happiness joy joyful delighted cheerful",
            "angry anger furious rage outraged",
            "sad sadness crying heartbroken grief",
            "worried anxiety nervous tense concern stressed",
            "surprise astonished shocked amazement",
            "fear scared terrified afraid",
            "disgust disgusted revulsion loathing",
        ],
    )
    def test_ordinary_words_fall_together(self, words: str) -> None:
        grouping = grouping_of(load_builtin())
        found = {grouping.groups(word) for word in words.split()}
        assert len(found) == 1 and None not in found.pop()

    def test_opposites_fall_apart_in_every_wheel(self) -> None:
        grouping = grouping_of(load_builtin())
        for a, b in (("happy", "sad"), ("happy", "angry"), ("calm", "worried"), ("sad", "angry"), ("fear", "anger")):
            assert all(x != y for x, y in zip(grouping.groups(a), grouping.groups(b), strict=True)), (a, b)

    def test_neutral_has_no_group(self) -> None:
        assert grouping_of(load_builtin()).groups("neutral") == (None,) * 5

    def test_no_word_is_ambiguous(self) -> None:
        lexicon = load_builtin()
        for label in lexicon.forms:
            words = lexicon.wheel_words(label)
            assert words, f"{label} has no wheel word"
            for wheel in lexicon.wheels:
                groups = wheel.groups(1)
                assert len({groups[word] for word in words if word in groups}) <= 1, (label, wheel.name)


def test_workbooks_are_bounded_before_they_are_read(tmp_path):
    """A cell at the far corner of a sheet, a cell of a gigabyte, an archive that unpacks to one."""
    import zipfile

    from openpyxl import Workbook
    from small_benchmark import write_lexicon

    folder = write_lexicon(tmp_path / "far")
    book = Workbook()
    book.active.append(["level1", "level2", "level3"])
    book.active["XFD1048576"] = "x"
    book.save(folder / "wheel2.xlsx")
    with pytest.raises(DataError, match=r"wheel2\.xlsx: more than 50000 rows or 64 columns"):
        load_folder(folder)
    folder = write_lexicon(tmp_path / "right")
    book = Workbook()
    book.active.append(["level1", "level2", "level3", *["x"] * 100])
    book.save(folder / "wheel2.xlsx")
    with pytest.raises(DataError, match=r"wheel2\.xlsx: more than"):
        load_folder(folder)
    folder = write_lexicon(tmp_path / "bomb")
    with zipfile.ZipFile(folder / "wheel2.xlsx", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/more.xml", b"\0" * (80 << 20))
    with pytest.raises(DataError, match=r"wheel2\.xlsx: unpacks to 8\d MB"):
        load_folder(folder)
