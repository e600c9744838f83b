"""How much fits: the size of a batch from the memory that is free, and the arithmetic of a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from affectgpt.config.schema import Config
from affectgpt.core.errors import ConfigError
from affectgpt.core.runtime import available_memory
from affectgpt.modeling.build import weight_bytes

# Past these a batch waits longer for its last row than it gains: rows that have ended stay in it, and are computed,
# until all have. A GPU reads all weights and starts a thousand kernels for each token of a batch, whatever its size, so
# that memory decides there below this.
LARGEST_BATCH = {"cuda": 128, "cpu": 16}
_SHARE = 0.8  # of the free memory


def autocast_dtype(llm_dtype: torch.dtype) -> torch.dtype:
    """Arithmetic of encoders and connectors on a GPU, from the dtype of the LLM's weights.

    float16, as the released checkpoints were trained and scored. A model trained in bfloat16 is answered with it too:
    its connectors may have outputs that float16 cannot hold.
    """
    return torch.bfloat16 if llm_dtype == torch.bfloat16 else torch.float16


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast on a GPU to ``dtype`` (None: without); nothing on a CPU, where everything is float32."""
    return torch.autocast("cuda", dtype=dtype) if device.type == "cuda" and dtype is not None else nullcontext()


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; on a CPU what the system says is available."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    available = available_memory()
    return 2 << 30 if available is None else available  # another system: assume a small machine


@contextmanager
def enough_memory(config: Config, device: torch.device, *, encoders: bool = True) -> Iterator[None]:
    """Around building a model: raises ConfigError when its weights are more than what is free, or did not fit.

    ``encoders``: whether they are loaded.
    """
    needed, free = weight_bytes(config, device=device, encoders=encoders), free_bytes(device)
    known = device.type == "cuda" or available_memory() is not None
    model = config.model
    loaded = [model.llama_model, *([model.visual_encoder, model.acoustic_encoder] if encoders else [])]
    dtype = "float32" if device.type == "cpu" else f"model.llm_dtype {model.llm_dtype}"
    found = (
        f"the weights of {', '.join(loaded)} need {needed / 1e9:.1f} GB in {dtype}, and {free / 1e9:.1f} GB are free "
        f"on {device}: "
        + ("use a GPU (run.device=cuda)" if device.type == "cpu" else "free the GPU, or use a larger one")
        + ", or a recipe with a smaller LLM"
        + (", or store features first (affectgpt extract_features), so that no encoder is loaded" if encoders else "")
    )
    if known and needed > free:
        raise ConfigError(found)
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ConfigError(f"out of memory while the model was built: {found}") from error


def cache_bytes(llm: Any, *, tokens: int) -> int:
    """Keys and values of all layers of one row of ``tokens`` (prompt and answer)."""
    config = llm.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = llm.get_input_embeddings().weight.dtype.itemsize
    return 2 * config.num_hidden_layers * heads * width * size * tokens


def bytes_per_row(llm: Any, *, tokens: int) -> int:
    """What one row of ``tokens`` needs for generating: its keys and values, and its scores."""
    # a cache that grows is copied; scores are drawn from in float64
    return 2 * cache_bytes(llm, tokens=tokens) + 6 * 8 * llm.config.vocab_size


def find_batch_size(llm: Any, *, device: torch.device, prompt_tokens: int, max_new_tokens: int) -> int:
    """How many rows may be generated together."""
    fitting = int(_SHARE * free_bytes(device)) // bytes_per_row(llm, tokens=prompt_tokens + max_new_tokens)
    return max(1, min(fitting, LARGEST_BATCH[device.type]))
