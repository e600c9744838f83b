"""Names that become paths, given through every command that takes one: none leads out of its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from affectgpt.cli.main import main

OUTSIDE = ["../../x", "..", ".", "a/b", "a\\b", "/tmp/x", "x\x1b[2J", "x\ny"]
LONG = "n" * 300


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder deep enough that a name could lead out of it; commands run in it."""
    home = tmp_path / "one" / "two" / "home"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    (home / "answers.csv").write_text('name,answer\nm1,"The character\'s emotional state is happy."\n')
    return home


def _files(home: Path) -> set[str]:
    return {str(path.relative_to(home.parents[2])) for path in home.parents[2].rglob("*")}


def _refused(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 1
    _, err = capsys.readouterr()
    assert err.startswith("error: ") and "\x1b" not in err and "Traceback" not in err
    return err


@pytest.mark.parametrize("name", [*OUTSIDE, LONG])
def test_a_run_s_name_stays_below_the_results(home, capsys, name):
    before = _files(home)
    err = _refused(
        capsys, "evaluate", "--answers", "answers.csv", "--datasets", "mer2023", "--extractor", "direct",
        "--lexicon", "builtin", "--run", name,
    )  # fmt: skip
    assert "--run: run name" in err and ("not a file stem" in err or "300 bytes" in err)
    assert _files(home) == before


def test_an_answers_file_gives_no_name_that_leads_out(home, capsys):
    (home / "answers.csv").rename(home / "...csv")
    before = _files(home)
    arguments = ["--datasets", "mer2023", "--extractor", "direct", "--lexicon", "builtin"]
    assert "run name '..' is not a file stem" in _refused(capsys, "evaluate", "--answers", "...csv", *arguments)
    assert _files(home) == before


COMMANDS = {
    "train": (), "infer": (), "sample": ("--video_path", "clip.mp4"), "extract_features": (), "params": (),
    "caption": (), "crowd": ("predict", "--out", "votes.csv"), "doctor": ("--no-model",),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["name=../../x", "name=..", "datasets"])
def test_names_in_a_configuration_are_names(home, capsys, command, option):
    datasets, options = "", ["--options", option]
    if option.startswith("datasets"):
        datasets, options = "datasets: {../../x: {path: a.csv}}\n", []
    (home / "recipe.yaml").write_text(f"{datasets}run: {{device: cpu}}\n")
    (home / "clip.mp4").write_bytes(b"")
    before = _files(home)
    err = _refused(capsys, command, *COMMANDS[command], "--cfg-path", "recipe.yaml", *options)
    assert "is not a file stem" in err and ("'../../x'" in err or "'..'" in err)
    assert ("recipe.yaml:1: data set name" if datasets else f"--options '{option}': name") in err
    assert _files(home) == before


@pytest.mark.parametrize("option", [f"name={LONG}", f"datasets.{LONG}.path=a.csv"])
def test_names_in_options_fit_a_file_system(home, capsys, option):
    (home / "recipe.yaml").write_text("run: {device: cpu}\n")
    err = _refused(capsys, "extract_features", "--cfg-path", "recipe.yaml", "--options", option)
    assert "file systems take 255" in err and "name 'nnn" in err


@pytest.mark.parametrize("names", ["../x", ".", LONG, "名" * 85])
@pytest.mark.parametrize("form", ["csv", "json"])
def test_sample_names_of_own_sets(home, capsys, names, form):
    (home / "recipe.yaml").write_text(
        f"datasets: {{mine: {{path: a.{form}, columns: {{name: n, emotion: e}}, folders: {{video: v}}, label_type: "
        "onehot_wo_candidates}}\npaths: {dataset_root: .}\nrun: {device: cpu}\n"
    )
    (home / "a.csv").write_text(f"n,e\n{names},sad\n", encoding="utf-8")
    (home / "a.json").write_text(f'[{{"n": "{names}", "e": "sad"}}]', encoding="utf-8")
    err = _refused(capsys, "extract_features", "--cfg-path", "recipe.yaml")
    assert f"a.{form}" in err and "sample name" in err and ("not a file stem" in err or "file systems take 255" in err)


@pytest.mark.parametrize("name", ["../v/x.mp4", "/v/x.mp4", "a/../../x.mp4", "a\x1b[2J.mp4", f"a/{LONG}.mp4"])
def test_files_of_own_sets_lie_below_their_folder(home, capsys, name):
    (home / "recipe.yaml").write_text(
        "datasets: {mine: {path: a.csv, columns: {name: n, file: f, emotion: e}, folders: {video: v}, label_type: "
        "onehot_wo_candidates}}\npaths: {dataset_root: .}\nrun: {device: cpu}\n"
    )
    (home / "a.csv").write_text(f"n,f,e\none,{name},sad\n", encoding="utf-8")
    err = _refused(capsys, "extract_features", "--cfg-path", "recipe.yaml")
    assert "a.csv, sample 'one'" in err


def test_raw_clips_with_long_names(home, capsys):
    (home / "clips").mkdir()
    (home / "clips" / f"{'c' * 251}.mp4").write_bytes(b"")
    assert "file systems take 255" in _refused(capsys, "preprocess", "--video-dir", "clips", "--out", "out")
    assert not (home / "out").exists()


@pytest.mark.parametrize("checkpoint", ["../checkpoint_000030_loss_0.602.pth", "checkpoint_000030_loss_0.602.pth"])
def test_results_of_a_checkpoint_have_its_folder_s_name(home, checkpoint):
    """Also where the checkpoint's path says that folder with dots, or not at all."""
    from affectgpt.evaluation.results import result_path

    found = result_path("output/results", dataset="MER2023", checkpoint=Path(checkpoint))
    folder = "two" if checkpoint.startswith("..") else "home"
    assert found == Path(f"output/results-mer2023/{folder}/checkpoint_000030_loss_0.602.npz")


def test_long_names_that_fit_are_written(home):
    """The half-written file beside has a longer name, which must not fail where the file's own would do."""
    from affectgpt.core.files import write_text

    for name in ("x" * 251 + ".txt", "名" * 83 + ".npz"):
        write_text(home / name, "text")
        assert (home / name).read_text() == "text"
    assert len(list(home.iterdir())) == 3
