"""The model: encoders, connectors and pre-fusion, and their outputs in the LLM's prompt."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from affectgpt.core.auto_module import AUTO_MODULE, write_auto_module
from affectgpt.core.errors import CheckpointError, ConfigError, DataError
from affectgpt.core.types import N_FRAMES, Modality
from affectgpt.encoders.base import FrozenEncoder, encode_medium, load_part, make_encoders
from affectgpt.encoders.llm import LLMS, StopSequences
from affectgpt.modeling.configuration_affectgpt import AffectGPTConfig
from affectgpt.modeling.connectors.base import (
    CONNECTORS,
    IMAGE_CONNECTORS,
    PREFUSIONS,
    Connector,
    ConnectorShape,
    PreFusionShape,
    QFormerShape,
)
from affectgpt.modeling.lora import add_lora, has_lora
from affectgpt.processing.collate import Layout, Rows, layout_of


def merge_multimodal_embeddings(
    *,
    input_ids: torch.Tensor,
    embed_tokens: Callable[[torch.Tensor], torch.Tensor],
    modality_embeds: Mapping[Modality, torch.Tensor],
    layout: Layout,
    names: Sequence[str] = (),
) -> torch.Tensor:
    """Token ids ``[B, L]`` and embeddings ``[B, K, D]`` of the media → ``inputs_embeds [B, L, D]``.

    A placeholder is looked up as token 0 (the embedding matrix is not resized, wire) and overwritten.
    Raises DataError naming the sample when the placeholders of a row are not exactly as many as its embeddings.
    """
    rows = len(input_ids)
    for modality in {**layout.counts, **modality_embeds}:
        media, counts = modality_embeds.get(modality), layout.counts.get(modality, [0] * rows)
        expected = 0 if media is None else media.shape[1]
        for row, count in enumerate(counts):
            if count != expected:
                holds = f"the batch holds no {modality.value}" if media is None else f"its embeddings are {expected}"
                raise DataError(
                    f"sample {name_of(names, row, rows=rows)}: its prompt has {count} {modality.placeholder} tokens, "
                    f"but {holds}"
                )
    ids = input_ids.flatten()
    for places in layout.places.values():
        ids = ids.index_fill(0, places, 0)
    embeds = embed_tokens(ids)  # [B·L, D]
    for modality, places in layout.places.items():
        media = modality_embeds[modality].flatten(0, 1).to(embeds.device, embeds.dtype)
        embeds = embeds.index_copy(0, places, media)
    return embeds.view(*input_ids.shape, -1)


def no_mask(llm: Any) -> dict[str, None] | None:
    """The argument ``attention_mask`` that means causal attention and nothing hidden.

    Given None, transformers looks into the positions for packed samples, which waits for the GPU; decoders with
    a mask for each kind of layer take prepared ones, and these kernels need none.
    """
    decoder = llm.get_decoder()
    ready = llm.config._attn_implementation in ("sdpa", "flash_attention_2")
    if ready and getattr(decoder, "has_sliding_layers", None) is False:
        return dict.fromkeys(decoder.config.layer_types)
    return None


def packed_inputs(llm: Any, inputs_embeds: torch.Tensor, rows: Rows) -> dict[str, Any]:
    """``inputs_embeds [B, L, D]`` as the decoder's arguments for rows ``[R, P, D]`` of several samples each."""
    R, P = rows.sample.shape
    packed: dict[str, Any] = {
        "inputs_embeds": inputs_embeds.flatten(0, 1)[rows.source].view(R, P, -1),
        "position_ids": rows.position_ids,
    }
    if llm.config._attn_implementation == "flash_attention_2":
        if rows.visible is not None:
            raise DataError("run.packing with flash_attention_2: a sample holds the pad token inside; use sdpa")
        # FlashAttention takes no mask. Left to itself, transformers looks for borders of samples in a batch of one
        # row alone, and would let the samples of several rows see each other.
        packed |= {f"cu_seq_lens_{side}": rows.cu_seq_lens for side in "qk"}
        packed |= {f"max_length_{side}": rows.max_length for side in "qk"}
        return {**packed, "attention_mask": no_mask(llm)}
    seen = rows.sample[:, :, None] == rows.sample[:, None, :]  # [R, P, P]
    if rows.visible is not None:
        seen &= rows.visible[:, None, :] | torch.eye(P, dtype=torch.bool, device=seen.device)  # no row sees nothing
    seen = seen.tril()
    hidden = torch.zeros((R, 1, P, P), dtype=inputs_embeds.dtype, device=seen.device)
    packed["attention_mask"] = hidden.masked_fill(~seen[:, None], torch.finfo(hidden.dtype).min)
    return packed


