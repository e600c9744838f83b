"""``python -m examples.demo`` from the root of a clone: ``make demo``; with ``--rl``, reinforcement learning."""

import sys

from affectgpt.cli.common import run_cli
from examples.demo.pipeline import main

sys.exit(run_cli(main))
