"""Votes of several result files, as ``affectgpt consensus`` writes them and scoring reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_benchmark import Bench

from affectgpt.cli import consensus as command
from affectgpt.cli import score
from affectgpt.cli.common import run_cli
from affectgpt.cli.main import main as affectgpt
from affectgpt.core.errors import ConfigError
from affectgpt.evaluation.consensus import vote_labels, vote_polarity
from affectgpt.evaluation.lexicon import Lexicon, grouping_of
from affectgpt.evaluation.results import describe, read_items

STEMS = [f"checkpoint_{epoch:06d}_loss_0.500" for epoch in (30, 35, 40)]


def items(*per_voter: str) -> list[dict[str, str]]:
    return [{"clip": item} for item in per_voter]


def votes_of(lexicon: Lexicon, *per_voter: str, at_least: int) -> str:
    return vote_labels(items(*per_voter), grouping_of(lexicon), at_least=at_least).items["clip"]


def test_labels_of_one_group_vote_together_and_the_first_names_it(lexicon: Lexicon) -> None:
    assert votes_of(lexicon, "[merriment, blue]", "[Cheery]", "[happy]", at_least=3) == "[merriment]"
    # glad and happy share a group in four wheels; in the fifth both are up, so that they are one group in every wheel
    assert votes_of(lexicon, "[happy]", "[glad]", "[sad]", at_least=2) == "[happy]"
    # angry and sad share the group of the fifth wheel alone: no group in every wheel
    assert votes_of(lexicon, "[sad]", "[angry]", "[sad]", at_least=2) == "[sad]"


def test_a_voter_has_one_vote_for_a_group(lexicon: Lexicon) -> None:
    assert votes_of(lexicon, "[happy, merry, glad]", "[angry]", "[irate]", at_least=2) == "[angry]"


def test_words_that_the_lexicon_does_not_know_vote_for_themselves(lexicon: Lexicon) -> None:
    assert votes_of(lexicon, "[gloop, happy]", "[Gloop]", "[sad]", at_least=2) == "[gloop]"
    found = vote_labels(items("[gloop]", "[gloop]"), grouping_of(lexicon), at_least=2)
    assert found.groups == found.single == 0


def test_where_no_group_has_enough_votes_the_first_of_those_with_most_is_kept(lexicon: Lexicon) -> None:
    assert votes_of(lexicon, "[sad]", "[angry, happy]", "[happy]", "[angry]", at_least=3) == "[angry]"
    found = vote_labels(items("[sad]", "[angry]", "[happy]"), grouping_of(lexicon), at_least=2)
    assert found.items["clip"] == "[sad]" and found.undecided == ["clip"]
    assert votes_of(lexicon, "[]", "[]", "[]", at_least=2) == "[]"


def test_as_many_groups_as_single_answers_have(lexicon: Lexicon) -> None:
    """Three voters with two groups each, of which two are shared by two: T = 2 keeps two, T = 1 three, T = 3 one."""
    three = items("[happy, sad]", "[happy, angry]", "[sad, happy]")
    found = vote_labels(three, grouping_of(lexicon))
    assert (found.at_least, found.single, found.groups) == (2, 2, 2) and found.items["clip"] == "[happy, sad]"
    with pytest.raises(ConfigError, match="--at-least 4: 1 to 3"):
        vote_labels(three, grouping_of(lexicon), at_least=4)


def test_of_two_as_near_the_one_that_asks_for_more_votes(lexicon: Lexicon) -> None:
    found = vote_labels(items("[happy]", "[happy, sad]"), grouping_of(lexicon))
    assert found.single == 1.5 and (found.at_least, found.groups) == (2, 1)


def test_polarity_ties_are_neutral() -> None:
    def vote(*words: str) -> str:
        return vote_polarity(items(*words)).items["clip"]

    assert vote("positive", "negative", "positive") == "positive"
    assert vote("positive", "negative") == "neutral" == vote("positive", "negative", "mixed")
    assert vote("mixed", "?", "positive") == "neutral"  # other words count as neutral, as in scoring
    assert vote_polarity(items("positive", "negative")).undecided == ["clip"]


@pytest.fixture
def voters(bench: Bench) -> Bench:
    """A third checkpoint, so that there is something to vote."""
    bench.add("MER2023", "run_a", STEMS[2], {"m1": "[happy]", "m2": "[mad]", "m3": "[happy]", "m4": "[]"})
    bench.add(
        "SIMS", "run_a", STEMS[2], {"s1": "positive", "s2": "positive", "s3": "mixed", "s4": "negative", "s5": "?"}
    )
    bench.add("OVMERDPlus", "run_a", STEMS[2], {"o1": "[happy, angry]", "o2": "[sad]", "o3": "[odd]"})
    return bench


def call(capsys, main, *arguments: str) -> tuple[int, str, str]:
    status = run_cli(main, list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def places(bench: Bench, *more: str) -> list[str]:
    return [word for word in bench.arguments(*more) if word not in ("--bootstrap", "50")]


def test_votes_are_a_run_that_is_scored_like_any_other(voters: Bench, capsys) -> None:
    status, out, err = call(capsys, command.main, *places(voters))
    assert (status, err) == (0, "") and "score it:" in out and "checkpoint_000030_loss_0.600" in out
    folder = voters.folder("SIMS", "votes")
    assert sorted(p.name for p in folder.iterdir()) == [
        "votes-openset-sentiment.meta.json", "votes-openset-sentiment.npz",
        "votes-openset.meta.json", "votes-openset.npz",
    ]  # fmt: skip
    found = read_items(folder / "votes-openset-sentiment.npz")
    assert found == {"s1": "positive", "s2": "positive", "s3": "neutral", "s4": "positive", "s5": "neutral"}
    assert describe(folder / "votes-openset-sentiment.npz") == "votes of 3 files, majority"
    meta = json.loads((folder / "votes-openset-sentiment.meta.json").read_text())
    assert len(meta["settings"]["voters"]) == 3 and meta["notes"]["undecided"]["count"] == 0
    status, out, _ = call(capsys, score.main, *voters.arguments("--run", "votes"))
    assert status == 0 and "labels     votes of 3 files" in out and "mean of 3" in out
    # the run with most files is still the one that is scored where none is named
    assert "run        run_a" in call(capsys, score.main, *voters.arguments())[1]


def test_the_same_votes_are_kept_and_others_are_not_replaced_unasked(voters: Bench, capsys) -> None:
    assert call(capsys, command.main, *places(voters, "--datasets", "mer2023"))[0] == 0
    path = voters.folder("MER2023", "votes") / "votes-openset.npz"
    before = path.read_bytes()
    status, out, _ = call(capsys, command.main, *places(voters, "--datasets", "mer2023"))
    assert status == 0 and "was there" in out and path.read_bytes() == before
    two = places(voters, "--datasets", "mer2023", "--checkpoints", "30,35")
    status, _, err = call(capsys, command.main, *two)
    assert status == 1 and "holds other votes" in err and "--overwrite" in err and path.read_bytes() == before
    assert call(capsys, command.main, *two, "--overwrite")[0] == 0
    assert len(json.loads(path.with_suffix(".meta.json").read_text())["settings"]["voters"]) == 2
    status, _, err = call(capsys, command.main, *places(voters, "--name", "run_b", "--datasets", "mer2023"))
    assert status == 0 and (voters.folder("MER2023", "run_b") / "run_b-openset.npz").exists()


def test_files_and_clips_that_lack_are_named(voters: Bench, capsys) -> None:
    (voters.folder("SIMS", "run_a") / f"{STEMS[2]}-openset-sentiment.npz").unlink()
    status, _, err = call(capsys, command.main, *places(voters))
    assert status == 1 and "SIMS: 1 of 3 files are missing or have no extracted labels" in err and STEMS[2] in err
    assert not voters.folder("MER2023", "votes").exists()
    status, out, _ = call(capsys, command.main, *places(voters, "--allow-missing"))
    assert status == 0 and "note: SIMS: 1 of 3 files are missing" in out
    voters.add("MER2023", "run_a", STEMS[2], {"m1": "[happy]", "m2": "  ", "m4": "[]"})
    status, _, err = call(capsys, command.main, *places(voters, "--datasets", "mer2023", "--name", "v2"))
    assert (
        status == 1
        and "lacks 1 of 4 clips (first: m3)" in err
        and "has empty items for 1 of 4 clips (first: m2)" in err
    )
    assert not voters.folder("MER2023", "v2").exists()
    arguments = places(voters, "--datasets", "mer2023", "--name", "v2", "--allow-missing")
    status, out, _ = call(capsys, command.main, *arguments)
    assert status == 0 and "lacks 1 clips (m3)" in out
    assert set(read_items(voters.folder("MER2023", "v2") / "v2-openset.npz")) == {"m1", "m2", "m3", "m4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoints", "30"], "a vote needs two or more result files"),
        (["--checkpoints", "30-60/5"], "no result file of epoch 45, 50, 55, 60"),
        (["--name", "run_a"], "is one of the voters' runs"),
        (["--name", "../x"], "is not a file stem"),
        (["--at-least", "9"], "--at-least 9: 1 to 3"),
        (["--run", "rum_a"], "Did you mean 'run_a'?"),
        (["--voters", "run_a", "run_x"], "no run 'run_x'"),
        (["--voters", "run_a", "--checkpoints", "30"], "leave out --run and --checkpoints"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(voters: Bench, capsys, arguments: list[str], message: str) -> None:
    before = sorted(voters.root.rglob("*"))
    status, out, err = call(capsys, command.main, *places(voters, *arguments))
    assert status == 1 and out == "" and err.startswith("error: ") and message in err
    assert sorted(voters.root.rglob("*")) == before


def test_runs_vote_too(voters: Bench, capsys) -> None:
    """Three seeds of a recipe, say: run_b has one file, of run_a one is named."""
    wanted = ["run_b", "run_a/checkpoint_000030_loss_0.600", f"run_a/{STEMS[2]}"]
    status, out, _ = call(capsys, command.main, *places(voters, "--datasets", "mer2023", "--voters", *wanted))
    assert status == 0 and "run_b: checkpoint_000030_loss_0.700" in out
    found = read_items(voters.folder("MER2023", "votes") / "votes-openset.npz")
    assert found == {"m1": "[merriment]", "m2": "[irate]", "m3": "[happy]", "m4": "[happy]"}


def test_samples_of_one_checkpoint_vote_together(bench: Bench, capsys) -> None:
    for epoch in (30, 35):
        for k, item in enumerate(("[happy, sad]", "[happy]", "[sad, glad]"), start=1):
            stem = f"sample_{k}_checkpoint_{epoch:06d}_loss_0.500"
            bench.add("MER2023", "run_a_samples", stem, dict.fromkeys(("m1", "m2", "m3", "m4"), item))
    arguments = places(bench, "--datasets", "mer2023", "--run", "run_a_samples", "--at-least", "3")
    status, out, _ = call(capsys, command.main, *arguments)
    assert status == 0 and out.count("MER2023") == 2
    folder = bench.folder("MER2023", "votes")
    names = sorted(path.name for path in folder.glob("*.npz"))
    assert names == [f"votes_checkpoint_{epoch:06d}_loss_0.500-openset.npz" for epoch in (30, 35)]
    assert set(read_items(folder / names[0]).values()) == {"[happy]"}
    status, out, _ = call(capsys, command.main, *arguments, "--checkpoints", "35", "--name", "late")
    assert status == 0 and out.count("MER2023") == 1
    # files of samples never outnumber a run's checkpoints where no run is named
    assert "run        run_a\n" in call(capsys, score.main, *bench.arguments("--datasets", "mer2023"))[1]


def test_it_is_a_command(voters: Bench, capsys) -> None:
    assert affectgpt(["consensus", *places(voters, "--datasets", "sims")]) == 0
    assert "SIMS" in capsys.readouterr().out


@pytest.mark.parity
@pytest.mark.parametrize(
    ("output", "measured"),
    [
        ("output", {"MER2023": 77.59, "CMUMOSI": 81.36, "SIMS": 89.03}),
        ("output-ovmerd", {"OVMERDPlus": 68.89}),
    ],
)
def test_votes_of_the_released_checkpoints(
    merunibench: Path, tmp_path: Path, capsys, output: str, measured: dict
) -> None:
    """Measured on the released answers: above the mean of single checkpoints, at no more groups than these have."""
    (tmp_path / "output").mkdir()
    for folder in (merunibench / output).iterdir():
        (tmp_path / "output" / folder.name).mkdir()
        for run in folder.iterdir():
            (tmp_path / "output" / folder.name / run.name).symlink_to(run)
    arguments = [
        "--output-root", str(tmp_path / "output"), "--dataset-root", str(merunibench / "dataset"),
        "--lexicon", str(merunibench / "emotion_wheel"), "--run", "emercoarse",
    ]  # fmt: skip
    if output == "output-ovmerd":
        arguments += ["--allow-missing"]
    assert run_cli(command.main, arguments) == 0
    found = {}
    for run in ("votes", "emercoarse"):
        target = tmp_path / f"{run}.json"
        status = run_cli(score.main, [*arguments, "--run", run, "--json", str(target), "--bootstrap", "0"])
        found[run] = json.loads(target.read_text())["datasets"]
        assert status == 0
    capsys.readouterr()
    for dataset, value in measured.items():
        votes = found["votes"][dataset.lower()]["checkpoints"]["votes"]
        singles = list(found["emercoarse"][dataset.lower()]["checkpoints"].values())
        key = found["votes"][dataset.lower()]["metric"]
        assert len(singles) == 7 and round(100 * votes[key], 2) == value
        for name in ("precision", "recall"):
            if name in votes:
                assert votes[name] > sum(single[name] for single in singles) / 7
        if votes["floors"]["groups"] is not None:
            assert votes["floors"]["groups"] <= sum(single["floors"]["groups"] for single in singles) / 7
