"""A configuration and model folders → a model. The one place where numbers of the architecture stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from affectgpt.config.paths import Weights, model_hint, qformer_config
from affectgpt.config.schema import Config
from affectgpt.core.errors import CheckpointError, ConfigError
from affectgpt.core.registry import Registry
from affectgpt.core.runtime import logger
from affectgpt.core.types import N_FRAMES, Modality
from affectgpt.encoders.base import ENCODERS, FrozenEncoder, Transform, encoder_class, encoder_folder
from affectgpt.encoders.pretrained import read_config
from affectgpt.modeling.affectgpt import AffectGPT
from affectgpt.modeling.checkpoint import LoadReport, inputs_of, load_state, read_checkpoint, recipe_of
from affectgpt.modeling.connectors.base import (
    CONNECTORS,
    IMAGE_CONNECTORS,
    PREFUSIONS,
    Connector,
    ConnectorShape,
    PreFusionShape,
    QFormerShape,
)
from affectgpt.modeling.llm.load import empty_llm, load_llm
from affectgpt.modeling.llm.rows import LLMRow, configured_llm, llm_folder
from affectgpt.modeling.tokenizer import load_tokenizer, placeholder_ids

_VIDEO_POSITIONS = 32
_AUDIO_POSITIONS = N_FRAMES
_MULTI_POSITIONS = 32 * N_FRAMES + N_FRAMES  # 32 query tokens of each frame, and the audio clips

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
T = TypeVar("T")


@dataclass(frozen=True)
class Preparation:
    """What the data room is handed so that its output fits the model: no weights in it."""

    tokenizer: Any
    transforms: dict[Modality, Transform]
    n_tokens: dict[Modality, int]


def build_preparation(config: Config, *, training: bool = False) -> Preparation:
    """Tokenizer and transforms of the configured models. Reads small files only.

    ``training`` matters only to EVA-CLIP, which sees augmented frames in training (SPEC 2.2).
    """
    model = config.model
    row = _llm_row(config)
    visual, acoustic = (
        _from_folder(config, key, lambda folder, kind=kind: kind.transform_of(folder, training=training))
        for key, kind in _encoder_classes(config).items()
    )
    tokenizer = _from_folder(
        config,
        "llama_model",
        lambda folder: load_tokenizer(folder, row, trust_remote_code=model.trust_remote_code),
    )
    return Preparation(
        tokenizer=tokenizer,
        transforms={
            Modality.FACE: visual,
            Modality.FRAME: visual,
            Modality.IMAGE: visual,
            Modality.AUDIO: acoustic,
        },
        n_tokens={
            Modality.FACE: model.num_video_query_token,
            Modality.FRAME: model.num_video_query_token,
            Modality.AUDIO: model.num_audio_query_token,
            Modality.MULTI: model.num_multi_query_token,
            Modality.IMAGE: model.num_image_query_token,
        },
    )


def build_model(
    config: Config,
    *,
    device: torch.device,
    tokenizer: Any,
    encoders: bool = True,
    place: torch.device | None = None,
) -> AffectGPT:
    """The model on ``device``: frozen parts loaded, connectors fresh, ``ckpt``, ``ckpt_2``, ``ckpt_3`` laid over.

    ``encoders=False``: none is loaded, every batch brings its ``features`` (the encoders' config.json still counts).
    ``place``: where it lies at first instead, for one that is to be sharded over several devices.

    On a CPU everything is float32; on a GPU frozen parts have the configured dtypes and connectors are float32
    (autocast chooses their arithmetic). Raises CheckpointError and ConfigError naming key and folder.
    """
    model = config.model
    row = _llm_row(config)
    checkpoints = [(key, getattr(model, key)) for key in ("ckpt", "ckpt_2", "ckpt_3") if getattr(model, key)]
    for key, path in checkpoints:
        if not Path(path).exists():
            raise CheckpointError(f"model.{key}: {path}: no such checkpoint")
    encoder_dtype, llm_dtype = (
        torch.float32 if device.type == "cpu" else getattr(torch, name)
        for name in (model.encoder_dtype, model.llm_dtype)
    )
    # Loading an encoder draws random numbers; what trains must begin the same whether one is loaded or not.
    with torch.random.fork_rng(devices=[]):
        if encoders:
            visual, acoustic = (
                _from_folder(config, key, lambda folder, kind=kind: kind.from_folder(folder, dtype=encoder_dtype))
                for key, kind in _encoder_classes(config).items()
            )
        else:
            with torch.device("meta"):
                visual, acoustic = _empty_encoders(config)
    parts = _assemble(
        config,
        visual=visual,
        acoustic=acoustic,
        llm=_from_folder(
            config,
            "llama_model",
            lambda folder: load_llm(
                folder,
                row=row,
                dtype=llm_dtype,
                lora_r=model.lora_r,
                trust_remote_code=model.trust_remote_code,
            ),
        ),
        placeholders=placeholder_ids(tokenizer),
    )
    if not encoders:
        parts.visual_encoder = parts.acoustic_encoder = None
    for key, path in checkpoints:
        logger.info("model.%s: %s: %s", key, path, load_checkpoint(parts, path))
    return parts.to(place or device)


def build_empty_model(config: Config, *, device: torch.device | str = "meta") -> AffectGPT:
    """The model without reading a weight: all names and shapes on the meta device, random weights on any other.

    Where a model folder is there, its config.json counts; else the numbers of the published model do.
    """
    row = _llm_row(config)
    with torch.device(device):
        visual, acoustic = _empty_encoders(config)
        return _assemble(
            config,
            visual=visual,
            acoustic=acoustic,
            llm=empty_llm(
                _architecture(config, "llama_model", row.architecture),
                row=row,
                lora_r=config.model.lora_r,
                trust_remote_code=config.model.trust_remote_code,
            ),
            placeholders={},
        )


def load_checkpoint(model: AffectGPT, path: str | Path, *, complete: bool = False) -> LoadReport:
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
    config: Config, *, visual: FrozenEncoder, acoustic: FrozenEncoder, llm: nn.Module, placeholders: dict[Modality, int]
) -> AffectGPT:
    model = config.model
    llm_width = llm.get_input_embeddings().weight.shape[1]
    qformer = _qformer_shape(config)
    parts = AffectGPT(
        llm=llm,
        image=_connector(config, "image_fusion_type", IMAGE_CONNECTORS)(
            ConnectorShape(width=visual.width, llm_width=llm_width, n_tokens=model.num_image_query_token)
        ),
        video=_connector(config, "video_fusion_type", CONNECTORS)(
            ConnectorShape(
                width=visual.width,
                llm_width=llm_width,
                n_tokens=model.num_video_query_token,
                n_positions=_VIDEO_POSITIONS,
                qformer=qformer,
            )
        ),
        audio=_connector(config, "audio_fusion_type", CONNECTORS)(
            ConnectorShape(
                width=acoustic.width,
                llm_width=llm_width,
                n_tokens=model.num_audio_query_token,
                n_positions=_AUDIO_POSITIONS,
                qformer=qformer,
            )
        ),
        multi=_connector(config, "multi_fusion_type", PREFUSIONS)(
            PreFusionShape(
                video_width=visual.width,
                audio_width=acoustic.width,
                llm_width=llm_width,
                n_tokens=model.num_multi_query_token,
                n_positions=_MULTI_POSITIONS,
                qformer=qformer,
            )
        ),
        visual_encoder=visual,
        acoustic_encoder=acoustic,
        placeholder_ids=placeholders,
        recipe=recipe_of(asdict(model)) | inputs_of(asdict(model)),
    )
    for key, prefixes in _FREEZES.items():
        if getattr(model, key):
            for name, parameter in parts.named_parameters():
                if name.startswith(prefixes):
                    parameter.requires_grad_(False)
    return parts


def _connector(config: Config, key: str, registry: Registry) -> type[Connector]:
    with config.naming(f"model.{key}"):
        return registry.get(getattr(config.model, key))


def _encoder_classes(config: Config) -> dict[str, type[FrozenEncoder]]:
    return {key: encoder_class(config, key) for key in ENCODERS}


def _empty_encoders(config: Config) -> list[FrozenEncoder]:
    return [
        kind.from_config(_architecture(config, key, kind.architecture, read=kind.config_of))
        for key, kind in _encoder_classes(config).items()
    ]


def _llm_row(config: Config) -> LLMRow:
    row = configured_llm(config)
    if row.remote_code and not config.model.trust_remote_code:
        raise ConfigError(
            f"model.llama_model: {row.name} is code in its own folder, which runs on your machine; read it, then allow "
            'it: --options "model.trust_remote_code=True"'
        )
    return row


def weights_folder(config: Config, key: str) -> Path:
    """Folder of the model that ``model.<key>`` (an encoder or the LLM) names. Raises CheckpointError without it."""
    return encoder_folder(config, key) if key in ENCODERS else llm_folder(config)


def _weights(config: Config, key: str) -> Weights | None:
    return encoder_class(config, key).weights if key in ENCODERS else configured_llm(config).weights


def _from_folder(config: Config, key: str, load: Callable[[Path], T]) -> T:
    """``load`` of the folder that ``model.<key>`` names; its errors also say the key and what to download."""
    name = getattr(config.model, key)
    folder = weights_folder(config, key)
    try:
        return load(folder)
    except CheckpointError as error:
        hint = model_hint(config, name, _weights(config, key))
        raise CheckpointError(f"model.{key}: {name}: {error}. {hint}") from error


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


def _qformer_shape(config: Config) -> QFormerShape:
    """BERT-base's numbers, as the published code read them from its config.json; that file counts where it is there."""
    numbers = qformer_config(config)
    known = {f.name for f in fields(QFormerShape)} - {"num_hidden_layers"}
    return QFormerShape(**{key: int(value) for key, value in numbers.items() if key in known})
