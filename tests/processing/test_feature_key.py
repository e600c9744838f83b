"""The hash of an encoder's weights in a key: of what is read, once, and still that of stores which are there."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import folder_of, tiny_config

from affectgpt.core.types import Modality
from affectgpt.encoders.base import encoder_class, encoder_folder
from affectgpt.processing.features import differing, feature_key


@pytest.fixture
def config(tiny_models, tmp_path):
    return tiny_config(shutil.copytree(tiny_models, tmp_path / "models"))


def as_downloaded(config, name: str) -> Path:
    """The encoder's folder with the copies in other formats that the published ones have."""
    folder = folder_of(Path(config.paths.models_root), name)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    for copy in ("tf_model.h5", "flax_model.msgpack", "chinese-hubert-large-fairseq-ckpt.pt"):
        (folder / copy).write_bytes(b"the same in another format")
    return folder


def earlier_hash(folder: Path) -> str:
    """As every earlier version hashed a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pth", ".pt", ".json")):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def key_of(config, modality=Modality.FACE):
    return feature_key(config, modality, device_type="cpu")


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the files that are read to be hashed."""
    names: list[str] = []
    plain = hashlib.file_digest

    def digest(handle, *rest):
        names.append(Path(handle.name).name)
        return plain(handle, *rest)

    monkeypatch.setattr(hashlib, "file_digest", digest)
    return names


def test_what_is_read_is_hashed_and_nothing_twice(config, hashed):
    alone = key_of(config)["weights_sha256"]
    read = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(hashed) == read
    as_downloaded(config, "CLIP_VIT_LARGE")
    for modality in (Modality.FACE, Modality.FRAME, Modality.FACE):  # data sets, media
        assert key_of(config, modality)["weights_sha256"] == alone
    assert sorted(hashed) == read
    weights = folder_of(Path(config.paths.models_root), "CLIP_VIT_LARGE") / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    os.utime(weights, ns=(0, 0))
    assert key_of(config)["weights_sha256"] != alone


@pytest.mark.parametrize("modality", [Modality.FACE, Modality.AUDIO])
def test_the_hash_of_a_folder_without_copies_is_what_it_was(config, modality):
    folder = encoder_folder(config, "acoustic_encoder" if modality is Modality.AUDIO else "visual_encoder")
    assert key_of(config, modality)["weights_sha256"] == earlier_hash(folder)


def test_stores_of_a_folder_with_copies_are_still_read(config):
    folder = as_downloaded(config, "HUBERT_LARGE")
    key = key_of(config, Modality.AUDIO)
    stored = {**key, "weights_sha256": earlier_hash(folder)}
    assert stored != key and differing(stored, key) is None
    assert differing({"audio": stored}, {"audio": key}) is None  # as classifiers record it
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "weights_sha256 is" in (differing(stored, key) or "")
    assert "weights_sha256 is" in (differing({**key, "weights_sha256": None}, key) or "")


def test_a_file_that_an_encoder_of_ones_own_may_read_counts(config, monkeypatch):
    """Who says nothing of its files gets all of them."""
    from affectgpt.encoders.base import FrozenEncoder

    kind = encoder_class(config, "visual_encoder")
    monkeypatch.setattr(kind, "files", classmethod(FrozenEncoder.files.__func__))
    folder = as_downloaded(config, "CLIP_VIT_LARGE")
    assert key_of(config)["weights_sha256"] == earlier_hash(folder)
