"""Reinforcement learning's data: clips with human labels, a session that answers, and rewards.

Everything that can be wrong is found before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.config.schema import Config
from affectgpt.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from affectgpt.core.types import Modality, Sample
    from affectgpt.evaluation.rewards import Grader, RewardTruth
    from affectgpt.inference.rollout import Part
    from affectgpt.processing.loader import FailureLog
    from affectgpt.processing.processor import AffectGPTProcessor
    from affectgpt.training.rollouts import Rollouts


@dataclass
class RolloutPlan:
    """What roll-outs need besides the model. ``failures``: clips that cannot be rewarded, and later read."""

    config: Config
    processor: AffectGPTProcessor
    parts: list[Part]
    grader: Grader
    constant: str
    failures: FailureLog
    lazy: bool

    @property
    def samples(self) -> dict[str, Any]:
        """Data set → its samples."""
        return {part.dataset.name: part.samples for part in self.parts}

    @property
    def counts(self) -> dict[str, int]:
        """Data set → number of clips."""
        return {part.dataset.name: len(part.samples) for part in self.parts}

    @property
    def media(self) -> set[Modality]:
        """Media that need an encoder."""
        return {m for part in self.parts for m in part.mode.media if m not in part.features.stored}

    def bind(self, model: Any, device: torch.device) -> Rollouts:
        """The stream of a training step, around the model as it begins."""
        from affectgpt.core.runtime import rank, world_size
        from affectgpt.encoders.llm import folder_generation_config, llm_folder
        from affectgpt.inference.engines.base import ENGINES, Decoding
        from affectgpt.inference.rollout import RolloutSource
        from affectgpt.inference.session import GenerationSession
        from affectgpt.processing.sampler import MixedBatches
        from affectgpt.training.objectives.grpo import Scorer
        from affectgpt.training.rollouts import Rollouts
        from affectgpt.training.step import amp_dtype, autocast_of

        config = self.config
        run, grpo = config.run, config.grpo
        engine = ENGINES.get("transformers")(
            model,
            processor=self.processor,
            decoding=Decoding(
                max_new_tokens=grpo.max_new_tokens, temperature=grpo.temperature, top_p=grpo.top_p, top_k=grpo.top_k
            ),
            defaults=folder_generation_config(llm_folder(config)),
        )
        engine.autocast_dtype = amp_dtype(run, device)
        engine.keeps_logprobs = grpo.correction != "off"
        session = GenerationSession(config, processor=self.processor, model=model, engine=engine, device=device)
        weights = [part.dataset.block.sample_ratio for part in self.parts]
        batches = MixedBatches(
            [len(part.samples) for part in self.parts],
            weights=None if None in weights else [float(weight) for weight in weights if weight is not None],
            batch_size=run.batch_size_train,
            iters_per_epoch=run.iters_per_epoch // grpo.updates * run.accum_grad_iters,
            seed=run.seed, rank=rank(), world_size=world_size(),
        )  # fmt: skip
        source = RolloutSource(
            config, self.parts, session=session, batches=batches, grade=self.grader.grade, constant=self.constant,
            failures=self.failures, lazy=self.lazy,
        )  # fmt: skip
        scorer = Scorer(
            model, autocast=partial(autocast_of, device, amp_dtype(run, device)), temperature=grpo.temperature,
            keep_start=grpo.kl > 0,
        )  # fmt: skip
        return Rollouts(source, config=config, scorer=scorer, device=device)


def check_rollouts(config: Config) -> None:
    """What is wrong with a configuration of reinforcement learning, before anything is read. Raises ConfigError."""
    from affectgpt.core.runtime import logger

    run, grpo = config.run, config.grpo
    if run.parallel == "fsdp2":
        raise ConfigError(
            f"{config.where('run.parallel')} is fsdp2, with which run.objective={run.objective} cannot be used: every "
            "process draws answers token by token with the whole model, and shards would travel between the GPUs for "
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


def plan_rollouts(config: Config, *, lazy: bool) -> RolloutPlan:
    """Clips, questions, truths and rewards of a configuration; ``lazy``: clips are encoded when they are drawn.

    Raises ConfigError and DataError naming key, data set, or the clips that are tested on.
    """
    from affectgpt.core.runtime import logger
    from affectgpt.datasets.overlap import refuse_test_clips
    from affectgpt.datasets.splits import hold_out, keep_fraction
    from affectgpt.evaluation.lexicon import find_lexicon, grouping_of
    from affectgpt.evaluation.rewards import Grader
    from affectgpt.inference.rollout import Part
    from affectgpt.inference.session import training_mode
    from affectgpt.processing.loader import FailureLog, trained_sets
    from affectgpt.processing.processor import AffectGPTProcessor
    from affectgpt.processing.questions import get_label_type

    run, grpo = config.run, config.grpo
    lexicon = find_lexicon(grpo.lexicon or None)
    logger.info(
        "rewards by the lexicon %s: %s", lexicon.source, ", ".join(f"{n} {w:g}" for n, w in grpo.rewards.items())
    )
    grouping = grouping_of(lexicon)
    with config.naming("grpo.rewards"):
        grader = Grader(
            grpo.rewards, grouping=grouping, think=grpo.think, length_penalty=grpo.length_penalty,
            max_tokens=grpo.max_new_tokens, overlong=grpo.overlong, reader=_reader(config),
        )  # fmt: skip
    question = grpo.question or (get_label_type("think").question if grpo.think else "")
    answered = replace(config, inference=replace(config.inference, max_new_tokens=grpo.max_new_tokens))
    processor = AffectGPTProcessor.from_config(
        answered, mode=training_mode(config) if len(config.datasets) == 1 else None
    )
    failures, parts = FailureLog(), []
    for dataset in trained_sets(config):
        name, block = dataset.key, dataset.block
        samples, _ = hold_out(dataset.samples("train"), config)
        samples = keep_fraction(samples, ratio=block.ratio, seed=run.seed) if samples else []
        truths = _truths(samples, grader, failures)
        samples = [sample for sample in samples if sample.name in truths]
        if not samples:
            raise DataError(f"datasets.{name}: no clip of the training split of {dataset.name} has a truth to score by")
        part_config = config if not lazy else replace(config, run=replace(run, num_workers=0))
        parts.append(Part(part_config, dataset, samples, truths=truths, question=question))
    refuse_test_clips({part.dataset.name: part.samples for part in parts}, Path(config.paths.dataset_root))
    constant = grader.best_constant([truth for part in parts for truth in part.truths.values()])
    logger.info("the best answer that is the same for every clip: %s", constant)
    return RolloutPlan(answered, processor, parts, grader, constant, failures, lazy)


def _truths(samples: Sequence[Sample], grader: Grader, failures: FailureLog) -> dict[str, RewardTruth]:
    """Name → truth; clips without one are left out, by name."""
    from affectgpt.evaluation.rewards import FORMAL, read_reply, truth_of
    from affectgpt.processing.loader import Failure

    truths = {}
    probe = read_reply(grader.constant_text(["neutral"]), think=grader.think, max_tokens=grader.max_tokens)
    for sample in samples:
        truth = truth_of(sample.labels, grader.grouping)
        why = "it has no label that can be scored (none, none that a wheel knows, or a valence of 0)"
        if truth is not None:
            known = [n for n, v in grader.rewards_of(probe, truth).items() if v is not None and n not in FORMAL]
            why = f"none of the rewards {', '.join(grader.rewards)} scores a truth of this kind ({truth.kind})"
            if known:
                truths[sample.name] = truth
                continue
        failures.add(
            Failure(sample.dataset, sample.name, f"{sample.dataset}: sample {sample.name!r} is left out: {why}")
        )
    return truths


def _reader(config: Config) -> Any:
    """The language model that reads thinkings; None: the rules do."""
    from affectgpt.evaluation.extract import DirectExtractor, get_extractor

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
