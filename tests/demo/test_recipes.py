"""The demo's three recipes, and the command around them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from affectgpt.config.load import load_config
from affectgpt.core.errors import AffectGPTError, ConfigError
from affectgpt.core.files import locked, write_json
from examples.demo import pipeline as demo

ROOT = Path(__file__).resolve().parents[2]
PLACE = demo.Place(recipes=ROOT / "train_configs")


def test_recipes_differ_in_the_input_alone():
    first, *others = (load_config(ROOT / "train_configs" / f"{name}.yaml") for name in demo.RECIPES)
    modes = [config.datasets["mercaptionplus"].face_or_frame for config in (first, *others)]
    assert modes == ["multiface_audio_face_text", "face", "textonly"]
    for other in others:
        assert dataclasses.replace(other, name=first.name, datasets=first.datasets) == first
    assert first.inference.test_epoch == first.run.max_epoch >= 2


def test_recipes_lead_to_the_demo_folders_only():
    config = load_config(ROOT / "train_configs/demo_cpu.yaml")
    assert config.paths.dataset_root == str(demo.Place().dataset)
    assert config.paths.output_root == str(demo.Place().root)
    assert config.inference.base_root == str(demo.Place().results("ovlabel"))
    assert set(config.paths.folders.values()) == {"models/demo-clip", "models/demo-hubert", "models/demo-qwen2"}


def test_another_place_is_reached_by_options_alone(tmp_path):
    assert demo.Place(workers=1).options() == []
    place = demo.Place(root=tmp_path / "x", models=tmp_path / "m", recipes=PLACE.recipes, seed=4)
    _, config = demo.load(place, "demo_cpu")
    assert (config.run.seed, config.paths.output_root) == (4, str(tmp_path / "x"))
    assert config.paths.folders["Qwen25"] == str(tmp_path / "m/demo-qwen2")


def test_without_a_clone_the_shipped_recipes_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, config = demo.load(demo.Place(), "demo_cpu")
    assert path == Path("train_configs/demo_cpu.yaml") and not path.exists() and config.name == "demo_cpu"
    with pytest.raises(ConfigError, match="no such file"):
        demo.load(demo.Place(recipes=tmp_path), "demo_cpu")


def test_a_run_counts_when_it_was_finished_with_the_present_settings(tmp_path, monkeypatch):
    place = demo.Place(root=tmp_path / "demo", models=tmp_path / "models", recipes=PLACE.recipes)
    for path in (place.dataset / "synthetic_corpus.json", *(place.models / m / "demo_model.json" for m in _models())):
        write_json(path, {"version": 1})
    run = place.root / "demo_cpu" / "demo_cpu_20260101010"
    run.mkdir(parents=True)
    assert demo.finished_run(place, "demo_cpu") is None  # interrupted: no marker
    write_json(run / demo.MARKER, {"settings": demo._settings(place, "demo_cpu")})
    assert demo.finished_run(place, "demo_cpu") == run
    assert not demo.train(place, "demo_cpu")  # nothing to do
    write_json(place.dataset / "synthetic_corpus.json", {"version": 2})
    assert demo.finished_run(place, "demo_cpu") is None  # another corpus: train again


def _models():
    from examples.demo.models import RECIPES

    return RECIPES


@pytest.mark.parametrize("asked", [None, "2"])
def test_the_demo_computes_with_one_thread_unless_asked_otherwise(monkeypatch, asked):
    import torch

    class StopHereError(Exception):
        pass

    def prepare(place):
        raise StopHereError

    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(demo, "prepare", prepare)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    with pytest.raises(StopHereError):
        demo.run(demo.Place())
    assert told == ([] if asked else [1])


@pytest.mark.parametrize(
    ("status", "said"), [(143, "was stopped: the same command resumes"), (1, "ended with status 1")]
)
def test_what_a_step_ended_with_is_said(capsys, status, said):
    with pytest.raises(AffectGPTError, match=f"train.py {said}"):
        demo.call("train.py", lambda arguments: status, [])


def test_two_demos_in_one_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = demo.Place().root
    root.mkdir(parents=True)
    with locked(root), pytest.raises(ConfigError, match="another demo is running"):
        demo.main([])
