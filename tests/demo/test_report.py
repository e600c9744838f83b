"""The report: what it shows, and that it says everywhere that the data are synthetic."""

from __future__ import annotations

import base64
import io
import json
import re

import pytest
import soundfile

from examples.demo import pipeline as demo
from examples.demo import report
from examples.demo.corpus import PartSpec, clip_paths, make_corpus
from examples.demo.language import FELT


def write_log(path, losses):
    lines = [{"epoch": 1 + i // 2, "step": 1 + i % 2, "loss": loss, "lr": 1e-3} for i, loss in enumerate(losses)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def results(tmp_path):
    rows = []
    for i, (name, title) in enumerate(demo.RECIPES.items()):
        row = report.RecipeResult(name=name, title=title, log=write_log(tmp_path / f"{name}.txt", [3, 2, 1.5, 1]))
        for question in demo.QUESTIONS:
            row.scores[question] = {"mer2023": 0.8 - 0.2 * i, "sims": 0.5, "ovmerdplus": 0.25}
            row.n_labels[question] = 1.25
            row.answers[question] = {}
        rows.append(row)
    return rows


def test_losses_count_steps_over_epochs(tmp_path):
    log = write_log(tmp_path / "log.txt", [3, 2, 1.5, 1])
    assert report.read_losses(log) == ([1, 2, 3, 4], [3, 2, 1.5, 1])


def test_clips_are_picked_by_what_they_show():
    plans = report.basic_plans(0)
    picked = report.pick_clips(plans)
    assert len({plan.name for plan in picked}) == 6
    assert {plan.emotion for plan in picked} == set(FELT)
    assert {report.shown_in(plan) for plan in picked} == {"both", "face", "voice"}


def test_report(tmp_path, results, monkeypatch):
    part = PartSpec("MER2023", "test", 7, FELT, True, "basic")
    make_corpus(tmp_path / "dataset", seed=0, parts=(part,), workers=1)
    plans = report.plan_part(part, seed=0)
    monkeypatch.setattr(report, "basic_plans", lambda seed: plans)
    for plan in plans:
        results[0].answers["ovlabel"][plan.name] = f"ANSWER <{plan.name}>"
    out = tmp_path / "report.html"
    report.write_report(out, results=results, chance=0.232, dataset_root=tmp_path / "dataset", seed=0, seconds=150)
    page = out.read_text()
    assert page.lower().count("synthetic") >= 9
    assert page.count("data:image/jpeg;base64,") == 6 and page.count("data:image/png;base64,") == 1
    assert "80.0" in page and "23.2" in page and "1.25" in page and "2.5 minutes" in page
    sounds = re.findall(r'<audio controls [^>]*src="data:audio/wav;base64,([^"]+)">', page)
    assert len(sounds) == 6
    for sound in sounds:
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sound)))
        assert rate == 16_000 and 1 < len(samples) / rate < 6 and abs(samples).max() > 0.01
    assert len(page) < 1_500_000
    names = set(re.findall(r'<td data-column="([^"]+)">', page))  # what a narrow screen shows beside the values
    assert {"labels: basic (HIT)", "description: basic (HIT)", "labels per answer"} < names and len(names) == 7
    shown = set(re.findall(r"ANSWER &lt;(synthetic_basic_\d+)&gt;", page))  # answers are text, never markup
    assert len(shown) == 6
    for plan in plans:
        if plan.name in shown:
            assert plan.english.replace("'", "&#39;") in page
            assert clip_paths(tmp_path / "dataset", report.get_row("MER2023"), plan.name)["video"].is_file()


def test_a_score_below_chance_is_explained(tmp_path, results, monkeypatch):
    monkeypatch.setattr(report, "basic_plans", lambda seed: [])
    monkeypatch.setattr(report, "pick_clips", lambda plans: [])
    guess = "The face hardly moves. The voice is even. The words agree with this. So the person's emotional state is"

    def page(score: float, neutral: int) -> str:
        results[2].text_only = True
        results[2].scores["description"]["mer2023"] = score
        answers = [f"{guess} neutral."] * neutral + [f"Loud. {guess} sad."] * (10 - neutral)
        results[2].answers["description"] = {str(i): answer for i, answer in enumerate(answers)}
        out = tmp_path / "report.html"
        report.write_report(out, results=results, chance=0.23, dataset_root=tmp_path, seed=0, seconds=0)
        return re.sub(r"\s+", " ", out.read_text())

    odd = page(0.0057, 9)
    assert '<span>0.6<a href="#below-chance">*</a></span>' in odd and odd.count("<p id=") == 1
    assert "Why 0.6 %, below a blind draw (23.0 %)?" in odd
    assert "“The face hardly moves. The voice is even.”" in odd and "90 % of the descriptions end in “neutral”" in odd
    assert "0.6 % because 90 % of them say neutral" in demo.format_table(results)
    for score, neutral in ((0.3, 9), (0.0057, 3)):
        assert "below-chance" not in page(score, neutral)
        assert "because" not in demo.format_table(results)


def test_table(results):
    table = demo.format_table(results)
    assert "SYNTHETIC" in table and "23.2" in table
    rows = [next(x for x in table.splitlines() if x.startswith(title)) for title in demo.RECIPES.values()]
    assert [row.split()[-7] for row in rows] == ["80.0", "60.0", "40.0"]


def test_chance_is_that_of_a_blind_draw():
    assert 0.2 <= demo.chance() < 0.25


def test_mean_labels():
    assert demo.mean_labels(["[happy, calm]", "[]", "[sad]", ""]) == pytest.approx(0.75)
