"""A clip that every machine makes alike, run through each stage, and the fingerprints that tell machines apart.

Stages are in the order of a sample's way; the first whose fingerprint deviates is where to look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affectgpt.core.types import Sample
from affectgpt.inference.memory import autocast, autocast_dtype
from affectgpt.inference.session import GenerationSession
from affectgpt.processing.questions import render_question

SUBTITLE = "I did not think that you would come, but here you are."
# Largest deviation, as a part of the values' own size, by the dtype of the weights (measured between batch sizes,
# thread counts and library versions it stays well below).
TOLERANCES = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}
_PROBES = 16  # projections per tensor


@dataclass(frozen=True)
class Deviation:
    """A stage that differs from a recorded one: by how much, or in what."""

    stage: str
    what: str


def make_probe(folder: Path) -> Sample:
    """A video (losslessly coded), its sound and face crops: whole-number patterns, the same bytes everywhere."""
    import av
    import soundfile

    y, x = np.mgrid[0:120, 0:160]
    frames = [
        np.stack([(x * 3 + 7 * i) % 256, (y * 5 + 11 * i) % 256, (x * y // 16 + 5 * i) % 256], axis=-1).astype(np.uint8)
        for i in range(25)
    ]
    with av.open(str(folder / "probe.mov"), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.height, stream.width, stream.pix_fmt = 120, 160, "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    at = np.arange(56_000)
    sound = (abs(at * 37 % 4001 - 2000) + abs(at * 113 % 1601 - 800) - 1400) * (at // 4000 % 5)
    soundfile.write(folder / "probe.wav", sound.astype(np.int16), 16_000, subtype="PCM_16")
    np.save(folder / "probe.npy", np.stack(frames[::2])[:, 4:116, 24:136])
    return Sample(
        name="probe", dataset="probe", subtitle=SUBTITLE, video=folder / "probe.mov", audio=folder / "probe.wav",
        face=folder / "probe.npy",
    )  # fmt: skip


@torch.inference_mode()
def run_stages(session: GenerationSession, folder: Path, *, trained: bool = True) -> dict[str, torch.Tensor]:
    """Stage → its values for the probe clip, in the order in which they are computed.

    ``trained=False``: those that depend on no checkpoint, up to the encoders' outputs.
    """
    from affectgpt.media.audio import read_audio
    from affectgpt.media.video import read_faces, read_frames

    sample = make_probe(folder)
    assert sample.video and sample.audio and sample.face
    stages: dict[str, torch.Tensor] = {
        "decoded frames": torch.from_numpy(read_frames(sample.video)),
        "face crops": torch.from_numpy(read_faces(sample.face)),
        "sound clips": torch.from_numpy(read_audio(sample.audio, spacing=session.processor.audio_clip_spacing)[0]),
    }
    model = session.model
    example = session.processor(sample, question=render_question("ovlabel"))
    stages["prompt tokens"] = torch.tensor(example.input_ids)
    for modality, tensor in example.media.items():
        normalizer = getattr(model.visual_encoder, "normalizer", None) if tensor.dtype is torch.uint8 else None
        stages[f"encoder input, {modality}"] = tensor if normalizer is None else normalizer(tensor)
    batch = session.processor.collate([example]).to(session.device)
    llm_dtype = model.get_input_embeddings().weight.dtype
    with autocast(session.device, autocast_dtype(llm_dtype)):
        features = model.encode(**batch)
        for modality, z in features.items():
            stages[f"encoder output, {modality}"] = z[0]
        if not trained:
            return {name: tensor.detach().cpu() for name, tensor in stages.items()}
        for modality, embeds in model.connect(features, **batch).items():
            stages[f"connector output, {modality}"] = embeds[0]
        embeds = model.embed(**batch).to(model.get_input_embeddings().weight.dtype)
    stages["prompt embeddings"] = embeds[0]
    output = model(inputs_embeds=embeds, attention_mask=batch.attention_mask.long())
    stages["first scores"] = output.logits[0, -1]
    return {name: tensor.detach().cpu() for name, tensor in stages.items()}


def fingerprint(values: torch.Tensor) -> dict[str, Any]:
    """What is kept of a stage: for whole numbers a hash, for others projections that a small change moves a little."""
    if not values.is_floating_point():
        return {"shape": list(values.shape), "sha256": hashlib.sha256(values.numpy().tobytes()).hexdigest()}
    flat = values.double().flatten()
    return {
        "shape": list(values.shape),
        "norm": float(flat.norm()),
        "projections": [float(_signs(len(flat), number) @ flat) for number in range(_PROBES)],
    }


def _signs(n: int, number: int) -> torch.Tensor:
    """±1 from a hash of position and number in whole-number arithmetic: the same on every machine."""
    mixed = (np.arange(n, dtype=np.uint64) + np.uint64(number * 1_000_003 + 1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return torch.from_numpy(((mixed >> np.uint64(40)) & np.uint64(1)).astype(np.float64) * 2 - 1)


def first_deviation(
    found: Mapping[str, Mapping[str, Any]], recorded: Mapping[str, Mapping[str, Any]], *, tolerance: float
) -> Deviation | None:
    """The first stage that is not as recorded; None when all are."""
    for stage, expected in recorded.items():
        ours = found.get(stage)
        if ours is None:
            return Deviation(stage, "does not exist here: another recipe or input mode")
        if ours["shape"] != expected["shape"]:
            return Deviation(stage, f"has shape {ours['shape']}, recorded {expected['shape']}")
        if "sha256" in expected:
            if ours.get("sha256") != expected["sha256"]:
                return Deviation(stage, "is not the same to the bit")
            continue
        # a random change of relative size r moves a projection by about r times the norm
        moved = [abs(a - b) for a, b in zip(ours["projections"], expected["projections"], strict=True)]
        relative = (sum(m * m for m in moved) / len(moved)) ** 0.5 / max(expected["norm"], 1e-12)
        if not relative <= tolerance:
            return Deviation(stage, f"deviates by {relative:.2g} of its size (allowed: {tolerance:g})")
    return None
