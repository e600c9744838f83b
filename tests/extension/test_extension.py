"""One of each kind, added from one file outside the package: trained, saved, resumed, answered, scored, exported."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_tiny_llm

ROOT = Path(__file__).resolve().parents[2]
LAB = Path(__file__).with_name("my_lab.py")
ADDED = (
    "COLOUR_GRID", "colour-grid", "LastConnector", "gate", "MyQwen", "voice_first", "mood", "MyMoods", "moods_json",
    "same-letter", "smoothed",
)  # fmt: skip
MOOD = "In one word, what is this person's mood?"
MOODS = ("glad", "sad", "angry")
YAML = """\
imports: [my_lab.py]
model:
  visual_encoder: COLOUR_GRID
  video_fusion_type: last
  audio_fusion_type: last
  image_fusion_type: mean
  multi_fusion_type: gate
  llama_model: MyQwen
  lora_r: 4
datasets:
  mymoods: {{face_or_frame: voice_first, label_type: hybird}}
run:
  objective: smoothed
  lr_sched: warmup_cosine
  init_lr: 1e-3
  min_lr: 1e-4
  warmup_steps: 1
  warmup_lr: 1e-6
  max_epoch: 2
  iters_per_epoch: 5
  batch_size_train: 2
  save_state_every: 1
  num_workers: 1
  device: cpu
  log_freq: 1
  resume_ckpt_path: auto
inference:
  test_epoch: 2
  max_new_tokens: 8
  base_root: {root}/output/results
