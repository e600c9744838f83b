"""Engines, which generate answers: their registry and interface, seeded sampling, and how large a batch may be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import GenerationConfig

from affectgpt.config.schema import Config, InferenceConfig
from affectgpt.core.errors import ConfigError
from affectgpt.core.registry import Registry
from affectgpt.core.runtime import available_memory
from affectgpt.core.types import Batch
from affectgpt.modeling.build import weight_bytes
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.processing.processor import AffectGPTProcessor

ENGINES = Registry("inference engine", "affectgpt.inference.engines")
# A row's new token ids so far, after each of them → whether the row ends here. What follows the first stop in them is
# padding. An engine that gives ids at the end only calls it once for each row.
OnToken = Callable[[list[int]], bool]


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. ``top_k=None``: as the LLM's folder says (20 for Qwen2.5), else 50; 0: from all tokens."""

    greedy: bool = False
    max_new_tokens: int = 1200
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int | None = None

    @classmethod
    def from_config(cls, inference: InferenceConfig) -> Decoding:
        """The decoding that the ``inference`` section asks for."""
        return cls(
            greedy=inference.decoding == "greedy",
            max_new_tokens=inference.max_new_tokens,
            temperature=inference.temperature,
            top_p=inference.top_p,
            top_k=inference.top_k,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """One generation: the cleaned text, its length in tokens (the stop included), and whether a stop rule ended it.

    ``ids``: these tokens; ``logprobs``: of each, what it was drawn with, where the engine keeps that.
    """

    text: str
    tokens: int
    stopped: bool
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


class Engine(Protocol):
    """Answers left-padded batches whose encoder outputs are known (``batch.features``) or computed on the way.

    ``defaults``: the generation settings of the LLM's folder, of which the ids that end an answer and top-k are taken.
    ``preferred_batch``: rows to hand over at once; None: as many as the memory takes.
    """

    preferred_batch: int | None

    def __init__(
        self,
        model: AffectGPTForConditionalGeneration,
        *,
        processor: AffectGPTProcessor,
        decoding: Decoding,
        defaults: GenerationConfig,
        llm_folder: Path | None = None,
        tensor_parallel_size: int = 1,
    ) -> None: ...

    def load(self, checkpoint: Path) -> Any:
        """Lay a checkpoint over the model; gives the report of what fitted.

        Raises CheckpointError when it does not fill the model: what another checkpoint left must not stay.
        """
        ...

    def generate(
        self,
        batch: Batch,
        *,
        seeds: Sequence[int],
        decoding: Decoding | None = None,
        on_token: Sequence[OnToken] | None = None,
    ) -> list[Answer]:
        """An answer per seed, which drives its sampling: one per row, or as many for each row, one after the other,
        whose prompt is then embedded once. ``decoding``: of this batch, instead of the engine's own; ``on_token``: one
        per answer."""
        ...

    def describe(self) -> dict[str, Any]:
        """The decoding in force, with what the LLM's folder decides, for the record."""
        ...


class SampleByRow:
    """Top-k, then top-p sampling in which each row has its own stream of random numbers.

    A logits processor for ``generate(do_sample=False)``: of scores ``[B, V]`` it leaves the drawn token of each row.
    A row's draw depends on its own numbers alone, so answers do not depend on batch mates, order or restarts.
    ``keep``: log-probabilities of what was drawn, of each step ``[B]``, are kept in ``kept``.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        top_k: int,
        top_p: float,
        temperature: float,
        keep: bool = False,
    ) -> None:
        self.top_k, self.top_p, self.temperature = top_k, top_p, temperature
        self.keep = keep
        self.kept: list[torch.Tensor] = []
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.uniform = torch.stack([torch.rand(max_new_tokens, generator=g, dtype=torch.float64) for g in streams])
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        k = min(self.top_k, scores.shape[-1]) if self.top_k else scores.shape[-1]
        values, tokens = scores.to(torch.float64).topk(k, dim=-1)  # [B, k], falling
        probabilities = (values / self.temperature).softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= self.top_p, 0.0)  # the first is always kept
        cumulative = probabilities.cumsum(dim=-1)
        if self.uniform.device != scores.device:  # copied once, not for every token: a copy waits for the device
            self.uniform = self.uniform.to(scores.device)
        draw = self.uniform[:, self.step, None] * cumulative[:, -1:]  # [B, 1]
        choice = (cumulative <= draw).sum(dim=-1, keepdim=True).clamp(max=k - 1)
        self.step += 1
        if self.keep:
            self.kept.append((probabilities.gather(1, choice) / cumulative[:, -1:]).log()[:, 0])
        return torch.full_like(scores, float("-inf")).scatter(1, tokens.gather(1, choice), 0.0)


def sample_seed(*parts: object) -> int:
    """A seed that depends on ``parts`` alone (run seed, data set, sample, question, checkpoint)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def top_k_of(asked: int | None, folder_generation_config: Any) -> int:
    """Effective top-k: ``asked``, else the model folder's generation_config, else 50 (transformers' default,
    which it leaves to be filled in from version 5 on); 0: of all."""
    if asked is not None:
        return asked
    named = folder_generation_config.top_k
    return 50 if named is None else named


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
    """Bytes that one row of ``tokens`` needs for generating: its keys and values, and its scores."""
    # a cache that grows is copied; scores are drawn from in float64
    return 2 * cache_bytes(llm, tokens=tokens) + 6 * 8 * llm.config.vocab_size


def find_batch_size(llm: Any, *, device: torch.device, prompt_tokens: int, max_new_tokens: int) -> int:
    """Return how many rows may be generated together."""
    fitting = int(_SHARE * free_bytes(device)) // bytes_per_row(llm, tokens=prompt_tokens + max_new_tokens)
    return max(1, min(fitting, LARGEST_BATCH[device.type]))
