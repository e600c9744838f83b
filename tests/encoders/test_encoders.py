"""Encoders: frozen, batched, independent of batch mates; transforms equal to the families' own processors."""

import pickle

import numpy as np
import pytest
import torch
import transformers
from tiny import ACOUSTIC_WIDTHS, VISUAL_WIDTHS, folder_of

from affectgpt.core.errors import CheckpointError
from affectgpt.encoders.base import ACOUSTIC_ENCODERS, VISUAL_ENCODERS
from affectgpt.encoders.clip import read_pixel_normalizer
from affectgpt.encoders.imagebind import MelSpectrogram

PROCESSORS = {
    "CLIP_VIT_LARGE": "CLIPImageProcessor",
    "DINO2_LARGE": "BitImageProcessor",
    "SigLIP_SO": "SiglipImageProcessor",
    "EVA_CLIP_G": "BlipImageProcessor",
    "EVA_CLIP_G_NO_QFORMER": "BlipImageProcessor",
}
WIDTHS = {**VISUAL_WIDTHS, **ACOUSTIC_WIDTHS}


def kind_of(name):
    return (VISUAL_ENCODERS if name in VISUAL_WIDTHS else ACOUSTIC_ENCODERS).get(name)


def frames(seed=0, count=8, size=224):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def sound(seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((8, 32000)) * rng.uniform(0.05, 0.3)).astype(np.float32)


def media(name, folder, seed):
    transform = kind_of(name).transform_of(folder)
    return transform(frames(seed) if name in VISUAL_WIDTHS else sound(seed))


@pytest.fixture(scope="module")
def load(tiny_models):
    made = {}

    def get(name):
        if name not in made:
            made[name] = kind_of(name).from_folder(folder_of(tiny_models, name), dtype=torch.float32)
        return made[name], folder_of(tiny_models, name)

    return get


def test_every_registered_encoder_is_tested():
    of_the_package = {
        name
        for registry in (VISUAL_ENCODERS, ACOUSTIC_ENCODERS)
        for name, kind in registry.items()
        if kind.__module__.startswith("affectgpt.")
    }
    assert of_the_package == {*VISUAL_WIDTHS, *ACOUSTIC_WIDTHS, "IMAGEBIND"}  # the last in test_imagebind.py


@pytest.mark.parametrize("name", VISUAL_WIDTHS)
def test_pixels_equal_the_family_processor_to_the_bit(tiny_models, name):
    folder = folder_of(tiny_models, name)
    # transformers 5 calls the class that works on PIL images …Pil; before, it is the plain one
    name_in_v5 = f"{PROCESSORS[name]}Pil"
    cls = getattr(transformers, name_in_v5 if hasattr(transformers, name_in_v5) else PROCESSORS[name])
    theirs = cls.from_pretrained(folder)(images=list(frames()), return_tensors="pt")["pixel_values"]
    ours = pickle.loads(pickle.dumps(kind_of(name).transform_of(folder)))(frames())  # it travels to workers
    assert ours.dtype == torch.uint8 and ours.is_contiguous()
    normalize = read_pixel_normalizer(folder)
    assert normalize(ours).dtype == torch.float32 and torch.equal(normalize(ours), theirs)
    assert torch.equal(normalize(theirs), theirs)  # taken as normalised already


@pytest.mark.parametrize("name", ACOUSTIC_WIDTHS)
def test_wave_equals_the_family_extractor_on_the_block_of_clips(tiny_models, name):
    folder = folder_of(tiny_models, name)
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    theirs = extractor(torch.from_numpy(sound()), sampling_rate=16000, return_tensors="pt").input_values
    ours = kind_of(name).transform_of(folder)(sound())
    assert torch.equal(ours, torch.as_tensor(theirs).reshape(ours.shape))


@pytest.mark.parametrize("name", WIDTHS)
def test_frozen_in_eval_mode_always(load, name):
    encoder, folder = load(name)
    parent = torch.nn.Module()
    parent.encoder = encoder
    parent.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    x = media(name, folder, 0)[None]
    if name in VISUAL_WIDTHS:
        x = encoder.normalizer(x)
    x.requires_grad_()
    assert not encoder(x).requires_grad


