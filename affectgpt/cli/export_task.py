"""A task folder for another evaluation program, whose scores come from this package."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from affectgpt.cli.ask import open_datasets
from affectgpt.cli.common import run_cli
from affectgpt.cli.score import add_place_arguments


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="affectgpt export_task",
        description="Write data sets as a task folder of lmms-eval: its models answer the clips, video and sound as "
        "separate parts, and this package scores them.",
        epilog="The folder names media files by their absolute paths; affectgpt must be installed beside lmms-eval.",
    )
    parser.add_argument("--lmms-eval", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--datasets",
        default="all",
        metavar="A,B|all",
        help="data sets of the table (default: the nine of MER-UniBench)",
    )
    parser.add_argument(
        "--prompt", default="labels", metavar="published:MODEL|labels|FILE", help="as in affectgpt ask (labels)"
    )
    parser.add_argument("--media", metavar="video,audio,subtitle", help="what is sent (default: that of the prompt)")
    add_place_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Read the data sets, write the folder, say how it is run."""
    args = build_parser().parse_args(argv)
    from affectgpt.core.errors import ConfigError, printable
    from affectgpt.core.registry import import_files
    from affectgpt.core.runtime import setup_logging
    from affectgpt.datasets.table import DATASETS
    from affectgpt.evaluation.lexicon import find_lexicon
    from affectgpt.evaluation.lmms_task import write_task
    from affectgpt.mllm.prompts import find_prompt, parse_media

    setup_logging()
    import_files(args.imports)
    prompt = find_prompt(args.prompt)
    media = parse_media(args.media, prompt)
    find_lexicon(args.lexicon)  # what is missing shows here, not after hours of answers
    datasets, _ = open_datasets(args)
    if own := [dataset.name for dataset in datasets if dataset.name not in DATASETS]:
        raise ConfigError(
            f"--datasets {own[0]}: only the table's data sets can be exported; score it with affectgpt ask"
        )
    folder = Path(args.lmms_eval)
    lexicon = args.lexicon if args.lexicon == "builtin" else str(Path(args.lexicon or "emotion_wheel").resolve())
    if args.lexicon is None and not Path("emotion_wheel").is_dir():
        lexicon = "builtin"
    tasks, clips = write_task(folder, datasets, prompt, media, lexicon=lexicon)
    print(printable(f"{folder}: {clips} clips of {len(datasets)} data sets: {', '.join(tasks[1:])}"))
    print(
        "run it: " + shlex.join(
            ["python", "-m", "lmms_eval", "--model", "qwen2_5_omni", "--include_path", str(folder), "--tasks", tasks[0],
             "--batch_size", "1"]
        )
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
