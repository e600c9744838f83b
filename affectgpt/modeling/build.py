"""A configuration and model folders → a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from affectgpt.config.paths import qformer_config
from affectgpt.config.schema import Config, RunConfig
from affectgpt.core.errors import CheckpointError, ConfigError
from affectgpt.core.runtime import logger
from affectgpt.encoders.base import (
    CPU,
    ENCODERS,
    FrozenEncoder,
    encoder_class,
    load_encoder,
    load_pretrained,
    read_config,
    read_preprocessor,
)
from affectgpt.encoders.llm import LLMRow, allowed_llm, loading, placeholder_ids, stop_sequences, weights_folder
from affectgpt.modeling.checkpoint import LoadReport, load_state, read_checkpoint
from affectgpt.modeling.configuration_affectgpt import INPUTS, RECIPE, AffectGPTConfig
from affectgpt.modeling.connectors.base import CONNECTORS, IMAGE_CONNECTORS, PREFUSIONS, QFormerShape
from affectgpt.modeling.lora import add_lora
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration

# frozen_* key → what it freezes (attention weights, the pre-fusion's inputs and the image projection always train).
_FREEZES = {
    "frozen_video_proj": ("video.proj",),
    "frozen_video_Qformer": ("video.qformer", "video.query_tokens", "video.position_embedding"),
    "frozen_audio_Qformer": ("audio.qformer", "audio.query_tokens", "audio.position_embedding"),
    "frozen_audio_proj": ("audio.proj",),
    "frozen_multi_Qformer": ("multi.qformer", "multi.query_tokens", "multi.position_embedding"),
    "frozen_multi_llama_proj": ("multi.proj",),
    "frozen_llm": ("llm",),
}
_ENCODERS = tuple(f"{key}." for key in ENCODERS)


def build_model(
    config: Config,
    *,
    device: torch.device,
    tokenizer: Any,
    encoders: bool = True,
    sharded: bool = False,
    dtype: torch.dtype | None = None,
) -> AffectGPTForConditionalGeneration:
    """The model on ``device``: frozen parts loaded, connectors fresh, ``ckpt``, ``ckpt_2``, ``ckpt_3`` laid over.

    ``encoders=False``: none is loaded, every batch brings its features (the encoders' config.json still counts).
    ``sharded``: the LLM is to be spread over several devices (``training/distributed.shard``): until then it stays in
    its files, mapped and in their dtype, so that the processes of a machine share one copy. ``dtype``: of all frozen
    parts, instead of the configured ones.

    On a CPU everything is float32; on a GPU frozen parts have the configured dtypes and connectors are float32
    (autocast chooses their arithmetic). Weights go to the device tensor by tensor. Raises CheckpointError and
    ConfigError naming key and folder.
    """
    model, row = config.model, allowed_llm(config)
    _check_connectors(config)
    checkpoints = [(key, getattr(model, key)) for key in ("ckpt", "ckpt_2", "ckpt_3") if getattr(model, key)]
    for key, path in checkpoints:
        if not Path(path).exists():
            raise CheckpointError(f"model.{key}: {path}: no such checkpoint")
    encoder_dtype, llm_dtype = (
        dtype or (torch.float32 if device.type == "cpu" else getattr(torch, name))
        for name in (model.encoder_dtype, model.llm_dtype)
    )
    parts: list[FrozenEncoder] = []
    # Loading an encoder draws random numbers; what trains must begin the same whether one is loaded or not.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for key in ENCODERS if encoders else ():
            with loading(config, key) as folder:
                kind = encoder_class(config, key)
                parts.append(load_encoder(kind, folder, dtype=encoder_dtype, device=device))
    with loading(config, "llama_model") as folder:
        llm = load_llm(
            folder, row=row, dtype=None if sharded else llm_dtype, lora_r=model.lora_r,
            device=CPU if sharded else device, trust_remote_code=model.trust_remote_code,
        )  # fmt: skip
    settings = hf_config(config, text_config=llm.config, tokenizer=tokenizer)
    if not encoders:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):  # only their widths count
            parts = _empty_encoders(config)
    made = _assemble(config, settings, llm=llm, encoders=parts)
    if not encoders:
        made.visual_encoder = made.acoustic_encoder = None
    for key, path in checkpoints:
        logger.info("model.%s: %s: %s", key, path, load_checkpoint(made, path))
    if sharded:
        made.llm.dtype_of_shards = llm_dtype
    for part in made.children():
        if part is not made.llm or not sharded:
            part.to(device=device)
    return made


def build_empty_model(config: Config, *, device: torch.device | str = "meta") -> AffectGPTForConditionalGeneration:
    """The model without reading a weight: all names and shapes on the meta device, random weights on any other.

    Where a model folder is there, its config.json counts; else the numbers of the published model do.
    """
    row = allowed_llm(config)
    _check_connectors(config)
    settings = hf_config(config, text_config=text_config(config))
    with torch.device(device):
        encoders = _empty_encoders(config)
        trust = config.model.trust_remote_code
        llm = AutoModelForCausalLM.from_config(settings.text_config, trust_remote_code=trust)
        llm = add_lora(llm, row=row, rank=config.model.lora_r)
        return _assemble(config, settings, llm=llm, encoders=encoders)


def weight_bytes(config: Config, *, device: torch.device, encoders: bool = True) -> int:
    """Bytes of the model's weights as ``build_model`` places them on ``device``; ``encoders``: whether they are loaded.

    Counted of the model as it is built, from the configurations in the model folders: their files have parts that are
    not kept, in formats of many kinds.
    """
    return sum(
        parameter.numel() * weight_dtype(config, name, parameter, device).itemsize
        for name, parameter in build_empty_model(config).named_parameters()
        if encoders or not name.startswith(_ENCODERS)
    )


def weight_dtype(config: Config, name: str, parameter: nn.Parameter, device: torch.device) -> torch.dtype:
    """Return the dtype that a weight of the empty model has once it is loaded to ``device``."""
    if device.type != "cpu" and name.startswith(_ENCODERS):
        return getattr(torch, config.model.encoder_dtype)
    if device.type != "cpu" and name.startswith("llm.") and not parameter.requires_grad:
        return getattr(torch, config.model.llm_dtype)
    return torch.float32  # what trains, and everything on a CPU


def text_config(config: Config) -> Any:
    """The LLM's transformers configuration: of its folder, else of the published model."""
    return _architecture(config, "llama_model", allowed_llm(config).architecture)


def use_attention(model: AffectGPTForConditionalGeneration, run: RunConfig) -> None:
    """Compute the LLM's attention with the kernel ``run.attention``. Raises ConfigError when it is not installed."""
    if run.attention == "sdpa":
        return
    decoder: Any = model.get_decoder()
    try:
        if hasattr(decoder, "set_attn_implementation"):
            decoder.set_attn_implementation(run.attention)
        else:  # transformers before 4.54 reads it at every call, unchecked
            decoder.config._attn_implementation = run.attention
    except (ImportError, ValueError) as error:
        raise ConfigError(f"run.attention: {run.attention} cannot be used here: {error}") from error


def count_parameters(model: nn.Module) -> dict[str, dict[str, int]]:
    """Group → ``{"trained": n, "frozen": n}``. The model may be on the meta device."""
    groups = {
        "visual_encoder": "visual encoder", "acoustic_encoder": "acoustic encoder", "llm": "LLM", "lora": "LoRA",
        "image": "image branch", "video": "video branch", "audio": "audio branch", "multi": "pre-fusion",
    }  # fmt: skip
    counts = {group: {"trained": 0, "frozen": 0} for group in groups.values()}
    for name, parameter in model.named_parameters():
        group = groups["lora" if ".lora_" in name else name.partition(".")[0]]
        counts[group]["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    return counts


def empty_llm(config: Config, numbers: Any, *, dtype: torch.dtype, attention: str) -> Any:
    """The LLM of such numbers with LoRA, without weights, on the meta device."""
    trust = config.model.trust_remote_code
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        llm = AutoModelForCausalLM.from_config(numbers, attn_implementation=attention, trust_remote_code=trust)
        return add_lora(llm.to(dtype), row=allowed_llm(config), rank=config.model.lora_r)


def load_llm(
    folder: str | Path,
    *,
    row: LLMRow,
    dtype: torch.dtype | None,
    lora_r: int,
    device: torch.device = CPU,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Load a Hugging Face causal LM, freeze it and add LoRA of rank ``lora_r`` (0: none); dtype None: as stored.

    The folder's generation settings are dropped: decoding is ours to choose, and ``generate`` would fill gaps
    from them. Raises CheckpointError when the folder does not load.
    """
    model = load_pretrained(
        AutoModelForCausalLM, folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    model.generation_config = GenerationConfig()
    try:
        return add_lora(model, row=row, rank=lora_r)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def load_exported(folder: Path, *, dtype: torch.dtype, device: torch.device) -> AffectGPTForConditionalGeneration:
    """The model of a folder that ``affectgpt export --hf`` wrote. Raises CheckpointError naming the folder."""
    return load_pretrained(AffectGPTForConditionalGeneration, folder, dtype=dtype, device=device).eval()


def exported_weights(folder: str | Path) -> Path:
    """The file that stands for an exported folder's weights. Raises CheckpointError where there is none."""
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise CheckpointError(f"{folder}: has no model.safetensors; write it again: affectgpt export --hf")


def read_settings(folder: str | Path) -> dict[str, Any]:
    """config.json of an exported folder. Raises CheckpointError naming the folder when it is none."""
    AutoConfig.register(AffectGPTConfig.model_type, AffectGPTConfig, exist_ok=True)  # the tokenizer's loader asks
    path = Path(folder) / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: not a folder that affectgpt export --hf wrote ({error})") from error
    if not isinstance(settings, dict) or settings.get("model_type") != AffectGPTConfig.model_type:
        raise CheckpointError(f"{path}: not of an AffectGPT model; affectgpt export --hf writes such folders")
    return settings


def exported_config(folder: str | Path, config: Config, *, mode: str | None = None) -> tuple[Config, str]:
    """A configuration with the model's keys of an exported folder, and the folder's input mode (or ``mode``)."""
    settings = read_settings(folder)
    known = {key: settings[key] for key in (*RECIPE, *INPUTS) if key in settings}
    path = Path(folder) / "processor_config.json"
    try:
        mode = mode or str(json.loads(path.read_text(encoding="utf-8"))["mode"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); write it again: affectgpt export --hf") from error
    return replace(config, model=replace(config.model, **known)), mode


def load_checkpoint(
    model: AffectGPTForConditionalGeneration, path: str | Path, *, complete: bool = False
) -> LoadReport:
    """Lay a checkpoint over a model, non-strictly; the report says what fitted.

    Raises CheckpointError when not one trained tensor fits, and with ``complete`` when one of them is missing or of
    another shape, or the file has LoRA where the model has none; the message says which keys of the recipe differ.
    """
    content = read_checkpoint(path)
    report = load_state(model, content["model"], source=str(path), config=content.get("config"))
    if complete and (not report.complete or any(".lora_" in name for name in report.unexpected)):
        raise CheckpointError(f"{path} was made by another recipe: {report}")
    if not report.complete:
        logger.warning("%s does not fill the model: %s", path, report)
    elif report.revised:
        logger.warning("%s: %s", path, report.revised)
    return report


def _assemble(
    config: Config, settings: AffectGPTConfig, *, llm: nn.Module, encoders: Sequence[FrozenEncoder]
) -> AffectGPTForConditionalGeneration:
    settings.visual_width, settings.acoustic_width = (encoder.width for encoder in encoders)
    made = AffectGPTForConditionalGeneration(
        settings, llm=llm, visual_encoder=encoders[0], acoustic_encoder=encoders[1]
    )
    made.generation_config = GenerationConfig()
    for key, prefixes in _FREEZES.items():
        if getattr(config.model, key):
            for name, parameter in made.named_parameters():
                if name.startswith(prefixes):
                    parameter.requires_grad_(False)
    return made


def _check_connectors(config: Config) -> None:
    """Raises ConfigError naming the key of a connector that no registry has."""
    for key, registry in (
        ("image_fusion_type", IMAGE_CONNECTORS),
        ("video_fusion_type", CONNECTORS),
        ("audio_fusion_type", CONNECTORS),
        ("multi_fusion_type", PREFUSIONS),
    ):
        with config.naming(f"model.{key}"):
            registry.get(getattr(config.model, key))


def hf_config(config: Config, *, text_config: Any, tokenizer: Any = None) -> AffectGPTConfig:
    """The transformers configuration of a training configuration's model."""
    model = config.model
    numbers, preprocessors = {}, {}
    for key in ENCODERS:
        found = _encoder_numbers(config, key)
        preprocessors[key] = _preprocessor(config, key)
        numbers[key] = found.to_dict() if hasattr(found, "to_dict") else dict(found)
    tokens = {}
    if tokenizer is not None:
        tokens = {
            "placeholder_ids": placeholder_ids(tokenizer),
            "stop_sequences": stop_sequences(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    return AffectGPTConfig(
        text_config,
        visual_config=numbers["visual_encoder"],
        acoustic_config=numbers["acoustic_encoder"],
        visual_preprocessor=preprocessors["visual_encoder"],
        acoustic_preprocessor=preprocessors["acoustic_encoder"],
        qformer=_qformer_shape(config),
        **{key: getattr(model, key) for key in (*RECIPE, *INPUTS)},
        **tokens,
    )


def _empty_encoders(config: Config) -> list[FrozenEncoder]:
    return [encoder_class(config, key).from_config(_encoder_numbers(config, key)) for key in ENCODERS]


def _encoder_numbers(config: Config, key: str) -> Any:
    kind = encoder_class(config, key)
    return _architecture(config, key, kind.architecture, read=kind.config_of)


def _preprocessor(config: Config, key: str) -> dict[str, Any]:
    """preprocessor_config.json of an encoder's folder; empty where there is none."""
    try:
        folder = weights_folder(config, key)
    except CheckpointError:
        return {}
    return dict(read_preprocessor(folder)) if (folder / "preprocessor_config.json").is_file() else {}


def _architecture(config: Config, key: str, numbers: Any, *, read: Callable[..., Any] = read_config) -> Any:
    name = getattr(config.model, key)
    try:
        folder = weights_folder(config, key)
    except CheckpointError as error:
        if numbers is None or name in config.paths.folders:
            raise
        logger.debug("%s; the published numbers are used", error)
        return read(numbers)
    return read(folder, trust_remote_code=config.model.trust_remote_code)


def _qformer_shape(config: Config) -> dict[str, int]:
    """BERT-base's numbers, as the published code read them from its config.json; that file counts where it is there."""
    numbers = qformer_config(config)
    known = {f.name for f in fields(QFormerShape)} - {"num_hidden_layers"}
    return {key: int(value) for key, value in numbers.items() if key in known}
