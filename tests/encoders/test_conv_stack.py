"""The wave convolutions as matrix products: transformers' own results, names and gradients."""

import pytest
import torch
import transformers

from affectgpt.encoders.speech import WaveConvolutions

CASES = [
    (kind, norm, bias)
    for kind in ("HubertModel", "WavLMModel", "Data2VecAudioModel")
    for norm in ("layer", "group")
    for bias in (True, False)
]


def build(kind, norm="layer", bias=True):
    torch.manual_seed(0)
    model = getattr(transformers, kind)
    config = model.config_class(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, conv_dim=(24,) * 7,
        feat_extract_norm=norm, conv_bias=bias,
    )  # fmt: skip
    made = model(config).eval()
    with torch.no_grad():  # norms that do something
        for name, parameter in made.feature_extractor.named_parameters():
            if "norm" in name:
                parameter.normal_(mean=1.0 if name.endswith("weight") else 0.0, std=0.2)
    return made


@pytest.mark.parametrize(("kind", "norm", "bias"), CASES)
def test_equal_to_transformers(kind, norm, bias):
    original = build(kind, norm, bias).feature_extractor
    fast = WaveConvolutions(original).eval()
    wave = torch.randn(3, 32000)
    with torch.no_grad():
        expected, found = original(wave), fast(wave)
    assert fast._known
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert dict(fast.state_dict()).keys() == dict(original.state_dict()).keys()


def test_a_clip_does_not_depend_on_the_others():
    fast = WaveConvolutions(build("HubertModel").feature_extractor)
    wave = torch.randn(4, 32000)
    with torch.no_grad():
        assert torch.equal(fast(wave)[1:2], fast(wave[1:2]))


def test_without_gradients_no_convolution_runs():
    fast = WaveConvolutions(build("HubertModel").feature_extractor)
    calls = []
    fast.conv_layers[1].conv.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        fast(torch.randn(2, 32000))
    assert not calls
    fast(torch.randn(2, 32000))
    assert calls


def test_with_gradients_the_original_runs_in_its_mode():
    model = build("HubertModel")
    model.feature_extractor = WaveConvolutions(model.feature_extractor)
    model.train()
    model(torch.randn(2, 32000)).last_hidden_state.sum().backward()
    assert model.feature_extractor.conv_layers[0].conv.weight.grad.abs().sum() > 0


def test_layers_of_an_unknown_kind_go_through_the_original():
    original = build("HubertModel").feature_extractor
    original.conv_layers[2].conv.padding = (1,)
    fast = WaveConvolutions(original)
    wave = torch.randn(1, 32000)
    with torch.no_grad():
        assert not fast._known
        assert torch.equal(fast(wave), original(wave))
