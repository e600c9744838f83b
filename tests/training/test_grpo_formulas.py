"""Every formula of GRPO and its variants, against numbers worked out by hand and against TRL's implementation."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from affectgpt.config.grpo import GRPOConfig
from affectgpt.training.objectives.grpo import (
    advantages_of,
    clip_range,
    clipped_loss,
    combined_advantages,
    correction_of,
    kl_of,
    log_ratios,
    resamples,
    scales,
    summed_loss,
    term_count,
)

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_advantages_are_distances_from_the_groups_mean_in_deviations():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.2, 0.2, 0.2, 0.2]], dtype=torch.float64)
    deviation = math.sqrt(4 * 0.25 / 3)  # unbiased
    expected = 0.5 / (deviation + 1e-4)
    found = advantages_of(rewards, scale=True)
    assert found[0].tolist() == pytest.approx([expected, -expected, -expected, expected])
    assert found[1].tolist() == [0.0] * 4  # to the bit, whatever the mean's rounding
    assert advantages_of(rewards, scale=False)[0].tolist() == pytest.approx([0.5, -0.5, -0.5, 0.5])


def test_rewards_that_are_equal_give_exactly_nothing_though_their_mean_is_rounded():
    rewards = torch.full((1, 3), 0.1, dtype=torch.float64)
    assert rewards.mean() != 0.1  # the reason for the care
    assert advantages_of(rewards, scale=True).eq(0).all()


def test_kinds_are_summed_before_or_after_they_are_normalised():
    rewards = torch.tensor([[[1.0, 0.0]], [[0.0, 0.01]]], dtype=torch.float64)  # [2 kinds, 1 clip, 2 answers]
    weights = torch.ones(2, 1, dtype=torch.float64)
    together = combined_advantages(rewards, weights, scale=False, each=False)
    assert together.tolist() == [pytest.approx([0.495, -0.495])]
    each = combined_advantages(rewards, weights, scale=True, each=True)
    one, two = math.sqrt(0.5), 0.01 * math.sqrt(0.5)
    gain = 0.5 / (one + 1e-4) - 0.005 / (two + 1e-4)  # the small signal counts nearly as much
    assert each.tolist() == [pytest.approx([gain, -gain])]
    unknown = torch.tensor([[1.0], [0.0]], dtype=torch.float64)  # the second says nothing of this clip
    assert combined_advantages(rewards, unknown, scale=False, each=True).tolist() == [[0.5, -0.5]]


@pytest.mark.parametrize(
    ("ratio", "gain", "expected"),
    [
        (1.0, 2.0, -2.0),
        (1.5, 2.0, -2.4),  # clipped at 1.2
        (0.5, 2.0, -1.0),  # a ratio that fell is not clipped where the answer was good
        (1.5, -2.0, 3.0),
        (0.5, -2.0, 1.6),  # clipped at 0.8
    ],
)
def test_the_gain_is_clipped_where_it_would_go_on(ratio, gain, expected):
    found = clipped_loss(torch.tensor([[math.log(ratio)]]), torch.tensor([gain]), low=0.2, high=0.2)
    assert found.item() == pytest.approx(expected)


def test_dapo_clips_higher_above_than_below():
    assert clip_range(GRPOConfig(variant="dapo")) == (0.2, 0.28)
    assert clip_range(GRPOConfig()) == (0.2, 0.2)
    assert clip_range(GRPOConfig(variant="gspo", clip_low=3e-4, clip_high=4e-4)) == (3e-4, 4e-4)
    found = clipped_loss(torch.tensor([[math.log(1.27)]]), torch.tensor([1.0]), low=0.2, high=0.28)
    assert found.item() == pytest.approx(-1.27)


def test_the_ratio_of_an_answer_is_the_geometric_mean_of_its_tokens():
    new, old = torch.tensor([[0.3, 0.0, -0.9], [0.5, 9.0, 9.0]]), torch.zeros(2, 3)
    assert log_ratios(new, old, MASK, variant="gspo").flatten().tolist() == pytest.approx([-0.2, 0.5])
    assert log_ratios(new, old, MASK, variant="grpo").tolist() == [pytest.approx([0.3, 0.0, -0.9]), [0.5, 0.0, 0.0]]


def test_estimates_of_the_divergence():
    new, reference = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
    assert kl_of(new, reference, estimator="k1").item() == pytest.approx(math.log(2))
    assert kl_of(new, reference, estimator="k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_of(new, reference, estimator="k3").item() == pytest.approx(0.5 - 1 + math.log(2))
    assert kl_of(new, new, estimator="k3").item() == 0.0


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_estimates_are_unbiased(estimator):
    """Over all tokens, weighted by their probability: the divergence itself."""
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    mean = (p * kl_of(p.log(), q.log(), estimator=estimator)).sum()
    assert mean.item() == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)


def test_the_four_ways_to_add_up():
    losses = torch.tensor([[1.0, 2.0, 6.0], [4.0, 99.0, 99.0]])
    of = {v: summed_loss(losses, MASK, variant=v, max_tokens=10).item() for v in ("grpo", "gspo", "dr_grpo", "dapo")}
    assert of == {
        "grpo": pytest.approx(3 + 4), "gspo": pytest.approx(3 + 4), "dr_grpo": pytest.approx(1.3),
        "dapo": pytest.approx(13),
    }  # fmt: skip
    assert term_count(MASK, variant="dapo") == 4 and term_count(MASK, variant="dr_grpo") == 2
    assert summed_loss(torch.tensor([[3.0], [4.0]]), MASK, variant="gspo", max_tokens=10).item() == pytest.approx(7)


def test_answers_of_another_engine_are_weighed_by_what_it_thought_of_them():
    old, drawn = torch.tensor([[math.log(0.6), 0.0, 0.0]]), torch.tensor([[math.log(0.3), math.log(0.8), 5.0]])
    mask = torch.tensor([[True, True, False]])
    assert correction_of(old, drawn, mask, level="token", cap=10).tolist() == [pytest.approx([2.0, 1.25, 1.0])]
    assert correction_of(old, drawn, mask, level="token", cap=1.5).tolist() == [pytest.approx([1.5, 1.25, 1.0])]
    assert correction_of(old, drawn, mask, level="sequence", cap=10).tolist() == [[pytest.approx(2.5)]]


def test_what_a_variant_brings_with_it():
    assert [scales(GRPOConfig(variant=v)) for v in ("grpo", "dr_grpo", "dapo", "gspo")] == [True, False, True, True]
    assert scales(GRPOConfig(variant="dr_grpo", scale=True)) and not scales(GRPOConfig(scale=False))
    assert [resamples(GRPOConfig(variant=v)) for v in ("grpo", "dapo")] == [0, 3]


# --- TRL ---------------------------------------------------------------------------------------------------------


def trl_loss(variant: str, tensors: dict, *, beta: float, correction: torch.Tensor | None, settings: GRPOConfig):
    """What TRL's trainer computes of the same log-probabilities."""
    trainer_of = pytest.importorskip("trl", reason="pip install trl datasets (the oracle of these formulas)")
    from collections import defaultdict

    low, high = clip_range(settings)
    kinds = {"grpo": ("grpo", "token"), "gspo": ("grpo", "sequence"), "dr_grpo": ("dr_grpo", "token"),
             "dapo": ("dapo", "token")}  # fmt: skip
    loss_type, level = kinds[variant]
    mask, new = tensors["mask"], tensors["new"]

    def same(x, reduction="sum"):
        return x

    fake = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, torch.zeros_like(new), None),
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level=level, beta=beta,
        loss_type=loss_type, epsilon_low=low, epsilon_high=high, use_vllm=correction is not None,
        vllm_importance_sampling_correction=True, max_completion_length=settings.max_new_tokens,
        current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False, aux_loss_enabled=False,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        accelerator=SimpleNamespace(num_processes=1, gather=same, reduce=same), model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)}, router_aux_loss_coef=0.0,
    )  # fmt: skip
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.int64), "prompt_mask": torch.ones(len(mask), 1),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.int64), "completion_mask": mask.float(),
        "advantages": tensors["advantages"], "old_per_token_logps": tensors["old"],
        "ref_per_token_logps": tensors["reference"], "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    if correction is not None:
        inputs["importance_sampling_ratio"] = correction
    return trainer_of.GRPOTrainer._compute_loss(fake, None, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("corrected", [False, True], ids=["own-engine", "another-engine"])
@pytest.mark.parametrize("variant", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_losses_and_gradients_are_trls(variant, corrected, beta):
    settings = GRPOConfig(variant=variant, max_new_tokens=11, kl=beta)
    draw = torch.Generator().manual_seed(5)
    B, T = 8, 7
    lengths = torch.randint(1, T + 1, (B, 1), generator=draw)
    mask = torch.arange(T)[None] < lengths
    old, reference, drawn = (-2 * torch.rand(B, T, generator=draw, dtype=torch.float64) for _ in range(3))
    new = (old + 0.4 * torch.randn(B, T, generator=draw, dtype=torch.float64)).requires_grad_()
    advantages = torch.randn(B, generator=draw, dtype=torch.float64)
    weights = correction_of(old, drawn, mask, level="token", cap=2.0) if corrected else None
    low, high = clip_range(settings)
    losses = clipped_loss(log_ratios(new, old, mask, variant=variant), advantages, low=low, high=high)
    losses = losses if weights is None else losses * weights
    losses = losses + beta * kl_of(new, reference, estimator="k3")
    ours = summed_loss(losses, mask, variant=variant, max_tokens=11) / term_count(mask, variant=variant)
    (mine,) = torch.autograd.grad(ours, new)
    tensors = {"mask": mask, "new": new, "old": old, "reference": reference, "advantages": advantages}
    theirs = trl_loss(variant, tensors, beta=beta, correction=weights, settings=settings)
    (their_gradient,) = torch.autograd.grad(theirs, new)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert torch.allclose(mine, their_gradient, rtol=1e-6, atol=1e-9)