def name_of(names: Sequence[str], row: int, *, rows: int | None = None) -> str:
    """A row's sample for messages; with beams there are more rows than samples."""
    if not names:
        return f"in row {row}"
    return repr(names[row * len(names) // rows if rows else row])


_VIDEO_POSITIONS = 32
_AUDIO_POSITIONS = N_FRAMES
_MULTI_POSITIONS = 32 * N_FRAMES + N_FRAMES  # 32 query tokens of each frame, and the audio clips
_LARGEST = torch.finfo(torch.float16).max
# Those that load the model; AutoModelForMultimodalLM is not in every version of transformers.
AUTO_MODELS = (
    "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM",
)  # fmt: skip
_CONNECTORS = ("image", "video", "audio", "multi")  # where the model has them
_MEDIA = tuple(m for m in Modality if m is not Modality.MULTI)


class AffectGPTForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The model. ``modeling/build`` makes one from a training configuration, ``from_pretrained`` from an export.

    The order of the attributes is the order of parameters in a checkpoint (wire). Parts that are loaded already may be
    handed in; those that are not are made from ``config`` with fresh weights. Without encoders (``encoders=False``)
    every batch must bring their outputs.
    """

    config_class = AffectGPTConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True  # its name up to transformers 4.53
    _supports_attention_backend = True
    # Connectors stay float32 in a half-precision model, as released checkpoints hold them.
    _keep_in_fp32_modules_strict = set(_CONNECTORS)  # noqa: RUF012 - as transformers declares it
    llm: Any
    visual_encoder: Any
    acoustic_encoder: Any

    def __init__(
        self,
        config: AffectGPTConfig,
        *,
        llm: Any = None,
        visual_encoder: FrozenEncoder | None = None,
        acoustic_encoder: FrozenEncoder | None = None,
        encoders: bool = True,
    ) -> None:
        super().__init__(config)
        if llm is None:
            llm = AutoModelForCausalLM.from_config(config.text_config)
            llm = add_lora(llm, row=LLMS.get(config.llama_model), rank=config.lora_r)
        widths = [config.visual_width, config.acoustic_width]
        if visual_encoder is None and (encoders or not all(widths)):
            visual_encoder, acoustic_encoder = make_encoders(config)
        if visual_encoder is not None and acoustic_encoder is not None:
            widths = [visual_encoder.width, acoustic_encoder.width]
        visual, acoustic = widths
        for encoder in (visual_encoder, acoustic_encoder):
            if encoder is not None:
                encoder.freeze()
        D = llm.get_input_embeddings().weight.shape[1]
        qformer = QFormerShape(**config.qformer)
        self.llm = llm
        self.image = IMAGE_CONNECTORS.get(config.image_fusion_type)(
            ConnectorShape(width=visual, llm_width=D, n_tokens=config.num_image_query_token)
        )
        self.video = CONNECTORS.get(config.video_fusion_type)(  # face and frame
            ConnectorShape(
                width=visual,
                llm_width=D,
                n_tokens=config.num_video_query_token,
                n_positions=_VIDEO_POSITIONS,
                qformer=qformer,
            )
        )
        self.audio = CONNECTORS.get(config.audio_fusion_type)(
            ConnectorShape(
                width=acoustic,
                llm_width=D,
                n_tokens=config.num_audio_query_token,
                n_positions=_AUDIO_POSITIONS,
                qformer=qformer,
            )
        )
        self.multi = PREFUSIONS.get(config.multi_fusion_type)(  # pre-fusion
            PreFusionShape(
                video_width=visual,
                audio_width=acoustic,
                llm_width=D,
                n_tokens=config.num_multi_query_token,
                n_positions=_MULTI_POSITIONS,
                qformer=qformer,
            )
        )
        self.visual_encoder = visual_encoder if encoders else None
        self.acoustic_encoder = acoustic_encoder if encoders else None
        self.placeholder_ids = {Modality(name): token for name, token in config.placeholder_ids.items()}
        self._no_split_modules = sorted({*(getattr(llm, "_no_split_modules", None) or ()), "Blip2QFormerModel"})
        for name in _CONNECTORS:
            if not isinstance(getattr(self, name), Connector):
                raise ConfigError(f"{type(getattr(self, name)).__name__} is not derived from connectors.base.Connector")
        self._keeps_logits = "logits_to_keep" in inspect.signature(llm.forward).parameters
        self.post_init()

    def init_weights(self) -> None:
        """Every part has its weights when it is made; only weights that the LLM shares are tied."""
        self.tie_weights()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: a weight that a file lacks is an error, see ``from_pretrained``."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Like ``PreTrainedModel.from_pretrained``, but raise CheckpointError for missing weights instead of random
        ones."""
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        folder = str(args[0] if args else kwargs.get("pretrained_model_name_or_path"))
        missing = sorted(info["missing_keys"])
        if missing:
            unknown = f"; it holds {sorted(info['unexpected_keys'])[:2]} instead" if info["unexpected_keys"] else ""
            raise CheckpointError(
                f"{folder}: lacks {len(missing)} weights of "
                f"the model, first {missing[0]}{unknown}. Export it again: affectgpt export --hf"
            )
        for name in _CONNECTORS:  # transformers before 4.53 casts them all the same
            part = getattr(model, name)
            if next(part.parameters()).dtype != torch.float32:
                part.float()
                if Path(folder).is_dir():
                    load_part(part, folder, prefix=f"{name}.")
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:  # type: ignore[override]
        """Like ``PreTrainedModel.save_pretrained``, with the module that the Auto classes import this class from.

        Raises CheckpointError for a model whose LoRA is not merged: its file would have names that nothing loads.
        """
        if has_lora(self) and not getattr(self, "_hf_peft_config_loaded", False):
            raise CheckpointError(
                "LoRA is in this model, not merged: its weights would be saved under names of peft, which "
                "from_pretrained does not load. Merge it first (affectgpt.modeling.lora.merge_lora(model.llm)), or use "
                "affectgpt export --hf"
            )
        names = [auto for auto in AUTO_MODELS if hasattr(transformers, auto)]
        self.config.auto_map = {
            "AutoConfig": f"{AUTO_MODULE}.AffectGPTConfig",
            **{auto: f"{AUTO_MODULE}.{type(self).__name__}" for auto in names},
        }
        super().save_pretrained(save_directory, **options)
        write_auto_module(save_directory)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing: the folder's module imports this package, whose code is not copied into it."""

    @property
    def device(self) -> torch.device:
        """The device of the LLM's embedding matrix."""
        return self.llm.get_input_embeddings().weight.device

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings that decide the names and shapes of a checkpoint, for messages."""
        return self.config.recipe

    def get_input_embeddings(self) -> Any:
        """The LLM's."""
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """The LLM's."""
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        """The LLM's."""
        return self.llm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """The LLM's."""
        self.llm.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> Any:
        """The LLM without its output embeddings."""
        return self.llm.get_decoder()

    def encode(self, *, names: Sequence[str] = (), **batch: Any) -> dict[Modality, torch.Tensor]:
        """Encoder outputs Z ``[B, T, d]`` of every medium in the batch: one call per medium, no gradient.

        In the encoders' own dtype and without autocast, in training, inference and the feature store alike.
        """
        features: dict[Modality, torch.Tensor] = {
            m: batch[m.features] for m in _MEDIA if batch.get(m.features) is not None
        }
        for modality in _MEDIA:
            media = batch.get(modality.value)
            if modality in features or media is None:
                continue
            encoder = self.acoustic_encoder if modality is Modality.AUDIO else self.visual_encoder
            if encoder is None:
                raise DataError(
                    f"sample {name_of(names, 0)}: {modality.value} media, but the model has no encoder for it"
                )
            features[modality] = encode_medium(encoder, modality, media)
        cause = "the file or the encoder's weights are damaged"
        self._check(features, names, "the encoder's output for its {}", cause)
        return features

    def connect(
        self,
        features: Mapping[Modality, torch.Tensor],
        *,
        input_ids: torch.Tensor,
        layout: Layout | None = None,
        prefusion: str | None = None,
        names: Sequence[str] = (),
        **_: Any,
    ) -> dict[Modality, torch.Tensor]:
        """Encoder outputs → embeddings ``[B, K, D]`` of each modality that the prompts have a placeholder for.

        ``prefusion``: FACE or FRAME, what is pre-fused with the audio; None: the face where the batch has one, else the
        frames.
        """
        layout = layout or layout_of(input_ids=input_ids, placeholder_ids=self.placeholder_ids)
        dtype = next(self.audio.parameters()).dtype
        features = {modality: z.to(dtype) for modality, z in features.items()}
        connectors = {
            Modality.FACE: self.video,
            Modality.FRAME: self.video,
            Modality.AUDIO: self.audio,
            Modality.IMAGE: self.image,
        }

        def need(modality: Modality, wanted: Modality) -> torch.Tensor:
            if modality not in features:
                raise DataError(
                    f"sample {name_of(names, 0)}: its prompt has {wanted.placeholder}, which needs {modality.value}; "
                    f"the batch holds {', '.join(features) or 'no media'}"
                )
            return features[modality]

        embeds: dict[Modality, torch.Tensor] = {}
        for modality in layout.counts:
            if modality is Modality.MULTI:
                seen = Modality(prefusion) if prefusion is not None else _visual(features)
                connector = self.multi
                tokens = connector(need(seen, modality), need(Modality.AUDIO, modality))
            else:
                connector = connectors[modality]
                tokens = connector(need(modality, modality))
            self._check_connector(connector, modality, tokens, rows=len(input_ids))
            embeds[modality] = tokens  # [B, K, D]
        cause = "the encoder's output is not, so the checkpoint's weights are damaged or of another recipe"
        self._check(embeds, names, "the embedding of its {} that goes to the LLM", cause)
        return embeds

    def _check_connector(self, connector: nn.Module, modality: Modality, tokens: torch.Tensor, *, rows: int) -> None:
        """Raise ConfigError naming a connector whose output is not ``[B, K, D]``: rows would get other samples'
        tokens."""
        key = "video" if modality in (Modality.FACE, Modality.FRAME) else modality.value
        expected = [rows, getattr(self.config, f"num_{key}_query_token"), self.llm.config.hidden_size]
        if list(tokens.shape) != expected:
            raise ConfigError(
                f"{type(connector).__name__} (model.{key}_fusion_type) gives {list(tokens.shape)} for {modality.value}"
                f"; expected [B, K, D] = {expected}: samples, model.num_{key}_query_token, width of the LLM"
            )

    def _check(self, values: Mapping[Modality, torch.Tensor], names: Sequence[str], what: str, cause: str) -> None:
        """DataError naming the sample when one of its vectors ``[B, …]`` holds NaN, infinity or an absurd number.

        An LLM answers such input with noise (``!!!!``). float16, in which embeddings are handed on, ends at 65,504;
        overflow under autocast shows here as infinity. Training looks at its loss instead, over all ranks together.
        """
        if self.training or not values:
            return
        device = next(iter(values.values())).device
        good = torch.stack([(v.abs() <= _LARGEST).flatten(1).all(dim=1).to(device) for v in values.values()])  # [M, B]
        if bool(good.all()):  # the only wait for the device
            return
        medium, row = (~good).nonzero()[0].tolist()
        modality = list(values)[medium]
        raise DataError(
            f"sample {name_of(names, row, rows=good.shape[1])}: {what.format(modality.value)} holds NaN, infinite or "
            f"absurd values (beyond ±{_LARGEST:.0f}); {cause}"
        )

    def embed(
        self,
        *,
        input_ids: torch.Tensor,
        layout: Layout | None = None,
        names: Sequence[str] = (),
        prefusion: str | None = None,
        **batch: Any,
    ) -> torch.Tensor:
        """The LLM's input ``inputs_embeds [B, L, D]``, media in the place of their placeholders."""
        layout = layout or layout_of(input_ids=input_ids, placeholder_ids=self.placeholder_ids)
        features = self.encode(names=names, **batch)
        return merge_multimodal_embeddings(
            input_ids=input_ids,
            embed_tokens=self.get_input_embeddings(),
            modality_embeds=self.connect(
                features, input_ids=input_ids, layout=layout, prefusion=prefusion, names=names
            ),
            layout=layout,
            names=names,
        )

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        *,
        face: torch.Tensor | None = None,
        frame: torch.Tensor | None = None,
        audio: torch.Tensor | None = None,
        image: torch.Tensor | None = None,
        face_features: torch.Tensor | None = None,
        frame_features: torch.Tensor | None = None,
        audio_features: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        prefusion: str | None = None,
        names: Sequence[str] = (),
        layout: Layout | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Tensors → loss and logits. Shapes and keys: see ``affectgpt.core.types.Batch``.

        The loss is the mean over the learnt tokens of ``labels``, or, with ``num_items_in_batch``, their sum divided by
        it (the learnt tokens of the whole global batch, or 1). In training mode logits ``[n, V]`` are made for the n
        learnt tokens alone: of a vocabulary of 152,000 all of them would be most of the memory of a step. Otherwise
        ``[B, L, V]``, or of the last ``logits_to_keep`` positions. ``inputs_embeds`` stand in for ids and media.
        Raises DataError naming the sample.
        """
        if labels is not None and (layout is None or layout.learnt is None):
            ids = labels if input_ids is None else input_ids
            layout = layout_of(
                input_ids=ids, placeholder_ids=self.placeholder_ids, attention_mask=attention_mask, labels=labels
            )
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds")
            if past_key_values is not None and past_key_values.get_seq_length() > 0:
                # What the model has said itself: a placeholder's token among it stands for no media.
                inputs_embeds = self.get_input_embeddings()(input_ids)
            else:
                inputs_embeds = self.embed(
                    input_ids=input_ids, layout=layout, names=names, prefusion=prefusion,
                    face=face, frame=frame, audio=audio, image=image,
                    face_features=face_features, frame_features=frame_features, audio_features=audio_features,
                    image_features=image_features,
                )  # fmt: skip
        assert inputs_embeds is not None
        inputs_embeds = inputs_embeds.to(self.get_input_embeddings().weight.dtype)  # [B, L, D]
        shared = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "position_ids": position_ids}
        if labels is None:
            if self._keeps_logits:
                kwargs["logits_to_keep"] = logits_to_keep
            return self.llm(**shared, past_key_values=past_key_values, use_cache=use_cache, **kwargs)
        assert layout is not None and layout.learnt is not None and layout.targets is not None
        if layout.rows is not None:
            shared = packed_inputs(self.llm, inputs_embeds, layout.rows)
        elif self.training and layout.causal:
            # What follows a row's last token is never looked at, so that causal attention needs no mask: kernels
            # without one are faster, and nobody has to ask the GPU what the mask hides.
            shared["attention_mask"] = no_mask(self.llm)
        hidden = self.get_decoder()(**shared, use_cache=False, **kwargs).last_hidden_state  # [B, L, D] or [R, P, D]
        head = self.get_output_embeddings()
        if self.training:
            logits = of_learnt = head(hidden.flatten(0, 1)[layout.learnt])  # [n, V]
        else:
            logits = head(hidden)  # [B, L, V]
            of_learnt = logits.flatten(0, 1)[layout.learnt]
        total = F.cross_entropy(of_learnt.float(), layout.targets, reduction="sum")
        loss: Any = total / (layout.n_learnt if num_items_in_batch is None else num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: torch.Tensor, past_key_values: Any = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Media go into the first step; after that they are in the key-value cache."""
        above: Any = super()
        inputs = above.prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            for modality in _MEDIA:
                inputs.pop(modality.value, None)
                inputs.pop(modality.features, None)
        return inputs

    @torch.no_grad()
    def generate(self, *args: Any, stopping_criteria: Any = None, **kwargs: Any) -> Any:
        """Like ``GenerationMixin.generate``, and a row also stops at the published stop sequences."""
        from transformers import StoppingCriteriaList

        ids = kwargs.get("input_ids", args[0] if args else None)
        criteria = StoppingCriteriaList(stopping_criteria or [])
        if self.config.stop_sequences:
            prompt = 0 if ids is None else ids.shape[1]
            criteria.append(StopSequences(self.config.stop_sequences, prompt_length=prompt))
        above: Any = super()
        return above.generate(*args, stopping_criteria=criteria, **kwargs)


def _visual(features: Mapping[Modality, torch.Tensor]) -> Modality:
    return Modality.FRAME if Modality.FRAME in features and Modality.FACE not in features else Modality.FACE
