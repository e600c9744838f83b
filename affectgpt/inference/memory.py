"""How much fits: the size of a batch from the memory that is free, and the arithmetic of a device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

LARGEST_BATCH = {"cuda": 128, "cpu": 16}  # past these a batch waits longer for its last row than it gains
_SHARE = 0.8  # of the free memory


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Encoders and connectors run under fp16 autocast on a GPU, as the released checkpoints were trained and scored."""
    return torch.autocast("cuda", dtype=torch.float16) if device.type == "cuda" else nullcontext()


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; on a CPU what the system says is available."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):  # another system: assume a small machine
        return 2 << 30


def bytes_per_row(llm: Any, *, tokens: int) -> int:
    """What one row of ``tokens`` (prompt and answer) needs: keys and values of all layers, and its scores."""
    config = llm.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = llm.get_input_embeddings().weight.dtype.itemsize
    cache = 2 * config.num_hidden_layers * heads * width * size * tokens
    return 2 * cache + 6 * 8 * config.vocab_size  # a growing cache is copied; scores are drawn from in float64


def find_batch_size(llm: Any, *, device: torch.device, prompt_tokens: int, max_new_tokens: int) -> int:
    """How many rows may be generated together."""
    fitting = int(_SHARE * free_bytes(device)) // bytes_per_row(llm, tokens=prompt_tokens + max_new_tokens)
    return max(1, min(fitting, LARGEST_BATCH[device.type]))
