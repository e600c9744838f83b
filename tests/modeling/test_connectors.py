"""Connectors: what they compute, and the names and shapes that a checkpoint has of them."""

import pytest
import torch
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.modeling.connectors.base import (
    CONNECTORS,
    IMAGE_CONNECTORS,
    PREFUSIONS,
    ConnectorShape,
    PreFusionShape,
    QFormerShape,
)

SMALL = QFormerShape(hidden_size=20, num_attention_heads=4, intermediate_size=28, max_position_embeddings=9)


def branch(kind, **more):
    torch.manual_seed(0)
    shape = ConnectorShape(**{"width": 12, "llm_width": 16, "n_tokens": 3, "n_positions": 8, "qformer": SMALL, **more})
    return CONNECTORS.get(kind)(shape).eval()


def prefusion(kind, **more):
    torch.manual_seed(0)
    shape = PreFusionShape(
        **{"video_width": 12, "audio_width": 14, "llm_width": 16, "n_tokens": 3, "n_positions": 264, "qformer": SMALL,
           **more}
    )  # fmt: skip
    return PREFUSIONS.get(kind)(shape).eval()


def reference_qformer(state, prefix, *, width, shape=SMALL):
    """transformers' Q-Former with weights taken from published names, as BLIP-2's conversion does it."""
    model = Blip2QFormerModel(
        Blip2QFormerConfig(
            hidden_size=shape.hidden_size, num_attention_heads=shape.num_attention_heads, num_hidden_layers=2,
            intermediate_size=shape.intermediate_size, encoder_hidden_size=width, cross_attention_frequency=1,
            layer_norm_eps=1e-12,
        )
    ).eval()  # fmt: skip
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(f"{prefix}.bert.") and not name.endswith("position_ids"):
            name = name.removeprefix(f"{prefix}.bert.").replace("embeddings.LayerNorm", "layernorm")
            renamed[name.replace("attention.self.", "attention.attention.")] = tensor
    model.load_state_dict(renamed, strict=True)
    return model


def published(module, ours):
    return {module.published_name(ours, name): tensor for name, tensor in module.state_dict().items()}


def test_all_fusions_of_the_configuration_are_there():
    assert {"attention", "mean", "qformer"} <= set(CONNECTORS.names())
    assert {"attention", "qformer"} <= set(PREFUSIONS.names())
    assert {"mean", "token"} <= set(IMAGE_CONNECTORS.names())


@pytest.mark.parametrize(
    ("ours", "theirs", "query", "position"),
    [
        ("video", "video_Qformer", "video_query_tokens", "video_frame_position_embedding"),
        ("audio", "audio_Qformer", "audio_query_tokens", "audio_position_embedding"),
    ],
)
def test_qformer_branch_is_the_reference_under_published_names(ours, theirs, query, position):
    module = branch("qformer")
    state = published(module, ours)
    reference = reference_qformer(state, theirs, width=12)
    z = torch.randn(2, 8, 12)
    proj = {"video": "affectgpt_proj", "audio": "audio_llama_proj"}[ours]
    with torch.no_grad():
        hidden = reference(
            query_embeds=state[query].expand(2, -1, -1),
            encoder_hidden_states=z + state[f"{position}.weight"][None, :8],
        ).last_hidden_state
        expected = hidden @ state[f"{proj}.weight"].T + state[f"{proj}.bias"]
        assert torch.allclose(module(z), expected, atol=1e-6)
    assert state[query].shape == (1, 3, 20)
    assert torch.equal(state[f"{theirs}.bert.embeddings.position_ids"], torch.arange(9)[None])
    assert state[f"{theirs}.bert.encoder.layer.1.crossattention.self.key.weight"].shape == (20, 12)
    assert state[f"{theirs}.bert.encoder.layer.1.output_query.dense.weight"].shape == (20, 28)
    assert sum(name.startswith(theirs) for name in state) == 1 + 2 + 2 * (10 + 10 + 6)


