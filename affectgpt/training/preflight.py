"""What can be found before gigabytes are loaded: whether the weights fit, and whether code can be compiled."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import torch

from affectgpt.config.schema import Config, RunConfig
from affectgpt.core.errors import ConfigError
from affectgpt.modeling.build import weights_folder
from affectgpt.training.distributed import world

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def count_weights(folder: Path) -> int:
    """Numbers in a model folder's safetensors files, from their headers; 0 for other formats."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as handle:
            header = json.loads(handle.read(struct.unpack("<Q", handle.read(8))[0]))
        for name, tensor in header.items():
            if name != "__metadata__":
                total += torch.Size(tensor["shape"]).numel()
    return total


def check_memory(config: Config, device: torch.device) -> None:
    """Raises ConfigError when the frozen weights alone are more than the free memory of ``device``."""
    model = config.model
    needed = 0
    for key, dtype in (
        ("llama_model", model.llm_dtype),
        ("visual_encoder", model.encoder_dtype),
        ("acoustic_encoder", model.encoder_dtype),
    ):
        weights = count_weights(weights_folder(config, key))
        needed += weights * (4 if device.type == "cpu" else _BYTES[dtype])
    if config.run.parallel == "fsdp2":
        needed //= world()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_cpu()
    if free is not None and needed > free:
        where = "float32 on a CPU" if device.type == "cpu" else f"model.llm_dtype {model.llm_dtype}"
        raise ConfigError(
            f"the weights of {model.llama_model}, {model.visual_encoder} and {model.acoustic_encoder} need "
            f"{needed / 1e9:.1f} GB in {where}, and {free / 1e9:.1f} GB are free on {device}. "
            "Set model.llama_model to a smaller LLM, "
            + ("use a GPU (run.device=cuda)." if device.type == "cpu" else "or spread it: run.parallel=fsdp2.")
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


def _free_cpu() -> int | None:
    """Memory that a process can still get, bytes; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
