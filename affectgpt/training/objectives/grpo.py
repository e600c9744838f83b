"""Group relative policy optimisation: G answers of a clip are compared with one another (arXiv 2402.03300).

Shapes: C clips, B answers of all of them, T tokens of the longest answer. All formulas are functions of tensors; what
they are compared with are closed forms and TRL's implementation (tests/training/test_grpo_formulas.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from affectgpt.config.grpo import GRPOConfig
from affectgpt.config.schema import Config, RunConfig
from affectgpt.core.types import Batch, Modality
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.training.distributed import sum_over_ranks
from affectgpt.training.objectives.base import OBJECTIVES, Objective
from affectgpt.training.objectives.sft import SupervisedObjective

_EPSILON = 1e-4  # added to a group's deviation
_CHUNK = 1024  # tokens whose logits are in memory at once: 0.6 GB of a vocabulary of 152,000


def advantages_of(rewards: torch.Tensor, *, scale: bool) -> torch.Tensor:
    """Rewards ``[C, G]`` → advantages ``[C, G]``: minus the group's mean, and with ``scale`` by its deviation.

    The deviation is the unbiased one. Rewards that are all the same give exactly 0.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    same = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    if scale:
        centred = centred / (rewards.std(dim=1, keepdim=True) + _EPSILON)
    return centred.masked_fill(same, 0.0)


def combined_advantages(rewards: torch.Tensor, weights: torch.Tensor, *, scale: bool, each: bool) -> torch.Tensor:
    """Rewards ``[K, C, G]`` of K kinds with weights ``[K, C]`` → advantages ``[C, G]``.

    Of the weighted sum, or (``each``) the weighted sum of each kind's own: a kind that differs little in a group then
    counts as much as one that differs a lot. A kind that a clip has no truth for has weight 0.
    """
    if not each:
        return advantages_of((rewards * weights[..., None]).sum(dim=0), scale=scale)
    own = torch.stack([advantages_of(kind, scale=scale) for kind in rewards])
    return (own * weights[..., None]).sum(dim=0)


