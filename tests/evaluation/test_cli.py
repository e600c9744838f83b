"""The two evaluation commands, as users run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_benchmark import GOOD, POOR, Bench

from affectgpt.cli import evaluate, score
from affectgpt.cli.common import run_cli
from affectgpt.core.npz import read_npz, write_npz

ROOT = Path(__file__).resolve().parents[2]
SENTENCE = "The character's emotional state is {}."


def run(capsys: pytest.CaptureFixture[str], main, *arguments: str) -> tuple[int, str, str]:
    status = run_cli(main, list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def test_score_only(bench: Bench, capsys, tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("s.json", "s.html", "s.tex", "u.csv")]
    status, out, err = run(
        capsys, score.main, *bench.arguments("--json", files[0], "--html", files[1], "--latex", files[2]),
        "--unknown-labels", files[3],
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "run        run_a" in out and "mean of 3" in out and "91.67" in out
    assert json.loads(Path(files[0]).read_text())["mean_of"] == 3
    assert Path(files[1]).read_text().startswith("<!doctype html>") and r"\\" in Path(files[2]).read_text()
    assert Path(files[3]).read_text().startswith("label,count")


def test_it_loads_nothing_heavy(bench: Bench) -> None:
    """The published data are scored in a second or so: no torch, transformers, vllm, pandas, scikit-learn or plots."""
    heavy = ["torch", "transformers", "vllm", "pandas", "sklearn", "scipy", "matplotlib", "jinja2", "rich", "librosa"]
    code = (
        "import sys, runpy\n"
        f"sys.argv[1:] = {bench.arguments()!r}\n"
        "try:\n    runpy.run_path('evaluation-scoreonly.py', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        f"print('loaded', [name for name in {heavy!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets", "mer203"], "unknown data set 'mer203'. Did you mean 'MER2023'?"),
        (["--run", "rum_a"], "no run 'rum_a'. Did you mean 'run_a'?"),
        (["--checkpoints", "checkpoint_000030_loss_0.60"], "Did you mean 'checkpoint_000030_loss_0.600'?"),
        (["--lexicon", "nowhere"], "lexicon nowhere: no wheel1.xlsx"),
        (["--grouping", "wheels"], "unknown grouping 'wheels'. Did you mean 'wheel'?"),
        (["--datasets", "mer2024"], "no result files in"),
        (["--answers", "x.csv"], "say which with --datasets NAME"),
        (["--bootstrap", "-1"], "--bootstrap -1"),
    ],
)
def test_errors_are_one_line(bench: Bench, capsys, arguments: list[str], message: str) -> None:
    status, out, err = run(capsys, score.main, *bench.arguments(*arguments))
    assert status == 1 and out == "" and err.startswith("error: ") and message in err


def test_an_error_leaves_files_as_they_were(bench: Bench, capsys, tmp_path: Path) -> None:
    target = tmp_path / "s.json"
    target.write_text("mine")
    bench.add("SIMS", "run_a", "checkpoint_000035_loss_0.500", {"s1": "positive"})
    status, _, err = run(capsys, score.main, *bench.arguments("--json", str(target)))
    assert status == 1 and "4 samples of the test split are missing (first: s2, s3, s4, s5)" in err
    assert target.read_text() == "mine" and sorted(tmp_path.glob(".*")) == []
    status, out, _ = run(capsys, score.main, *bench.arguments("--json", str(target), "--allow-missing"))
    assert status == 0 and json.loads(target.read_text())["datasets"]["sims"]["checkpoints"]
    assert "SIMS: samples without an answer were left out: 4 in checkpoint_000035_loss_0.500" in out


def test_compare(bench: Bench, capsys, tmp_path: Path) -> None:
    target = tmp_path / "c.json"
    status, out, _ = run(
        capsys, score.main, *bench.arguments("--compare", "run_a", "run_b", "--json", str(target))
    )  # fmt: skip
    assert status == 0 and "run_a stands with checkpoint_000030_loss_0.600, the best of 2" in out
    found = json.loads(target.read_text())["datasets"]
    assert found.keys() == {"mer2023"}
    assert found["mer2023"]["a"] == 1 and found["mer2023"]["difference"] == pytest.approx(-2 / 3)
    status, out, _ = run(
        capsys, score.main,
        *bench.arguments("--compare", "run_a/checkpoint_000035_loss_0.500", "run_b"),
    )  # fmt: skip
    assert status == 0 and "+0.00" in out and "1.0000" in out
    status, _, err = run(capsys, score.main, *bench.arguments("--compare", "run_a", "run_c"))
    assert status == 1 and "no run 'run_c'" in err


def test_the_name_of_a_configuration_tells_its_run(bench: Bench, capsys, tmp_path: Path) -> None:
    for name in ("mine_20261122043", "mine_too_20261122043"):  # both stand with one file
        bench.add("MER2023", name, "checkpoint_000030_loss_0.700", GOOD["MER2023"])
    (tmp_path / "mine.yaml").write_text("run: {max_epoch: 1}\n")
    arguments = bench.arguments("--datasets", "mer2023", "--cfg-path", str(tmp_path / "mine.yaml"))
    status, out, _ = run(capsys, score.main, *arguments)
    assert status == 0 and "run        mine_20261122043\n" in out
    status, out, _ = run(capsys, score.main, *arguments, "--run", "run_b")
    assert status == 0 and "run        run_b" in out
    bench.add("MER2023", "mine_20261122043_2", "checkpoint_000030_loss_0.700", GOOD["MER2023"])
    status, out, _ = run(capsys, score.main, *arguments)  # two of this name: that with most files, as without any
    assert status == 0 and "run        run_a" in out


def test_base_root(bench: Bench, capsys) -> None:
    (bench.root / "output").rename(bench.root / "elsewhere")
    for path in (bench.root / "elsewhere").iterdir():
        path.rename(path.with_name(path.name.replace("results", "mine")))
    status, out, _ = run(capsys, score.main, *bench.arguments("--base-root", str(bench.root / "elsewhere" / "mine")))
    assert status == 0 and "mean of 3" in out


class TestAnswers:
    @pytest.fixture
    def table(self, tmp_path: Path) -> Path:
        path = tmp_path / "other-model.csv"
        rows = {"m1": "happy, calm", "m2": "angry", "m3": "happy", "m4": "neutral"}
        path.write_text("name,answer\n" + "".join(f'{n},"{SENTENCE.format(a)}"\n' for n, a in rows.items()))
        return path

    def test_scored_in_place(self, bench: Bench, capsys, table: Path) -> None:
        before = sorted(bench.root.rglob("*"))
        status, out, _ = run(capsys, score.main, *bench.arguments("--answers", str(table), "--datasets", "mer2023"))
        assert status == 0 and "run        other-model.csv" in out and "labels     direct" in out and "66.67" in out
        assert sorted(bench.root.rglob("*")) == before

    def test_answers_that_cannot_be_read_directly_are_counted(self, bench: Bench, capsys, table: Path) -> None:
        table.write_text(table.read_text().replace(SENTENCE.format("angry"), "He shouts at them. They leave."))
        status, out, _ = run(capsys, score.main, *bench.arguments("--answers", str(table), "--datasets", "mer2023"))
        assert status == 0 and "33.33" in out and "1 of 4 answers have no form that can be read directly" in out

    def test_labels_that_are_extracted_already(self, bench: Bench, capsys, tmp_path: Path) -> None:
        items = GOOD["SIMS"]
        np.savez(tmp_path / "x.npz", filenames=list(items), fileitems=list(items.values()))
        status, out, _ = run(
            capsys, score.main, *bench.arguments("--answers", str(tmp_path / "x.npz"), "--datasets", "sims")
        )
        assert status == 0 and "100.00" in out

    def test_empty_and_missing_answers(self, bench: Bench, capsys, table: Path) -> None:
        table.write_text("name,answer\nm1,\nm2,happy\nm3,sad\n")
        arguments = bench.arguments("--answers", str(table), "--datasets", "mer2023")
        status, _, err = run(capsys, score.main, *arguments)
        assert status == 1 and "2 samples of the test split are missing (first: m1, m4)" in err
        status, out, _ = run(capsys, score.main, *arguments, "--allow-missing")
        assert status == 0 and "50.00*" in out

    def test_evaluation_keeps_them_as_a_run(self, bench: Bench, capsys, table: Path) -> None:
        arguments = bench.arguments("--answers", str(table), "--datasets", "mer2023", "--extractor", "direct")
        status, out, _ = run(capsys, evaluate.main, *arguments)
        assert status == 0 and "run        other-model" in out and "66.67" in out
        kept = bench.folder("MER2023", "other-model") / "other-model.npz"
        assert read_npz(kept)["name2reason"]["m2"] == SENTENCE.format("angry")
        assert run(capsys, evaluate.main, *arguments)[0] == 0
        table.write_text(table.read_text().replace("angry", "sad"))
        status, _, err = run(capsys, evaluate.main, *arguments)
        assert status == 1 and "holds other answers" in err and "--run NAME" in err


class TestExtraction:
    def test_direct_files_have_their_own_names(self, bench: Bench, capsys) -> None:
        stem = "checkpoint_000030_loss_0.600"
        answers = {"m1": "happy", "m2": "calm", "m3": "sad", "m4": "neutral"}
        write_npz(
            bench.folder("MER2023", "run_a") / f"{stem}.npz",
            name2reason={name: SENTENCE.format(answer) for name, answer in answers.items()},
        )
        status, out, _ = run(
            capsys, evaluate.main,
            *bench.arguments("--extractor", "direct", "--datasets", "mer2023", "--checkpoints", stem),
        )  # fmt: skip
        assert status == 0 and "66.67" in out and "labels     direct" in out
        assert (bench.folder("MER2023", "run_a") / f"{stem}-openset-direct.npz").exists()
        status, out, _ = run(capsys, score.main, *bench.arguments("--datasets", "mer2023", "--checkpoints", stem))
        assert "100.00" in out and "labels     direct" not in out  # the other extraction is untouched

    def test_what_is_there_is_scored_without_a_model(self, bench: Bench, capsys) -> None:
        status, out, _ = run(capsys, evaluate.main, *bench.arguments("--extractor", "transformers"))
        assert status == 0 and "mean of 3" in out and "91.67" in out

    def test_a_missing_model_is_named(self, bench: Bench, capsys) -> None:
        (bench.folder("MER2023", "run_b") / "checkpoint_000030_loss_0.700-openset.npz").unlink()
        arguments = bench.arguments("--run", "run_b", "--extractor", "transformers", "--model-path", "models/none")
        status, out, err = run(capsys, evaluate.main, *arguments)
        assert status == 1 and "models/none" in err and out == ""
        status, _, err = run(capsys, evaluate.main, *bench.arguments("--run", "run_b", "--extractor", "openai"))
        assert status == 1 and "needs --base-url URL and --model NAME" in err

    def test_files_of_other_settings_are_not_reused(self, bench: Bench, capsys) -> None:
        stem = "checkpoint_000030_loss_0.700"
        path = bench.folder("MER2023", "run_b") / f"{stem}.npz"
        write_npz(path, name2reason={name: SENTENCE.format("happy") for name in POOR["MER2023"]})
        arguments = bench.arguments("--run", "run_b", "--extractor", "direct")
        assert run(capsys, evaluate.main, *arguments)[0] == 0
        write_npz(path, name2reason={name: SENTENCE.format("sad") for name in POOR["MER2023"]})
        status, _, err = run(capsys, evaluate.main, *arguments)
        assert status == 1 and "made otherwise than asked for" in err
        status, out, _ = run(capsys, evaluate.main, *arguments, "--overwrite")
        assert status == 0 and "40.00" in out  # angry and sad share a sector of the fifth wheel


def test_scripts_are_shims_and_help_is_quick() -> None:
    for name in ("evaluation.py", "evaluation-scoreonly.py"):
        assert len((ROOT / name).read_text().splitlines()) <= 9
        done = subprocess.run(
            [sys.executable, name, "--help"], cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, "COLUMNS": "120"},
        )  # fmt: skip
        assert done.returncode == 0 and "--allow-missing" in done.stdout


@pytest.mark.parametrize("truth", ["开心", "3", "happy.", "happy; surprised", "The man is happy today."])
def test_truths_that_the_lexicon_lacks_are_named_in_every_report(bench: Bench, capsys, tmp_path: Path, truth) -> None:
    names = [f"c{i}" for i in range(6)]
    rows = "".join(f'{name},"{truth if i else "happy"}"\n' for i, name in enumerate(names))
    (tmp_path / "mine.csv").write_text("name,ovlabel\n" + rows, encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(
        "datasets: {mine: {path: mine.csv, task: fine-grained, columns: {ovlabel: ovlabel}}}\n"
        f"paths: {{dataset_root: {tmp_path}}}\n"
    )
    (tmp_path / "answers.csv").write_text("name,answer\n" + "".join(f"{name},happy\n" for name in names))
    files = {kind: tmp_path / f"r.{kind}" for kind in ("json", "html")}
    status, out, err = run(
        capsys, score.main, "--cfg-path", str(tmp_path / "mine.yaml"), "--answers", str(tmp_path / "answers.csv"),
        "--lexicon", str(bench.lexicon), "--json", str(files["json"]), "--html", str(files["html"]),
        "--datasets", "mine",
    )  # fmt: skip
    said = f"5 of 6 truths are not in the lexicon and are not scored: {truth} (5)"
    assert status == 0 and said in out and said in err, (out, err)
    assert any(said in note for note in json.loads(files["json"].read_text())["notes"])
    assert said in files["html"].read_text(encoding="utf-8")


def test_labels_of_other_answers_are_not_scored(bench: Bench, capsys) -> None:
    folder = bench.folder("MER2023", "fresh")
    answers = {"m1": SENTENCE.format("happy"), "m2": SENTENCE.format("angry"), "m3": SENTENCE.format("sad"), "m4": "-"}
    write_npz(folder / "checkpoint_000030_loss_0.500.npz", name2reason=answers)
    arguments = bench.arguments("--datasets", "mer2023", "--run", "fresh")
    assert run(capsys, evaluate.main, *arguments, "--extractor", "direct")[0] == 0
    assert run(capsys, score.main, *arguments)[0] == 0
    answers["m1"] = SENTENCE.format("sad")
    write_npz(folder / "checkpoint_000030_loss_0.500.npz", name2reason=answers)
    status, _, err = run(capsys, score.main, *arguments)
    assert status == 1 and "was extracted from other contents than checkpoint_000030_loss_0.500.npz" in err
    assert "--overwrite" in err and "--extractor direct" in err


def test_result_files_whose_names_are_no_text_are_left_out_by_name(bench: Bench, capsys) -> None:
    folder = bench.folder("MER2023", "run_a")
    good = folder / "checkpoint_000030_loss_0.600-openset.npz"
    odd = os.fsencode(folder) + b"/checkpoint_000031_loss_\xff-openset.npz"
    Path(os.fsdecode(odd)).write_bytes(good.read_bytes())
    Path(os.fsdecode(os.fsencode(folder.parent) + b"/run_\xff")).mkdir()
    status, out, err = run(capsys, score.main, *bench.arguments("--datasets", "mer2023", "--run", "run_a"))
    assert status == 0 and "checkpoint_000030" in out and err.count("is not UTF-8, so it is left out") == 2
    assert "\\udcff" in err


def test_empty_and_padded_items_score_as_published(bench: Bench, capsys, tmp_path: Path) -> None:
    """An empty item predicts nothing, and is neutral for sentiment; brackets are removed at the very ends only."""
    numbers = []
    for mer, sims in (("", ""), ("[]", "neutral")):
        bench.add("MER2023", "run_c", "checkpoint_000030_loss_0.1", {**GOOD["MER2023"], "m1": mer})
        bench.add("SIMS", "run_c", "checkpoint_000030_loss_0.1", {**GOOD["SIMS"], "s1": sims})
        status, _, err = run(
            capsys, score.main, *bench.arguments("--run", "run_c", "--json", str(tmp_path / "a.json")),
        )  # fmt: skip
        assert status == 0, err
        found = json.loads((tmp_path / "a.json").read_text())["datasets"]
        numbers.append(
            [
                next(iter(found[name]["checkpoints"].values()))[key]
                for name, key in (("mer2023", "hit"), ("sims", "waf"))
            ]
        )
    assert numbers[0] == numbers[1]
    bench.add("MER2023", "run_d", "checkpoint_000030_loss_0.1", {**GOOD["MER2023"], "m1": " [happy, sad] "})
    status, out, err = run(capsys, score.main, *bench.arguments("--run", "run_d", "--datasets", "MER2023"))
    assert status == 0 and "[happy" in out, out + err


def test_answers_of_any_model_are_documented(bench: Bench, capsys) -> None:
    with pytest.raises(SystemExit):
        score.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    page = (ROOT / "docs" / "scores.md").read_text()
    for words in ("name,answer", ".jsonl", "name2reason", "--extractor"):
        assert words in text and words in page
    for path in bench.folder("MER2023", "run_b").glob("*-openset.npz"):
        path.unlink()
    status, _, err = run(capsys, score.main, *bench.arguments("--run", "run_b"))
    assert status == 1 and "--extractor direct" in err
