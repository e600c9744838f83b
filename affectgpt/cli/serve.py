"""A model behind an OpenAI-compatible HTTP API, with ``--ui`` also as a web page."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.cli.common import add_config_arguments, run_cli

if TYPE_CHECKING:
    from affectgpt.inference.predictor import Predictor
    from affectgpt.serve.service import ServeSettings


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the server."""
    parser = argparse.ArgumentParser(
        prog="affectgpt serve",
        description="Serve a model: POST /v1/chat/completions, GET /v1/models and GET /health as OpenAI clients know "
        "them, and with --ui a page. Requests that come together are answered together. See docs/api.md.",
    )
    add_config_arguments(parser, required=False)
    parser.add_argument(
        "--hf", metavar="DIR", help="a folder that affectgpt export --hf wrote, instead of a checkpoint"
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="checkpoint of --cfg-path (default: the last that inference would run)"
    )
    parser.add_argument("--mode", metavar="MODE", help="input mode, instead of that of the training data in the file")
    parser.add_argument("--asr", metavar="FOLDER", help="Whisper folder that hears the subtitle where there is none")
    parser.add_argument("--asr-language", metavar="CODE", help="language that is spoken (default: heard)")
    parser.add_argument("--model-name", metavar="NAME", help="what clients call the model (default: the recipe's name)")
    parser.add_argument("--ui", action="store_true", help="a web page, too (needs the extra [page])")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="port (8000; 0: any that is free)")
    entry = parser.add_argument_group("who gets in")
    entry.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable that holds the key clients must send"
    )
    entry.add_argument("--no-auth", action="store_true", help="no key though other machines reach the server")
    entry.add_argument("--allow-host", nargs="+", default=[], metavar="NAME", help="names that the server is called by")
    entry.add_argument("--media-root", type=Path, metavar="DIR", help="file: URLs below this folder are read")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-megabytes", type=float, default=64.0, metavar="MB", help="of a medium (64)")
    limits.add_argument("--max-seconds", type=float, default=60.0, metavar="S", help="of a clip (60)")
    limits.add_argument("--max-height", type=int, default=1080, metavar="PX", help="shorter side of a picture (1080)")
    limits.add_argument("--max-fps", type=float, default=60.0, metavar="N", help="frames per second (60)")
    limits.add_argument("--max-waiting", type=int, default=64, metavar="N", help="requests at once; one more gets 429")
    limits.add_argument("--max-batch", type=int, metavar="N", help="answers at once (default: what the memory takes)")
    limits.add_argument("--batch-wait-ms", type=float, default=250.0, metavar="MS",
                        help="wait at most so long for requests that are being read (250)")  # fmt: skip
    limits.add_argument("--request-timeout", type=float, default=300.0, metavar="S", help="for one answer (300)")
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="private folders of requests (default: below /tmp)"
    )
    return parser


def settings_of(args: argparse.Namespace) -> ServeSettings:
    """The settings that the arguments ask for. Raises ConfigError."""
    from affectgpt.core.errors import ConfigError
    from affectgpt.media.limits import MediaLimits
    from affectgpt.serve.service import ServeSettings

    key = os.environ.get(args.api_key_env) if args.api_key_env else None
    if args.api_key_env is not None and not key:
        raise ConfigError(f"--api-key-env {args.api_key_env}: no environment variable of this name, or an empty one")
    for name, value in vars(args).items():
        if name.startswith(("max_", "request_")) and value is not None and not 0 < value < 1e9:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected a positive number")
    return ServeSettings(
        host=args.host, port=args.port, api_key=key, no_auth=args.no_auth, allowed_hosts=tuple(args.allow_host),
        media_root=args.media_root, work_dir=args.work_dir, megabytes=args.max_megabytes,
        waiting=args.max_waiting, max_batch=args.max_batch,
        batch_wait=max(args.batch_wait_ms, 0) / 1000, request_timeout=args.request_timeout,
        media=MediaLimits(seconds=args.max_seconds, shorter_side=args.max_height,
                          longer_side=math.ceil(args.max_height * 16 / 9), frames_per_second=args.max_fps),
    )  # fmt: skip


def load(args: argparse.Namespace) -> tuple[Predictor, str]:
    """The model, and what clients call it. Raises ConfigError and CheckpointError."""
    from affectgpt.cli.infer import load_inference_config
    from affectgpt.cli.sample import transcriber
    from affectgpt.core.errors import ConfigError
    from affectgpt.inference.predictor import Predictor
    from affectgpt.modeling.build import exported_config

    if args.hf and args.checkpoint:
        raise ConfigError("--checkpoint goes with --cfg-path; --hf has weights of its own")
    if args.asr_language and not args.asr:
        raise ConfigError("--asr-language goes with --asr FOLDER")
    config = load_inference_config(args, args.options)
    shared: dict[str, Any] = {"recognise": transcriber(args, config)}
    if args.hf:
        config, mode = exported_config(args.hf, config, mode=args.mode)
        predictor = Predictor.from_pretrained(args.hf, config=config, mode=mode, **shared)
        return predictor, args.model_name or Path(args.hf).resolve().name
    predictor = Predictor.from_config(
        args.cfg_path, checkpoint=args.checkpoint, options=args.options, mode=args.mode, **shared
    )
    return predictor, args.model_name or config.name


def main(argv: list[str] | None = None) -> int:
    """Check, load, serve until SIGTERM or Ctrl-C."""
    args = build_parser().parse_args(argv)

    from affectgpt.cli.infer import load_inference_config
    from affectgpt.core.errors import ConfigError
    from affectgpt.core.runtime import one_thread, setup_logging

    setup_logging()
    settings = settings_of(args)
    load_inference_config(args, args.options)  # what is wrong with it shows before anything is loaded
    for package, extra in (("fastapi", "web"), ("uvicorn", "web"), *([("gradio", "page")] if args.ui else [])):
        if importlib.util.find_spec(package) is None:
            option = "--ui" if extra == "page" else "affectgpt serve"
            raise ConfigError(f"{option} needs the package {package}: pip install 'affectgpt[{extra}]'")

    from affectgpt.serve.server import run
    from affectgpt.serve.service import TOY_PARAMETERS, Service

    predictor, name = load(args)
    session = predictor.session
    if session.device.type == "cpu" and sum(p.numel() for p in session.model.parameters()) < TOY_PARAMETERS:
        one_thread()  # for each operation: clips are read meanwhile
    service = Service(predictor, settings, model=name)
    try:
        run(service, page=args.ui, examples=demo_clips() if args.ui else ())
    finally:
        service.close()
    return 0


def demo_clips() -> list[tuple[Path, str]]:
    """Held-out clips of the demo and their subtitles, one of each emotion; none before ``make demo`` was run."""
    from affectgpt.core.errors import DataError
    from affectgpt.datasets.label_files import load_samples
    from affectgpt.datasets.table import get_row

    dataset = Path("output/demo/dataset")
    row = get_row("MER2023")
    if not (dataset / row.root / row.video_dir).is_dir():
        return []
    try:
        samples = load_samples(row, split="test", dataset_root=dataset)
    except DataError:
        return []
    first = {str(sample.labels.emotion): sample for sample in reversed(samples) if sample.video is not None}
    return [(sample.video, sample.subtitle) for sample in first.values() if sample.video and sample.video.is_file()]


if __name__ == "__main__":
    sys.exit(run_cli(main))
