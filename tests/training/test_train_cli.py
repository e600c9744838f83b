"""train.py as a whole: what it writes, what it continues, and what it refuses before a model is loaded."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest
import torch
from training_processes import run_train
from training_recipe import run_folder

from affectgpt.cli.train import main
from affectgpt.core.errors import AffectGPTError, CheckpointError, ConfigError, DataError


def test_a_run_leaves_checkpoints_logs_and_a_record(recipe):
    path = recipe(mode="face_text", iters_per_epoch=4, valid_ratio=0.25, valid_splits='["valid"]', batch_size_eval=2)
    outcome = run_train("--cfg-path", str(path))
    assert outcome.status == 0, outcome.stderr
    folder = run_folder(path)
    assert folder.name.startswith("tiny_") and len(folder.name) == len("tiny_") + 11
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [(line["epoch"], line["step"]) for line in steps] == [(e, s) for e in (1, 2) for s in (1, 2, 3, 4)]
    assert {"loss", "lr", "grad_norm", "samples_per_s", "tokens_per_s", "memory_gb"} <= steps[0].keys()
    held_out = [line["valid_loss_MERCaptionPlus_valid"] for line in lines if "loss" not in line]
    assert len(held_out) == 2 and held_out[1] < held_out[0]
    means = [sum(line["loss"] for line in steps if line["epoch"] == e) / 4 for e in (1, 2)]
    expected = {
        "checkpoint_000000_loss_0.000.pth",
        *(f"checkpoint_{e:06d}_loss_{means[e - 1]:.3f}.pth" for e in (1, 2)),
    }
    assert {p.name for p in folder.glob("checkpoint_*")} == expected
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "finished" and record["checkpoint"] == max(expected)
    assert record["data"] == {"MERCaptionPlus": 9} and record["seeds"]["run"] == 42
    assert record["config"]["run"]["iters_per_epoch"] == 4
    assert {"torch", "transformers", "peft"} <= record["versions"].keys()
    assert record["video_reader"].startswith(("decord", "pyav"))
    content = torch.load(folder / max(expected), weights_only=True)
    assert list(content) == ["model", "optimizer", "config", "scaler", "epoch"] and content["epoch"] == 2


def test_scores_are_taken_during_training_and_change_nothing(recipe, monkeypatch):
    """The model in training answers; dropout's random stream stays where it was."""
    from affectgpt.inference.engines.base import Answer
    from affectgpt.inference.engines.transformers import TransformersEngine

    plain = recipe(name="plain", mode="face_text")
    scored = recipe(
        name="scored", mode="face_text", score_every=1, score_datasets='["OVMERDPlus"]', score_samples=3,
    )  # fmt: skip
    answered = []

    def generate(self, batch, *, seeds):
        answered.extend(batch.names)
        assert not self.model.training
        torch.rand(3)
        text = "The character's emotional state is happy, sad."
        return [Answer(text=text, tokens=9, stopped=True)] * len(batch.names)

    monkeypatch.setattr(TransformersEngine, "generate", generate)
    for path in (plain, scored):
        assert main(["--cfg-path", str(path)]) == 0
    assert len(answered) == 2 * 3
    lines = [
        [json.loads(line) for line in (run_folder(path) / "log.txt").read_text().splitlines()]
        for path in (plain, scored)
    ]
    scores = [line["score_OVMERDPlus"] for line in lines[1] if "score_OVMERDPlus" in line]
    assert len(scores) == 2 and 0 < scores[0] < 1
    losses = [[line["loss"] for line in part if "loss" in line] for part in lines]
    assert losses[0] == losses[1]


def test_evaluate_measures_and_trains_nothing(recipe, capsys):
    path = recipe(mode="face_text", valid_ratio=0.25, valid_splits='["valid"]', max_epoch=1)
    assert main(["--cfg-path", str(path)]) == 0
    folder = run_folder(path)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    log = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    capsys.readouterr()
    for given in (f"run.resume_ckpt_path={folder / 'last.state'}", f"model.ckpt={next(folder.glob('*_000001*'))}"):
        assert main(["--cfg-path", str(path), "--options", "run.evaluate=True", given]) == 0
        [name, loss] = capsys.readouterr().out.split()
        assert name == "valid_loss_MERCaptionPlus_valid" and float(loss) == pytest.approx(log[-1][name], abs=1e-4)
    assert before == {file: file.stat().st_mtime_ns for file in run_folder(path).iterdir()}


def test_stored_features_give_the_same_curve_without_encoders(recipe):
    from affectgpt.cli.extract_features import main as extract_features

    path = recipe(mode="multiface_audio_face_text")
    store = ["--options", f"paths.features_root={path.parent / 'features'}", "run.device=cpu"]
    assert extract_features(["--cfg-path", str(path), *store]) == 0
    curves = []
    for policy in ("off", "require"):
        options = [*store, f"datasets.mercaptionplus.features={policy}", f"paths.output_root={path.parent / policy}"]
        assert main(["--cfg-path", str(path), *options]) == 0
        [log] = (path.parent / policy).glob("tiny/*/log.txt")
        curves.append([json.loads(line)["loss"] for line in log.read_text().splitlines()])
    assert curves[0] == curves[1]


