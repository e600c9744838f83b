"""Stored encoder outputs as one vector per clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_annotation import write_media

from affectgpt.captioning import ensemble as features
from affectgpt.captioning.ensemble import pool
from affectgpt.core.errors import DataError
from affectgpt.core.types import Sample
from affectgpt.processing.features import FeatureReader, FeatureWriter

KEY = {"encoder": "x"}


def store(folder, tensors: dict[str, torch.Tensor], failed: dict[str, str] | None = None) -> FeatureReader:
    writer = FeatureWriter(folder, key=KEY)
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    for name, reason in (failed or {}).items():
        writer.fail(name, reason)
    writer.close()
    return FeatureReader(folder, key=KEY)


def samples(*names: str) -> list[Sample]:
    return [Sample(name=name, dataset="x") for name in names]


def test_averages_over_time_and_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_REMAP", 2)  # several remappings
    generator = torch.Generator().manual_seed(0)
    faces = {f"c{i}": torch.randn(8, 4, 6, generator=generator) for i in range(5)}
    voices = {name: torch.randn(8, 3, generator=generator) for name in faces}
    found = pool((store(tmp_path / "f", faces), store(tmp_path / "a", voices)), samples(*faces))
    assert found.names == list(faces) and found.visual.shape == (5, 6) and found.acoustic.shape == (5, 3)
    assert np.allclose(found.visual[3], faces["c3"].mean(dim=(0, 1)))
    assert np.allclose(found.acoustic[4], voices["c4"].mean(dim=0))


def test_clips_without_features_are_told_and_left_out(tmp_path):
    reader = store(tmp_path / "f", {"a": torch.ones(2, 3), "c": torch.ones(2, 3)}, failed={"b": "b.mp4: damaged"})
    found = pool((reader, reader), samples("a", "b", "c", "d"))
    assert found.names == ["a", "c"] and found.visual.shape == (2, 3)
    assert "damaged" in found.missing["b"] and "no stored feature" in found.missing["d"]


def test_nan_is_not_stored_and_its_clip_is_named(tmp_path):
    reader = store(tmp_path / "f", {"a": torch.ones(2, 3), "bad": torch.full((2, 3), float("nan"))})
    found = pool((reader, reader), samples("a", "bad"))
    assert found.names == ["a"] and "not finite" in found.missing["bad"]


def test_features_are_computed_where_the_store_lacks_them_and_tried_again_when_files_come_back(small_world, tmp_path):
    """Real media through the tiny encoders."""
    from affectgpt.captioning.describe import load_clips
    from affectgpt.captioning.describe import samples as samples_of
    from affectgpt.cli.crowd import features_of

    config = small_world.config(f"paths.features_root={tmp_path}")
    clips = samples_of(load_clips(config.captioning.input, title="other", limit=7))  # the seventh has no files
    found = features_of(config, "other", features.UNLABELLED, clips)
    assert found.names == [clip.name for clip in clips[:6]] and "no such file" in found.missing["clip0006"]
    assert np.isfinite(found.visual).all() and found.visual.std(axis=0).min() > 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.bin")}
    again = features_of(config, "other", features.UNLABELLED, clips)
    assert np.array_equal(again.visual, found.visual)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.bin")} == before
    write_media(small_world.input, "clip0006")
    try:
        clips = samples_of(load_clips(config.captioning.input, title="other", limit=7))
        assert features_of(config, "other", features.UNLABELLED, clips).names[-1] == "clip0006"
    finally:
        for folder, suffix in (("audio", ".wav"), ("video", ".mp4"), ("openface_face", ".npy")):
            (small_world.input / folder / f"clip0006{suffix}").unlink()


def test_clips_in_either_channel_order_have_the_same_features(small_world, tmp_path):
    """The ensemble learns from published crops (BGR) and judges clips whose folder may say RGB."""
    import shutil

    from affectgpt.captioning.describe import load_clips
    from affectgpt.captioning.describe import samples as samples_of
    from affectgpt.cli.crowd import features_of

    shutil.copytree(small_world.input, tmp_path / "rgb")
    faces = tmp_path / "rgb" / "openface_face"
    for path in faces.glob("*.npy"):
        np.save(path, np.load(path)[..., ::-1])
    (faces / "crops.json").write_text('{"channels": "rgb"}')
    found = []
    for number, root in enumerate((small_world.input, tmp_path / "rgb")):
        config = small_world.config(f"paths.features_root={tmp_path / str(number)}", f"captioning.input.root={root}")
        clips = samples_of(load_clips(config.captioning.input, title="x", limit=3))
        found.append(features_of(config, "x", "unlabelled", clips))
    assert found[0].names == found[1].names and len(found[0].names) == 3
    np.testing.assert_array_equal(found[0].visual, found[1].visual)
    (faces / "crops.json").unlink()  # bgr, it is said now: other features
    with pytest.raises(DataError, match=r"crops\.channels is 'rgb', this run has 'bgr'"):
        features_of(config, "x", "unlabelled", samples_of(load_clips(config.captioning.input, title="x", limit=3)))


def test_an_ensemble_of_the_other_order_is_another_ensemble(small_world):
    from affectgpt.captioning.ensemble import encoder_keys
    from affectgpt.core.types import Modality
    from affectgpt.processing.features import differing

    bgr, rgb = (
        encoder_keys(small_world.config(f"model.face_channels={order}"), Modality.FACE) for order in ("bgr", "rgb")
    )
    assert differing(bgr, rgb) == "face.preprocessing.face_channels is 'bgr', this run has 'rgb'"
    assert "crops" not in bgr["face"]  # how a set's crops are stored is the store's own affair
