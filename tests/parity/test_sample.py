"""The real published clip through the tiny golden model, end to end, in the two released input modes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.parity
ROOT = Path(__file__).resolve().parents[2]
SUBTITLE = "I don't know! I, I, I don't have experience in this area."
YAML = """\
model:
  {{multi_fusion_type: attention, video_fusion_type: attention, audio_fusion_type: attention, image_fusion_type: mean}}
datasets:
  mercaptionplus: {{face_or_frame: multiframe_audio_frame_text, label_type: hybird}}
run: {{device: cpu}}
inference: {{ckpt_name: "{golden}/attention/checkpoint_000005_loss_0.123.pth", max_new_tokens: 24, decoding: greedy}}
paths: {{models_root: "{golden}/models", output_root: "{output}"}}
"""


@pytest.fixture
def config(golden, tmp_path):
    path = tmp_path / "golden.yaml"
    path.write_text(YAML.format(golden=golden, output=tmp_path), encoding="utf-8")
    return path


@pytest.fixture
def predictor(config):
    from affectgpt.inference.predictor import Predictor

    return Predictor.from_config(config)


def test_answer_from_the_published_stages(golden, merunibench, predictor):
    """The answer is the one that the published frames and sound, fed into the model by hand, lead to."""
    import torch

    from affectgpt.core.types import Batch, Modality
    from affectgpt.media.audio import cut_clips, read_wave
    from affectgpt.processing.prompt import render_prompt
    from affectgpt.processing.questions import render_question

    reply = predictor(
        merunibench / "demo" / "sample_00000000.mp4",
        audio=merunibench / "demo" / "sample_00000000.wav",
        subtitle=SUBTITLE,
    )
    session = predictor.session
    processor = session.processor
    frames = np.load(golden / "data" / "video_demo.npz")["frames"].transpose(1, 2, 3, 0)  # [8, 224, 224, 3]
    clips = cut_clips(read_wave(merunibench / "demo" / "sample_00000000.wav"))
    first = np.load(golden / "data" / "audio.npz")["demo_pypi_0.1.5_after_transform_clip0"]
    np.testing.assert_array_equal(clips[:1], first)
    prompt = render_prompt("multiframe_audio_frame_text", subtitle=SUBTITLE, question=render_question("ovlabel"))
    ids = torch.tensor([processor.tokenizer(prompt, add_special_tokens=False).input_ids])
    batch = Batch(
        names=["by hand"], mode="multiframe_audio_frame_text", input_ids=ids, prefusion=Modality.FRAME,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        media={
            Modality.FRAME: processor.transforms[Modality.FRAME](frames)[None],
            Modality.AUDIO: processor.transforms[Modality.AUDIO](clips)[None],
        },
    )  # fmt: skip
    by_hand = session.engine.generate(batch, seeds=[0])[0]
    assert reply.answer == by_hand.text != ""
    other = predictor(merunibench / "demo" / "sample_00000000.mp4", subtitle="")
    assert other.answer != reply.answer


def test_published_command(config, merunibench):
    """``inference_sample.py`` as the published README calls it, and from the video alone with faces."""
    video = merunibench / "demo" / "sample_00000000.mp4"
    command = [
        sys.executable, "inference_sample.py", "--zeroshot", f"--video_path={video}",
        f"--audio_path={video.with_suffix('.wav')}", f"--subtitle={SUBTITLE}", f"--cfg-path={config}", "--json",
    ]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    reply = json.loads(result.stdout)
    assert reply["answer"] and reply["subtitle"] == SUBTITLE


def test_the_video_alone_with_faces(config, merunibench):
    from affectgpt.inference.predictor import Predictor

    predictor = Predictor.from_config(config, mode="multiface_audio_face_text")
    reply = predictor(merunibench / "demo" / "sample_00000000.mp4")
    assert reply.answer and reply.notes == [note for note in reply.notes if "never stopped" in note]
    assert reply.description != reply.answer
