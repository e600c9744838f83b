"""Group relative policy optimisation (GRPO, arXiv 2402.03300): G answers of a clip are compared with one another.

From top to bottom: the formulas, all functions of tensors (tests compare them with closed forms and with TRL); the
log-probabilities of answers; the objective, which is what a step minimises; ``Rollouts``, where a step's batches come
from: clips → G answers each → rewards → advantages; and the guard, which ends a run that collects reward by listing
words. Rewards themselves are in evaluation/rewards.

Shapes: C clips, G answers of each, B = C·G answers of a micro-batch, T tokens of the longest answer, K rewards.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from affectgpt.config.grpo import GRPOConfig
from affectgpt.config.schema import Config, RunConfig
from affectgpt.core.errors import CheckpointError, ConfigError, DataError
from affectgpt.core.runtime import logger, rank, world_size
from affectgpt.core.seeds import seeded
from affectgpt.core.types import Batch, Grades, Modality, Sample
from affectgpt.datasets.base import EmotionDataset, hold_out, keep_fraction
from affectgpt.datasets.overlap import refuse_test_clips
from affectgpt.encoders.llm import folder_generation_config, llm_folder
from affectgpt.evaluation.extract import DirectExtractor, get_extractor
from affectgpt.evaluation.lexicon import find_lexicon, grouping_of
from affectgpt.evaluation.rewards import FORMAL, Grader, RewardTruth, read_reply, truth_of
from affectgpt.inference.encode import ENCODE_BATCH, DatasetFeatures
from affectgpt.inference.engines.base import ENGINES, Answer, Decoding, sample_seed
from affectgpt.inference.session import GenerationSession, training_mode
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.processing.collate import layout_of
from affectgpt.processing.data import Failure, FailureLog, MixedBatches, trained_sets
from affectgpt.processing.modes import get_mode
from affectgpt.processing.processor import AffectGPTProcessor, Example
from affectgpt.processing.questions import check_block, get_label_type, question_context, render_question
from affectgpt.training.distributed import gather, sum_over_ranks
from affectgpt.training.objectives.base import OBJECTIVES, Objective
from affectgpt.training.objectives.sft import SupervisedObjective
from affectgpt.training.step import Step, amp_dtype, autocast_of

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
    """Return how many terms the loss is a mean over: tokens (dapo) or answers (all others)."""
    return int(mask.sum()) if variant == "dapo" else mask.shape[0]


def disable_dropout(model: nn.Module) -> None:
    """Put a model into eval mode, except that activations are still recomputed where it is set to do that.

    transformers recomputes in training mode alone. The model stays so until it is put into another mode, as backward
    recomputes in it too.
    """
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
    model.training = True  # itself: no checks that would end one rank alone


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """``disable_dropout`` while the block lasts, for forward passes without a gradient."""
    was = model.training
    disable_dropout(model)
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
    answers = embedding(ids[:, :-1].masked_fill(~mask[:, :-1], 0))  # [B, T-1, D]: the last token predicts nothing
    embeds = torch.cat([prompt[clip], answers], dim=1)  # [B, L+T-1, D]
    attended = torch.cat([batch.attention_mask[clip], mask[:, :-1]], dim=1)
    positions = (attended.cumsum(dim=1) - 1).clamp(min=0)  # as when the answers were drawn
    hidden = model.get_decoder()(
        inputs_embeds=embeds, attention_mask=attended, position_ids=positions, use_cache=False
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
        disable_dropout(self.model)
        new, entropy = answer_logprobs(self.model, batch, temperature=settings.temperature)
        old = batch.get("old_logprobs", new.detach())  # one update: the policy that drew is the one that learns
        log_ratio = log_ratios(new, old, mask, variant=settings.variant)
        low, high = clip_range(settings)
        losses = clipped_loss(log_ratio, batch["advantages"], low=low, high=high)  # [B, T] or [B, 1]
        ratio, gain = log_ratio.detach().exp(), batch["advantages"][:, None]
        clipped = ((ratio > 1 + high) & (gain > 0)) | ((ratio < 1 - low) & (gain < 0))
        measured = {"entropy": entropy, "ratio": ratio * mask, "clipped": clipped & mask}
        if "drawn_logprobs" in batch:
            weights = correction_of(
                old, batch["drawn_logprobs"], mask, level=settings.correction, cap=settings.correction_cap
            )
            losses, measured["correction"] = losses * weights, weights * mask
        if "start_logprobs" in batch:
            kl = kl_of(new, batch["start_logprobs"], estimator=settings.kl_estimator)
            losses, measured["kl"] = losses + settings.kl * kl, kl.detach() * mask
        self._note(measured, mask)
        return summed_loss(losses, mask, variant=settings.variant, max_tokens=settings.max_new_tokens)

    def _note(self, measured: dict[str, torch.Tensor], mask: torch.Tensor) -> None:
        for name, values in {**measured, "tokens": mask}.items():
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
    """Return whether advantages are divided by the group's deviation."""
    return settings.variant != "dr_grpo" if settings.scale is None else settings.scale


