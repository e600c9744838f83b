"""Counting the parameters of a model."""

from __future__ import annotations

from torch import nn

_GROUPS = {
    "visual_encoder.": "visual encoder",
    "acoustic_encoder.": "acoustic encoder",
    "image.": "image branch",
    "video.": "video branch",
    "audio.": "audio branch",
    "multi.": "pre-fusion",
}


def count_parameters(model: nn.Module) -> dict[str, dict[str, int]]:
    """Group → ``{"trained": n, "frozen": n}``. The model may lie on the meta device."""
    counts = {
        group: {"trained": 0, "frozen": 0}
        for group in ("visual encoder", "acoustic encoder", "LLM", "LoRA", *list(_GROUPS.values())[2:])
    }
    for name, parameter in model.named_parameters():
        group = next((group for prefix, group in _GROUPS.items() if name.startswith(prefix)), None)
        if group is None:
            group = "LoRA" if ".lora_" in name else "LLM"
        counts[group]["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    return counts
