"""What every command line shares: how errors end, and the arguments of the published scripts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from affectgpt.core.errors import AffectGPTError


def run_cli(command: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Run a command's main function; a user's error becomes one line on stderr and exit status 1."""
    # Two torch threads that spin while anything else uses a core slow a step many times over.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return command(argv)
    except AffectGPTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def add_imports_argument(parser: argparse._ActionsContainer) -> None:
    """``--imports`` of commands that have no configuration: one inside a checkpoint is never asked for code."""
    parser.add_argument(
        "--imports", nargs="+", default=[], metavar="FILE", help="your own Python files with what they register"
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The two arguments of every published command: ``--cfg-path`` and ``--options``."""
    parser.add_argument("--cfg-path", required=True, metavar="FILE", help="configuration, a file of train_configs/")
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help='override any key of the configuration, e.g. "run.max_epoch=3" "model.lora_r=8"; pairs do too: '
        "run.max_epoch 3 model.lora_r 8",
    )