def resamples(settings: GRPOConfig) -> int:
    """Return how many clips are tried in place of one whose answers all earn the same."""
    return (3 if settings.variant == "dapo" else 0) if settings.resample is None else settings.resample


Key = tuple[int, int, int]  # of a clip: number of its data set, epoch, index
_AT_ONCE = {"cuda": 128, "cpu": 64}  # answers drawn together where grpo.answers_at_once does not say
_NOTES = "rollouts.jsonl"  # one clip of a roll-out, its answers and rewards, for people to read


def check_rollouts(config: Config) -> None:
    """Raise ConfigError for what cannot work in a configuration of reinforcement learning, before anything is read."""
    run, grpo = config.run, config.grpo
    if run.parallel == "fsdp2":
        raise ConfigError(
            f"{config.where('run.parallel')} is fsdp2, with which run.objective={run.objective} cannot be used: every "
            "process draws answers token by token with the whole model, and shards would be sent between the GPUs for "
            "each of them. Use run.parallel=ddp"
        )
    if not config.model.ckpt:
        raise ConfigError(
            f"run.objective={run.objective} starts from a model that has learnt to answer: set model.ckpt to a "
            "checkpoint of supervised training (run.objective=sft)"
        )
    for key, value in (("run.packing", run.packing), ("run.batch_tokens", run.batch_tokens)):
        if value:
            raise ConfigError(f"{config.where(key)}: answers share their prompts and are not packed or split; set 0")
    if grpo.top_p < 1 or grpo.top_k:
        logger.warning(
            "grpo.top_p is %g and grpo.top_k %d: the policy that answers are drawn from is not the one that is scored; "
            "1 and 0 draw from all tokens", grpo.top_p, grpo.top_k,
        )  # fmt: skip
    if config.datasets and len({block.sample_ratio is None for block in config.datasets.values()}) > 1:
        raise ConfigError("datasets: give sample_ratio for all data sets or for none")


class Clips:
    """The clips of one data set that answers are drawn for: their questions, encoder outputs and truths.

    ``truths``: by name, of every sample. ``question``: asked of all; empty: that of the block's label type, of several
    one that the sample has labels for, drawn by (seed, epoch, index).
    """

    def __init__(
        self,
        config: Config,
        dataset: EmotionDataset,
        samples: Sequence[Sample],
        *,
        truths: Mapping[str, RewardTruth],
        question: str = "",
    ) -> None:
        self.dataset, self.samples, self.truths = dataset, list(samples), dict(truths)
        check_block(config, dataset)
        self.mode = get_mode(dataset.block.face_or_frame)
        self.seed, self.question = config.run.seed, question
        self.types = dataset.learnt_types
        self.context = None if question else question_context(dataset, self.types)
        # Inference reads the clips, and what happens to one that cannot be read is a matter of training here.
        config = replace(config, inference=replace(config.inference, on_error=config.run.on_error))
        self.features = DatasetFeatures(
            config, samples, dataset=dataset.name, mode=self.mode.name, policy=dataset.block.features, split="train"
        )

    def ask(self, index: int, epoch: int) -> str:
        """The question of one clip."""
        if self.question:
            return self.question
        labels = self.samples[index].labels
        answered = [name for name in self.types if get_label_type(name).answer(labels) is not None] or list(self.types)
        name = answered[0] if len(answered) == 1 else seeded(self.seed, epoch, index).choice(answered)
        return render_question(name, self.context, labels)


