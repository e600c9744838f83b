"""See affectgpt/cli/score.py."""

import sys

from affectgpt.cli.common import run_cli
from affectgpt.cli.score import main

if __name__ == "__main__":
    sys.exit(run_cli(main))
