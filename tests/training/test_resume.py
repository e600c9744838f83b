"""A run that is killed, stopped or out of disk resumes as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_processes import Trouble, run_train
from training_recipe import NAMES, load_parts, run_folder, write_recipe

from affectgpt.core.errors import AffectGPTError
from affectgpt.core.provenance import REVISIONS
from affectgpt.core.types import Modality
from affectgpt.modeling.checkpoint import face_channels_unknown
from affectgpt.training.loop import train

ROOT = Path(__file__).resolve().parents[2]
# What an earlier version wrote: the state after three steps of this recipe, and the losses of all ten.
STOPPED_RUN = ROOT / "tests" / "golden" / "stopped_run"
EPOCHS, STEPS = 5, 12  # an epoch is one pass over the 12 samples


@pytest.fixture
def sixty_steps(recipe):
    def write(name: str) -> Path:
        return recipe(
            name=name, mode="face_text", max_epoch=EPOCHS, iters_per_epoch=STEPS, batch_size_train=1,
            save_state_every=5, resume_ckpt_path="auto",
        )  # fmt: skip

    return write


def final(config_path: Path) -> dict:
    """Weights, optimizer and the logged losses at the end of a run."""
    folder = run_folder(config_path)
    content = torch.load(folder / "last.state", weights_only=True)
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return {
        "model": content["model"],
        "optimizer": content["optimizer"]["state"],
        "random": content["random"][0]["torch"],
        "losses": [(line["epoch"], line["step"], line["loss"], line["lr"]) for line in lines],
        "checkpoints": sorted(path.name for path in folder.glob("checkpoint_*")),
    }


def assert_same(one, other, where: str = "") -> None:
    """Equal to the last bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    else:
        assert one == other, where


def killed_and_resumed(config_path: Path, *, kills: int, draw: random.Random) -> list[list[str]]:
    """Run to the end with so many kills on the way; the samples of every step, those done twice taken once."""
    steps = sorted(draw.sample(range(1, EPOCHS * STEPS), kills))
    in_save = {kill for kill in range(kills) if draw.random() < 0.4} or {kills - 1}
    print(f"killed at steps {steps}, while saving: {[steps[i] for i in sorted(in_save)]}")
    done: dict[int, list[str]] = {}
    for number in range(kills + 1):
        at = position(config_path)
        seen = config_path.with_suffix(f".seen{number}")
        seen.touch()
        trouble = Trouble()
        if number < kills:
            after = max(steps[number] - at, 1)
            saves = after // 5 + (1 if at == 0 else 0)  # the last file that is begun before that step, or the next
            trouble = Trouble(kill_in_save=max(saves, 1)) if number in in_save else Trouble(kill_after_step=after)
        outcome = run_train("--cfg-path", str(config_path), seen=seen, trouble=trouble)
        assert outcome.status == (-signal.SIGKILL if number < kills else 0), outcome.stderr
        for step, line in enumerate(seen.read_text().splitlines(), start=at + 1):
            assert done.setdefault(step, json.loads(line)) == json.loads(line), f"step {step} had other samples"
    return [done[step] for step in sorted(done)]


def position(config_path: Path) -> int:
    """How many steps the newest state has done; 0 before there is one."""
    states = sorted((config_path.parent / "output" / config_path.stem).glob("*/last.state"))
    if not states:
        return 0
    at = torch.load(states[-1], weights_only=True)["position"]
    return (at["epoch"] - 1) * STEPS + at["step"]


def check_kills(sixty_steps, kills: int, seed: int) -> None:
    undisturbed, disturbed = sixty_steps("undisturbed"), sixty_steps("disturbed")
    assert run_train("--cfg-path", str(undisturbed)).status == 0
    seen = killed_and_resumed(disturbed, kills=kills, draw=random.Random(seed))
    assert len(seen) == EPOCHS * STEPS
    for epoch in range(EPOCHS):
        names = [name for step in seen[epoch * STEPS : (epoch + 1) * STEPS] for name in step]
        assert sorted(names) == sorted(NAMES)
    newest = max((disturbed.parent / "output" / "disturbed").iterdir(), key=lambda folder: folder.name)
    for folder in newest.parent.iterdir():  # one killed before its first state has nothing to resume
        if folder != newest:
            assert not (folder / "last.state").exists()
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
    assert not list(newest.glob(".*")), "a killed save left half a file behind"
    assert_same(final(undisturbed), final(disturbed))


