"""Answers of any other multimodal LLM on data sets, as result files that ``evaluate`` and ``score`` read."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from affectgpt.cli.common import run_cli
from affectgpt.cli.score import add_place_arguments

if TYPE_CHECKING:
    from affectgpt.datasets.base import EmotionDataset
    from affectgpt.mllm.ask import Asker
    from affectgpt.mllm.clip import MediaOptions
    from affectgpt.mllm.prompts import Prompt
    from affectgpt.textllm.base import Sampling, TextLLM

FRAMES = 8


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="affectgpt ask",
        description="Ask a multimodal LLM about every test clip of data sets. Video and sound are decoded here and "
        "sent as separate parts. First, three clips show whether the model takes in what it is sent. Run it again to "
        "resume: what is answered is kept.",
        epilog="Answers to --prompt labels are read by evaluation.py --extractor direct; descriptions need a language "
        "model there.",
    )
    who = parser.add_argument_group("who is asked")
    who.add_argument("--model", metavar="NAME", help="the model's name on the server")
    who.add_argument("--base-url", metavar="URL", help="OpenAI-compatible server: http://host:8000/v1")
    who.add_argument("--model-path", metavar="DIR", help="instead: a folder that transformers loads, in this process")
    who.add_argument(
        "--key-variable", default="OPENAI_API_KEY", metavar="NAME", help="environment variable that holds the "
        "server's key (OPENAI_API_KEY)",
    )  # fmt: skip
    what = parser.add_argument_group("what is asked")
    what.add_argument("--datasets", required=True, metavar="A,B|all", help="data sets; all: the nine of MER-UniBench")
    what.add_argument(
        "--prompt", default="labels", metavar="published:MODEL|labels|FILE",
        help="labels (default): one sentence with emotion words; published: as that model of the paper's table 2 was "
        "asked; a text file, whose lines with {subtitle} are left out where a clip has none",
    )  # fmt: skip
    what.add_argument(
        "--media", metavar="video,audio,subtitle", help="what is sent (default: all, or those of the published prompt)"
    )
    how = parser.add_argument_group("how media are sent")
    how.add_argument(
        "--frames", type=int, metavar="N", help=f"uniformly sampled frames (default: the prompt's, else {FRAMES})"
    )
    how.add_argument("--fps", type=float, metavar="F", help="instead: frames per second, at most 100 in all")
    how.add_argument(
        "--longest-side", type=int, default=448, metavar="PIXELS", help="frames are scaled down to this (448)"
    )
    how.add_argument("--as-frames", action="store_true", help="pictures instead of a video, for models of images")
    how.add_argument(
        "--audio-part", choices=("input_audio", "audio_url"), default="input_audio", help="how sound travels to a "
        "server (input_audio)",
    )  # fmt: skip
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument(
        "--temperature", type=float, metavar="T", help="default: the prompt's, else 0, the likeliest tokens"
    )
    decoding.add_argument("--top-p", type=float, metavar="P", help="default: the prompt's, else 1")
    decoding.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="1 (default): none")
    decoding.add_argument("--max-tokens", type=int, default=512, metavar="N", help="of an answer (512)")
    decoding.add_argument("--seed", type=int, default=42, help="each has a result file of its own (42)")
    server = parser.add_argument_group("servers")
    server.add_argument("--concurrency", type=int, default=8, metavar="N", help="requests at a time (8)")
    server.add_argument("--requests-per-minute", type=float, metavar="N", help="no more are begun")
    server.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help="for one request (300)")
    server.add_argument("--attempts", type=int, default=6, metavar="N", help="per clip (6)")
    server.add_argument(
        "--stream", action="store_true", help="ask for answers in pieces (done anyway where a server says it must be)"
    )
    server.add_argument(
        "--request-fields", metavar="JSON",
        help='what else a request holds: \'{"modalities": ["text"], "mm_processor_kwargs": {…}}\'',
    )  # fmt: skip
    server.add_argument("--price-prompt", type=float, default=0.0, metavar="X", help="of a million prompt tokens")
    server.add_argument("--price-reply", type=float, default=0.0, metavar="X", help="of a million reply tokens")
    folder = parser.add_argument_group("models in a folder")
    folder.add_argument("--batch-size", type=int, default=4, metavar="N", help="clips at once (4)")
    folder.add_argument("--device", default="auto", help="cuda, cuda:N, cpu (auto)")
    folder.add_argument("--dtype", default="auto", help="float32, float16, bfloat16 (auto: the saved one on a GPU)")
    folder.add_argument("--trust-remote-code", action="store_true", help="run the code that the folder brings")
    results = parser.add_argument_group("results")
    results.add_argument("--run", metavar="NAME", help="folder of the answers (default: MODEL_PROMPT_MEDIA)")
    results.add_argument(
        "--skip-failed", action="store_true",
        help="write the result file without the clips that have no answer; scores count them",
    )  # fmt: skip
    results.add_argument(
        "--allow-deaf", action="store_true",
        help="ask a model, too, whose tokens or answers do not change when a medium is taken away; marks the run",
    )  # fmt: skip
    results.add_argument("--dry-run", action="store_true", help="read one clip, say what would be sent; ask nothing")
    add_place_arguments(parser, lexicon=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, check, ask."""
    args = build_parser().parse_args(argv)
    from affectgpt.core.runtime import setup_logging

    setup_logging()
    check_arguments(args)
    from affectgpt.core.registry import import_files
    from affectgpt.mllm.prompts import find_prompt, parse_media

    import_files(args.imports)
    prompt = find_prompt(args.prompt)
    media = parse_media(args.media, prompt)
    datasets, base_root = open_datasets(args)
    options = media_options(args, prompt, media)
    with open_model(args) as client:
        from affectgpt.mllm.ask import Asker, ask_all

        asker = Asker(
            client, server=args.base_url is not None, prompt=prompt, options=options,
            sampling=sampling_of(args, prompt), base_root=base_root, run=run_name(args, prompt, media),
            allow_deaf=args.allow_deaf, skip_failed=args.skip_failed,
        )  # fmt: skip
        try:
            if args.dry_run:
                print("\n".join(plan(asker, dataset) for dataset in datasets))
                return 0
            outcomes = ask_all(asker, datasets)
        finally:
            asker.decoder.close()
    print(said(args, asker, [outcome.target for outcome in outcomes]))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """ConfigError for arguments that cannot go together, or that no reading can have."""
    from affectgpt.core.errors import ConfigError

    if (args.base_url is None) == (args.model_path is None):
        raise ConfigError("give --base-url URL (a server) or --model-path DIR (a folder), one of the two")
    if args.base_url is not None and not args.model:
        raise ConfigError("--base-url needs --model NAME, as the server calls it")
    if args.frames is not None and args.fps is not None:
        raise ConfigError("--frames and --fps: give one of the two")
    bounds = {
        "--frames": (args.frames, 1), "--longest-side": (args.longest_side, 2), "--batch-size": (args.batch_size, 1),
    }  # fmt: skip
    for flag, (value, least) in bounds.items():
        if value is not None and value < least:
            raise ConfigError(f"{flag} is {value}; give {least} or more")
    if args.fps is not None and not 0 < args.fps <= 1000:
        raise ConfigError(f"--fps is {args.fps}; give more than 0, at most 1000")


