"""The doctor names the first stage that deviates, what is wrong with an installation, and how far answers agree."""

from __future__ import annotations

import itertools
import json
import tomllib
from pathlib import Path

import pytest
import torch

from affectgpt.cli.doctor import main as run_doctor
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.evaluation.results import write_answers
from affectgpt.inference import doctor
from affectgpt.inference.doctor import CHANCE, USUAL, compare_answers, label_overlap, verdict
from affectgpt.inference.session import GenerationSession

ROOT = Path(__file__).resolve().parents[2]


def run(world, capsys, *arguments: str) -> tuple[int, str]:
    status = run_doctor([f"--cfg-path={world.yaml}", *arguments])
    return status, capsys.readouterr().out


@pytest.fixture(scope="module")
def session(world):
    made = GenerationSession.from_config(world.config(), device=torch.device("cpu"))
    made.use(world.checkpoints()[0].path)
    return made


@pytest.fixture
def stages(session, tmp_path):
    return doctor.run_stages(session, tmp_path)


def prints(stages):
    return {name: doctor.fingerprint(values) for name, values in stages.items()}


def test_the_probe_goes_through_every_stage(stages):
    assert list(stages) == [
        "decoded frames", "face crops", "sound clips", "prompt tokens", "encoder input, audio", "encoder input, face",
        "encoder output, audio", "encoder output, face", "connector output, audio", "connector output, face",
        "connector output, multi", "prompt embeddings", "first scores",
    ]  # fmt: skip
    for name, values in stages.items():
        assert values.float().std() > 0, name


def test_the_probe_is_the_same_twice(session, stages, tmp_path_factory):
    again = doctor.run_stages(session, tmp_path_factory.mktemp("again"))
    assert doctor.first_deviation(prints(again), prints(stages), tolerance=1e-12) is None


@pytest.mark.parametrize("relative", [1e-4, 1e-2, 1.0])
def test_the_first_deviating_stage_is_named(stages, relative):
    recorded = prints(stages)
    changed = dict(stages)
    for name in ("encoder output, face", "first scores"):
        noise = torch.randn(stages[name].shape, generator=torch.Generator().manual_seed(0))
        changed[name] = stages[name] + relative * stages[name].norm() * noise / noise.norm()
    deviation = doctor.first_deviation(prints(changed), recorded, tolerance=1e-3)
    if relative < 1e-3:
        assert deviation is None
    else:
        assert deviation is not None and deviation.stage == "encoder output, face"
        found = float(deviation.what.split("by ")[1].split()[0])
        assert relative / 2 < found < relative * 2


def test_one_pixel_and_nan_are_seen(stages):
    pixel = stages["decoded frames"].clone()
    pixel[3, 10, 10, 0] ^= 1
    found = doctor.first_deviation(prints({**stages, "decoded frames": pixel}), prints(stages), tolerance=1e-3)
    assert found == doctor.Deviation("decoded frames", "is not the same to the bit")
    broken = {**stages, "encoder output, audio": stages["encoder output, audio"] * float("nan")}
    assert doctor.first_deviation(prints(broken), prints(stages), tolerance=1e-3).stage == "encoder output, audio"


def test_command_records_and_compares(world, capsys, tmp_path):
    file = tmp_path / "prints.json"
    status, out = run(world, capsys, "--record", str(file))
    assert status == 0 and "recorded" in out and "sha256" in out
    assert list(json.loads(file.read_text("utf-8"))) == ["float32"]
    status, out = run(world, capsys, "--fingerprints", str(file), "--no-hash")
    assert status == 0 and "all 13 stages as on" in out
    other = ("--options", "inference.test_epoch=11")
    status, out = run(world, capsys, "--fingerprints", str(file), "--no-hash", *other)
    assert status == 1
    assert "the first stage that deviates: connector output, audio" in out and "another checkpoint" in out
    spacing = ("--options", "model.audio_clip_spacing=7")
    status, out = run(world, capsys, "--fingerprints", str(file), "--no-hash", *spacing)
    assert status == 1 and "the first stage that deviates: sound clips" in out


def test_missing_weights_are_a_finding(world, capsys, tmp_path):
    status, out = run(world, capsys, "--options", f"paths.models_root={tmp_path}")
    assert status == 1
    assert out.count("FAIL") == 4 and "Download it from https://huggingface.co/Qwen" in out
    assert "ok    device: " in out and "warn  lexicon: no emotion_wheel/ here" in out
    assert "tokenizer: is in the folder of" in out and "ok    checkpoint: " in out and "checkpoint_000012" in out