def test_three_kills_change_nothing(sixty_steps):
    check_kills(sixty_steps, kills=3, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [10, 11])
def test_ten_kills_change_nothing(sixty_steps, seed):
    check_kills(sixty_steps, kills=10, seed=seed)


def test_ctrl_c_saves_and_leaves_within_the_step(recipe, tmp_path):
    path = recipe(mode="face_text", save_state_every=0, resume_ckpt_path="auto")
    seen = tmp_path / "seen"
    outcome = run_train("--cfg-path", str(path), seen=seen, trouble=Trouble(signal_in_step=(3, signal.SIGINT)))
    assert outcome.status == 130, outcome.stderr
    assert "stopped after step 3 of epoch 1" in outcome.stderr
    assert json.loads((run_folder(path) / "run.json").read_text())["state"] == "stopped"
    assert run_train("--cfg-path", str(path), seen=seen).status == 0
    assert len(seen.read_text().splitlines()) == 2 * 5
    assert json.loads((run_folder(path) / "run.json").read_text())["state"] == "finished"


def test_sigterm_to_the_whole_group_saves_too(recipe):
    """A cluster signals the loader's workers as well; they must not take the run down before it has saved."""
    path = recipe(max_epoch=1000, num_workers=2)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "--cfg-path", str(path)],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    logs = path.parent / "output" / path.stem
    deadline = time.monotonic() + 120
    while not [log for log in logs.glob("*/log.txt") if log.stat().st_size] and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert "stopped after step" in stderr and "Traceback" not in stderr
    assert (run_folder(path) / "last.state").is_file()