def open_datasets(args: argparse.Namespace) -> tuple[list[EmotionDataset], str]:
    """The data sets that are asked about, and the beginning of the result folders' names."""
    import dataclasses

    from affectgpt.config.load import load_config
    from affectgpt.config.schema import Config
    from affectgpt.datasets.base import open_dataset
    from affectgpt.datasets.table import parse_names

    config = load_config(args.cfg_path, args.options) if args.cfg_path else Config(name="ask")
    if args.dataset_root:
        config = dataclasses.replace(
            config, paths=dataclasses.replace(config.paths, dataset_root=args.dataset_root)
        )  # fmt: skip
    base_root = args.base_root or (f"{args.output_root}/results" if args.output_root else config.results_root)
    names = parse_names(args.datasets, custom=config.datasets)
    datasets = [open_dataset(config, name) for name in names]
    for dataset in datasets:
        dataset.samples("test", labels=False)  # what is missing shows before a model is loaded
    return datasets, base_root


def media_options(args: argparse.Namespace, prompt: Prompt, media: tuple[str, ...]) -> MediaOptions:
    """How clips are read and sent: the user's word, else the prompt's, else the default."""
    from affectgpt.mllm.clip import MediaOptions

    fps = args.fps if args.fps is not None or args.frames is not None else prompt.fps
    return MediaOptions(
        media, frames=args.frames or prompt.frames or FRAMES, fps=fps, longest_side=args.longest_side,
        as_frames=args.as_frames, audio_part=args.audio_part,
    )  # fmt: skip


