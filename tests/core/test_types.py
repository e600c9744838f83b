"""A batch: what a model's forward takes, on its way through loaders, devices and Trainers."""

from __future__ import annotations

import copy
import pickle

import torch

from affectgpt.core.types import Batch, Modality


def batch() -> Batch:
    return Batch(
        names=["a", "b"],
        mode="face",
        input_ids=torch.zeros(2, 3, dtype=torch.int64),
        attention_mask=torch.ones(2, 3, dtype=torch.bool),
        media={Modality.FACE: torch.zeros(2, 8, 3, 4, 4, dtype=torch.uint8)},
        features={Modality.AUDIO: torch.zeros(2, 8, 5)},
        prompts=["x", "y"],
        flags=[(), ("no_audio_track",)],
    )


def test_keys_are_what_the_forward_takes_and_the_rest_are_attributes():
    made = batch()
    assert set(made) == {"names", "input_ids", "attention_mask", "face", "audio_features"}
    assert list(made.media) == [Modality.FACE] and list(made.features) == [Modality.AUDIO]
    assert made.labels is None and made.prefusion is None


def test_it_stays_whole_in_copies_in_queues_and_on_devices():
    for again in (copy.copy(batch()), pickle.loads(pickle.dumps(batch())), batch().to("cpu")):
        assert type(again) is Batch and set(again) == set(batch())
        assert (again.mode, again.prompts, again.flags) == ("face", ["x", "y"], [(), ("no_audio_track",)])
    moved = batch().to("meta")
    assert moved["face"].device.type == moved["audio_features"].device.type == "meta" and moved.names == ["a", "b"]
    assert moved["face"].dtype == torch.uint8


def test_what_a_trainer_does_with_it():
    """transformers builds ``type(batch)`` of a mapping again."""
    again = type(batch())(dict(batch()))
    assert set(again) == set(batch()) and again.names == ["a", "b"]