def test_tensorboard_gets_the_lines(recipe):
    pytest.importorskip("tensorboard", reason="the extra [track] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = recipe(mode="textonly", iters_per_epoch=2, tensorboard=True)
    assert main(["--cfg-path", str(path)]) == 0
    folder = run_folder(path)
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {"loss", "lr", "grad_norm", "samples_per_s", "tokens_per_s", "memory_gb"} <= set(events.Tags()["scalars"])
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert shown == [(step, pytest.approx(line["loss"])) for step, line in enumerate(lines, start=1)]
    assert len(shown) == 4


def test_tensorboard_that_is_not_installed_is_an_error(recipe, monkeypatch):
    monkeypatch.setattr("affectgpt.modeling.build.build_model", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    path = recipe(mode="textonly", tensorboard=True)
    with pytest.raises(ConfigError, match=r"run.tensorboard .* pip install 'affectgpt\[track\]'"):
        main(["--cfg-path", str(path)])


def test_dry_run_reports_and_leaves_nothing(recipe, capsys):
    path = recipe(mode="face_text", iters_per_epoch=1000)
    assert main(["--cfg-path", str(path), "--dry-run"]) == 0
    report = capsys.readouterr().out
    for expected in (
        "llama_model",
        "affectgpt_proj",
        "weight decay 0.05: ",
        "step 2: loss ",
        "memory: ",
        "GB at most on cpu; estimated ",
        " tokens, ",
        "LLM: ",
        "2,000 steps",
    ):
        assert expected in report
    assert float(re.search(r"LLM: (\S+) TFLOP/s", report)[1]) > 0
    assert not (path.parent / "output").exists()


def test_an_epochs_checkpoint_is_resumed_in_a_new_folder(recipe):
    path = recipe(mode="face_text", max_epoch=1)
    assert run_train("--cfg-path", str(path)).status == 0
    first = run_folder(path)
    [checkpoint] = first.glob("checkpoint_000001*")
    options = ["run.max_epoch=2", f"run.resume_ckpt_path={checkpoint}"]
    outcome = run_train("--cfg-path", str(path), "--options", *options)
    assert outcome.status == 0, outcome.stderr
    [second] = [folder for folder in first.parent.iterdir() if folder != first]
    assert [p.name[:17] for p in second.glob("checkpoint_*")] == ["checkpoint_000002"]
    before, after = (torch.load(p, weights_only=True) for p in (checkpoint, next(second.glob("checkpoint_*"))))
    steps = [next(iter(c["optimizer"]["state"].values()))["step"] for c in (before, after)]
    assert [int(s) for s in steps] == [5, 10]


@pytest.mark.parity
def test_a_published_checkpoint_is_resumed(golden, recipe):
    [checkpoint] = (golden / "attention").glob("checkpoint_*.pth")
    path = recipe(mode="face_text", max_epoch=6, iters_per_epoch=2)
    options = [f"run.resume_ckpt_path={checkpoint}", f"paths.models_root={golden / 'models'}", "model.lora_r=16"]
    outcome = run_train("--cfg-path", str(path), "--options", *options)
    assert outcome.status == 0, outcome.stderr
    assert [p.name[:17] for p in run_folder(path).glob("checkpoint_*")] == ["checkpoint_000006"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["run.lr_sched=linear_warmup_cosin_lr"], ConfigError, "Did you mean 'linear_warmup_cosine_lr'"),
        (["run.device=cuda"], ConfigError, "torch sees no GPU"),
        (["run.resume_ckpt_path=nowhere/x.pth"], CheckpointError, "nowhere/x.pth: no such checkpoint"),
        (
            ["run.resume_ckpt_path=README.md"],
            CheckpointError,
            "run.resume_ckpt_path: README.md: damaged or no checkpoint",
        ),
        (["model.ckpt_2=nowhere.pth"], CheckpointError, "model.ckpt_2: nowhere.pth: no such checkpoint"),
        (
            ["model.visual_encoder=CLIP"],
            ConfigError,
            "model.visual_encoder: unknown visual encoder 'CLIP'. Did",
        ),
        (["run.attention=flash_attention_2"], ConfigError, "run.attention is flash_attention_2, which needs a GPU"),
        (["run.score_every=1"], ConfigError, "run.score_datasets names no data set"),
        (["run.score_every=1", "run.score_datasets=[MELD]"], DataError, "meld-process"),
        (["run.evaluate=True"], ConfigError, "run.evaluate: nothing to measure"),
        (["paths.dataset_root=/nowhere"], DataError, "paths.dataset_root: no folder /nowhere"),
        (["paths.dataset_root=output/demo/dataset_of_nobody"], DataError, "made by `make demo`"),
        (["paths.models_root=/nowhere"], CheckpointError, "no model folder"),
        (["paths.output_root=/proc/output"], ConfigError, "paths.output_root: /proc/output cannot be written to"),
        (["run.parallel=fsdp2"], ConfigError, "start it with torchrun"),
        (["run.valid_splits=[valid]"], ConfigError, "'valid' has no sample"),
        (["run.train_splits=[test]"], ConfigError, "run.train_splits"),
        (["datasets.mercaptionplu.label_type=hybird"], ConfigError, "Did you mean 'mercaptionplus'"),
    ],
    ids=lambda value: "-".join(option.partition("=")[0] for option in value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_refused_before_the_model_is_loaded(recipe, monkeypatch, options, error, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("affectgpt.modeling.build.load_llm", lambda *_, **__: pytest.fail("a model was loaded"))
    path = recipe(mode="face_text")
    with pytest.raises(error) as raised:
        main(["--cfg-path", str(path), "--options", *options])
    assert message in str(raised.value)


def test_too_little_memory_is_reported_before_the_model_is_loaded(recipe, monkeypatch):
    monkeypatch.setattr("affectgpt.modeling.build.build_model", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr("affectgpt.training.dry_run.available_memory", lambda: 100_000)
    with pytest.raises(ConfigError, match=r"need 0\.\d GB in float32 on a CPU, and 0\.0 GB are free"):
        main(["--cfg-path", str(recipe(mode="face_text"))])


@pytest.mark.parametrize("variable", [None, "/nowhere/g++"])
def test_compiling_without_a_compiler_is_refused_before_the_model_is_loaded(recipe, monkeypatch, variable):
    monkeypatch.setattr("affectgpt.modeling.build.build_model", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CXX", variable) if variable else monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"run\.compile .* no C\+\+ compiler .* apt-get install g\+\+"):
        main(["--cfg-path", str(recipe(mode="textonly", compile=True))])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: not enough memory"),
    ],
    ids=["gpu", "cpu"],
)
def test_memory_that_runs_out_in_a_step_names_what_to_lower(recipe, monkeypatch, error):
    def run(*_, **__):
        raise error

    monkeypatch.setattr("affectgpt.training.step.TrainStep.run", run)
    path = recipe(mode="textonly")
    for dry in (["--dry-run"], []):
        with pytest.raises(AffectGPTError, match=r"lower run\.batch_size_train"):
            main(["--cfg-path", str(path), *dry])
    assert json.loads((run_folder(path) / "run.json").read_text())["state"] == "failed"


def test_memory_that_runs_out_while_the_model_is_built_names_what_to_do(recipe, monkeypatch):
    def build_model(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr("affectgpt.modeling.build.build_model", build_model)
    with pytest.raises(AffectGPTError, match=r"memory ran out \(CUDA out of memory.*run\.parallel=fsdp2"):
        main(["--cfg-path", str(recipe(mode="textonly"))])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_folder_is_an_error(recipe, tmp_path):
    (tmp_path / "output").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="cannot be written to"):
        main(["--cfg-path", str(recipe(mode="textonly"))])


def test_lengths_and_sets_of_test_clips_alone(recipe, tmp_path, capsys):
    """check_data names samples over max_length; a block with test clips alone is left out of training, and is said."""
    from affectgpt.cli import check_data, infer

    path = recipe(mode="audio_text", model="max_length: 20")
    arguments = ["--cfg-path", str(path), "--splits", "train", "--media", "none", "--any-count"]
    assert check_data.main(arguments) == 1
    out = capsys.readouterr().out
    assert "length wrong: sample 'c0'" in out or "length wrong: sample" in out
    assert "20" in out
    path.write_text(path.read_text().replace("max_length: 20", "max_length: 512").replace(
        "datasets: {", "datasets: {my_test_clips: {test_path: t.csv, columns: {ovlabel: o}}, "
    ))  # fmt: skip
    outcome = run_train("--cfg-path", str(path), "--dry-run")
    assert outcome.status == 0, outcome.stderr
    assert "datasets.my_test_clips: has no training split, so it is not trained on" in outcome.stderr
    with pytest.raises(DataError, match="Did you mean 'my_test_clips'"):
        infer.main(["--cfg-path", str(path), "--dataset", "my_test_clps"])
    capsys.readouterr()


def test_a_whisper_folder_that_is_not_there(tmp_path):
    from affectgpt.preprocess.asr import Transcriber

    (tmp_path / "whisper-small").mkdir()
    with pytest.raises(ConfigError, match=r"--asr .*whisper-smal: no such folder\. Did you mean 'whisper-small'"):
        Transcriber(tmp_path / "whisper-smal", device="cpu")
