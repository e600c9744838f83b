"""What can be found before gigabytes are loaded: whether a model fits, and whether code can be compiled."""

from __future__ import annotations

import os
import shutil

import torch

from affectgpt.config.schema import Config, RunConfig
from affectgpt.core.errors import ConfigError
from affectgpt.core.runtime import available_memory, logger
from affectgpt.training.cost import step_memory


def check_memory(config: Config, device: torch.device, *, encoders: bool = True) -> None:
    """Raises ConfigError when weights, gradients and optimizer are more than the free memory of ``device``.

    Where a batch of the expected length would not fit beside them on a GPU, a warning says so. ``encoders``: whether
    they are loaded.
    """
    model, on_gpu = config.model, device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory()
    if free is None:
        return
    memory = step_memory(config, device, encoders=encoders, activations=on_gpu)
    needed = memory.weights if config.run.evaluate else memory.states
    if needed > free:
        whole = memory if on_gpu else step_memory(config, device, encoders=encoders)
        loaded = [model.llama_model, *([model.visual_encoder, model.acoustic_encoder] if encoders else [])]
        where = f"model.llm_dtype {model.llm_dtype}" if on_gpu else "float32 on a CPU"
        raise ConfigError(
            f"weights, gradients and optimizer of a model of {', '.join(loaded)} need {needed / 1e9:.1f} GB in "
            f"{where}, and {free / 1e9:.1f} GB are free on {device}; a step takes about {whole}. "
            "Set model.llama_model to a smaller LLM, "
            + ("or spread it: run.parallel=fsdp2." if on_gpu else "use a GPU (run.device=cuda).")
        )
    if memory.total > free and not config.run.evaluate:
        logger.warning(
            "training takes about %s, and %.1f GB are free on %s. If memory runs out: lower run.batch_size_train (and "
            "raise run.accum_grad_iters), or set run.gradient_checkpointing=True",
            memory, free / 1e9, device,
        )  # fmt: skip


def check_precision(config: Config, device: torch.device) -> None:
    """Raises ConfigError when the LLM's weights have another half precision than the arithmetic on a GPU.

    Autocast would convert every weight at every use, and backward would keep the converted copies. Weights in float32
    are converted too, which is what somebody who asks for them wants.
    """
    run, dtype = config.run, config.model.llm_dtype
    if device.type == "cuda" and not run.amp and dtype == "float16":
        raise ConfigError(
            f"{config.where('run.amp')} is False, but model.llm_dtype is float16: without autocast nothing scales the "
            'loss, and small gradients vanish. Set --options "run.amp=True", or "model.llm_dtype=bfloat16"'
        )
    if device.type == "cuda" and run.amp and dtype not in ("float32", run.amp_dtype):
        raise ConfigError(
            f"{config.where('run.amp_dtype')} is {run.amp_dtype}, but model.llm_dtype is {dtype}: each use of a weight "
            "would convert it, and the copies (13 GB of a 7B LLM) would stay until backward. Set both alike: --options "
            f'"model.llm_dtype={run.amp_dtype}"'
        )


def check_compiler(run: RunConfig, device: torch.device) -> None:
    """Raises ConfigError when ``run.compile`` asks for code that no installed compiler can make.

    torch.compile calls a C++ compiler for a CPU, and Triton a C compiler for a GPU.
    """
    if not run.compile:
        return
    kind, variable, names = ("C", "CC", "gcc clang") if device.type == "cuda" else ("C++", "CXX", "g++ clang++")
    wanted = [os.environ[variable]] if os.environ.get(variable) else names.split()
    if not any(shutil.which(name) for name in wanted):
        raise ConfigError(
            f"run.compile is True, but there is no {kind} compiler (looked for {', '.join(wanted)}): install one "
            f"(Debian, Ubuntu: apt-get install {names.split()[0]}), or leave run.compile out"
        )


def check_attention(run: RunConfig, device: torch.device) -> None:
    """Raises ConfigError when ``run.attention`` names a kernel that this machine lacks."""
    from transformers.utils import is_flash_attn_2_available

    if run.attention != "flash_attention_2":
        return
    if device.type != "cuda" or not run.amp:
        raise ConfigError("run.attention is flash_attention_2, which needs a GPU and run.amp: True; use sdpa")
    if not is_flash_attn_2_available():
        raise ConfigError(
            "run.attention is flash_attention_2, but flash-attn is not installed (pip install flash-attn); sdpa needs "
            "no package"
        )
