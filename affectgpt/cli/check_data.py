"""Are the data sets complete and readable? Run before training."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.cli.common import add_imports_argument, run_cli

if TYPE_CHECKING:
    from affectgpt.config.schema import Config
    from affectgpt.datasets.base import EmotionDataset
    from affectgpt.processing.check import SplitReport


_WORDS = {"missing": "missing", "zero bytes": "empty", "unreadable": "bad"}


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="affectgpt check_data",
        description="Look at every label, subtitle, video, audio and face file of data sets, and at stored features; "
        "exit status 1 when something is missing, unreadable or not as many as published.",
    )
    parser.add_argument(
        "--datasets", nargs="+", default=[], metavar="NAME", help="names, or all; default: those of --cfg-path"
    )
    parser.add_argument(
        "--cfg-path", metavar="FILE", help="configuration whose datasets: describe your own sets, and where data are"
    )
    add_imports_argument(parser)
    parser.add_argument("--dataset-root", metavar="DIR", help="default: that of --cfg-path, else ../dataset")
    parser.add_argument(
        "--features-root", metavar="DIR", help="stored features to be read as well; default: that of --cfg-path"
    )
    parser.add_argument("--splits", nargs="+", choices=("train", "test"), default=["train", "test"])
    parser.add_argument(
        "--media", nargs="+", choices=("video", "audio", "face", "image", "none"),
        default=["video", "audio", "face", "image"],
    )  # fmt: skip
    parser.add_argument("--decode", action="store_true", help="read every file as training would, not its header only")
    parser.add_argument("--any-count", action="store_true", help="do not compare with the published sample counts")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="files looked at at once (default 4)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write every problem, one a line")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Check, print a table, write the CSV; 1 when something is wrong."""
    args = build_parser().parse_args(argv)

    from affectgpt.config.load import load_config
    from affectgpt.config.schema import Config
    from affectgpt.core.errors import ConfigError, printable
    from affectgpt.core.registry import import_files
    from affectgpt.core.runtime import setup_logging

    setup_logging()
    import_files(args.imports)
    config = load_config(args.cfg_path) if args.cfg_path else Config(name="")
    words = [word for item in args.datasets for word in item.split(",") if word] or list(config.datasets)
    if not words:
        raise ConfigError("which data sets? Give --datasets NAME … or all, or --cfg-path FILE")
    if args.workers < 1:
        raise ConfigError(f"--workers {args.workers}: must be 1 or more")
    reports = list(check_all(words, config, args))
    print_table(reports)
    for report in reports:
        if report.labels:
            shown = ", ".join(f"{printable(label)[:60]} {count}" for label, count in report.labels.most_common(12))
            more = f", … ({len(report.labels)} different)" if len(report.labels) > 12 else ""
            print(f"labels of {report.dataset} {report.split}: {shown}{more}")
    problems = [problem for report in reports for problem in report.problems]
    if args.csv is not None:
        write_problems(args.csv, reports)
        print(f"every problem, one a line: {args.csv}")
    else:
        for problem in problems[:20]:
            print(problem.line)
        if len(problems) > 20:
            print(f"… and {len(problems) - 20} more; --csv FILE writes them all")
    notes = [note for report in reports for note in report.notes]
    for note in notes:
        print(note.line)
    said = f"; notes: {len(notes)}" if notes else ""
    print(f"problems: {len(problems)}{said}" if problems else f"everything is there{said}")
    return 1 if problems else 0


def check_all(words: list[str], config: Config, args: argparse.Namespace) -> Iterator[SplitReport]:
    """A report per split of the named data sets."""
    from tqdm import tqdm

    from affectgpt.cli.score import scored_row
    from affectgpt.datasets.base import open_dataset
    from affectgpt.datasets.table import DATASETS, parse_names
    from affectgpt.evaluation.metrics.base import METRICS
    from affectgpt.evaluation.score import check_scored
    from affectgpt.processing.check import CheckOptions, check_split
    from affectgpt.processing.questions import check_block

    if any(word.lower() == "all" for word in words):
        words = [row.name for row in DATASETS.values() if row.label_file or row.openset_file or row.reason_file]
    if args.dataset_root:
        config = replace(config, paths=replace(config.paths, dataset_root=args.dataset_root))
    for name in parse_names(",".join(words), custom=config.datasets):
        dataset = open_dataset(config, name)
        check_block(config, dataset)
        if dataset.block.task:
            with config.naming(f"datasets.{dataset.key}.task"):
                METRICS.get(dataset.task)
        elif dataset.task not in ("", "train"):
            check_scored(scored_row(config, name))
        for split in (split for split in args.splits if split in dataset.splits):
            options = CheckOptions(
                media=tuple(m for m in args.media if m != "none"),
                decode=args.decode,
                workers=args.workers,
                features_root=args.features_root or config.paths.features_root,
                progress=lambda items, total, title=f"{name} {split}": tqdm(  # type: ignore[misc]
                    items, total=total, desc=title, unit="clip", disable=None, leave=False
                ),
            )
            report = check_split(dataset, split=split, counts=not args.any_count, options=options)
            if split == "train" and report.found and args.cfg_path:
                check_lengths(config, dataset, report)
            if split == "test" and dataset.block.task and report.found:  # what cannot be read is in the report already
                check_truth(config, name, report)
            yield report