@pytest.mark.parametrize("name", WIDTHS)
def test_a_sample_does_not_depend_on_its_batch_mates(load, name):
    encoder, folder = load(name)
    batch = torch.stack([media(name, folder, seed) for seed in range(8)])
    calls = []
    if name in ACOUSTIC_WIDTHS:
        first = encoder.model.feature_projection
    else:
        first = next(m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d))
    hook = first.register_forward_hook(lambda *_: calls.append(1))
    together = encoder(batch)
    hook.remove()
    assert len(calls) == 1  # all clips of all samples at once
    shape = (8, 8, 32, WIDTHS[name]) if name == "EVA_CLIP_G" else (8, 8, WIDTHS[name])
    assert together.shape == shape and encoder.width == WIDTHS[name]
    scale = together.abs().max()
    for rows in (slice(0, 1), slice(2, 4), slice(7, 8)):
        assert (encoder(batch[rows]) - together[rows]).abs().max() <= 1e-6 * scale
    assert (together[0] - together[1]).abs().max() > 1e-3 * scale  # and it does depend on the sample


@pytest.mark.parametrize("name", ["DINO2_LARGE", "SigLIP_SO"])
def test_mean_of_the_tokens_before_the_final_norm(load, name):
    encoder, folder = load(name)
    cls = {"DINO2_LARGE": transformers.Dinov2Model, "SigLIP_SO": transformers.SiglipVisionModel}[name]
    model = cls.from_pretrained(folder).eval()
    pixels = encoder.normalizer(media(name, folder, 3))
    with torch.no_grad():
        output = model(pixel_values=pixels, output_hidden_states=True)
    expected = output.hidden_states[-1].mean(dim=1)
    assert torch.allclose(encoder(pixels[None])[0], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected, output.last_hidden_state.mean(dim=1), atol=1e-3)


@pytest.mark.parametrize("name", ACOUSTIC_WIDTHS)
def test_mean_of_the_last_four_states_with_the_final_norm(load, name):
    encoder, folder = load(name)
    wave = media(name, folder, 3)
    model = getattr(transformers, type(encoder).model_class).from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(input_values=wave, output_hidden_states=True)
    states = [*output.hidden_states[-4:-1], output.last_hidden_state]
    expected = sum(states) / 4
    assert torch.allclose(encoder(wave[None])[0], expected.mean(dim=1), rtol=1e-4, atol=1e-5)


