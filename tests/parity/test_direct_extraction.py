"""Reading labels directly scores like the published extraction by a language model."""

from __future__ import annotations

import csv
from collections import defaultdict

import pytest

from affectgpt.core.npz import read_npz
from affectgpt.evaluation.extract import extract_file, get_extractor
from affectgpt.evaluation.labels import parse_item
from affectgpt.evaluation.results import items_path, read_items

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def wheels(merunibench):
    """A plain reading of docs/scores.md: label → group, for each of the five wheels."""
    from openpyxl import load_workbook

    folder = merunibench / "emotion_wheel"

    def clean(cell):
        return "" if cell is None else str(cell).strip().lower()

    def rows(name):
        return [[clean(c) for c in row] for row in load_workbook(folder / name, read_only=True).active.values]

    forms = defaultdict(set)
    with (folder / "format.csv").open(encoding="utf-8-sig", newline="") as handle:
        for row in csv.DictReader(handle):
            name = clean(row["name"])
            for form in {name, *parse_item(row["format"].lower())}:
                forms[form].add(name)

    synonyms = defaultdict(set)
    header, *body = rows("synonym.xlsx")
    for run in range(1, 9):
        word_at, near_at = header.index(f"word_run{run}"), header.index(f"synonym_run{run}")
        for row in body:
            for near in {row[word_at], *parse_item(row[near_at].lower())} - {""}:
                synonyms[near].add(row[word_at])

    result = []
    for k in range(1, 6):
        header, *body = rows(f"wheel{k}.xlsx")
        columns = [header.index(f"level{level}") for level in (1, 2, 3)]
        home, above = {}, ["", "", ""]
        for row in body:
            above = [row[c] or above[i] for i, c in enumerate(columns)]
            home.update(dict.fromkeys(above, above[0]))
        group = {}
        for form, names in forms.items():
            words = sorted(word for name in names for word in synonyms.get(name, ()))
            known = [word for word in words if word in home]
            if known:
                group[form] = home[known[0]]
        result.append(group)
    return result


def _hit(wheels, items, truth):
    scores = []
    for group in wheels:
        pairs = [
            ({group[x] for x in parse_item(items[name].lower()) if x in group}, group[truth[name]])
            for name in truth
            if truth[name] in group
        ]
        scores.append(sum(wanted in found for found, wanted in pairs) / len(pairs))
    return sum(scores) / len(scores)


def test_hit_of_every_checkpoint_lies_within_two_points(merunibench, wheels, tmp_path):
    labels = read_npz(merunibench / "dataset/mer2023-dataset-process/label-6way.npz")["test1_corpus"]
    truth = {name: row["emo"] for name, row in labels.items()}
    answers = sorted(
        path for path in merunibench.glob("output/results-mer2023/*/checkpoint_*.npz") if "-" not in path.name
    )
    assert len(answers) == 7
    gaps = {}
    for path in answers:
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes())
        direct = extract_file(copy, task="basic", extractor=get_extractor("direct"))
        published = read_items(items_path(path))
        gaps[path.stem] = 100 * (_hit(wheels, read_items(direct.labels), truth) - _hit(wheels, published, truth))
    print({name: round(gap, 2) for name, gap in gaps.items()})
    assert all(abs(gap) <= 2.0 for gap in gaps.values()), gaps


def test_polarity_of_released_answers_mostly_agrees_with_the_language_model(merunibench, tmp_path):
    agreed = total = 0
    for path in sorted(merunibench.glob("output/results-*/emer*/checkpoint_*-openset-sentiment.npz")):
        answers = path.with_name(path.name.replace("-openset-sentiment", ""))
        copy = tmp_path / f"{path.parent.parent.name}-{answers.name}"
        copy.write_bytes(answers.read_bytes())
        direct = read_items(extract_file(copy, task="sentiment", extractor=get_extractor("direct")).sentiment)
        published = read_items(path)
        agreed += sum(direct[name] == published[name] for name in published)
        total += len(published)
    assert total == 8001 and agreed / total > 0.85, (agreed, total)


def test_the_files_have_the_published_form(merunibench, tmp_path):
    """Keys, kinds and order of names as in the released extraction."""
    published = next(merunibench.glob("output/results-sims/*/checkpoint_000030_loss_0.602-openset-sentiment.npz"))
    answers = published.with_name("checkpoint_000030_loss_0.602.npz")
    copy = tmp_path / answers.name
    copy.write_bytes(answers.read_bytes())
    made = extract_file(copy, task="sentiment", extractor=get_extractor("direct"))
    for ours, theirs in (
        (made.sentiment, published),
        (made.labels, published.with_name(published.name.replace("-sentiment", ""))),
    ):
        a, b = read_npz(ours), read_npz(theirs)
        assert list(a) == list(b) == ["filenames", "fileitems"]
        assert [v.dtype.kind for v in a.values()] == [v.dtype.kind for v in b.values()] == ["U", "U"]
        assert a["filenames"].tolist() == b["filenames"].tolist()
    assert made.labels.name == "checkpoint_000030_loss_0.602-openset-direct.npz"
    assert made.sentiment.name == "checkpoint_000030_loss_0.602-openset-direct-sentiment.npz"