def check_lengths(config: Config, dataset: EmotionDataset, report: SplitReport) -> None:
    """Report training samples whose prompt and answer are more tokens than ``model.max_length``.

    Counted by the tokenizer of the configuration's LLM; without its folder a note says that nothing was counted.
    """
    from affectgpt.core.errors import AffectGPTError, ConfigError, DataError
    from affectgpt.core.types import Modality
    from affectgpt.encoders.llm import configured_llm, llm_folder, load_tokenizer
    from affectgpt.processing.check import Problem
    from affectgpt.processing.prompt import encode_training, render_prompt
    from affectgpt.processing.questions import get_label_type, question_context, render_answer, render_question

    model, mode = config.model, dataset.block.face_or_frame
    n_tokens = {
        Modality.FACE: model.num_video_query_token, Modality.FRAME: model.num_video_query_token,
        Modality.AUDIO: model.num_audio_query_token, Modality.MULTI: model.num_multi_query_token,
        Modality.IMAGE: model.num_image_query_token,
    }  # fmt: skip
    try:
        row = configured_llm(config)
        tokenizer = load_tokenizer(llm_folder(config), row, trust_remote_code=model.trust_remote_code)
    except AffectGPTError as error:
        reason = f"lengths are not compared with model.max_length, there is no tokenizer: {error}"
        report.notes.append(Problem(report.dataset, report.split, "", "length", "note", reason))
        return
    try:
        samples = dataset.samples("train")  # with subtitles, which a survey of a published set leaves out
        context = question_context(dataset, dataset.learnt_types)
    except (ConfigError, DataError):
        return  # reported already
    for sample in samples:
        for name in dataset.learnt_types:
            if not get_label_type(name).answer(sample.labels):
                continue  # reported already, where that is a fault
            try:
                question = render_question(name, context, sample.labels)
                answer = render_answer(name, sample)
                prompt = render_prompt(mode, subtitle=sample.subtitle, question=question, sample=sample.name)
            except (ConfigError, DataError):
                continue
            if len((prompt + answer).encode()) + sum(n_tokens.values()) + 3 <= model.max_length:
                continue  # a token is a byte at least
            try:
                encode_training(
                    prompt, answer, tokenizer=tokenizer, n_tokens=n_tokens, max_length=model.max_length,
                    sample=sample.name,
                )  # fmt: skip
            except DataError as error:
                report.add("length", "wrong", f"{error} (label type {name})", sample=sample.name)
                break


def check_truth(config: Config, name: str, report: SplitReport) -> None:
    """Report clips to answer whose truth, by which ``task`` scores them, is missing or not valid."""
    from affectgpt.cli.score import scored_row
    from affectgpt.core.errors import DataError
    from affectgpt.evaluation.lexicon import find_lexicon, grouping_of
    from affectgpt.evaluation.score import Truth, unknown_truths_note
    from affectgpt.processing.check import note_joined_labels

    row = scored_row(config, name)
    try:
        truth = Truth.load(row, dataset_root=config.paths.dataset_root)
    except DataError as error:
        report.add("label", "unreadable", str(error))
        return
    if isinstance(next(iter(truth.values.values())), tuple):
        if not report.labels:
            report.labels.update(label for labels in truth.values.values() for label in labels)
        unknown = unknown_truths_note(list(truth.values.values()), grouping_of(find_lexicon(None)))
        if unknown is not None:
            report.add("label", "unreadable", unknown)
    note_joined_labels(((name, value) for name, value in truth.values.items() if isinstance(value, tuple)), report)
    for sample in sorted(truth.names - set(truth.values)):
        report.add("label", "missing", f"{row.label_file}: its truth is empty, it will not be scored", sample=sample)


def print_table(reports: list[SplitReport]) -> None:
    """One line per data set and split."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from affectgpt.processing.check import FEATURES, MEDIA

    has_images = any("image" in report.media for report in reports)
    kinds = [what for what in (*MEDIA, "subtitle", "label") if what != "image" or has_images]
    kinds += [FEATURES] if any(report.count(FEATURES) for report in reports) else []
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), collapse_padding=True)
    for heading in ("data set", "split", "samples", *kinds, "no sound", "seconds", "hours"):
        right = heading in ("samples", "no sound", "seconds", "hours")
        fixed = heading in ("data set", "split", "samples")
        table.add_column(heading, justify="right" if right else "left", overflow="fold", no_wrap=fixed)
    for report in reports:
        cells = []
        for what in kinds:
            counts = [f"{n:,} {word}" for kind, word in _WORDS.items() if (n := report.count(what, kind))]
            unknown = not report.found or (what in MEDIA and what not in report.media)
            cells.append("\n".join(counts) or ("–" if unknown else "ok"))
        times = report.seconds
        table.add_row(
            report.dataset,
            report.split,
            f"{report.found:,}" + ("" if report.expected is None else f" of {report.expected:,}"),
            *cells,
            f"{len(report.without_audio):,}",
            f"{min(times):.1f} / {sum(times) / len(times):.1f} / {max(times):.1f}" if times else "–",
            f"{sum(times) / 3600:.1f}" if times else "–",
        )
    # a file or pipe gets the whole width: nothing is cut
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)
    print("bad: unreadable · no sound: videos without a sound track · seconds: shortest / mean / longest clip")


def write_problems(path: Path, reports: list[SplitReport]) -> None:
    """Every problem, note and clip without a sound track as CSV, written atomically."""
    from affectgpt.core.files import atomic_path

    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("dataset", "split", "sample", "what", "kind", "reason"))
        for report in reports:
            for p in (*report.problems, *report.notes):
                writer.writerow((p.dataset, p.split, p.sample, p.what, p.kind, p.reason))
            for name in report.without_audio:
                writer.writerow((report.dataset, report.split, name, "video", "no sound track", ""))


if __name__ == "__main__":
    sys.exit(run_cli(main))
