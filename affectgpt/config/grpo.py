"""Every key of the section ``grpo``: how reinforcement learning draws, rewards and compares answers.

``run.objective: grpo`` takes it. What stands in ``run`` counts as everywhere: a step has ``batch_size_train`` clips
(per GPU) times ``accum_grad_iters``, each with ``group_size`` answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from affectgpt.config.limits import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, WARM, Limits, limited

GROUP = Limits(low=2, advice="answers are compared with the others of their clip")
CLIP = Limits(low=0, open_low=True)


@dataclass(frozen=True)
class ReaderConfig:
    """The reader of the labels in a thinking (rewards ``dual``, ``alignment``): the rules, or a language model."""

    client: str = "direct"  # direct; or openai, transformers, vllm: a text client
    model: str = ""  # as the server calls it, or a folder
    base_url: str = ""  # openai: http://host:8000/v1
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = limited(16, COUNT)


@dataclass(frozen=True)
class GRPOConfig:
    """Group relative policy optimisation. Formulas: training/objectives/grpo; rewards: evaluation/rewards."""

    # What is compared and minimised.
    variant: Literal["grpo", "dr_grpo", "dapo", "gspo"] = "grpo"
    group_size: int = limited(8, GROUP)  # G, answers of each clip
    clip_low: float = limited(0.2, CLIP)  # ratios below 1 - clip_low gain nothing more
    clip_high: float | None = limited(None, CLIP)  # above 1 + clip_high; not set: clip_low (dapo: 0.28)
    kl: float = limited(0.04, NOT_NEGATIVE)  # weight of the divergence from the start; 0: no reference is kept
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    updates: int = limited(1, COUNT)  # optimizer steps on the same answers
    scale: bool | None = None  # divide by the group's deviation; not set: as the variant does (all but dr_grpo)
    normalise: Literal["together", "each"] = "together"  # the weighted sum of the rewards in a group, or each reward
    # Clips that are drawn in place of one whose answers all earn the same; not set: 3 for dapo, 0 for the others.
    resample: int | None = limited(None, NOT_NEGATIVE)
    # Ratio between the probabilities of the training forward and those that answers were drawn with, as a weight.
    correction: Literal["off", "token", "sequence"] = "off"
    correction_cap: float = limited(2.0, POSITIVE)
    # How answers are drawn. The policy that is scored is the one that is drawn from only with top_p 1 and top_k 0.
    temperature: float = limited(1.0, WARM)
    top_p: float = limited(1.0, SHARE)
    top_k: int = limited(0, NOT_NEGATIVE)
    max_new_tokens: int = limited(128, COUNT)
    answers_at_once: int | None = limited(None, COUNT)  # drawn together; not set: those of a micro-batch
    question: str = ""  # asked of every clip; empty: that of its label type, with think that of the label type think
    think: bool = False  # answers are <think>…</think><answer>…</answer>, and labels are read from the answer alone
    # What an answer earns: reward → weight. Weight 0: it is measured and logged.
    rewards: dict[str, float] = field(
        default_factory=lambda: {"wheel": 1.0, "hit": 1.0, "polarity": 1.0, "format": 0.1}
    )
    # A factor on rewards of labels where an answer has n labels and the truth m < n: 1/(n-m+1), m/n, log ratio.
    length_penalty: Literal["none", "p1", "p2", "p3"] = "none"
    overlong: int = limited(32, COUNT)  # reward overlong: it falls over so many tokens before max_new_tokens
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    lexicon: str = ""  # folder of emotion wheels, or builtin; empty: emotion_wheel/ if it is there, else builtin
    # When run.guard stops: labels per answer above guard_labels, precision lower than its best by guard_precision.
    guard_labels: float | None = limited(None, POSITIVE)  # not set: 1.3 times the larger of the truth's and the start's
    guard_precision: float = limited(0.02, NOT_NEGATIVE)
    guard_window: int = limited(8, COUNT)  # roll-outs whose mean is looked at; the first are the start