def test_a_device_that_is_not_there_is_a_finding(world, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    status, out = run(world, capsys, "--no-model", "--no-hash", "--options", "run.device=cuda")
    assert status == 1 and "FAIL  device: " in out


def test_a_missing_epoch_is_a_finding_and_the_rest_is_checked(world, capsys, tmp_path):
    file = tmp_path / "prints.json"
    assert run(world, capsys, "--record", str(file))[0] == 0
    gone = ("--options", "inference.test_epoch=7")
    status, out = run(world, capsys, "--fingerprints", str(file), "--no-hash", *gone)
    assert status == 1
    assert "FAIL  checkpoint: " in out and "no checkpoint for inference.test_epoch=7; epochs there: 11, 12" in out
    assert "ok    probe clip: 8 stages" in out and "all 8 stages (those that need no checkpoint) as on" in out
    status, out = run(world, capsys, "--fingerprints", str(file), "--no-hash", *gone, "model.audio_clip_spacing=7")
    assert status == 1 and "the first stage that deviates: sound clips" in out
    status, out = run(world, capsys, "--record", str(tmp_path / "new.json"), "--no-hash", *gone)
    assert status == 1 and "nothing: the other stages need a checkpoint" in out
    assert not (tmp_path / "new.json").exists()


def test_tiny_weights_are_not_taken_for_the_published_ones(world, capsys):
    status, out = run(world, capsys, "--no-model", "--no-hash")
    assert status == 0
    assert "'hidden_size': 3584" in out and "not Qwen2.5's vocabulary" in out


def test_tested_ranges_are_those_of_pyproject():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    for package, allowed in doctor.TESTED.items():
        assert f"{package}{allowed}" in listed


def test_versions_outside_the_range_are_a_warning(monkeypatch):
    monkeypatch.setitem(doctor.TESTED, "torch", "<1.0")
    found = {finding.title: finding for finding in doctor.check_versions()}
    assert found["torch"].status == doctor.WARN and found["numpy"].status == doctor.OK


def result(path: Path, answers: dict[str, str]) -> Path:
    write_answers(path, answers)
    return path


def say(*labels: str) -> str:
    return f"The character's emotional state is {', '.join(labels)}."


def test_agreement_sample_by_sample(tmp_path, capsys):
    ours = result(tmp_path / "a.npz", {"x": say("happy", "calm"), "y": say("sad"), "z": "No idea.", "only": ""})
    theirs = result(tmp_path / "b.npz", {"x": say("happy"), "y": say("sad"), "z": say("angry"), "w": say("sad")})
    found = compare_answers(ours, theirs)
    assert (found.common, found.only_ours, found.only_theirs) == (3, ["only"], ["w"])
    assert found.overlap == pytest.approx((0.5 + 1 + 0) / 3)
    assert found.same_text == pytest.approx(1 / 3)
    assert [name for name, _, _ in found.least] == ["z", "x"]
    assert found.ours.without_labels == 0.5 and found.ours.empty == 1
    assert run_doctor(["--answers", str(ours), "--against", str(theirs)]) == 1  # one sample lacks
    out = capsys.readouterr().out
    assert "agreement of label sets: 0.500" in out and "only theirs: w" in out


def test_agreement_of_unrelated_answers(tmp_path):
    ours = result(tmp_path / "a.npz", {str(i): say(f"a{i}") for i in range(9)})
    theirs = result(tmp_path / "b.npz", {str(i): say(f"b{i}") for i in range(9)})
    assert "do not reach the model" in verdict(compare_answers(ours, theirs))
    with pytest.raises(DataError, match="no sample in common"):
        compare_answers(ours, result(tmp_path / "c.npz", {"q": ""}))


def test_label_overlap():
    assert label_overlap(say("calm", "sad"), say("sad", "angry")) == pytest.approx(1 / 3)
    assert label_overlap("Same.", "Same.") == 1 and label_overlap("One.", "Two.") == 0


def test_without_a_configuration_there_is_nothing_to_check():
    with pytest.raises(ConfigError, match="--cfg-path"):
        run_doctor([])


@pytest.mark.parity
def test_usual_agreement_is_that_of_the_released_checkpoints(merunibench):
    files = sorted(p for p in (merunibench / "output" / "results-mer2023").rglob("*.npz") if "-" not in p.stem)
    assert len(files) == 7
    for first, second in itertools.pairwise(files):
        found = compare_answers(first, second)
        assert USUAL[0] <= found.overlap <= USUAL[1] + 0.005
        assert found.ours.without_labels < 0.01
    assert found.overlap > 3 * CHANCE