def test_qformer_prefusion_is_the_reference_under_published_names():
    module = prefusion("qformer")
    state = published(module, "multi")
    reference = reference_qformer(state, "multi_Qformer", width=14)
    video, audio = torch.randn(2, 8, 12), torch.randn(2, 8, 14)
    with torch.no_grad():
        both = torch.cat(
            [
                video @ state["multi_video_embs.weight"].T + state["multi_video_embs.bias"],
                audio @ state["multi_audio_embs.weight"].T + state["multi_audio_embs.bias"],
            ],
            dim=1,
        )
        both = both + state["multi_position_embedding.weight"][:16]
        hidden = reference(
            query_embeds=state["multi_query_tokens"].expand(2, -1, -1), encoder_hidden_states=both
        ).last_hidden_state
        expected = hidden @ state["multi_llama_proj.weight"].T + state["multi_llama_proj.bias"]
        assert torch.allclose(module(video, audio), expected, atol=1e-6)
    assert state["multi_position_embedding.weight"].shape == (264, 14)


def test_fresh_qformer_weights_have_the_published_spread():
    module = branch("qformer", qformer=QFormerShape(), width=64)
    spread = {name: p.std().item() for name, p in module.qformer.named_parameters() if p.ndim == 2}
    assert all(abs(value - 0.02) < 0.001 for value in spread.values())
    assert abs(module.query_tokens.std().item() - 0.02) < 0.002
    assert module.qformer.position_ids.shape == (1, 512)
    config = module.qformer.model.config
    assert (config.layer_norm_eps, config.hidden_dropout_prob, config.num_hidden_layers) == (1e-12, 0.1, 2)


def test_qformer_drops_out_in_training_only():
    module = branch("qformer")
    z = torch.randn(1, 8, 12)
    assert torch.equal(module(z), module(z))
    module.train()
    assert not torch.equal(module(z), module(z))


def test_a_frame_of_32_vectors_shares_its_position():
    module = branch("qformer")
    with torch.no_grad():
        z = torch.randn(2, 8, 32, 12)
        flat = (z + module.position_embedding.weight[None, :, None]).flatten(1, 2)
        expected = module.proj(module.qformer(module.query_tokens, flat))
        assert torch.allclose(module(z), expected, atol=1e-6)
        fused = prefusion("qformer")
        audio = torch.randn(2, 8, 14)
        assert torch.allclose(fused(z, audio), fused(z.flatten(1, 2), audio), atol=1e-6)  # 264 positions: enough


@pytest.mark.parametrize("kind", ["attention", "mean"])
def test_attention_and_mean_average_over_the_32_first(kind):
    module = branch(kind)
    z = torch.randn(2, 8, 32, 12)
    assert torch.allclose(module(z), module(z.mean(dim=2)), atol=1e-6)


def test_attention_weights_are_raw():
    module = branch("attention")
    z = torch.randn(2, 8, 12)
    with torch.no_grad():
        expected = module.proj((z * module.attention(z)).sum(dim=1))
        assert torch.allclose(module(z)[:, 0], expected, atol=1e-6)
    out = module(z)
    assert torch.equal(out[:, 0], out[:, 2])  # one vector, K times


def test_mean_is_the_mean():
    module = branch("mean")
    z = torch.randn(2, 8, 12)
    assert torch.allclose(module(z)[:, 1], module.proj(z.mean(dim=1)), atol=1e-6)


def test_attention_prefusion_takes_the_mean_over_time_first():
    module = prefusion("attention")
    video, audio = torch.randn(2, 8, 12), torch.randn(2, 5, 14)
    out = module(video, audio)
    assert out.shape == (2, 3, 16)
    again = module(video.mean(dim=1, keepdim=True), audio.mean(dim=1, keepdim=True))
    assert torch.allclose(out, again, atol=1e-6)


def test_too_many_vectors_for_the_position_table():
    with pytest.raises(DataError, match="9 vectors, but the Q-Former has positions for 8"):
        branch("qformer")(torch.randn(1, 9, 12))


def test_image_tokens():
    def image(kind, n_tokens):
        return IMAGE_CONNECTORS.get(kind)(ConnectorShape(width=12, llm_width=16, n_tokens=n_tokens))

    one, many = torch.randn(2, 1, 12), torch.randn(2, 1, 32, 12)
    token = image("token", 32)
    assert torch.allclose(token(many), token.proj(many[:, 0]))
    assert torch.equal(token(one)[:, 0], token(one)[:, 31])
    mean = image("mean", 2)
    assert torch.allclose(mean(many)[:, 1], mean.proj(many[:, 0].mean(dim=1)), atol=1e-6)
    with pytest.raises(ConfigError, match=r"num_image_query_token is 4.*set it to 32"):
        image("token", 4)(many)
