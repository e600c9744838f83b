"""LoRA added to the weights for answering: fewer kernels a token, and every checkpoint answers as it does alone."""

from __future__ import annotations

import torch
from device_cost import Kernels, narrow_qwen

from affectgpt.encoders.llm import LLMS
from affectgpt.inference.session import GenerationSession
from affectgpt.modeling.lora import MergedLora, add_lora

CPU = torch.device("cpu")


def narrow_llm(folder, *, layers: int = 28):
    """A Qwen2.5 of 28 layers, narrow, in bfloat16, saved without LoRA; with float32 LoRA that is not zero."""
    llm = narrow_qwen(layers)
    llm.save_pretrained(folder)
    llm = add_lora(llm, row=LLMS.get("Qwen25"), rank=16).eval()
    draw_lora(llm, seed=1)
    return llm


def draw_lora(llm, *, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in llm.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)


def kernels_of_a_token(llm) -> int:
    cache = llm(input_ids=torch.ones(1, 5, dtype=torch.int64), use_cache=True).past_key_values
    with Kernels() as kernels:
        llm(input_ids=torch.ones(1, 1, dtype=torch.int64), past_key_values=cache, use_cache=True)
    return kernels.total


@torch.inference_mode()
def test_a_token_launches_half_as_many_kernels(tmp_path):
    llm = narrow_llm(tmp_path)
    before = kernels_of_a_token(llm)
    MergedLora(llm, tmp_path).merge()
    assert before / kernels_of_a_token(llm) >= 2


@torch.inference_mode()
def test_weights_are_put_back_to_the_bit(tmp_path):
    llm = narrow_llm(tmp_path, layers=2)
    weights = {name: tensor.clone() for name, tensor in llm.state_dict().items()}
    merged = MergedLora(llm, tmp_path)
    for seed in (1, 2, 1):
        draw_lora(llm, seed=seed)
        merged.merge()
        layer = llm.model.layers[1].mlp.up_proj
        delta = layer.get_delta_weight("default")
        plain = weights["model.layers.1.mlp.up_proj.base_layer.weight"]
        assert torch.equal(layer.base_layer.weight, (plain.float() + delta).to(plain.dtype))
        merged.undo()
        found = llm.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items() if "lora_" not in name)


@torch.inference_mode()
def test_weights_that_the_folder_names_otherwise_are_kept(tmp_path):
    from safetensors.torch import load_file, save_file

    llm = narrow_llm(tmp_path, layers=2)
    file = tmp_path / "model.safetensors"
    odd = "model.layers.0.self_attn.q_proj.weight"
    state = load_file(file)
    save_file({("other." if name == odd else "") + name: tensor for name, tensor in state.items()}, file)
    merged = MergedLora(llm, tmp_path)
    merged.merge()
    merged.undo()
    assert torch.equal(llm.model.layers[0].self_attn.q_proj.base_layer.weight, state[odd])


def test_two_checkpoints_in_turn_answer_as_each_alone(world):
    """The second is not laid over what the first left, and the first is the same when it comes again."""
    config = world.config()
    first, second = sorted(world.run_folder.glob("*.pth"))

    def scores(session) -> torch.Tensor:
        ids = torch.arange(10, 30)[None]
        with torch.inference_mode():
            return session.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]

    def alone(checkpoint) -> torch.Tensor:
        session = GenerationSession.from_config(config, device=CPU)
        session.use(checkpoint)
        return scores(session)

    expected = {checkpoint: alone(checkpoint) for checkpoint in (first, second)}
    assert not torch.equal(expected[first], expected[second])
    session = GenerationSession.from_config(config, device=CPU)
    for checkpoint in (first, second, first):
        session.use(checkpoint)
        assert torch.equal(scores(session), expected[checkpoint])
    layers = [m for m in session.model.llm.modules() if hasattr(m, "get_delta_weight")]
    assert layers and all(layer.merged for layer in layers)