def test_eva_clip_is_the_vision_model_and_qformer_of_blip2(load):
    encoder, folder = load("EVA_CLIP_G")
    bare, _ = load("EVA_CLIP_G_NO_QFORMER")
    model = transformers.Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    pixels = encoder.normalizer(media("EVA_CLIP_G", folder, 5))
    model.vision_model.post_layernorm.eps = 1e-5
    with torch.no_grad():
        tokens = model.vision_model(pixel_values=pixels).last_hidden_state  # after ln_vision
        queries = model.query_tokens.expand(8, -1, -1)
        expected = model.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
        raw = model.vision_model.encoder(inputs_embeds=model.vision_model.embeddings(pixels)).last_hidden_state
    assert torch.allclose(encoder(pixels[None])[0], expected, rtol=1e-5, atol=1e-6)
    normed = torch.nn.functional.layer_norm(raw, raw.shape[-1:])  # fresh: weight 1, bias 0, eps 1e-5
    assert torch.allclose(bare(pixels[None])[0], normed.mean(dim=1), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(raw, tokens, atol=1e-2)


def test_eva_clip_reads_pickled_and_sharded_folders(load, tiny_models, tmp_path):
    import json

    from safetensors.torch import load_file

    encoder, folder = load("EVA_CLIP_G")
    state = load_file(folder / "model.safetensors")
    keys = sorted(state)
    shards = {"a.bin": keys[::2], "b.bin": keys[1::2]}
    for name, part in shards.items():
        torch.save({k: state[k] for k in part}, tmp_path / name)
    index = {"weight_map": {k: name for name, part in shards.items() for k in part}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    again = kind_of("EVA_CLIP_G").from_folder(tmp_path, dtype=torch.float32)
    pixels = media("EVA_CLIP_G", folder, 1)[None]
    assert torch.equal(again(pixels), encoder(pixels))
    (tmp_path / "b.bin").unlink()
    with pytest.raises(CheckpointError, match=r"b\.bin"):
        kind_of("EVA_CLIP_G").from_folder(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", WIDTHS)
def test_half_precision_is_close(tiny_models, load, name, dtype):
    encoder, folder = load(name)
    half = kind_of(name).from_folder(folder, dtype=dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    x = media(name, folder, 0)[None]
    # oneDNN's half-precision convolution of a CPU is wrong for some group sizes; our models are float32 there anyway
    with torch.backends.mkldnn.flags(enabled=False):
        exact, rough = encoder(x), half(x)
    assert rough.dtype == dtype
    assert (rough.float() - exact).norm() <= 0.1 * exact.norm()


def test_random_crop_only_in_training_and_the_same_for_all_frames(tiny_models):
    folder = folder_of(tiny_models, "EVA_CLIP_G")
    kind = kind_of("EVA_CLIP_G")
    still = np.repeat(frames(count=1), 8, axis=0)
    torch.manual_seed(0)
    first, second = (kind.transform_of(folder, training=True)(still) for _ in range(2))
    assert first.shape == (8, 3, 224, 224)
    assert torch.equal(first[0], first[7])
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(kind.transform_of(folder, training=True)(still), first)
    for name in ("CLIP_VIT_LARGE", "DINO2_LARGE", "SigLIP_SO"):
        transform = kind_of(name).transform_of(folder_of(tiny_models, name), training=True)
        assert torch.equal(transform(still), transform(still))


def test_incomplete_folders_are_named(tiny_models, tmp_path):
    import shutil

    source = folder_of(tiny_models, "CLIP_VIT_LARGE")
    shutil.copytree(source, tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"clip is incomplete, it has no preprocessor_config\.json"):
        kind_of("CLIP_VIT_LARGE").transform_of(tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        kind_of("CLIP_VIT_LARGE").transform_of(tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text('{"size": 224}')
    with pytest.raises(CheckpointError, match="image_mean"):
        kind_of("CLIP_VIT_LARGE").transform_of(tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="clip does not load as CLIPVisionModelWithProjection"):
        kind_of("CLIP_VIT_LARGE").from_folder(tmp_path / "clip", dtype=torch.float32)


def test_missing_weights_are_not_random(tiny_models, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    for name, lost in (("HUBERT_LARGE", "encoder.layers.2.attention.q_proj.weight"), ("EVA_CLIP_G", "query_tokens")):
        folder = tmp_path / name
        shutil.copytree(folder_of(tiny_models, name), folder)
        state = load_file(folder / "model.safetensors")
        del state[next(k for k in state if k.endswith(lost))]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match="lacks 1 weights"):
            kind_of(name).from_folder(folder, dtype=torch.float32)


def test_mel_of_a_tone_and_of_silence():
    seconds = np.arange(32000) / 16000
    tone = np.sin(2 * np.pi * 1000 * seconds).astype(np.float32)
    mel = pickle.loads(pickle.dumps(MelSpectrogram()))(np.stack([tone, np.zeros_like(tone)]))
    assert mel.shape == (2, 1, 128, 204) and mel.dtype == torch.float32
    # 1 kHz on 1127 ln(1 + f/700), 128 triangles from 20 Hz to 8 kHz: the middle of the 43rd and 44th
    loudest = mel[0, 0, :, 50].argmax().item()
    step = (1127 * np.log(1 + 8000 / 700) - 1127 * np.log(1 + 20 / 700)) / 129
    assert abs((1127 * np.log(1 + 1000 / 700) - 1127 * np.log(1 + 20 / 700)) / step - 1 - loudest) <= 1
    floor = (np.log(np.finfo(np.float32).eps) + 4.268) / 9.138
    assert torch.allclose(mel[1, 0, :, :198], torch.tensor(floor, dtype=torch.float32))
    assert torch.allclose(mel[:, 0, :, 198:], torch.tensor(4.268 / 9.138))  # 198 steps fit, the rest is padding
