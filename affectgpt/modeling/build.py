"""A configuration and model folders → a model. The one place where numbers of the architecture stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from affectgpt.config.paths import model_folder
from affectgpt.config.schema import Config
from affectgpt.core.errors import ConfigError
from affectgpt.core.runtime import logger
from affectgpt.core.types import N_FRAMES, Modality
from affectgpt.modeling.affectgpt import AffectGPT
from affectgpt.modeling.checkpoint import load_state, read_checkpoint
from affectgpt.modeling.encoders.base import ACOUSTIC_ENCODERS, VISUAL_ENCODERS, Transform
from affectgpt.modeling.fusion.base import BRANCHES, IMAGE_BRANCHES, PREFUSIONS
from affectgpt.modeling.llm.load import load_llm
from affectgpt.modeling.llm.rows import get_llm
from affectgpt.modeling.tokenizer import load_tokenizer, placeholder_ids

_VIDEO_POSITIONS = 32
_AUDIO_POSITIONS = N_FRAMES

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


@dataclass(frozen=True)
class Preparation:
    """What the data room is handed so that its output fits the model: no weights in it."""

    tokenizer: Any
    transforms: dict[Modality, Transform]
    n_tokens: dict[Modality, int]


def build_preparation(config: Config) -> Preparation:
    """Tokenizer and transforms of the configured models. Reads small files only."""
    model = config.model
    row = get_llm(model.llama_model)
    visual = VISUAL_ENCODERS.get(model.visual_encoder).transform_of(
        model_folder(config, model.visual_encoder, key="model.visual_encoder")
    )
    acoustic = ACOUSTIC_ENCODERS.get(model.acoustic_encoder).transform_of(
        model_folder(config, model.acoustic_encoder, key="model.acoustic_encoder")
    )
    return Preparation(
        tokenizer=load_tokenizer(model_folder(config, model.llama_model, key="model.llama_model"), row),
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


def build_model(config: Config, *, device: torch.device, tokenizer: Any) -> AffectGPT:
    """The model on ``device``: frozen parts loaded, connectors fresh, ``ckpt``, ``ckpt_2``, ``ckpt_3`` laid over.

    On a CPU everything is float32; on a GPU frozen parts have the configured dtypes and connectors are float32
    (autocast chooses their arithmetic). Raises CheckpointError and ConfigError naming key and folder.
    """
    model = config.model
    encoder_dtype, llm_dtype = (
        torch.float32 if device.type == "cpu" else getattr(torch, name)
        for name in (model.encoder_dtype, model.llm_dtype)
    )
    visual = VISUAL_ENCODERS.get(model.visual_encoder).from_folder(
        model_folder(config, model.visual_encoder, key="model.visual_encoder"), dtype=encoder_dtype
    )
    acoustic = ACOUSTIC_ENCODERS.get(model.acoustic_encoder).from_folder(
        model_folder(config, model.acoustic_encoder, key="model.acoustic_encoder"), dtype=encoder_dtype
    )
    llm = load_llm(
        model_folder(config, model.llama_model, key="model.llama_model"),
        row=get_llm(model.llama_model),
        dtype=llm_dtype,
        lora_r=model.lora_r,
    )
    llm_width = llm.get_input_embeddings().weight.shape[1]
    parts = AffectGPT(
        llm=llm,
        image=IMAGE_BRANCHES.get(model.image_fusion_type)(
            width=visual.width, llm_width=llm_width, n_tokens=model.num_image_query_token
        ),
        video=BRANCHES.get(model.video_fusion_type)(
            width=visual.width,
            llm_width=llm_width,
            n_tokens=model.num_video_query_token,
            n_positions=_VIDEO_POSITIONS,
        ),
        audio=BRANCHES.get(model.audio_fusion_type)(
            width=acoustic.width,
            llm_width=llm_width,
            n_tokens=model.num_audio_query_token,
            n_positions=_AUDIO_POSITIONS,
        ),
        multi=PREFUSIONS.get(model.multi_fusion_type)(
            video_width=visual.width,
            audio_width=acoustic.width,
            llm_width=llm_width,
            n_tokens=model.num_multi_query_token,
        ),
        visual_encoder=visual,
        acoustic_encoder=acoustic,
        placeholder_ids=placeholder_ids(tokenizer),
    )
    _freeze(parts, config)
    for key in ("ckpt", "ckpt_2", "ckpt_3"):
        path = getattr(model, key)
        if path:
            logger.info("model.%s: %s: %s", key, path, load_checkpoint(parts, path))
    return parts.to(device)


def load_checkpoint(model: AffectGPT, path: Any) -> Any:
    """Lay a checkpoint file over a model, non-strictly; the report says what fitted."""
    return load_state(model, read_checkpoint(path)["model"], source=str(path))


def _freeze(parts: AffectGPT, config: Config) -> None:
    for key, prefixes in _FREEZES.items():
        if getattr(config.model, key):
            for name, parameter in parts.named_parameters():
                if name.startswith(prefixes):
                    parameter.requires_grad_(False)
    if not any(p.requires_grad for p in parts.parameters()):
        raise ConfigError("model: every frozen_* key is True, nothing is left to train")
