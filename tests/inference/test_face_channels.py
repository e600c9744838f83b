"""Blue and red reach the encoder in the order that the model wants, however a folder stores its crops."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import World, write_run

from affectgpt.cli import doctor, infer, sample
from affectgpt.config.schema import to_dict
from affectgpt.core.errors import AffectGPTError, ConfigError, DataError
from affectgpt.evaluation.results import read_answers, read_meta
from affectgpt.modeling.checkpoint import write_checkpoint
from examples.demo.corpus import PartSpec, make_corpus
from examples.demo.language import FELT

RECORD = '{"channels": "%s"}'
PART = PartSpec("OVMERDPlus", "test", 2, FELT, True, "open")
FACES = Path("ovmerdplus-process", "openface_face")


@pytest.fixture(scope="module")
def demo(tiny_models, tmp_path_factory) -> World:
    """Drawn clips with RGB crops, as the demo has them, and checkpoints over the tiny models."""
    root = tmp_path_factory.mktemp("demo")
    made = World(root, tiny_models)
    make_corpus(root / "dataset", parts=(PART,), workers=1)
    write_run(made.run_folder, made.config(), (11,))
    return made


@pytest.fixture
def copy(demo, tmp_path) -> Path:
    """The same data set with BGR crops and no record."""
    root = tmp_path / "dataset"
    shutil.copytree(demo.root / "dataset", root)
    reverse(root / FACES)
    (root / FACES / "crops.json").unlink()
    return root


def reverse(folder: Path) -> None:
    for path in folder.glob("*.npy"):
        np.save(path, np.load(path)[..., ::-1])


def answers(world: World, out: Path, *options: str, blocks: str = "") -> dict[str, str]:
    """``blocks``: lines of the section datasets besides those of the configuration."""
    path = out / world.yaml.name
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(world.yaml.read_text().replace("datasets:\n", f"datasets:\n{blocks}"))
    arguments = ["--cfg-path", str(path), "--dataset", "OVMERDPlus", "--options"]
    assert infer.main([*arguments, f"inference.base_root={out}/results", *options]) == 0
    (file,) = out.glob("results-ovmerdplus/*/checkpoint_000011*[0-9].npz")
    return read_answers(file)


RGB = "model.face_channels=rgb"
STORED_AS_BGR = "  ovmerdplus: {face_channels: bgr}\n"


@pytest.fixture(scope="module")
def demo_answers(demo, tmp_path_factory):
    return answers(demo, tmp_path_factory.mktemp("rgb"), RGB)


def test_a_bgr_copy_of_the_demos_faces_is_answered_the_same(demo, copy, demo_answers, tmp_path):
    told = [f"paths.dataset_root={copy}", RGB]
    assert answers(demo, tmp_path / "default", *told) == demo_answers
    assert answers(demo, tmp_path / "key", *told, blocks=STORED_AS_BGR) == demo_answers
    (copy / FACES / "crops.json").write_text(RECORD % "bgr")
    assert answers(demo, tmp_path / "record", *told) == demo_answers
    (copy / FACES / "crops.json").write_text(RECORD % "rgb")  # a lie shows
    assert answers(demo, tmp_path / "lie", *told) != demo_answers


def test_what_the_encoder_gets_is_the_models_question(demo, copy, demo_answers, tmp_path):
    published = answers(demo, tmp_path / "published", f"paths.dataset_root={copy}")
    assert published != demo_answers  # bgr to the encoder
    assert answers(demo, tmp_path / "converted") == published  # the demo's own crops, RGB by their record
    told = read_meta(next((tmp_path / "converted").glob("results-ovmerdplus/*/checkpoint_*[0-9].npz")))
    assert told["face_crops"] == "rgb" and told["config"]["model"]["face_channels"] == "bgr"


def test_stored_features_follow(demo, copy, demo_answers, tmp_path):
    from affectgpt.cli import extract_features

    options = [f"paths.dataset_root={copy}", RGB, f"paths.features_root={tmp_path / 'features'}"]
    arguments = ["--cfg-path", str(demo.yaml), "--datasets", "OVMERDPlus", "--split", "test", "--options"]
    mode = ["--mode", "multiface_audio_face_text"]
    assert extract_features.main([*arguments[:-1], *mode, "--options", *options]) == 0
    require = "datasets.mercaptionplus.features=require"
    assert answers(demo, tmp_path / "stored", *options, require) == demo_answers
    (copy / FACES / "crops.json").write_text(RECORD % "rgb")
    with pytest.raises(DataError, match=r"crops.channels is 'bgr', this run has 'rgb'"):
        answers(demo, tmp_path / "refused", *options, require)
    (copy / FACES / "crops.json").unlink()
    with pytest.raises(DataError, match=r"preprocessing.face_channels is 'rgb', this run has 'bgr'"):
        answers(demo, tmp_path / "refused", *options[::2], require)
    reverse(copy / FACES)  # the same names and sizes
    with pytest.raises(AffectGPTError, match=r"its face file has other content than its stored features"):
        answers(demo, tmp_path / "refused", *options, require)


def test_contradiction_is_an_error_that_names_both(demo, tmp_path):
    with pytest.raises(DataError, match=r"crops\.json says .* rgb, datasets\.ovmerdplus\.face_channels says bgr"):
        answers(demo, tmp_path, blocks=STORED_AS_BGR)


def test_conversion_is_told_once_for_a_folder(demo, copy, tmp_path, caplog):
    answers(demo, tmp_path / "a", f"paths.dataset_root={copy}", RGB)
    answers(demo, tmp_path / "b", f"paths.dataset_root={copy}", RGB)
    lines = [r.getMessage() for r in caplog.records if "face crops are stored" in r.getMessage()]
    said = "face crops are stored as bgr and converted on reading, model.face_channels is rgb"
    assert lines == [f"{copy / FACES}: {said}"]
    answers(demo, tmp_path / "c", f"paths.dataset_root={copy}")
    assert len([r for r in caplog.records if "face crops are stored" in r.getMessage()]) == 1


def one_clip(demo: World, capsys, *arguments: str) -> str:
    video = next((demo.root / "dataset" / "ovmerdplus-process" / "video").glob("*.mp4"))
    assert sample.main(["--cfg-path", str(demo.yaml), "--video_path", str(video), *arguments]) == 0
    return capsys.readouterr().out


def test_one_clips_crops(demo, capsys, tmp_path):
    rgb, bgr = tmp_path / "rgb.npy", tmp_path / "bgr.npy"
    crops = np.load(next((demo.root / "dataset" / FACES).glob("*.npy")))
    np.save(rgb, crops)
    np.save(bgr, crops[..., ::-1])
    same = one_clip(demo, capsys, "--face_npy", str(bgr))
    assert one_clip(demo, capsys, "--face_npy", str(bgr), "--face_channels", "bgr") == same
    assert one_clip(demo, capsys, "--face_npy", str(rgb), "--face_channels", "rgb") == same
    assert one_clip(demo, capsys, "--face_npy", str(rgb)) != same
    (tmp_path / "crops.json").write_text(RECORD % "rgb")
    assert one_clip(demo, capsys, "--face_npy", str(rgb)) == same
    with pytest.raises(DataError, match=r"crops\.json says .* rgb, --face_channels says bgr"):
        one_clip(demo, capsys, "--face_npy", str(rgb), "--face_channels", "bgr")
    with pytest.raises(ConfigError, match="--face_channels goes with --face_npy"):
        one_clip(demo, capsys, "--face_channels", "bgr")


def test_faces_of_a_raw_clip_are_those_that_preprocess_writes(demo, capsys, tmp_path):
    from affectgpt.cli import preprocess

    assert preprocess.main(["--video-dir", str(demo.root / "dataset/ovmerdplus-process/video"), "--out", str(tmp_path),
                            "--workers", "1"]) == 0  # fmt: skip
    video = next((demo.root / "dataset" / "ovmerdplus-process" / "video").glob("*.mp4"))
    stored = tmp_path / "openface_face" / f"{video.stem}.npy"
    for option in ("bgr", "rgb"):
        arguments = ("--options", f"model.face_channels={option}")
        assert one_clip(demo, capsys, *arguments) == one_clip(demo, capsys, "--face_npy", str(stored), *arguments)


@pytest.fixture
def checkpoint(demo):
    """Checkpoints like that of the demo whose file says another configuration."""
    [path] = demo.run_folder.glob("checkpoint_000011*.pth")
    state = torch.load(path, weights_only=True)["model"]
    made = []

    def write(config: dict) -> None:
        made.append(write_checkpoint(demo.run_folder / "checkpoint_000012_loss_0.120.pth", {
            "model": state, "config": config, "epoch": 12,
        }))  # fmt: skip

    yield write
    for file in made:
        file.unlink(missing_ok=True)


def doctor_says(demo, capsys, *options: str) -> list[str]:
    doctor.main(["--cfg-path", str(demo.yaml), "--no-hash", "--options", "inference.test_epoch=12", *options])
    return [line for line in capsys.readouterr().out.splitlines() if "face" in line.split(":")[0] or "inputs" in line]


def test_doctor_reports_what_a_checkpoint_was_made_with(demo, checkpoint, capsys):
    config = to_dict(demo.config())
    checkpoint(config)
    assert doctor_says(demo, capsys) == ["ok    face channels: the visual encoder gets BGR crops (model.face_channels)"]
    config["model"].pop("face_channels")  # an earlier version of this project
    checkpoint(config)
    [line] = doctor_says(demo, capsys)
    assert line.startswith("warn  face channels: ") and "--options model.face_channels=rgb" in line
    assert doctor_says(demo, capsys, RGB)[0].startswith("ok    face channels: the visual encoder gets RGB")
    checkpoint({"model": {"lora_r": 4}})  # a published configuration has none of our keys
    assert [line[:4] for line in doctor_says(demo, capsys)] == ["ok  "]


def test_a_checkpoint_of_the_other_order_is_reported(demo, checkpoint, capsys, caplog):
    config = to_dict(demo.config(RGB))
    checkpoint(config)
    lines = doctor_says(demo, capsys)
    told = "was made with model.face_channels=rgb, this run has bgr"
    assert told in lines[0] and lines[0].startswith("warn")
    assert [r.levelname for r in caplog.records if told in r.getMessage()] == ["WARNING"]  # on loading, too
    assert [line[:4] for line in doctor_says(demo, capsys, RGB)] == ["ok  "]