def test_of_two_trainings_in_one_folder_the_second_is_refused_and_disturbs_nothing(recipe):
    path = recipe(mode="textonly", max_epoch=10_000, save_state_every=1, keep_last=1, num_workers=1)
    auto = ["--cfg-path", str(path), "--options", "run.resume_ckpt_path=auto"]
    command = [sys.executable, str(ROOT / "train.py"), *auto]
    both, logs = [], {}
    for number in range(2):  # neither finds a state, and only one may begin
        log = path.with_suffix(f".stderr{number}")
        with log.open("w") as handle:
            both.append(subprocess.Popen(command, stderr=handle, start_new_session=True))
        logs[both[-1]] = log
    try:
        deadline = time.monotonic() + 120
        while all(process.poll() is None for process in both) and time.monotonic() < deadline:
            time.sleep(0.05)
        first, refused = sorted(both, key=lambda process: process.poll() is not None)
        assert_refused(refused.wait(10), logs[refused].read_text(), by=first)
        output = path.parent / "output" / path.stem
        while not list(output.glob("*/last.state")) and time.monotonic() < deadline:
            assert first.poll() is None
            time.sleep(0.05)
        folder = run_folder(path)
        for where in ("auto", folder):
            again = run_train(*auto, f"run.resume_ckpt_path={where}")
            assert_refused(again.status, again.stderr, by=first)
        began = len((folder / "log.txt").read_text().splitlines())
        while len((folder / "log.txt").read_text().splitlines()) < began + 10 and time.monotonic() < deadline:
            assert first.poll() is None
            time.sleep(0.05)
    finally:
        for process in both:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    steps = [(line["epoch"], line["step"]) for line in lines if "loss" in line]
    assert len(steps) >= began + 10 and steps == [(1 + i // 5, 1 + i % 5) for i in range(len(steps))]
    at = torch.load(folder / "last.state", weights_only=True)["position"]
    resumed = run_train(*auto, f"run.max_epoch={at['epoch'] + 1}")  # the lock went with its holder
    assert resumed.status == 0, resumed.stderr
    assert run_folder(path) == folder and list(folder.glob(f"checkpoint_{at['epoch'] + 1:06d}_*"))


def assert_refused(status: int, stderr: str, *, by: subprocess.Popen) -> None:
    [line] = [line for line in stderr.splitlines() if line.startswith("error")]
    assert status == 1 and "Traceback" not in stderr and "trains there" in line
    assert f"another process (pid {by.pid})" in line or not Path("/proc/locks").exists()


def test_a_damaged_state_names_the_checkpoint_to_resume(recipe):
    path = recipe(mode="textonly", max_epoch=2, iters_per_epoch=1)
    auto = ["--cfg-path", str(path), "--options", "run.resume_ckpt_path=auto", "run.max_epoch=3"]
    assert run_train(*auto[:2]).status == 0
    folder = run_folder(path)
    (folder / "last.state").write_bytes((folder / "last.state").read_bytes()[:5000])
    [last], [before] = folder.glob("checkpoint_000002*"), folder.glob("checkpoint_000001*")
    for whole in (last, before):
        outcome = run_train(*auto)
        assert outcome.status == 1 and "last.state: damaged" in outcome.stderr
        assert f"--options run.resume_ckpt_path={whole}" in outcome.stderr
        if whole == last:
            last.write_bytes(b"")
    outcome = run_train(*auto, f"run.resume_ckpt_path={before}")
    assert outcome.status == 0, outcome.stderr
    assert len(list(folder.parent.glob("*/checkpoint_000003*"))) == 1


def test_full_disk_is_reported_and_the_previous_checkpoint_stays(recipe):
    path = recipe(mode="face_text", save_state_every=2, resume_ckpt_path="auto")
    outcome = run_train("--cfg-path", str(path), trouble=Trouble(max_file_size=(4, 200_000)))
    folder = run_folder(path)
    assert outcome.status == 1
    assert "last.state could not be written" in outcome.stderr and "Traceback" not in outcome.stderr
    assert "no earlier file has changed (there: checkpoint_000000_loss_0.000.pth, last.state)" in outcome.stderr
    assert torch.load(folder / "last.state", weights_only=True)["position"]["step"] == 2
    assert not list(folder.glob(".*"))
    assert run_train("--cfg-path", str(path)).status == 0  # room again: it resumes


def test_a_loss_that_is_not_a_number_stops_with_the_names(recipe, tmp_path):
    path = recipe(mode="face_text", batch_size_train=2)
    seen = tmp_path / "seen"
    outcome = run_train("--cfg-path", str(path), seen=seen, trouble=Trouble(nan_from_step=3))
    assert outcome.status == 1
    assert "epoch 1, step 5: the loss was not a number 3 steps in a row" in outcome.stderr
    assert "weights of the model are not, first" in outcome.stderr and "run.init_lr" not in outcome.stderr
    bad = json.loads((run_folder(path) / "bad_batches.json").read_text())
    names = [json.loads(line) for line in seen.read_text().splitlines()]
    assert [(b["step"], b["names"]) for b in bad] == [(3, names[2]), (4, names[3]), (5, names[4])]


def test_inputs_that_are_not_finite_are_named(tmp_path, tiny_models, training_set):
    parts = load_parts(tmp_path, tiny_models, training_set, max_epoch=1)
    for batch in parts.batches[2:]:
        batch.media[Modality.AUDIO][1, 0, 5] = float("inf")
    with pytest.raises(AffectGPTError, match="step 5: the loss was not a number 3 steps in a row") as raised:
        train(
            model=parts.model, config=parts.config, batches=lambda epoch, start=0: iter(parts.batches),
            output_dir=tmp_path, device=torch.device("cpu"),
        )  # fmt: skip
    named = [f"{batch.names[1]}: audio" for batch in parts.batches[2:]]
    assert f"Inputs of these samples are not finite: {'; '.join(named)}" in str(raised.value)
    assert "run.init_lr" not in str(raised.value)
    assert [b["not_finite"] for b in json.loads((tmp_path / "bad_batches.json").read_text())] == [[n] for n in named]


def test_keep_last_keeps_epoch_0_and_the_last(recipe):
    path = recipe(mode="textonly", max_epoch=4, iters_per_epoch=1, keep_last=2)
    assert run_train("--cfg-path", str(path)).status == 0
    kept = sorted(p.name[:17] for p in run_folder(path).glob("checkpoint_*"))
    assert kept == ["checkpoint_000000", "checkpoint_000003", "checkpoint_000004"]


def test_auto_with_nothing_left_is_done(recipe):
    path = recipe(mode="textonly", max_epoch=1, iters_per_epoch=1, resume_ckpt_path="auto")
    assert run_train("--cfg-path", str(path)).status == 0
    again = run_train("--cfg-path", str(path))
    assert again.status == 0 and "nothing is left to train" in again.stderr


def test_a_state_of_another_recipe_is_refused_before_the_model_is_loaded(recipe, tmp_path):
    path = recipe(mode="textonly", max_epoch=1, iters_per_epoch=1)
    assert run_train("--cfg-path", str(path)).status == 0
    state = run_folder(path) / "last.state"
    for option, difference in (
        ("model.face_channels=rgb", "model.face_channels was 'bgr', is 'rgb'"),
        ("model.lora_r=8", "model.lora_r was 4, is 8"),
        ("run.batch_size_train=2", "run.batch_size_train was 3, is 2"),
        ("datasets.mercaptionplus.label_type=ovlabel", "datasets were"),
    ):
        outcome = run_train(
            "--cfg-path", str(path), "--options", f"run.resume_ckpt_path={state}", "run.max_epoch=2", option
        )
        assert outcome.status == 1
        assert "was made by another recipe" in outcome.stderr and difference in outcome.stderr
        assert "trained parameters" not in outcome.stderr


def test_a_state_of_an_earlier_version_says_nothing_of_channels(recipe):
    """It has neither model.face_channels nor the blocks' key: training resumes, and the log says what is new."""
    path = recipe(mode="face_text", max_epoch=1, iters_per_epoch=1)
    assert run_train("--cfg-path", str(path)).status == 0
    state = run_folder(path) / "last.state"
    content = torch.load(state, weights_only=True)
    del content["config"]["model"]["face_channels"]
    for block in content["config"]["datasets"].values():
        del block["face_channels"]
    torch.save(content, state)
    options = ["--options", f"run.resume_ckpt_path={state}", "run.max_epoch=2"]
    outcome = run_train("--cfg-path", str(path), *options)
    assert outcome.status == 0, outcome.stderr
    assert "gave face crops to the encoder as they were stored; from here on it gets them as bgr" in outcome.stderr


def test_a_state_that_an_earlier_version_wrote_resumes_on_its_curve(recipe):
    path = recipe(mode="face_text")
    shutil.copytree(STOPPED_RUN, path.parent / "output" / "tiny" / "tiny_20260101000")
    outcome = run_train("--cfg-path", str(path), "--options", "run.resume_ckpt_path=auto")
    assert outcome.status == 0, outcome.stderr
    lines = [json.loads(line) for line in (run_folder(path) / "log.txt").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 4), (1, 5), *((2, step) for step in range(1, 6))]
    losses = json.loads((STOPPED_RUN / "losses.json").read_text())
    assert [line["loss"] for line in lines] == pytest.approx(losses[3:], abs=2e-4)
    before, after = (torch.load(folder / "last.state", weights_only=True) for folder in (STOPPED_RUN, run_folder(path)))
    assert list(after) == list(before) and list(after["model"]) == list(before["model"])
    assert list(after["optimizer"]["state"]) == list(before["optimizer"]["state"])


def test_a_resumed_run_records_in_which_ways_it_began(recipe):
    """A step that was taken otherwise before a stop stays in the records of all that follows."""
    path = recipe(mode="face_text", max_epoch=1, iters_per_epoch=1)
    assert run_train("--cfg-path", str(path)).status == 0
    folder = run_folder(path)
    first = torch.load(folder / "last.state", weights_only=True)
    assert first["config"]["revisions"] == REVISIONS
    del first["config"]["model"]["face_channels"]
    del first["config"]["revisions"]["ratio"], first["config"]["revisions"]["face_channels"]
    torch.save(first, folder / "last.state")
    for epoch in (2, 3):  # what was resumed once is resumed again
        options = [f"run.resume_ckpt_path={folder / 'last.state'}", f"run.max_epoch={epoch}"]
        assert run_train("--cfg-path", str(path), "--options", *options).status == 0
        [checkpoint] = folder.glob(f"checkpoint_{epoch:06d}*.pth")
        config = torch.load(checkpoint, weights_only=True)["config"]
        began = {**REVISIONS, "ratio": 1, "face_channels": 1}
        assert config["revisions"] == json.loads((folder / "run.json").read_text())["revisions"] == began
        assert config["model"]["face_channels"] == "bgr" and face_channels_unknown(config)


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "ended from outside (SIGKILL): out of memory?"), (signal.SIGSEGV, "crashed (SIGSEGV)")],
)
def test_a_loader_worker_that_is_killed_is_said_and_the_run_resumes(recipe, number, words):
    """No file is blamed, there is no traceback, and the hint holds: the run goes on from what is saved."""
    path = recipe(max_epoch=2, num_workers=1, save_state_every=1)
    killed = run_train("--cfg-path", str(path), trouble=Trouble(signal_worker_in_step=(3, number)))
    assert killed.status == 1 and words in killed.stderr, killed.stderr
    assert "Traceback" not in killed.stderr and "damaged" not in killed.stderr and "skipped sample" not in killed.stderr
    assert "run.resume_ckpt_path=auto" in killed.stderr and "run.num_workers" in killed.stderr
    if number == signal.SIGKILL:
        resumed = run_train("--cfg-path", str(path), "--options", "run.resume_ckpt_path=auto", "run.num_workers=0")
        assert resumed.status == 0 and "resuming from" in resumed.stderr, resumed.stderr