def sampling_of(args: argparse.Namespace, prompt: Prompt) -> Sampling:
    """How answers are drawn. TextLLMError for a number out of its range."""
    from affectgpt.textllm.base import Sampling

    def first(*values: float | None) -> float:
        return next(value for value in values if value is not None)

    return Sampling(
        temperature=first(args.temperature, prompt.temperature, 0.0), top_p=first(args.top_p, prompt.top_p, 1.0),
        repetition_penalty=args.repetition_penalty, max_tokens=args.max_tokens, seed=args.seed,
    )  # fmt: skip


def open_model(args: argparse.Namespace) -> TextLLM:
    """The client that the arguments name; nothing is loaded or contacted yet."""
    from affectgpt.textllm.base import open_client

    if args.base_url is None:
        from affectgpt.mllm.folder import MultimodalClient

        return MultimodalClient(
            model=args.model_path, device=args.device, dtype=args.dtype, batch_size=args.batch_size,
            trust_remote_code=args.trust_remote_code,
        )  # fmt: skip
    return open_client(
        "openai", base_url=args.base_url, model=args.model, concurrency=args.concurrency, timeout=args.timeout,
        attempts=args.attempts, requests_per_minute=args.requests_per_minute, key_variable=args.key_variable,
        request_fields=request_fields(args.request_fields), stream=args.stream,
    )  # fmt: skip


def request_fields(text: str | None) -> dict[str, Any]:
    """``--request-fields`` as a dict. Raises ConfigError."""
    from affectgpt.core.errors import ConfigError
    from affectgpt.core.files import parse_json

    if text is None:
        return {}
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"--request-fields: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ConfigError(f'--request-fields: expected an object such as {{"modalities": ["text"]}}, found {text[:60]}')
    return value


def run_name(args: argparse.Namespace, prompt: Prompt, media: tuple[str, ...]) -> str:
    """The folder of the answers."""
    from pathlib import Path

    from affectgpt.core.names import check_name
    from affectgpt.mllm.prompts import default_run

    model = args.model or Path(args.model_path).resolve().name
    return check_name(args.run or default_run(model, prompt, media), source="--run", what="run name", suffix="")


def plan(asker: Asker, dataset: EmotionDataset) -> str:
    """Describe what would be sent of a data set's first clip."""
    from affectgpt.core.errors import printable
    from affectgpt.mllm.clip import prompt_text, read_clip

    samples = dataset.samples("test", labels=False)
    sample = samples[0]
    clip = read_clip(sample, asker.options, asker.decoder)
    lines = [f"{dataset.name}: {len(samples)} clips, written to {asker.target(dataset)}"]
    lines += [f"  {medium}: {words}" for medium, words in asker.options.sent(server=asker.server).items()]
    if clip.frames is not None:
        lines.append(f"  first clip {sample.name}: frames {list(clip.frames.shape)}, {clip.fps:.3g} per second")
    if clip.sound is not None:
        lines.append(f"  first clip {sample.name}: {len(clip.sound) / 16_000:.2f} s of sound")
    if asker.server:
        size = len(json.dumps(asker.conversation(sample, clip)))
        lines.append(f"  its request has {size / 1e6:.2f} MB")
    lines.append(f"  text: {prompt_text(sample, asker.prompt, asker.options)}")
    return printable("\n".join(lines), lines=True)


def said(args: argparse.Namespace, asker: Asker, targets: list[Any]) -> str:
    """Print what was written, what it cost, and how to score it."""
    from affectgpt.cli.common import command_line
    from affectgpt.core.errors import printable
    from affectgpt.evaluation.results import read_meta

    records = [read_meta(target) for target in targets]
    lines = [
        printable(f"{target}: {record['answers']} answers, {len(record['failed'])} clips without")
        for target, record in zip(targets, records, strict=True)
    ]
    prompt, reply = (sum(record[key] for record in records) for key in ("prompt_tokens", "tokens"))
    if prompt or reply:
        price = (prompt * args.price_prompt + reply * args.price_reply) / 1e6
        lines.append(f"{prompt:,} prompt tokens, {reply:,} reply tokens" + (f", {price:.2f} paid" if price else ""))
    if faults := sorted({medium for record in records for medium in record["deaf_or_blind"]}):
        lines.append(f"marked: the model does not take in {', '.join(faults)}")
    given = [
        word for flag in ("cfg_path", "output_root", "base_root", "dataset_root")
        if (value := getattr(args, flag)) for word in (f"--{flag.replace('_', '-')}", value)
    ]  # fmt: skip
    direct = ["--extractor", "direct"] if asker.prompt.name == "labels" else []
    lines.append(
        "score it: "
        + command_line("evaluation.py", ["--run", asker.run, "--datasets", args.datasets, *direct, *given])
    )  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_cli(main))
