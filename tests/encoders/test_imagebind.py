"""ImageBind's audio encoder, from a file of its published names."""

import math

import numpy as np
import pytest
import torch

from affectgpt.config.load import load_config
from affectgpt.core.errors import CheckpointError
from affectgpt.encoders.imagebind import ImageBindEncoder
from affectgpt.modeling.build import build_empty_model
from affectgpt.processing.processor import AffectGPTProcessor

WIDTH, HIDDEN, BLOCKS, OUTPUT = 128, 96, 2, 20  # two heads of 64
AUDIO = "modality_preprocessors.audio."


def published(width=WIDTH, hidden=HIDDEN, blocks=BLOCKS, output=OUTPUT) -> dict[str, torch.Tensor]:
    """A state dict as imagebind_huge.pth has it, of random weights: audio, and something of another modality."""
    shapes = {
        "modality_preprocessors.vision.cls_token": (1, 1, 7),
        f"{AUDIO}cls_token": (1, 1, width),
        f"{AUDIO}rgbt_stem.proj.weight": (width, 1, 16, 16),
        f"{AUDIO}rgbt_stem.norm_layer.weight": (width,),
        f"{AUDIO}rgbt_stem.norm_layer.bias": (width,),
        f"{AUDIO}pos_embedding_helper.pos_embed": (1, 229, width),
        "modality_heads.audio.0.weight": (width,),
        "modality_heads.audio.0.bias": (width,),
        "modality_heads.audio.2.weight": (output, width),
        "modality_postprocessors.audio.1.log_logit_scale": (),
    }
    for number in range(blocks):
        block = f"modality_trunks.audio.blocks.{number}."
        shapes |= {
            f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,),
            f"{block}attn.bias_k": (1, 1, width), f"{block}attn.bias_v": (1, 1, width),
            f"{block}attn.out_proj.weight": (width, width), f"{block}attn.out_proj.bias": (width,),
            f"{block}norm_1.weight": (width,), f"{block}norm_1.bias": (width,),
            f"{block}norm_2.weight": (width,), f"{block}norm_2.bias": (width,),
            f"{block}mlp.fc1.weight": (hidden, width), f"{block}mlp.fc1.bias": (hidden,),
            f"{block}mlp.fc2.weight": (width, hidden), f"{block}mlp.fc2.bias": (width,),
        }  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


@pytest.fixture
def file(tmp_path):
    torch.save(published(), tmp_path / "imagebind_huge.pth")
    return tmp_path / "imagebind_huge.pth"


def norm(x, state, name, eps=1e-6):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def by_hand(state, mel):
    """The embedding of one clip ``[1, 128, 204]``, written out."""
    stem = state[f"{AUDIO}rgbt_stem.proj.weight"].flatten(1)  # [width, 256]
    patches = [mel[0, y : y + 16, x : x + 16].flatten() for y in range(0, 113, 10) for x in range(0, 189, 10)]
    x = norm(torch.stack(patches) @ stem.T, state, f"{AUDIO}rgbt_stem.norm_layer", eps=1e-5)
    x = torch.cat([state[f"{AUDIO}cls_token"][0], x]) + state[f"{AUDIO}pos_embedding_helper.pos_embed"][0]
    for number in range(BLOCKS):
        block = f"modality_trunks.audio.blocks.{number}."
        q, k, v = (
            norm(x, state, f"{block}norm_1") @ state[f"{block}attn.in_proj_weight"].T
            + state[f"{block}attn.in_proj_bias"]
        ).chunk(3, dim=-1)
        k, v = (torch.cat([t, state[f"{block}attn.bias_{n}"][0]]) for t, n in ((k, "k"), (v, "v")))
        heads = [
            torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(64), dim=-1) @ v[:, part]
            for part in (slice(0, 64), slice(64, 128))
        ]
        x = x + torch.cat(heads, dim=-1) @ state[f"{block}attn.out_proj.weight"].T + state[f"{block}attn.out_proj.bias"]
        inner = norm(x, state, f"{block}norm_2") @ state[f"{block}mlp.fc1.weight"].T + state[f"{block}mlp.fc1.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + inner @ state[f"{block}mlp.fc2.weight"].T + state[f"{block}mlp.fc2.bias"]
    out = norm(x[0], state, "modality_heads.audio.0") @ state["modality_heads.audio.2.weight"].T
    return 20 * out / out.norm()


def test_the_embedding_is_that_written_out_by_hand(file):
    encoder = ImageBindEncoder.from_folder(file, dtype=torch.float32)
    assert (encoder.width, len(encoder.blocks)) == (OUTPUT, BLOCKS)
    mel = torch.randn(2, 3, 1, 128, 204, generator=torch.Generator().manual_seed(1))
    found = encoder.train()(mel)
    assert found.shape == (2, 3, OUTPUT) and not found.requires_grad
    for b, t in ((0, 0), (1, 2)):
        torch.testing.assert_close(found[b, t], by_hand(published(), mel[b, t]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(encoder(mel[1:]), found[1:], rtol=1e-4, atol=1e-4)


def test_a_file_that_lacks_a_weight_is_refused(file):
    state = published()
    del state["modality_trunks.audio.blocks.1.attn.bias_k"]
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=r"imagebind_huge.pth lacks 1 weights, first: modality_trunks.audio.bl"):
        ImageBindEncoder.from_folder(file, dtype=torch.float32)


def test_a_recipe_builds_with_its_file_and_with_the_published_sizes(file, tiny_models, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: {{acoustic_encoder: IMAGEBIND}}\npaths: {{models_root: {tiny_models}}}\n")
    assert build_empty_model(load_config(path)).acoustic_encoder.width == 1024
    config = load_config(path, [f"paths.folders.IMAGEBIND={file}"])
    assert build_empty_model(config).acoustic_encoder.width == OUTPUT
    transform = AffectGPTProcessor.from_config(config).transforms["audio"]
    assert transform(np.zeros((8, 32000), dtype=np.float32)).shape == (8, 1, 128, 204)
    with pytest.raises(CheckpointError, match=r"no file .*imagebind_huge.pth. Download it from .* as "):
        AffectGPTProcessor.from_config(load_config(path))


def test_the_published_size_has_the_published_number_of_parameters():
    """86 million: twelve layers of 768, and the projection to 1024."""
    with torch.device("meta"):
        encoder = ImageBindEncoder.from_config(ImageBindEncoder.architecture)
    layer = 4 * 768**2 + 4 * 768 + 2 * 768 + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    others = 768 * 256 + 2 * 768 + 768 + 229 * 768 + 2 * 768 + 768 * 1024
    assert sum(p.numel() for p in encoder.parameters()) == 12 * layer + others
