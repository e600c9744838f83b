"""Parameters of a configuration's model, trained and frozen, by group; no weights are needed."""

from __future__ import annotations

import argparse
import sys

from affectgpt.cli.common import add_config_arguments, run_cli


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="affectgpt params",
        description="Count trained and frozen parameters by group. Where a model folder is missing, the numbers of the "
        "published model stand in for it.",
    )
    add_config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, build on the meta device, print."""
    args = build_parser().parse_args(argv)

    import json

    from affectgpt.config.load import load_config

    config = load_config(args.cfg_path, args.options)  # before torch and transformers, which take seconds

    from affectgpt.modeling.build import build_empty_model, count_parameters

    groups = count_parameters(build_empty_model(config))
    total = {kind: sum(group[kind] for group in groups.values()) for kind in ("trained", "frozen")}
    if args.json:
        print(json.dumps({"groups": groups, "total": total}, indent=1))
        return 0
    print(f"{'group':18}{'trained':>16}{'frozen':>16}")
    for name, group in {**groups, "total": total}.items():
        print(f"{name:18}{group['trained']:>16,}{group['frozen']:>16,}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