paths:
  dataset_root: {root}/dataset
  models_root: {root}/models
  output_root: {root}/output
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory, tiny_models) -> Path:
    """A folder as a laboratory has it: its file, its configuration, models and data."""
    import soundfile

    root = tmp_path_factory.mktemp("lab")
    shutil.copy(LAB, root / "my_lab.py")
    (root / "mine.yaml").write_text(YAML.format(root=root))
    (root / "models").mkdir()
    (root / "models" / "chinese-hubert-large").symlink_to(tiny_models / "chinese-hubert-large")
    make_tiny_llm(root / "models" / "my-qwen")
    grid = root / "models" / "colour-grid"
    grid.mkdir()
    (grid / "config.json").write_text(json.dumps({"width": 24}))
    draw = np.random.default_rng(3)
    torch.save({"mix.weight": torch.from_numpy(draw.standard_normal((24, 48), np.float32))}, grid / "weights.pth")
    data = root / "dataset" / "my-moods"
    names = {split: [f"{split}{i}" for i in range(4)] for split in ("train", "test")}
    for folder in ("audio", "openface_face", "video"):
        (data / folder).mkdir(parents=True)
    for name in [*names["train"], *names["test"]]:
        np.save(data / "openface_face" / f"{name}.npy", draw.integers(0, 256, (8, 24, 24, 3), dtype=np.uint8))
        soundfile.write(data / "audio" / f"{name}.wav", draw.normal(0, 0.1, 33_000), 16_000, subtype="PCM_16")
    moods = {split: {n: MOODS[i % 3] for i, n in enumerate(all_names)} for split, all_names in names.items()}
    (data / "moods.json").write_text(json.dumps(moods))
    with (data / "subtitles.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([["name", "text"], *([n, f"I am {n}"] for part in names.values() for n in part)])
    return root


_PROGRAM = """
import json, sys
from affectgpt.cli.main import main
for command in json.loads(sys.argv[1]):
    assert main(command) == 0, command
"""


def run(lab: Path, *commands: tuple[str, ...]) -> subprocess.CompletedProcess:
    """Commands in a process of their own, from the laboratory's folder: nothing of the file is known before them."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(commands)], cwd=lab, capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_no_name_of_the_file_is_known_to_the_package():
    """Else the test below would show nothing."""
    for path in [*(ROOT / "affectgpt").rglob("*.py"), *(ROOT / "train_configs").glob("*.yaml")]:
        text = path.read_text("utf-8")
        assert not [name for name in ADDED if f'"{name}"' in text or f"'{name}'" in text], path


def test_one_of_each_kind_trains_resumes_answers_scores_and_is_exported(lab):
    run(lab, ("train", "--cfg-path", "mine.yaml", "--options", "run.max_epoch=1"))
    again = run(lab, ("train", "--cfg-path", "mine.yaml"))
    [folder] = (lab / "output" / "mine").iterdir()
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines if "loss" in line] == [
        (epoch, step) for epoch in (1, 2) for step in range(1, 6)
    ], again.stderr
    [before, _, after] = sorted(folder.glob("checkpoint_*.pth"))
    old, new = (torch.load(path, weights_only=True)["model"] for path in (before, after))
    for name in ("video.norm.weight", "video.proj.weight", "audio.proj.weight", "multi.gate.weight", "multi.proj.bias"):
        assert not torch.equal(old[name], new[name]), f"{name} was not trained"
    assert "image_llama_proj.weight" in new  # a class of the package keeps its published name
    assert {name.split(".")[-4] for name in new if "lora_A" in name} == {"q_proj", "v_proj"}

    answers = f"output/results-mymoods/{folder.name}/{after.stem}"
    scored = run(
        lab,
        ("infer", "--cfg-path", "mine.yaml", "--dataset", "mymoods", "--outside_user_message", MOOD),
        (
            "evaluate", "--extractor", "direct", "--imports", "my_lab.py", "--datasets", "MyMoods", "--dataset-root",
            "dataset", "--base-root", "output/results", "--checkpoints", after.stem, "--json", "scores.json",
            "--html", "scores.html", "--latex", "scores.tex", "--lexicon", "builtin",
        ),
    )  # fmt: skip
    assert (lab / f"{answers}.npz").is_file() and "LETTER" in scored.stdout
    own = run(
        lab,
        (
            "evaluate", "--extractor", "first_word", "--imports", "my_lab.py", "--datasets", "MyMoods",
            "--dataset-root", "dataset", "--base-root", "output/results", "--checkpoints", after.stem, "--lexicon",
            "builtin",
        ),
    )  # fmt: skip
    assert (lab / f"{answers}-openset-first_word.npz").is_file() and "first_word" in own.stdout
    assert '"letter"' in (lab / "scores.json").read_text() and "LETTER" in (lab / "scores.html").read_text()

    run(
        lab,
        ("export", "--imports", "my_lab.py", "--checkpoint", str(after), "--out", "exported"),
        ("export", "--checkpoint", "exported", "--out", "back.pth"),
    )
    restored = torch.load(lab / "back.pth", weights_only=True)["model"]
    assert list(restored) == list(new) and all(torch.equal(restored[n], new[n]) for n in new)

    # Features of one's own encoder are stored and read.
    run(
        lab,
        ("extract_features", "--cfg-path", "mine.yaml", "--datasets", "mymoods", "--split", "test"),
        (
            "infer", "--cfg-path", "mine.yaml", "--dataset", "mymoods", "--outside_user_message", MOOD, "--options",
            "datasets.mymoods.features=require", "inference.base_root=output/stored",
        ),
    )  # fmt: skip
    assert len(list((lab / "output").glob("stored-mymoods/*/*.npz"))) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("imports: [nowhere.py]\n", "nowhere.py: no such Python file"),
        ("imports: [broken.py]\n", "broken.py does not import: ZeroDivisionError"),
        ("imports: {a: b}\n", "imports is {'a': 'b'}; allowed: a list of Python files"),
        ("model: {video_fusion_type: lats}\n", "mine2.yaml:1: model.video_fusion_type: unknown"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(lab, capsys, monkeypatch, text, told):
    from affectgpt.cli.main import main

    monkeypatch.chdir(lab)
    (lab / "broken.py").write_text("1 / 0\n")
    (lab / "mine2.yaml").write_text(text)
    assert main(["params", "--cfg-path", "mine2.yaml"]) == 1
    assert told in capsys.readouterr().err


def test_a_configuration_inside_a_checkpoint_imports_nothing(lab, tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    path = tmp_path / "checkpoint_000001_loss_1.000.pth"
    content = {
        "model": {"affectgpt_proj.weight": torch.zeros(2, 2)},
        "config": {"imports": [str(tmp_path / "evil.py")]},
    }
    torch.save(content, path)
    run(lab, ("export", "--checkpoint", str(path), "--out", str(tmp_path / "out")))
    assert (tmp_path / "out").is_dir() and not (tmp_path / "ran").exists()


_WRONG = """
import torch
from torch import nn
from affectgpt.modeling.connectors.base import PREFUSIONS, Connector
from affectgpt.encoders.base import VISUAL_ENCODERS
from my_lab import ColourGrid, GatePreFusion

@PREFUSIONS.register("wide")
class Wide(GatePreFusion):
    def forward(self, video, audio):
        return torch.cat([super().forward(video, audio)] * 2, dim=-1)

@PREFUSIONS.register("flat")
class Flat(GatePreFusion):
    def forward(self, video, audio):
        return super().forward(video, audio)[:, 0]

@PREFUSIONS.register("bare")
class Bare(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.proj = nn.Linear(shape.video_width, shape.llm_width)

@VISUAL_ENCODERS.register("NARROW")
class Narrow(ColourGrid):
    def forward(self, pixels):
        return super().forward(pixels)[..., :-1]
"""


_GIVEN = {  # option → what is said of it
    "model.multi_fusion_type=wide": "Wide (model.multi_fusion_type) gives [2, 1, 128] for multi; expected [B, K",
    "model.multi_fusion_type=flat": "Flat (model.multi_fusion_type) gives [2, 64] for multi; expected [B, K, D]",
    "model.multi_fusion_type=bare": "Bare is not derived from connectors.base.Connector",
    "model.visual_encoder=NARROW": "Narrow gives [2, 8, 23] for face [2, 8, 3, 224, 224]; expected [B, T, width]",
    "model.visual_encoder=NOWHERE": "One of your own needs its file: imports: [FILE.py]",
}
_DRY_RUNS = """
import contextlib, io, json, sys
from affectgpt.cli.common import run_cli
from affectgpt.cli.train import main
for option in json.loads(sys.argv[2]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = run_cli(main, [*json.loads(sys.argv[1]), option])
    print(json.dumps([status, said.getvalue()]))
"""


@pytest.fixture(scope="module")
def dry_runs(lab) -> dict[str, tuple[int, str]]:
    """Option → status and stderr of a dry run with it, all in one process."""
    (lab / "wrong.py").write_text(_WRONG)
    text = (lab / "mine.yaml").read_text().replace("imports: [my_lab.py]", "imports: [my_lab.py, wrong.py]")
    (lab / "wrong.yaml").write_text(text)
    arguments = ["--cfg-path", "wrong.yaml", "--dry-run", "--options", "run.num_workers=0",
                 "paths.folders.NARROW=models/colour-grid"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _DRY_RUNS, json.dumps(arguments), json.dumps([*_GIVEN])],
        cwd=lab, capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {option: tuple(json.loads(line)) for option, line in zip(_GIVEN, done.stdout.splitlines(), strict=True)}  # type: ignore[misc]


@pytest.mark.parametrize("option", _GIVEN)
def test_a_class_that_gives_something_else_is_named(dry_runs, option):
    status, stderr = dry_runs[option]
    assert status == 1 and stderr.strip().splitlines()[-1].startswith("error: "), stderr
    assert _GIVEN[option] in stderr and "Traceback" not in stderr


WRONG = """
import torch
from torch import nn
from my_lab import *
from affectgpt.processing.modes import AUDIO, IMAGE, SUBTITLE

class Weighted(SupervisedObjective):
    def __init__(self, model, run):
        super().__init__(model, run)
        self.weight = nn.Parameter(torch.ones(3))

class Hidden(SupervisedObjective):
    def __init__(self, model, run):
        super().__init__(model, run)
        self.scales = [torch.ones((), requires_grad=True)]

    def forward(self, batch):
        return super().forward(batch) * self.scales[0]

OBJECTIVES.register("weighted")(Weighted)
OBJECTIVES.register("hidden")(Hidden)
MODES.register("pose")(Mode("pose", (AUDIO, "The pose is: <Pose><PoseHere></Pose>. ", SUBTITLE)))
MODES.register("pictured")(Mode("pictured", (IMAGE, AUDIO, SUBTITLE)))
"""


def test_what_would_be_ignored_is_an_error(lab):
    """An objective's own parameters, tokens of no medium, a missing image, a set's own question."""

    def error_of(command: str, *options: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from affectgpt.cli.main import main; sys.exit(main(sys.argv[1:]))",
             command, "--cfg-path", "wrong.yaml", *options],
            cwd=lab, capture_output=True, text=True, timeout=200,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return done.stderr if done.returncode == 1 else f"status {done.returncode}: {done.stderr}"

    (lab / "wrong.py").write_text(WRONG)
    block = "datasets: {mymoods: {face_or_frame: voice_first}}"
    (lab / "wrong.yaml").write_text(f"extends: mine.yaml\nimports: [wrong.py]\n{block}\n")
    own = error_of("train", "--dry-run", "--options", "run.objective=weighted")
    assert "run.objective: weighted has parameters of its own (weight)" in own and "Traceback" not in own
    own = error_of("train", "--dry-run", "--options", "run.objective=hidden", "run.num_workers=0")
    assert "Hidden computes its loss with a tensor of shape [] that requires a gradient but belongs to no" in own
    (lab / "any.pth").write_bytes(b"")
    asked = error_of(
        "infer", "--dataset", "mymoods", "--zeroshot", "--options", f"inference.ckpt_name={lab / 'any.pth'}"
    )
    assert "a question of its own (mood)" in asked
    found = error_of("train", "--dry-run", "--options", "datasets.mymoods.face_or_frame=pose")
    assert "its sentences hold <PoseHere>, which stands for no medium" in found and "wrong.py:" in found
    found = error_of("train", "--dry-run", "--options", "datasets.mymoods.face_or_frame=pictured", "run.num_workers=0")
    assert "input mode pictured shows an image, and no image file of it is known" in found


@pytest.mark.parametrize("sentence", ["<Pose><PoseHere></Pose>", "<facehere>", "< FaceHere >", "<Gaze>", "{gaze}"])
def test_a_token_of_no_medium_is_refused(sentence, monkeypatch):
    from affectgpt.core.errors import ConfigError
    from affectgpt.processing.modes import AUDIO, MODES, SUBTITLE, Mode, get_mode

    for name in ("_entries", "_places"):
        monkeypatch.setattr(MODES, name, dict(getattr(MODES, name)))
    MODES.register("odd")(Mode("odd", (AUDIO, f"It is: {sentence}. ", SUBTITLE)))
    with pytest.raises(ConfigError, match="which stands for no medium and would be plain text"):
        get_mode("odd")
    MODES.register("tagged")(Mode("tagged", ("<Scene>The sound: <Audio><AudioHere></Audio></Scene>. ",)))
    assert get_mode("tagged").placeholders == ("audio",)