def mean_of_tokens(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``[B, T]`` → each answer's mean over its tokens, ``[B]``."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def log_ratios(new: torch.Tensor, old: torch.Tensor, mask: torch.Tensor, *, variant: str) -> torch.Tensor:
    """log of new to old probability of each token, ``[B, T]``; gspo: of the answer's geometric mean, ``[B, 1]``."""
    difference = (new - old) * mask
    return mean_of_tokens(difference, mask)[:, None] if variant == "gspo" else difference


def clipped_loss(log_ratio: torch.Tensor, advantages: torch.Tensor, *, low: float, high: float) -> torch.Tensor:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A), of log ratios ``[B, T or 1]`` and advantages ``[B]``."""
    ratio = log_ratio.exp()
    gain = torch.minimum(ratio * advantages[:, None], ratio.clamp(1 - low, 1 + high) * advantages[:, None])
    return -gain


def kl_of(new: torch.Tensor, reference: torch.Tensor, *, estimator: str) -> torch.Tensor:
    """An estimate per token of KL(policy || reference), ``[B, T]``, from the drawn tokens' log-probabilities.

    k1: log p/q (unbiased, may be negative); k2: half its square; k3: q/p - 1 + log p/q (unbiased, never negative).
    """
    difference = new - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return torch.exp(-difference) - 1 + difference


def correction_of(
    old: torch.Tensor, drawn: torch.Tensor, mask: torch.Tensor, *, level: str, cap: float
) -> torch.Tensor:
    """Truncated importance weights of answers that another engine drew: min(old / drawn, cap), ``[B, T or 1]``.

    ``old``: log-probabilities ``[B, T]`` by the training forward, ``drawn``: by the engine. ``level`` token: each
    token's; sequence: the answer's, a product over its tokens.
    """
    difference = (old - drawn) * mask
    if level == "sequence":
        difference = difference.sum(dim=1, keepdim=True)
    return difference.exp().clamp(max=cap)


def summed_loss(losses: torch.Tensor, mask: torch.Tensor, *, variant: str, max_tokens: int) -> torch.Tensor:
    """Losses ``[B, T or 1]`` → the sum over the terms that ``term_count`` counts.

    grpo, gspo: each answer's mean over its tokens. dr_grpo: each answer's sum divided by ``max_tokens``, the same for
    all, so that long answers are not favoured where they lose. dapo: all tokens alike.
    """
    losses = losses * mask
    if variant in ("grpo", "gspo"):
        return (losses.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).sum()
    return losses.sum() / (max_tokens if variant == "dr_grpo" else 1)


def term_count(mask: torch.Tensor, *, variant: str) -> int:
    """How many terms the loss is a mean over: tokens (dapo) or answers (all others)."""
    return int(mask.sum()) if variant == "dapo" else mask.shape[0]


def drop_nothing(model: nn.Module) -> None:
    """Eval mode for all that drops, but activations are recomputed where the model is set to, which transformers does
    in training mode alone. It stays so until the model is put into another mode: backward recomputes in it too."""
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
    model.training = True  # itself: no checks that would end one rank alone


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """``drop_nothing`` while the block lasts, for forward passes without a gradient."""
    was = model.training
    drop_nothing(model)
    try:
        yield
    finally:
        model.train(was)


def answer_logprobs(
    model: AffectGPTForConditionalGeneration, batch: Batch, *, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each token of the answers, and the entropy where it was drawn (no gradient): ``[B, T]`` each.

    ``batch``: prompts of C clips, padded on the left (``input_ids`` ``[C, L]`` …), of which ``clip_of`` ``[B]`` says
    each answer's; ``answer_ids``, ``answer_mask`` ``[B, T]``. Each prompt is embedded once. float32; 0 off the mask.
    """
    inputs = {k: batch[k] for m in Modality for k in (m.value, m.features) if k in batch}
    prompt = model.embed(
        input_ids=batch.input_ids, layout=batch.get("layout"), names=batch.names, prefusion=batch.prefusion, **inputs
    )  # [C, L, D]
    ids, mask, clip = batch["answer_ids"], batch["answer_mask"], batch["clip_of"]
    embedding = model.get_input_embeddings()
    prompt = prompt.to(embedding.weight.dtype)
    said = embedding(ids[:, :-1].masked_fill(~mask[:, :-1], 0))  # [B, T-1, D]: the last token predicts nothing
    embeds = torch.cat([prompt[clip], said], dim=1)  # [B, L+T-1, D]
    seen = torch.cat([batch.attention_mask[clip], mask[:, :-1]], dim=1)
    positions = (seen.cumsum(dim=1) - 1).clamp(min=0)  # as when the answers were drawn
    hidden = model.get_decoder()(
        inputs_embeds=embeds, attention_mask=seen, position_ids=positions, use_cache=False
    ).last_hidden_state[:, batch.input_ids.shape[1] - 1 :]  # [B, T, D]: what predicts each token of the answers
    head = model.get_output_embeddings()

    def of_tokens(states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = head(states).float() / temperature  # [n, V]
        whole = scores.logsumexp(dim=-1)
        with torch.no_grad():
            entropy = whole - (torch.softmax(scores, dim=-1) * scores).sum(dim=-1)
        return scores.gather(1, targets[:, None])[:, 0] - whole, entropy

    states, targets = hidden[mask], ids[mask]  # [n, D], [n]
    parts = []
    for at in range(0, len(targets), _CHUNK):
        here = states[at : at + _CHUNK], targets[at : at + _CHUNK]
        few = len(targets) <= _CHUNK
        parts.append(of_tokens(*here) if few else checkpoint(of_tokens, *here, use_reentrant=False))
    logprobs, entropy = (torch.cat(part) for part in zip(*parts, strict=True))
    rows = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    return rows.masked_scatter(mask, logprobs), rows.masked_scatter(mask, entropy)


class Scorer:
    """Log-probabilities of answers by the policy as it is, and by the one that training began with.

    ``model``: as training begins; what it trains (LoRA and connectors) is copied where ``keep_start`` asks for it.
    ``autocast``: the arithmetic of a training forward. Its results are those of such a forward to the bit.
    """

    def __init__(
        self,
        model: AffectGPTForConditionalGeneration,
        *,
        autocast: Callable[[], Any],
        temperature: float = 1.0,
        keep_start: bool = True,
    ) -> None:
        self.model, self.autocast, self.temperature = model, autocast, temperature
        self.start: list[torch.Tensor] | None = None
        if keep_start:
            self.start = [p.detach().clone() for p in model.parameters() if p.requires_grad]

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> torch.Tensor:
        """By the policy as it is, ``[B, T]``."""
        with without_dropout(self.model), self.autocast():
            return answer_logprobs(self.model, batch, temperature=self.temperature)[0]

    def start_logprobs(self, batch: Batch) -> torch.Tensor:
        """By the policy that training began with, ``[B, T]``."""
        with self.at_start():  # autocast keeps converted weights as long as its block lasts: one of its own
            return self.logprobs(batch)

    @contextmanager
    def at_start(self) -> Iterator[None]:
        """The model with the weights that training began with."""
        assert self.start is not None, "the start is kept where grpo.kl is above 0"
        trained = [p for p in self.model.parameters() if p.requires_grad]
        now = [p.data for p in trained]
        for parameter, tensor in zip(trained, self.start, strict=True):
            parameter.data = tensor
        try:
            yield
        finally:
            for parameter, tensor in zip(trained, now, strict=True):
                parameter.data = tensor


@OBJECTIVES.register("grpo")
class GRPOObjective(Objective):
    """The clipped loss of drawn answers (all variants of ``grpo.variant``), and their distance from the start.

    A batch (see ``answer_logprobs``) has ``advantages`` ``[B]`` and, where they are needed, log-probabilities
    ``[B, T]``: ``old_logprobs`` (of several updates), ``start_logprobs`` (``grpo.kl``), ``drawn_logprobs``
    (``grpo.correction``). One without advantages is held-out data: its loss is the cross-entropy of its labels.
    """

    draws = True

    @classmethod
    def from_config(cls, model: AffectGPTForConditionalGeneration, config: Config) -> Self:
        return cls(model, config.run, config.grpo)

    def __init__(
        self, model: AffectGPTForConditionalGeneration, run: RunConfig, grpo: GRPOConfig | None = None
    ) -> None:
        super().__init__(model, run)
        self.settings = grpo or GRPOConfig()
        self._supervised = [SupervisedObjective(model, run)]  # in a list: its parameters are not counted twice
        self._sums: dict[str, torch.Tensor] = {}

    def terms(self, batch: Batch | None) -> int:  # type: ignore[override]
        if batch is not None and "advantages" in batch:
            return term_count(batch["answer_mask"], variant=self.settings.variant)
        return SupervisedObjective.terms(batch)

    def forward(self, batch: Batch | None) -> torch.Tensor:
        if batch is None:
            return self.nothing()
        if "advantages" not in batch:
            return self._supervised[0](batch)
        settings = self.settings
        mask = batch["answer_mask"]
        drop_nothing(self.model)
        new, entropy = answer_logprobs(self.model, batch, temperature=settings.temperature)
        old = batch.get("old_logprobs", new.detach())  # one update: the policy that drew is the one that learns
        log_ratio = log_ratios(new, old, mask, variant=settings.variant)
        low, high = clip_range(settings)
        losses = clipped_loss(log_ratio, batch["advantages"], low=low, high=high)  # [B, T] or [B, 1]
        ratio, gain = log_ratio.detach().exp(), batch["advantages"][:, None]
        clipped = ((ratio > 1 + high) & (gain > 0)) | ((ratio < 1 - low) & (gain < 0))
        seen = {"entropy": entropy, "ratio": ratio * mask, "clipped": clipped & mask}
        if "drawn_logprobs" in batch:
            weights = correction_of(
                old, batch["drawn_logprobs"], mask, level=settings.correction, cap=settings.correction_cap
            )
            losses, seen["correction"] = losses * weights, weights * mask
        if "start_logprobs" in batch:
            kl = kl_of(new, batch["start_logprobs"], estimator=settings.kl_estimator)
            losses, seen["kl"] = losses + settings.kl * kl, kl.detach() * mask
        self._note(seen, mask)
        return summed_loss(losses, mask, variant=settings.variant, max_tokens=settings.max_new_tokens)

    def _note(self, seen: dict[str, torch.Tensor], mask: torch.Tensor) -> None:
        for name, values in {**seen, "tokens": mask}.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=mask.device)) + values.detach().float().sum()

    def take_metrics(self) -> dict[str, float]:
        """Means over the tokens of a step, of all ranks: entropy, kl, ratio, the share that was clipped."""
        names = ["entropy", "kl", "ratio", "clipped", "correction"]
        sums = sum_over_ranks(*(float(self._sums.get(name, 0.0)) for name in [*names, "tokens"]))
        there = sum_over_ranks(*(float(name in self._sums) for name in names))
        self._sums = {}
        return {
            name: value / sums[-1]
            for name, value, known in zip(names, sums[:-1], there, strict=True)
            if known and sums[-1]
        }


def clip_range(settings: GRPOConfig) -> tuple[float, float]:
    """How far a ratio counts below and above 1."""
    default = 0.28 if settings.variant == "dapo" else settings.clip_low
    return settings.clip_low, default if settings.clip_high is None else settings.clip_high


def scales(settings: GRPOConfig) -> bool:
    """Whether advantages are divided by the group's deviation."""
    return settings.variant != "dr_grpo" if settings.scale is None else settings.scale


def resamples(settings: GRPOConfig) -> int:
    """How many clips are tried in place of one whose answers all earn the same."""
    return (3 if settings.variant == "dapo" else 0) if settings.resample is None else settings.resample
