"""Rewards of a user's own, as ``imports:`` of a configuration names them."""

from affectgpt.evaluation.rewards import REWARDS


@REWARDS.register("letters")
def letters(reply, truth, grader):
    """Differs from answer to answer, whatever a random model says."""
    return sum(map(ord, reply.text)) % 17 / 17


@REWARDS.register("same")
def same(reply, truth, grader):
    return 0.5