def test_a_new_run_after_a_stopped_one_says_how_that_is_resumed(recipe):
    path = recipe(mode="face_text", max_epoch=1)
    stopped = run_train("--cfg-path", str(path), trouble=Trouble(signal_in_step=(2, signal.SIGINT)))
    assert stopped.status == 130 and "is left as it is" not in stopped.stderr, stopped.stderr
    first = run_folder(path)
    again = run_train("--cfg-path", str(path))
    assert again.status == 0, again.stderr
    assert f"{first} was stopped before its end and is left as it is" in again.stderr
    assert f"--options run.resume_ckpt_path={first}" in again.stderr
    [second] = set(first.parent.iterdir()) - {first}
    assert f"curves: {second}/training.png" in again.stderr and (second / "training.png").stat().st_size > 1000
    assert "python inference_hybird.py" in again.stderr and f"inference.ckpt_root={second}" in again.stderr


@pytest.mark.parametrize("what", ["a label", "a row less", "an encoder"])
def test_what_a_run_learns_from_may_not_change_between_two_steps(tmp_path, tiny_models, training_set, what):
    dataset = shutil.copytree(training_set, tmp_path / "dataset", symlinks=True)
    models = shutil.copytree(tiny_models, tmp_path / "models")
    path = write_recipe(tmp_path, models=models, dataset=dataset, mode="audio_text", max_epoch=1, iters_per_epoch=1)
    assert run_train("--cfg-path", str(path)).status == 0
    folder = run_folder(path)
    options = ["--options", f"run.resume_ckpt_path={folder / 'last.state'}", "run.max_epoch=2"]
    if what == "an encoder":
        [weights] = (models / "chinese-hubert-large").glob("*.safetensors")
        tensors = load_file(weights)
        name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
        save_file({**tensors, name: tensors[name] + 0.5}, weights, metadata={"format": "pt"})
        expected = "the weights of model.acoustic_encoder were others"
    else:
        table = dataset / "mer2025-dataset" / "track2_train_mercaptionplus.csv"
        lines = table.read_text().splitlines(keepends=True)
        last = [] if what == "a row less" else [lines[-1].replace("['", "['x", 1)]
        table.write_text("".join([*lines[:-1], *last]))
        expected = f"the training rows of MERCaptionPlus were others (12 then, {11 + len(last)} now)"
    refused = run_train("--cfg-path", str(path), *options)
    assert refused.status == 1 and expected in refused.stderr and "Put the files back" in refused.stderr, refused.stderr


def test_other_numbers_of_the_optimizer_are_warned_of_and_other_frames_refused(recipe):
    path = recipe(mode="face_text", max_epoch=1, iters_per_epoch=1)
    assert run_train("--cfg-path", str(path)).status == 0
    state = run_folder(path) / "last.state"
    options = [f"run.resume_ckpt_path={state}", "run.max_epoch=2", "run.clip_grad_norm=0.5", "run.beta2=0.9"]
    resumed = run_train("--cfg-path", str(path), "--options", *options)
    assert resumed.status == 0, resumed.stderr
    assert "run.clip_grad_norm was" in resumed.stderr and "run.beta2 was" in resumed.stderr
    frames = [f"run.resume_ckpt_path={state}", "run.max_epoch=3", "model.vis_processor.train.n_frms=4"]
    refused = run_train("--cfg-path", str(path), "--options", *frames)
    assert refused.status == 1 and "model.vis_processor.train was" in refused.stderr, refused.stderr
