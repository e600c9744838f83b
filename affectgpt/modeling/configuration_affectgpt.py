"""Configuration of an AffectGPT model for transformers: recipe, parts, tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from affectgpt.core.types import Modality
from affectgpt.encoders.llm import LLMS

# The keys of a training configuration's model section that decide which tensors a checkpoint holds.
RECIPE = (
    "multi_fusion_type", "video_fusion_type", "audio_fusion_type", "image_fusion_type", "llama_model",
    "visual_encoder", "acoustic_encoder", "num_audio_query_token", "num_video_query_token", "num_multi_query_token",
    "num_image_query_token", "lora_r",
)  # fmt: skip
# What the encoders are given. Tensors fit all the same where these differ, and answers suffer.
INPUTS = ("face_channels", "audio_clip_spacing")


class AffectGPTConfig(PretrainedConfig):
    """Configuration of an AffectGPT model.

    ``text_config``: of the LLM. ``visual_config``, ``acoustic_config``: numbers of the encoders that ``visual_encoder``
    and ``acoustic_encoder`` name (empty: of the published ones), with their vectors' widths (0: as the encoder says)
    and the content of their preprocessor_config.json. ``qformer``: numbers of a Q-Former.
    ``placeholder_ids``: modality → token id. ``stop_sequences``: token sequences that end an answer besides eos.
    The rest are keys of a training configuration's model section; see ``affectgpt.config.schema.ModelConfig``.
    """

    model_type = "affectgpt"
    sub_configs: ClassVar = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: Any = None,
        *,
        visual_config: Mapping[str, Any] | None = None,
        acoustic_config: Mapping[str, Any] | None = None,
        visual_width: int = 0,
        acoustic_width: int = 0,
        visual_preprocessor: Mapping[str, Any] | None = None,
        acoustic_preprocessor: Mapping[str, Any] | None = None,
        qformer: Mapping[str, int] | None = None,
        placeholder_ids: Mapping[str, int] | None = None,
        stop_sequences: Sequence[Sequence[int]] = (),
        multi_fusion_type: str = "attention",
        video_fusion_type: str = "attention",
        audio_fusion_type: str = "attention",
        image_fusion_type: str = "mean",
        llama_model: str = "Qwen25",
        visual_encoder: str = "CLIP_VIT_LARGE",
        acoustic_encoder: str = "HUBERT_LARGE",
        num_audio_query_token: int = 1,
        num_video_query_token: int = 1,
        num_multi_query_token: int = 1,
        num_image_query_token: int = 1,
        lora_r: int = 0,
        audio_clip_spacing: int = 8,
        face_channels: str = "bgr",
        **kwargs: Any,
    ) -> None:
        if text_config is None:
            text_config = dict(LLMS.get("Qwen25").architecture)
        if isinstance(text_config, Mapping):
            text_config = CONFIG_MAPPING[text_config["model_type"]](**text_config)
        self.text_config = text_config
        self.visual_config, self.acoustic_config = dict(visual_config or {}), dict(acoustic_config or {})
        self.visual_width, self.acoustic_width = visual_width, acoustic_width
        self.visual_preprocessor = dict(visual_preprocessor or {})
        self.acoustic_preprocessor = dict(acoustic_preprocessor or {})
        self.qformer = dict(qformer or {})
        self.placeholder_ids = {Modality(name).value: int(i) for name, i in (placeholder_ids or {}).items()}
        self.stop_sequences = [list(sequence) for sequence in stop_sequences]
        self.multi_fusion_type, self.video_fusion_type = multi_fusion_type, video_fusion_type
        self.audio_fusion_type, self.image_fusion_type = audio_fusion_type, image_fusion_type
        self.llama_model = llama_model
        self.visual_encoder, self.acoustic_encoder = visual_encoder, acoustic_encoder
        self.num_audio_query_token, self.num_video_query_token = num_audio_query_token, num_video_query_token
        self.num_multi_query_token, self.num_image_query_token = num_multi_query_token, num_image_query_token
        self.lora_r = lora_r
        self.audio_clip_spacing, self.face_channels = audio_clip_spacing, face_channels
        kwargs.setdefault("tie_word_embeddings", bool(getattr(text_config, "tie_word_embeddings", False)))
        # transformers would set the kernel of a loaded LLM to "not chosen".
        kwargs.setdefault("attn_implementation", getattr(text_config, "_attn_implementation", None))
        super().__init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: the folder's module imports this package, whose code is not copied into it."""

    @property
    def recipe(self) -> dict[str, Any]:
        """The keys that decide which tensors a checkpoint holds and what the encoders are given; for messages."""
        return {key: getattr(self, key) for key in (*RECIPE, *INPUTS)}
