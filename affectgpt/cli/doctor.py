"""Why are my scores below the published ones? Checks, fingerprints, comparison of answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from affectgpt.cli.common import run_cli
from affectgpt.core.errors import printable


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="affectgpt doctor",
        description="Check versions, weights, tokenizer and decoder; run a probe clip through every stage and compare "
        "with a machine that works; compare answers with released ones.",
    )
    parser.add_argument("--cfg-path", metavar="FILE", help="configuration, a file of train_configs/")
    parser.add_argument("--hf", metavar="DIR", help="a folder of affectgpt export --hf, instead of a checkpoint")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override any of its keys")
    parser.add_argument("--record", metavar="FILE", help="write this machine's fingerprints (added to those in FILE)")
    parser.add_argument("--fingerprints", metavar="FILE", help="compare with the fingerprints in FILE")
    parser.add_argument("--no-hash", action="store_true", help="do not hash the weights (a minute for 15 GB)")
    parser.add_argument("--no-model", action="store_true", help="only what needs no model to be loaded")
    parser.add_argument("--against", metavar="NPZ", help="compare answers with this released result file")
    parser.add_argument(
        "--answers", metavar="NPZ", help="the answers to compare (default: the same file under inference.base_root)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for; exit status 1 when something is wrong."""
    args = build_parser().parse_args(argv)

    from affectgpt.config.load import default_config, load_config
    from affectgpt.core.errors import ConfigError
    from affectgpt.core.runtime import setup_logging

    setup_logging()
    if not (args.cfg_path or args.hf) and (args.against is None or args.answers is None):
        raise ConfigError("give --cfg-path FILE or --hf DIR; without them only --against NPZ --answers NPZ works")
    config = None if args.cfg_path is None else load_config(args.cfg_path, args.options)
    if config is None and args.hf:
        config = default_config(Path(args.hf).resolve().name, args.options)
    healthy = True
    if config is not None and not args.against:
        healthy = _check(config, args)
    if args.against:
        healthy = _compare(config, args)
    return 0 if healthy else 1


def _check(config: Any, args: argparse.Namespace) -> bool:
    from affectgpt.config.paths import select_checkpoints
    from affectgpt.core.errors import AffectGPTError
    from affectgpt.evaluation.lexicon import find_lexicon
    from affectgpt.inference.doctor import FAIL, OK, WARN, Finding, check_installation, check_versions

    failed = False
    for finding in check_versions() if args.hf else check_installation(config, hashes=not args.no_hash):
        _line(finding)
        failed |= finding.status == FAIL
    lexicon = find_lexicon(None)
    _line(
        Finding(OK, "lexicon", lexicon.source) if lexicon.comparable
        else Finding(WARN, "lexicon", "no emotion_wheel/ here: scores would use the built-in lexicon, and could not be "
                     "compared with published ones")
    )  # fmt: skip
    if failed and not args.hf:
        try:
            _line(Finding(OK, "checkpoint", str(select_checkpoints(config)[-1].path)))
        except AffectGPTError as error:
            _line(Finding(FAIL, "checkpoint", str(error)))
    if failed or args.no_model:
        if args.record or args.fingerprints:
            print("FAIL  probe clip: not run, see above" if failed else "warn  probe clip: not run (--no-model)")
        return not failed
    return _probe(config, args)


