"""See affectgpt/cli/evaluate.py."""

import sys

from affectgpt.cli.common import run_cli
from affectgpt.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(run_cli(main))