@dataclass(slots=True)
class Group:
    """G answers of one clip with their rewards (``grades``: of this clip alone, C = 1).

    ``at``: the number of the clip, or of the one that it replaces, among those of its roll-out.
    """

    at: int
    clip: str  # data set/name
    example: Example
    truth: RewardTruth
    answers: tuple[Answer, ...]
    grades: Grades

    @property
    def without_variance(self) -> bool:
        """True if all answers earn the same, so that nothing can be learnt from them."""
        values = self.grades.values * (self.grades.weights[:, :, None] > 0)
        return bool((values == values[:, :, :1]).all())


class Rollouts:
    """The micro-batches of an epoch, drawn with the model as it is when the first of a step is asked for.

    A step has as many micro-batches as ``run.accum_grad_iters``; ``grpo.updates`` steps go over the same answers. To
    the training loop this is a stream of batches like labelled data, with a state of its own.

    Building it finds everything that can be wrong with clips, questions, truths and rewards, before a model is loaded;
    ``bind`` then takes the model as training begins. ``lazy``: clips are encoded when they are first drawn, not all
    before the first step. ``failures``: clips that cannot be rewarded, and later those that cannot be read.
    Raises ConfigError and DataError naming key, data set, or the clips that are tested on.
    """

    session: GenerationSession
    scorer: Scorer

    def __init__(self, config: Config, *, lazy: bool = False) -> None:
        run, grpo = config.run, config.grpo
        if run.iters_per_epoch % grpo.updates:
            raise ConfigError(
                f"{config.where('grpo.updates')} is {grpo.updates}, of which run.iters_per_epoch "
                f"({run.iters_per_epoch}) must be a multiple"
            )
        lexicon = find_lexicon(grpo.lexicon or None)
        logger.info(
            "rewards by the lexicon %s: %s", lexicon.source, ", ".join(f"{n} {w:g}" for n, w in grpo.rewards.items())
        )
        with config.naming("grpo.rewards"):
            self.grader = Grader(
                grpo.rewards, grouping=grouping_of(lexicon), think=grpo.think, length_penalty=grpo.length_penalty,
                max_tokens=grpo.max_new_tokens, overlong=grpo.overlong, reader=_reader(config),
            )  # fmt: skip
        # What draws answers is an inference session, which looks for its settings where inference has them.
        self.config = replace(config, inference=replace(config.inference, max_new_tokens=grpo.max_new_tokens))
        self.processor = AffectGPTProcessor.from_config(
            self.config, mode=training_mode(config) if len(config.datasets) == 1 else None
        )
        self.failures = FailureLog()
        question = grpo.question or (get_label_type("think").question if grpo.think else "")
        loaded_here = replace(config, run=replace(run, num_workers=0)) if lazy else config
        self.parts: list[Clips] = []
        for dataset in trained_sets(config):
            samples, _ = hold_out(dataset.samples("train"), config)
            samples = keep_fraction(samples, ratio=dataset.block.ratio, seed=run.seed) if samples else []
            truths = self._truths(samples)
            samples = [sample for sample in samples if sample.name in truths]
            if not samples:
                raise DataError(
                    f"datasets.{dataset.key}: no clip of the training split of {dataset.name} has a truth to score by"
                )
            self.parts.append(Clips(loaded_here, dataset, samples, truths=truths, question=question))
        refuse_test_clips(self.samples, Path(config.paths.dataset_root))
        all_truths = [truth for part in self.parts for truth in part.truths.values()]
        self.constant = self.grader.best_constant(all_truths)
        logger.info("the best answer that is the same for every clip: %s", self.constant)
        counts = [len(truth.labels) for truth in all_truths if truth.labels]
        self.guard = Guard(config, mean_labels=sum(counts) / max(len(counts), 1))
        weights = [part.dataset.block.sample_ratio for part in self.parts]
        self.order = MixedBatches(
            [len(part.samples) for part in self.parts],
            weights=None if None in weights else [float(weight) for weight in weights if weight is not None],
            batch_size=run.batch_size_train,
            iters_per_epoch=run.iters_per_epoch // grpo.updates * run.accum_grad_iters,
            seed=run.seed, rank=rank(), world_size=world_size(),
        )  # fmt: skip
        self.notes: Path | None = None  # the folder of rollouts.jsonl
        self.seconds = {"rollout": 0.0, "reward": 0.0, "logprobs": 0.0}  # of the last roll-out
        self._encoded = lazy  # whether clips are encoded, or will be when they are drawn
        self._numbers: dict[str, float] = {}  # of the last roll-out, to be logged
        self._pending: tuple[int, list[Batch | None]] | None = None  # number of the roll-out, its micro-batches
        self._start = ""  # hash of the weights that the run began with, where they are kept

    def _truths(self, samples: Sequence[Sample]) -> dict[str, RewardTruth]:
        """Name → truth; clips without one that some reward scores are left out, by name."""
        grader, truths = self.grader, {}
        probe = read_reply(grader.constant_text(["neutral"]), think=grader.think, max_tokens=grader.max_tokens)
        for sample in samples:
            truth = truth_of(sample.labels, grader.grouping)
            why = "it has no label that can be scored (none, none that a wheel knows, or a valence of 0)"
            if truth is not None:
                rewards = [n for n, v in grader.rewards_of(probe, truth).items() if v is not None and n not in FORMAL]
                if rewards:
                    truths[sample.name] = truth
                    continue
                why = f"none of the rewards {', '.join(grader.rewards)} scores a truth of this kind ({truth.kind})"
            reason = f"{sample.dataset}: sample {sample.name!r} is left out: {why}"
            self.failures.add(Failure(sample.dataset, sample.name, reason))
        return truths

    @property
    def samples(self) -> dict[str, list[Sample]]:
        """Data set → its samples."""
        return {part.dataset.name: part.samples for part in self.parts}

    @property
    def counts(self) -> dict[str, int]:
        """Data set → number of clips."""
        return {name: len(samples) for name, samples in self.samples.items()}

    @property
    def media(self) -> set[Modality]:
        """Media that need an encoder."""
        return {m for part in self.parts for m in part.mode.media if m not in part.features.stored}

    def bind(self, model: AffectGPTForConditionalGeneration, device: torch.device) -> Rollouts:
        """Take the model that answers and learns, as it is when training begins."""
        config, grpo = self.config, self.config.grpo
        amp = amp_dtype(config.run, device)
        engine = ENGINES.get("transformers")(
            model,
            processor=self.processor,
            decoding=Decoding(
                max_new_tokens=grpo.max_new_tokens, temperature=grpo.temperature, top_p=grpo.top_p, top_k=grpo.top_k
            ),
            defaults=folder_generation_config(llm_folder(config)),
        )
        engine.autocast_dtype = amp  # the arithmetic of training draws, too
        engine.keeps_logprobs = grpo.correction != "off"
        self.session = GenerationSession(config, processor=self.processor, model=model, engine=engine, device=device)
        self.scorer = Scorer(
            model, autocast=partial(autocast_of, device, amp), temperature=grpo.temperature, keep_start=grpo.kl > 0
        )
        if self.scorer.start is not None:
            self._start = _hash(self.scorer.start)
        return self

    # What the training loop calls.

    def __call__(self, epoch: int, *, start: int = 0) -> Iterator[Batch | None]:
        """The micro-batches of an epoch (the first is 1), from number ``start`` on; None: no clip could be read."""
        run, updates = self.config.run, self.config.grpo.updates
        step, inside = divmod(start, run.accum_grad_iters)
        assert inside == 0, "a run resumes between two steps"
        if not self._encoded:  # encoders are frozen: every clip's media once, before epochs and updates
            self._encoded = True
            for part in self.parts:
                if part.features.needs_encoders:
                    logger.info("%s: encoding %d clips, once", part.dataset.name, len(part.samples))
                    self._encode(part, part.samples)
        self.order.set_epoch(epoch, start=step // updates * run.accum_grad_iters)
        order = iter(self.order)
        while step < run.iters_per_epoch:
            number = ((epoch - 1) * run.iters_per_epoch + step) // updates
            keys = [next(order) for _ in range(run.accum_grad_iters)]
            if self._pending is None or self._pending[0] != number:
                self._pending = number, self._roll_out(keys, number=number)
            for _ in range(step % updates, updates):
                yield from self._pending[1]
                step += 1
            self._pending = None

    def after_step(self, step: Step) -> dict[str, float]:
        """Return what is to be logged of a step; ``halt`` then says whether training should stop."""
        numbers = {**self._numbers, **step.metrics}
        self._numbers = {}
        return numbers

    @property
    def halt(self) -> str | None:
        """Why training should stop, in words; None: it should not. The same on every rank."""
        return self.guard.verdict

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on besides weights: the answers of steps to come, and what the guard has
        seen."""
        pending = None
        if self._pending is not None and self.config.grpo.updates > 1:
            batches: list[dict[str, Any] | None] = []
            for batch in self._pending[1]:
                if batch is None:
                    batches.append(None)
                    continue
                # Tensors and text alone, as a state file may hold; where things are in the batch is worked out again.
                values = {k: str(v) if k == "prefusion" else v for k, v in batch.items() if k != "layout"}
                batches.append({"values": values, "mode": batch.mode, "prompts": batch.prompts})
            pending = {"number": self._pending[0], "batches": batches}
        return {"pending": pending, "guard": self.guard.state_dict(), "start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo ``state_dict``. Raises CheckpointError when the run began with other weights."""
        if state["start"] != self._start:
            raise CheckpointError(
                "the weights that this run began with (model.ckpt, ckpt_2, ckpt_3) are not those that it began with "
                "when it was saved: the distance to them (grpo.kl) would be another one. Set them as they were"
            )
        self.guard.load_state_dict(state["guard"])
        if state["pending"] is not None:
            self._pending = (
                state["pending"]["number"],
                [
                    None if b is None else self._with_layout(Batch(b["values"], mode=b["mode"], prompts=b["prompts"]))
                    for b in state["pending"]["batches"]
                ],
            )

    # A roll-out: answers, rewards, advantages.

    def _roll_out(self, keys: Sequence[Sequence[Key]], *, number: int) -> list[Batch | None]:
        """The micro-batches of one roll-out: drawn, rewarded, compared, and scored by the training forward."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        flat = [key for micro_batch in keys for key in micro_batch]
        drawn = self._drawn_and_graded(dict(enumerate(flat)), number=number)
        groups, resampled = self._resample(drawn, flat, number=number)
        with self._timed("reward"):
            compared = self._compare(drawn, number=number)
        if drawn:
            self._note(drawn[0], number=number)
        batches: list[Batch | None] = []
        first, learning = 0, 0
        for micro_batch in keys:
            here = [group for group in groups if first <= group.at < first + len(micro_batch)]
            first += len(micro_batch)
            batch = self._collate(here) if here else None
            learning += 0 if batch is None else int(bool(batch["advantages"].any()))
            batches.append(batch)
        (learns,) = sum_over_ranks(learning)
        if not learns and not self.config.grpo.kl:
            batches = [None] * len(batches)  # nothing can be learnt: no weight, and no moment of the optimizer, moves
        self._measure(drawn, compared, resampled=resampled)
        return batches

    def _drawn_and_graded(self, keys: Mapping[int, Key], *, number: int) -> list[Group]:
        """Position → clip: the groups of those that can be read."""
        with self._timed("rollout"):
            drawn = self.draw(list(keys.values()), number=number)
        found = [(at, key, *clip) for (at, key), clip in zip(keys.items(), drawn, strict=True) if clip is not None]
        if not found:
            return []
        truths = [self.parts[key[0]].truths[example.name] for _, key, example, _ in found]
        with self._timed("reward"):
            grades = self.grader.grade(truths, [answers for *_, answers in found])
        return [
            Group(at, f"{example.dataset}/{example.name}", example, truths[c], answers, grades.of_clip(c))
            for c, (at, _, example, answers) in enumerate(found)
        ]  # fmt: skip

    def draw(self, keys: Sequence[Key], *, number: int) -> list[tuple[Example, tuple[Answer, ...]] | None]:
        """``grpo.group_size`` answers to each clip; None for one that cannot be read.

        An answer depends on run seed, number of the roll-out, clip and its own number, not on the clips beside it.
        """
        session, G = self.session, self.config.grpo.group_size
        examples = self._examples(keys)
        drawn: list[tuple[Example, tuple[Answer, ...]] | None] = [None] * len(keys)
        at_once = self.config.grpo.answers_at_once or _AT_ONCE[session.device.type]
        step = max(1, at_once // G)
        was = session.model.training
        session.model.eval()
        try:
            for mode in dict.fromkeys(self.parts[key[0]].mode.name for key in keys):  # a batch has one mode
                here = [at for at, key in enumerate(keys) if at in examples and self.parts[key[0]].mode.name == mode]
                here.sort(key=lambda at: -len(examples[at].input_ids))
                for first in range(0, len(here), step):
                    rows = here[first : first + step]
                    seeds = [
                        sample_seed(self.config.run.seed, number, example.dataset, example.name, answer)
                        for example in (examples[at] for at in rows)
                        for answer in range(G)
                    ]
                    answers = session.generate([examples[at] for at in rows], seeds=seeds)
                    for row, at in enumerate(rows):
                        drawn[at] = examples[at], tuple(answers[row * G : (row + 1) * G])
        finally:
            session.model.train(was)
        return drawn

    def _examples(self, keys: Sequence[Key]) -> dict[int, Example]:
        """Position → the processed clip, of those that can be read."""
        found: dict[int, Example] = {}
        for number, part in enumerate(self.parts):
            mine = {at: part.samples[key[2]] for at, key in enumerate(keys) if key[0] == number}
            readable = {sample.name for sample in self._encode(part, list(mine.values()))}
            for at, sample in mine.items():
                if sample.name in readable:
                    question = part.ask(keys[at][2], keys[at][1])
                    example = self.processor.text(sample, question=question, mode=part.mode.name)
                    found[at] = self.processor.fill(example, sample, features=part.features.readers)
        return found

    def _encode(self, part: Clips, samples: Sequence[Sample]) -> list[Sample]:
        """The samples whose encoder outputs are known or can be made; the others are noted as failures."""
        unique = list({sample.name: sample for sample in samples}.values())
        before = set(part.features.unreadable)
        ready = list(
            part.features.ready(
                unique, reader=self.processor.media, encode=self.session.encode,
                batch_size=ENCODE_BATCH[self.session.device.type],
            )
        )  # fmt: skip
        for name in part.features.unreadable.keys() - before:
            self.failures.add(Failure(part.dataset.name, name, part.features.unreadable[name]))
        return ready

    def _resample(self, groups: list[Group], flat: Sequence[Key], *, number: int) -> tuple[list[Group], int]:
        """Dynamic sampling (DAPO): other clips in place of those that nothing can be learnt from, or cannot be read.

        Those for which none is found are left out. Returns the groups, and how many clips were drawn for it.
        """
        attempts = resamples(self.config.grpo)
        if not attempts:
            return groups, 0
        wanted = sorted(set(range(len(flat))) - {group.at for group in groups})
        wanted += [group.at for group in groups if group.without_variance]
        groups, resampled = [group for group in groups if not group.without_variance], 0
        for attempt in range(1, attempts + 1):
            if not wanted:
                break
            others: dict[int, Key] = {}
            for at in wanted:  # a clip of the same data set, by (seed, roll-out, clip, attempt)
                part, epoch, index = flat[at]
                rng = seeded(self.config.run.seed, "again", number, part, index, attempt)
                others[at] = part, epoch, rng.randrange(len(self.parts[part].samples))
            fresh = [g for g in self._drawn_and_graded(others, number=number) if not g.without_variance]
            resampled += len(others)
            groups += fresh
            wanted = [at for at in wanted if at not in {group.at for group in fresh}]
        return groups, resampled

    def _compare(self, groups: Sequence[Group], *, number: int) -> dict[str, tuple[float, int]]:
        """Return what answers earn that never met their clip: name → (sum over clips of the mean of G answers, clips).

        ``reward_dealt``: the same answers, given to other clips; ``reward_constant``: the best constant answer.
        """
        if not groups:
            return {}
        constant = (Answer(text=self.constant, tokens=0, stopped=True),)
        answers: dict[str, list[Sequence[Answer]]] = {"reward_constant": [constant] * len(groups)}
        if len(groups) > 1:
            circle = list(range(len(groups)))
            seeded(self.config.run.seed, "dealt", number).shuffle(circle)
            permuted: list[Sequence[Answer]] = [()] * len(groups)
            for at, place in enumerate(circle):  # each clip gets the answers of its neighbour in a random circle
                permuted[place] = groups[circle[at - 1]].answers
            answers["reward_dealt"] = permuted
        truths = [group.truth for group in groups]
        totals = {name: self.grader.grade(truths, given, read=False).totals for name, given in answers.items()}
        return {name: (float(np.mean(total, axis=1).sum()), len(groups)) for name, total in totals.items()}

    def _collate(self, groups: Sequence[Group]) -> Batch:
        """Prompts, answers, advantages, and the log-probabilities that the loss needs: a micro-batch."""
        grpo = self.config.grpo
        batch = self.processor.collate([group.example for group in groups])
        answers = [answer for group in groups for answer in group.answers]
        T = max(len(answer.ids) for answer in answers)
        ids = torch.zeros((len(answers), T), dtype=torch.int64)  # [B, T]
        mask = torch.zeros((len(answers), T), dtype=torch.bool)
        drawn = torch.zeros((len(answers), T))
        for row, answer in enumerate(answers):
            ids[row, : len(answer.ids)] = torch.tensor(answer.ids)
            mask[row, : len(answer.ids)] = True
            if grpo.correction != "off":
                drawn[row, : len(answer.ids)] = torch.tensor(answer.logprobs)
        values = torch.from_numpy(np.concatenate([group.grades.values for group in groups], axis=1))  # [K, C, G]
        weights = torch.from_numpy(np.concatenate([group.grades.weights for group in groups], axis=1))  # [K, C]
        gains = combined_advantages(values, weights, scale=scales(grpo), each=grpo.normalise == "each")  # [C, G]
        batch["answer_ids"], batch["answer_mask"] = ids, mask
        batch["clip_of"] = torch.arange(len(groups)).repeat_interleave(grpo.group_size)  # [B]
        batch["advantages"] = gains.flatten().float()  # [B]
        self._with_layout(batch)
        if grpo.correction != "off":
            batch["drawn_logprobs"] = drawn
        if grpo.updates > 1 or grpo.kl:
            with self._timed("logprobs"):
                there = batch.to(self.session.device)
                if grpo.updates > 1:
                    batch["old_logprobs"] = self.scorer.logprobs(there).cpu()
                if grpo.kl:
                    batch["start_logprobs"] = self.scorer.start_logprobs(there).cpu()
        return batch

    def _with_layout(self, batch: Batch) -> Batch:
        """Add where the prompts' media are, and how many tokens the answers' rows have."""
        found = layout_of(
            input_ids=batch.input_ids, placeholder_ids=self.session.model.placeholder_ids,
            attention_mask=batch.attention_mask,
        )  # fmt: skip
        tokens = int(batch.attention_mask.sum(dim=1)[batch["clip_of"]].sum() + batch["answer_mask"].sum())
        batch["layout"] = replace(found, n_tokens=tokens)
        return batch

    # What is logged.

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a block; it ends with results on the CPU, so that a GPU has nothing left to do."""
        began = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - began

    def _measure(self, groups: Sequence[Group], compared: dict[str, tuple[float, int]], *, resampled: int) -> None:
        """Means over the answers of all ranks, for the log and the guard."""
        sums: dict[str, tuple[float, float]] = dict(compared)  # name → (sum, how many it is of)

        def add(name: str, total: float, count: float) -> None:
            before = sums.get(name, (0.0, 0.0))
            sums[name] = before[0] + total, before[1] + count

        for group in groups:
            grades = group.grades
            G = grades.labels.shape[1]
            add("reward", float(grades.totals.sum()), G)
            for k, kind in enumerate(grades.kinds):
                # A weight of 0 by choice is measured; whether a kind knows the clip shows in its values alone then.
                if grades.weights[k, 0] or grades.values[k].any():
                    add(f"reward_{kind}", float(grades.values[k].sum()), G)
            add("labels_per_answer", float(grades.labels.sum()), G)
            if not np.isnan(grades.precision).any():
                add("precision", float(grades.precision.sum()), G)
                add("recall", float(grades.recall.sum()), G)
            add("unreadable", float((~grades.readable).sum()), G)
            add("answer_tokens", float(sum(len(answer.ids) for answer in group.answers)), G)
            add("finished", float(sum(answer.stopped for answer in group.answers)), G)
            add("groups_without_variance", float(group.without_variance), 1)
        ranks = gather(sums)
        found = {}
        for name in sorted({name for part in ranks for name in part}):
            total, count = (sum(part[name][i] for part in ranks if name in part) for i in (0, 1))
            if count:
                found[name] = total / count
        (resampled_clips,) = sum_over_ranks(resampled)
        if resamples(self.config.grpo):
            found["resampled_clips"] = resampled_clips
        seconds = {f"seconds_{stage}": round(value, 4) for stage, value in self.seconds.items()}
        self._numbers = {name: round(value, 6) for name, value in found.items()} | seconds
        self.guard.see(found.get("labels_per_answer"), found.get("precision"))

    def _note(self, group: Group, *, number: int) -> None:
        """A line of ``rollouts.jsonl``: one clip's answers with their rewards."""
        if self.notes is None or number % self.config.run.log_freq:
            return
        truth = group.truth
        line = {
            "rollout": number,
            "clip": group.clip,
            "truth": list(truth.labels) or ("positive" if truth.positive else "negative"),
            "answers": [
                {"text": answer.text, "reward": round(float(value), 4)}
                for answer, value in zip(group.answers, group.grades.totals[0], strict=True)
            ],
        }
        with (self.notes / _NOTES).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")


def _reader(config: Config) -> Any:
    """The language model that reads the labels of a thinking; None: the rules of the direct extraction do."""
    reader = config.grpo.reader
    if reader.client == DirectExtractor.name:
        return None
    settings: dict[str, Any] = {"model": reader.model}
    if reader.client == "openai":
        settings |= {
            "base_url": reader.base_url, "concurrency": reader.concurrency, "key_variable": reader.key_variable,
        }  # fmt: skip
    with config.naming("grpo.reader.client"):
        return get_extractor(reader.client, **settings)


def _hash(tensors: Sequence[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Guard:
    """Notices when a policy collects reward by saying more: labels per answer rise past a limit while precision falls.

    HIT and recall never punish a further label. Looked at are means over ``grpo.guard_window`` roll-outs: the labels
    against the limit, the precision against its best so far (it may rise first, as recognition gets better).
    """

    def __init__(self, config: Config, *, mean_labels: float) -> None:
        self.on = config.run.guard == "on"
        self.grpo = config.grpo
        self.truth = mean_labels
        self.first: list[list[float]] = []  # (labels per answer, precision) of the first roll-outs
        self.last: deque[list[float]] = deque(maxlen=config.grpo.guard_window)
        self.best = 0.0  # the highest precision of a window
        self._warned = False

    def see(self, labels: float | None, precision: float | None) -> None:
        """One more roll-out; what has no precision (sentiment) is not watched."""
        if labels is None or precision is None:
            return
        if len(self.first) < self.grpo.guard_window:
            self.first.append([labels, precision])
        self.last.append([labels, precision])
        if len(self.last) == self.grpo.guard_window:
            self.best = max(self.best, _mean(self.last, 1))

    @property
    def limit(self) -> float:
        """The most labels per answer."""
        if self.grpo.guard_labels is not None:
            return self.grpo.guard_labels
        return 1.3 * max(self.truth, _mean(self.first, 0))

    @property
    def verdict(self) -> str | None:
        """Why training should stop; None: it should not, or the guard is off (then it is logged, once)."""
        if len(self.last) < self.grpo.guard_window or not self.first:
            return None
        labels, precision = _mean(self.last, 0), _mean(self.last, 1)
        if labels <= self.limit or precision > self.best - self.grpo.guard_precision:
            self._warned = False
            return None
        text = (
            f"answers have {labels:.2f} labels, more than the limit of {self.limit:.2f} (at first "
            f"{_mean(self.first, 0):.2f}; the truth has {self.truth:.2f}), while their precision fell from "
            f"{self.best:.3f} to {precision:.3f}: the policy lists words instead of recognising emotions, which "
            "scores such as HIT do not punish. Give the reward precision (grpo.rewards.precision) or wheel a weight, "
            "set grpo.length_penalty, or raise grpo.kl"
        )
        if self.on:
            return f"{text}. Everything is saved; run.guard=off with run.resume_ckpt_path=auto resumes all the same"
        if not self._warned:
            self._warned = True
            logger.warning("run.guard is off: %s", text)
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what it has seen."""
        return {"first": self.first, "last": list(self.last), "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo ``state_dict``."""
        self.first = [list(pair) for pair in state["first"]]
        self.best = state["best"]
        self.last = deque((list(pair) for pair in state["last"]), maxlen=self.grpo.guard_window)


def _mean(pairs: Any, which: int) -> float:
    return sum(pair[which] for pair in pairs) / max(len(pairs), 1)
