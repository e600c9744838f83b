"""The attention recipe against tensors, loss, gradients and answers of the published implementation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from affectgpt.config.schema import Config, ModelConfig, PathsConfig
from affectgpt.core.types import Batch, Modality
from affectgpt.encoders.clip import PixelTransform
from affectgpt.encoders.llm import StopSequences, folder_generation_config, llm_folder, stop_sequences
from affectgpt.encoders.speech import WaveNormalize
from affectgpt.inference.engines.base import Decoding
from affectgpt.inference.engines.transformers import TransformersEngine
from affectgpt.modeling.build import build_model, load_checkpoint
from affectgpt.modeling.checkpoint import published_name, trained_state, write_checkpoint
from affectgpt.processing.modes import get_mode
from affectgpt.processing.processor import AffectGPTProcessor
from affectgpt.training.optim import parameter_groups

pytestmark = pytest.mark.parity
MODES = (
    "multiface_audio_face_text",
    "multiframe_audio_frame_text",
    "audio_text",
    "face_text",
    "textonly",
    "faceframe",
)
CHECKPOINT = "attention/checkpoint_000005_loss_0.123.pth"


def golden_config(golden: Path) -> Config:
    return Config(
        name="golden",
        model=ModelConfig(
            multi_fusion_type="attention",
            video_fusion_type="attention",
            audio_fusion_type="attention",
            image_fusion_type="mean",
        ),
        paths=PathsConfig(models_root=str(golden / "models")),
    )


@pytest.fixture(scope="module")
def prepared(golden):
    return AffectGPTProcessor.from_config(golden_config(golden))


@pytest.fixture(scope="module")
def model(golden, prepared):
    built = build_model(golden_config(golden), device=torch.device("cpu"), tokenizer=prepared.tokenizer)
    report = load_checkpoint(built, golden / CHECKPOINT)
    assert (len(report.loaded), report.missing, report.unexpected, report.wrong_shape) == (48, [], [], [])
    return built.eval()


@pytest.fixture(scope="module")
def inputs(golden):
    return dict(np.load(golden / "inputs" / "batch.npz"))


def media_of(inputs, mode: str, prepared, rows) -> dict[Modality, torch.Tensor]:
    """Raw published inputs through our own transforms."""
    raw = {Modality.FACE: "raw_faces", Modality.FRAME: "raw_frames", Modality.AUDIO: "raw_audios"}
    media = {}
    for modality in get_mode(mode).media:
        block = inputs[raw[modality]][rows]
        if modality is Modality.AUDIO:
            items = [prepared.transforms[modality](clips[:, 0]) for clips in block]
        else:
            items = [prepared.transforms[modality](frames.transpose(1, 2, 3, 0)) for frames in block]
        media[modality] = torch.stack(items)
    return media


def batch_of(values, mode: str, media, rows, *, golden_audio: bool) -> Batch:
    features = {}
    if golden_audio and "audio_hidden" in values:
        media = {k: v for k, v in media.items() if k is not Modality.AUDIO}
        features[Modality.AUDIO] = torch.from_numpy(values["audio_hidden"][rows])
    return Batch(
        names=[f"sample{i}" for i in range(2)][rows],
        mode=mode,
        input_ids=torch.from_numpy(values["input_ids"][rows]),
        attention_mask=torch.from_numpy(values["attention_mask"][rows]),
        labels=torch.from_numpy(values["labels"][rows]),
        prefusion=get_mode(mode).prefusion,
        media=media,
        features=features,
    )


def assert_near(ours: torch.Tensor, published, tolerance: float = 1e-5) -> None:
    ours = ours.detach().numpy()
    scale = np.abs(published).max()
    assert ours.shape == published.shape
    assert np.abs(ours - published).max() <= tolerance * scale


def test_transforms_give_the_published_pixels(inputs, model, prepared):
    for raw, normal in (("raw_faces", "faces"), ("raw_frames", "frames")):
        for row in range(2):
            ours = prepared.transforms[Modality.FACE](inputs[raw][row].transpose(1, 2, 3, 0))
            assert ours.dtype == torch.uint8
            ours = model.visual_encoder.normalizer(ours)
            assert_near(ours, inputs[normal][row].transpose(1, 0, 2, 3), 1e-6)
    assert isinstance(prepared.transforms[Modality.FACE], PixelTransform)
    assert isinstance(prepared.transforms[Modality.AUDIO], WaveNormalize)


def test_speech_encoder_alone_and_in_a_batch(golden, model, inputs, prepared):
    published = np.load(golden / "inputs" / "hubert.npz")
    batch = torch.stack([prepared.transforms[Modality.AUDIO](clips[:, 0]) for clips in inputs["raw_audios"]])
    together = model.acoustic_encoder(batch)
    for row in range(2):
        assert_near(model.acoustic_encoder(batch[row : row + 1]), published[f"alone{row}"])
        assert_near(together[row : row + 1], published[f"alone{row}"])


@pytest.mark.parametrize("mode", MODES)
def test_every_tensor_of_a_batch(golden, model, inputs, prepared, mode):
    values = dict(np.load(golden / "attention" / f"{mode}.npz"))
    batch = batch_of(values, mode, media_of(inputs, mode, prepared, slice(None)), slice(None), golden_audio=True)
    with torch.no_grad():
        features = model.encode(**batch)
        embeds_of = model.connect(features, **batch)
        output = model(**batch)
        embeds = model.embed(**batch)
    for modality in (Modality.FACE, Modality.FRAME):
        if modality in features and f"{modality}_hidden" in values:
            assert_near(features[modality], values[f"{modality}_hidden"])
    assert embeds_of or mode == "textonly"
    for modality, slot in embeds_of.items():
        assert_near(slot, values[f"{modality}_llms"])
    assert_near(embeds, values["inputs_embeds"])
    assert_near(output.logits[:, -8:], values["logits_last8"])
    assert output.loss.item() == pytest.approx(float(values["loss"]), rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", [0, 1])
def test_a_sample_by_itself(golden, model, inputs, prepared, mode, row):
    values = dict(np.load(golden / "attention" / f"{mode}.npz"))
    rows = slice(row, row + 1)
    batch = batch_of(values, mode, media_of(inputs, mode, prepared, rows), rows, golden_audio=False)
    with torch.no_grad():
        embeds_of = model.connect(model.encode(**batch), **batch)
        loss = model(**batch).loss
    for modality in (Modality.AUDIO, Modality.MULTI):
        if modality in embeds_of:
            assert_near(embeds_of[modality], values[f"alone{row}_{modality}_llms"])
    assert loss.item() == pytest.approx(float(values[f"alone{row}_loss"]), rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_of_every_trained_parameter(golden, model, inputs, prepared, mode):
    values = dict(np.load(golden / "attention" / f"{mode}.npz"))
    published = json.loads((golden / "attention" / f"gradnorm_{mode}.json").read_text())
    batch = batch_of(values, mode, media_of(inputs, mode, prepared, slice(None)), slice(None), golden_audio=True)
    model.zero_grad(set_to_none=True)
    model(**batch).loss.backward()
    ours = {published_name(model, n): p.grad for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad(set_to_none=True)
    assert list(ours) == list(published)
    for name, norm in published.items():
        if norm is None:
            assert ours[name] is None, name
        else:
            # 1e-8: one bias gradient is a sum that cancels to 8e-6; in float64 it is 2e-9 off the published one
            assert ours[name].norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-8), name


def test_a_saved_checkpoint_has_the_published_names_shapes_and_dtypes(golden, model, tmp_path):
    expected = (golden / "attention" / "checkpoint_keys.txt").read_text().splitlines()
    ours = [f"{name}\t{tuple(t.shape)}\t{t.dtype}" for name, t in trained_state(model).items()]
    assert ours == expected
    write_checkpoint(tmp_path / "c.pth", {"model": trained_state(model), "config": {"run": {}}, "epoch": 5})
    again = torch.load(tmp_path / "c.pth", weights_only=True)
    published = torch.load(golden / CHECKPOINT, weights_only=True)
    assert set(again) == set(published)
    for name, tensor in published["model"].items():
        assert torch.equal(again["model"][name], tensor), name


def test_weight_decay_groups(golden, model):
    published = json.loads((golden / "attention" / "weight_decay.json").read_text())
    names = {id(p): published_name(model, n) for n, p in model.named_parameters() if p.requires_grad}
    named = [(published_name(model, n), p) for n, p in model.named_parameters() if p.requires_grad]
    decay, no_decay = parameter_groups(named, weight_decay=0.05)
    assert [names[id(p)] for p in decay["params"]] == published["decay"]
    assert [names[id(p)] for p in no_decay["params"]] == published["no_decay"]


@pytest.fixture(scope="module")
def engine(golden, model, prepared):
    return TransformersEngine(
        model,
        processor=prepared,
        decoding=Decoding(greedy=True, max_new_tokens=24),
        defaults=folder_generation_config(llm_folder(golden_config(golden))),
    )


def prompt_batch(prompts: list[list[int]], pad: int, mode: str = "textonly", **more) -> Batch:
    """Left-padded prompts."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[False] * (longest - len(p)) + [True] * len(p) for p in prompts])
    return Batch(names=[str(i) for i in range(len(prompts))], mode=mode, input_ids=ids, attention_mask=mask, **more)


