"""AffectGPT: frozen encoders, connectors, pre-fusion and a LoRA-tuned LLM (paper section 3, figure 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from affectgpt.core.errors import DataError
from affectgpt.core.types import Batch, Modality
from affectgpt.modeling.splice import splice

_LARGEST = torch.finfo(torch.float16).max


class AffectGPT(nn.Module):
    """Built from parts; ``modeling/build`` makes them from a configuration.

    The order of the attributes is the order of parameters in a checkpoint (wire). Encoders may be None when every
    batch brings their outputs as ``features``.
    """

    def __init__(
        self,
        *,
        llm: nn.Module,
        image: nn.Module,
        video: nn.Module,
        audio: nn.Module,
        multi: nn.Module,
        visual_encoder: nn.Module | None,
        acoustic_encoder: nn.Module | None,
        placeholder_ids: Mapping[Modality, int],
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.llm = llm
        self.image = image  # image branch
        self.video = video  # face and frame branch
        self.audio = audio  # audio branch
        self.multi = multi  # pre-fusion
        self.visual_encoder = visual_encoder
        self.acoustic_encoder = acoustic_encoder
        self.placeholder_ids = dict(placeholder_ids)
        self.recipe = dict(recipe or {})  # what decides the names and shapes of a checkpoint; for messages

    @property
    def device(self) -> torch.device:
        """Where the LLM's embedding lies."""
        return self.llm.get_input_embeddings().weight.device

    def encode(self, batch: Batch) -> dict[Modality, torch.Tensor]:
        """Encoder outputs Z ``[B, T, d]`` of every medium in the batch: one call per medium, no gradient."""
        features = dict(batch.features)
        for modality, media in batch.media.items():
            if modality in features:
                continue
            encoder = self.acoustic_encoder if modality is Modality.AUDIO else self.visual_encoder
            if encoder is None:
                raise DataError(
                    f"batch of {batch.names[0]!r}: {modality.value} media, but the model has no encoder for it"
                )
            if modality is Modality.IMAGE:
                media = media.unsqueeze(1)  # [B, 1, 3, H, W]
            # HuBERT draws for its layer drop even where nothing is dropped. Left alone, dropout in the LLM would draw
            # other numbers than with stored features.
            with torch.random.fork_rng(devices=[media.device] if media.is_cuda else []):
                features[modality] = encoder(media)
        self._check(features, batch, "the encoder's output for its {}", "the file or the encoder's weights are damaged")
        return features

    def fuse(self, features: Mapping[Modality, torch.Tensor], batch: Batch) -> dict[Modality, torch.Tensor]:
        """Encoder outputs → a slot ``[B, K, D]`` for each modality that the batch's prompts have a placeholder for."""
        dtype = next(self.audio.parameters()).dtype
        features = {modality: z.to(dtype) for modality, z in features.items()}
        branches = {
            Modality.FACE: self.video,
            Modality.FRAME: self.video,
            Modality.AUDIO: self.audio,
            Modality.IMAGE: self.image,
        }
        slots = {}
        for modality, token_id in self.placeholder_ids.items():
            if not (batch.input_ids == token_id).any():
                continue
            if modality is Modality.MULTI:
                if batch.prefusion is None:
                    raise DataError(
                        f"mode {batch.mode}: its prompt has {modality.placeholder}, but nothing is pre-fused"
                    )
                slots[modality] = self.multi(
                    self._need(features, batch.prefusion, batch), self._need(features, Modality.AUDIO, batch)
                )
            else:
                slots[modality] = branches[modality](self._need(features, modality, batch))
        cause = "the encoder's output is not, so the checkpoint's weights are damaged or of another recipe"
        self._check(slots, batch, "the embedding of its {} that goes to the LLM", cause)
        return slots

    def _check(self, values: Mapping[Modality, torch.Tensor], batch: Batch, what: str, cause: str) -> None:
        """DataError naming the sample when one of its vectors ``[B, …]`` holds NaN, infinity or an absurd number.

        An LLM answers such input with noise (``!!!!``). float16, in which embeddings are handed on, ends at 65,504;
        overflow under autocast shows here as infinity. Training looks at its loss instead, over all ranks together.
        """
        if self.training or not values:
            return
        good = torch.stack([(value.abs() <= _LARGEST).flatten(1).all(dim=1) for value in values.values()])  # [M, B]
        if bool(good.all()):  # the only wait for the device
            return
        medium, row = (~good).nonzero()[0].tolist()
        modality = list(values)[medium]
        raise DataError(
            f"sample {batch.names[row]!r}: {what.format(modality.value)} holds NaN, infinite or absurd values (beyond "
            f"±{_LARGEST:.0f}); {cause}"
        )

    @staticmethod
    def _need(features: Mapping[Modality, torch.Tensor], modality: Modality, batch: Batch) -> torch.Tensor:
        if modality not in features:
            raise DataError(
                f"mode {batch.mode} needs {modality.value}, which the batch of sample {batch.names[0]!r} lacks; "
                f"it holds {', '.join(features) or 'no media'}"
            )
        return features[modality]

    def embed(self, batch: Batch) -> torch.Tensor:
        """The LLM's input ``inputs_embeds [B, L, D]``, media spliced in."""
        return splice(
            input_ids=batch.input_ids,
            embed_tokens=self.llm.get_input_embeddings(),
            slots=self.fuse(self.encode(batch), batch),
            placeholder_ids=self.placeholder_ids,
            names=batch.names,
        )

    def forward(self, batch: Batch) -> Any:
        """The LLM's output: ``.loss`` (mean over all learnt tokens of the batch) and ``.logits [B, L, V]``."""
        return self.llm(
            inputs_embeds=self.embed(batch),
            attention_mask=batch.attention_mask,
            labels=batch.labels,
            use_cache=False,
        )