def _probe(config: Any, args: argparse.Namespace) -> bool:
    import json
    import tempfile

    from affectgpt.config.paths import select_checkpoints
    from affectgpt.core.errors import AffectGPTError, DataError
    from affectgpt.core.files import write_json
    from affectgpt.core.provenance import device_name, file_hash, installed_versions
    from affectgpt.inference.doctor import (
        FAIL,
        OK,
        TOLERANCES,
        WARN,
        Finding,
        check_checkpoint,
        check_inputs,
        fingerprint,
        first_deviation,
        run_stages,
    )
    from affectgpt.inference.session import GenerationSession, inference_device
    from affectgpt.modeling.build import exported_weights

    if args.hf:
        session = GenerationSession.from_pretrained(args.hf, config=config)
        checkpoint = exported_weights(args.hf)
        loaded = Finding(OK, "checkpoint", f"{args.hf}; sha256 {file_hash(checkpoint)}")
    else:
        session = GenerationSession.from_config(config, device=inference_device(config))
        try:
            checkpoint = select_checkpoints(config)[-1].path
            loaded = check_checkpoint(session.engine.load, checkpoint)
        except AffectGPTError as error:
            loaded = Finding(FAIL, "checkpoint", str(error))
    _line(loaded)
    trained = loaded.status != FAIL
    for finding in check_inputs(checkpoint, config, mode=session.mode) if trained and not args.hf else ():
        _line(finding)
    with tempfile.TemporaryDirectory(prefix="affectgpt-") as folder:
        stages = run_stages(session, Path(folder), trained=trained)
    found = {name: fingerprint(values) for name, values in stages.items()}
    dtype = str(next(session.model.llm.parameters()).dtype).removeprefix("torch.")
    reached = "" if trained else " (those that need no checkpoint)"
    _line(Finding(OK, "probe clip", f"{len(found)} stages in {dtype} on {device_name(session.device)}{reached}"))
    if args.record and not trained:
        _line(Finding(FAIL, "recorded", "nothing: the other stages need a checkpoint"))
    elif args.record:
        path = Path(args.record)
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        record[dtype] = {
            "configuration": config.name,
            "mode": session.mode,
            "checkpoint_sha256": file_hash(checkpoint),
            "device": device_name(session.device),
            "versions": installed_versions(),
            "stages": found,
        }
        write_json(path, record)
        _line(Finding(OK, "recorded", f"{path} ({', '.join(sorted(record))})"))
    if not args.fingerprints:
        return trained
    try:
        record = json.loads(Path(args.fingerprints).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--fingerprints {args.fingerprints}: cannot be read as JSON ({error})") from error
    known = record.get(dtype)
    if known is None:
        _line(Finding(WARN, "fingerprints", f"none for {dtype}; the file has {', '.join(record)}. Record them there"))
        return False
    if trained and known["checkpoint_sha256"] != file_hash(checkpoint):
        _line(Finding(WARN, "fingerprints", "recorded with another checkpoint: from the connectors on they differ"))
    expected = {name: values for name, values in known["stages"].items() if trained or name in found}
    deviation = first_deviation(found, expected, tolerance=TOLERANCES[dtype])
    if deviation is None:
        _line(Finding(OK, "fingerprints", f"all {len(expected)} stages{reached} as on {known['device']}"))
        return trained
    _line(Finding(FAIL, "fingerprints", f"the first stage that deviates: {deviation.stage}, which {deviation.what}"))
    for package, theirs in known["versions"].items():
        ours = installed_versions().get(package, "not installed")
        if ours != theirs:
            print(printable(f"      {package}: {ours} here, {theirs} there"))
    return False


def _compare(config: Any, args: argparse.Namespace) -> bool:
    from affectgpt.inference.doctor import USUAL, compare_answers, verdict

    theirs = Path(args.against)
    if args.answers:
        ours = Path(args.answers)
    else:
        dataset = theirs.parent.parent.name.removeprefix("results-")
        ours = Path(f"{config.results_root}-{dataset}", *theirs.parts[-2:])
    result = compare_answers(ours, theirs)
    print(f"ours    {printable(str(ours))}\ntheirs  {printable(str(theirs))}")
    print(f"samples in both: {result.common}; only ours: {len(result.only_ours)}, theirs: {len(result.only_theirs)}")
    _names("only theirs", result.only_theirs)
    rows = (
        ("answers", "answers", "d"), ("characters per answer", "mean_characters", ".1f"),
        ("labels per answer", "mean_labels", ".2f"), ("answers off the template", "without_labels", ".1%"),
        ("empty", "empty", "d"), ("repeating", "repeating", "d"),
    )  # fmt: skip
    print(f"{'':26} {'ours':>10} {'theirs':>10}")
    for title, name, form in rows:
        print(f"{title:26} {getattr(result.ours, name):>10{form}} {getattr(result.theirs, name):>10{form}}")
    for side, settings in (("ours", result.ours.settings), ("theirs", result.theirs.settings)):
        known = printable(str(settings)) if settings else "not known (no meta file); published: sampling, top-p 0.9"
        print(f"settings, {side}: {known}")
    print(f"same text: {result.same_text:.1%}; agreement of label sets: {result.overlap:.3f}: {verdict(result)}")
    if result.least:
        print("furthest apart:")
    for name, mine, other in result.least:
        print(f"  {printable(name)}\n    ours:   {printable(mine[:150])}\n    theirs: {printable(other[:150])}")
    return result.overlap >= USUAL[0] and not result.only_theirs


def _names(title: str, names: Sequence[str]) -> None:
    if names:
        print(printable(f"{title}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"))


def _line(finding: Any) -> None:
    print(printable(f"{finding.status:4}  {finding.title}: {finding.detail}", lines=True), flush=True)


if __name__ == "__main__":
    sys.exit(run_cli(main))
