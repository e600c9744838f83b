"""A reward that knows nothing: the control arm of benchmarks/grpo_demo.py."""

import random

from affectgpt.evaluation.rewards import REWARDS

_DRAW = random.Random(0)


@REWARDS.register("random")
def random_reward(reply, truth, grader):
    """A number that depends on nothing."""
    return _DRAW.random()
