"""Learning rates and weight-decay groups of the published implementation."""

import json
from dataclasses import replace

import pytest

from affectgpt.config.schema import RunConfig
from affectgpt.training.optim import get_schedule

pytestmark = pytest.mark.parity


def test_published_schedule_step_for_step(golden):
    cases = {k: v for k, v in json.loads((golden / "lr_schedule.json").read_text()).items() if isinstance(v, dict)}
    assert len(cases) == 4
    for name, case in cases.items():
        asked = dict(case["params"])
        asked["warmup_lr"] = asked.pop("warmup_start_lr")
        schedule = get_schedule(replace(RunConfig(), **asked))
        for step in case["steps"]:
            assert schedule(step["epoch"], step["i"]) == pytest.approx(step["lr"], rel=1e-12), (name, step)