@pytest.mark.parametrize("mode", MODES)
def test_greedy_answers_token_for_token(golden, model, inputs, prepared, engine, mode):
    case = json.loads((golden / "attention" / "strings.json").read_text())[mode]["generation"]
    media = media_of(inputs, mode, prepared, slice(0, 1))
    tokenizer = prepared.tokenizer
    ids = tokenizer(case["prompt"], add_special_tokens=False).input_ids
    assert ids == case["prompt_ids"]
    batch = prompt_batch([ids], tokenizer.pad_token_id, mode, prefusion=get_mode(mode).prefusion, media=media)
    new_ids = engine.generate_ids(batch, seeds=[0])[0].tolist()
    assert new_ids == case["new_ids"]
    assert tokenizer.decode(new_ids, skip_special_tokens=False) == case["raw_decode"]
    assert prepared.decode(new_ids) == case["response"]


@pytest.mark.parametrize("together", [1, 3, 8])
def test_generations_that_end_by_each_stop_rule(golden, prepared, engine, together):
    published = json.loads((golden / "attention" / "generations_textonly.json").read_text())
    tokenizer = prepared.tokenizer
    stop = published["stop_ids"]
    assert stop_sequences(tokenizer) == [(stop["three"],), (stop["two"], stop["one"]), (stop["one"], stop["two"])]
    assert tokenizer.eos_token_id == stop["eos"]
    rules = StopSequences([*stop_sequences(tokenizer), (stop["eos"],)])
    for case in published["stopping_cases"]:
        assert rules(torch.tensor([case["ids"]])).tolist() == [case["stop"]], case
    cases = published["generations"]
    assert {c["why"] for c in cases} >= {"eos", "length", "#+##"}
    for first in range(0, len(cases), together):
        group = cases[first : first + together]
        prompts = [tokenizer(c["prompt"], add_special_tokens=False).input_ids for c in group]
        rows = engine.generate_ids(prompt_batch(prompts, tokenizer.pad_token_id), seeds=[0] * len(group)).tolist()
        for case, row in zip(group, rows, strict=True):
            expected = case["new_ids"]
            assert row == expected + [tokenizer.pad_token_id] * (len(row) - len(expected)), case["prompt"]
            assert prepared.decode(row) == case["response"].replace("<|endoftext|>", "").strip()
