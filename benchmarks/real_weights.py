"""Random weights of the published shapes: written in the published layouts, or made in the memory of a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from sizes import SIZES, Size
from torch import nn

SHARDS = 4  # of Qwen2.5-7B-Instruct
_BLOCK = 1 << 22  # numbers that are drawn; all weights repeat them


class Weights:
    """Draws weights by name: norms are ones, biases zeros, everything else normal with deviation 0.02."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        generator = torch.Generator(device).manual_seed(0)
        self.block = torch.randn(_BLOCK, generator=generator, device=device) * 0.02

    def fill(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Fill a tensor in place and return it."""
        flat = tensor.view(-1)
        if name.endswith("bias"):
            return flat.zero_().view_as(tensor)
        if "norm" in name or "original0" in name:
            return flat.fill_(1).view_as(tensor)
        for at in range(0, len(flat), _BLOCK):
            part = flat[at : at + _BLOCK]
            part.copy_(self.block[: len(part)])
        return tensor


def architectures(size: str, layers: int | None) -> dict[str, Any]:
    """Folder → transformers configuration."""
    from transformers import CLIPConfig, HubertConfig, Qwen2Config

    numbers: Size = SIZES[size]
    llm = {**numbers.llm, "vocab_size": max(numbers.llm["vocab_size"], 1000)}
    llm |= {} if layers is None else {"num_hidden_layers": layers}
    text = {} if size == "tiny" else {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    if size == "tiny":
        text = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 60}
    return {
        "Qwen2.5-7B-Instruct": Qwen2Config(
            max_position_embeddings=32768, rope_theta=1e6, tie_word_embeddings=False, dtype="bfloat16",
            architectures=["Qwen2ForCausalLM"], **llm,
        ),
        "clip-vit-large-patch14": CLIPConfig(
            text_config=text, vision_config=numbers.vision, projection_dim=numbers.projection
        ),
        "chinese-hubert-large": HubertConfig(**numbers.speech),
    }  # fmt: skip


def write_folders(root: Path, *, size: str, layers: int | None, weights: bool) -> int:
    """All model folders below ``root``, as they are published; ``weights=False``: configurations and tokenizer alone.

    Returns the bytes of the weights: the LLM in bfloat16 in shards, CLIP as safetensors with its text tower, the speech
    encoder as a float32 ``pytorch_model.bin``.
    """
    from safetensors.torch import save_file
    from tiny import make_tiny_models, make_tokenizer
    from transformers import CLIPModel, HubertModel, Qwen2ForCausalLM

    make_tiny_models(root)  # preprocessors, generation settings
    draw = Weights()
    kinds = (Qwen2ForCausalLM, CLIPModel, HubertModel)
    written = 0
    for (name, config), kind in zip(architectures(size, layers).items(), kinds, strict=True):
        folder = root / name
        for file in (*folder.glob("*.safetensors"), *folder.glob("*.bin")):
            file.unlink()
        config.save_pretrained(folder)
        if kind is Qwen2ForCausalLM:
            make_tokenizer(folder)
        if not weights:
            continue
        with torch.device("meta"):
            shapes = {key: tensor.shape for key, tensor in kind(config).state_dict().items()}
        if kind is Qwen2ForCausalLM:
            index: dict[str, Any] = {"metadata": {}, "weight_map": {}}
            keys, each = list(shapes), -(-len(shapes) // SHARDS)
            for shard in range(SHARDS):
                file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
                some = {
                    k: draw.fill(k, torch.empty(shapes[k], dtype=torch.bfloat16)) for k in keys[shard * each :][:each]
                }
                save_file(some, folder / file, metadata={"format": "pt"})
                index["weight_map"] |= dict.fromkeys(some, file)
                written += (folder / file).stat().st_size
                del some
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
            continue
        state = {key: draw.fill(key, torch.empty(shape)) for key, shape in shapes.items() if "position_ids" not in key}
        if kind is CLIPModel:
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        else:  # older names of a weight norm's parts
            names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
            for new, old in names.items():
                state = {key.replace(new, old): tensor for key, tensor in state.items()}
            torch.save(state, folder / "pytorch_model.bin")
        written += sum(tensor.nbytes for tensor in state.values())
    return written


def make_on(device: torch.device, config: Any, *, tokenizer: Any, encoders: bool) -> nn.Module:
    """What ``build_model`` would load, its weights made in the memory of ``device``."""
    from affectgpt.encoders.llm import placeholder_ids, stop_sequences
    from affectgpt.modeling.build import build_empty_model, weight_dtype

    draw = Weights(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        made = build_empty_model(config, device="meta")
        for module_name, module in made.named_modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                whole = f"{module_name}.{name}"
                dtype = weight_dtype(config, whole, parameter, device)
                weight = draw.fill(whole, torch.empty(parameter.shape, dtype=dtype, device=device))
                if ".lora_B" in whole:
                    weight.zero_()
                setattr(module, name, nn.Parameter(weight, requires_grad=parameter.requires_grad))
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = _buffer(module, name, buffer, device)
    for kind in ("visual", "acoustic"):
        source = getattr(made.config, f"{kind}_preprocessor")
        if source:
            encoder: Any = getattr(made, f"{kind}_encoder")
            encoder.use_preprocessor(source)
            encoder.to(device)
    made.placeholder_ids = placeholder_ids(tokenizer)
    made.config.stop_sequences = stop_sequences(tokenizer)
    if not encoders:
        made.visual_encoder = made.acoustic_encoder = None
    return made.eval()


def _buffer(module: nn.Module, name: str, buffer: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A buffer that is computed, not stored: rotary frequencies, numbers of positions."""
    if "inv_freq" in name:
        config = module.config
        parameters = getattr(config, "rope_parameters", None) or {}
        theta = parameters.get("rope_theta") or getattr(config, "rope_theta", 1e4)
        width = 2 * buffer.numel()
        return 1.0 / theta ** (torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    if "position_ids" in name:
        return torch.arange(buffer.shape[-1], device=device).expand(buffer.shape).clone()
    return torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
