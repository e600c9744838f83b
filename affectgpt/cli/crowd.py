"""Classifiers trained on human-labelled sets: train them, score them, let them predict (model-based crowdsourcing)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.cli.common import add_config_arguments, run_cli

if TYPE_CHECKING:
    from affectgpt.captioning.ensemble import ClipFeatures, EnsembleClassifier, LabelledSet, LoadFeatures
    from affectgpt.config.captioning import CaptioningFile
    from affectgpt.core.types import Modality, Sample


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="affectgpt crowd",
        description="Train several emotion and sentiment classifiers on human-labelled sets (captioning.crowd), on "
        "features of the frozen encoders, which are computed where they are missing; or let them predict.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train",
        help="train what is missing, print accuracy and F1 on the test splits",
        description="Train the classifiers that captioning.crowd.folder lacks; print accuracy and weighted F1 on the "
        "test splits of the sets.",
    )
    add_config_arguments(train)
    train.add_argument("--no-test", action="store_true", help="do not score on the test splits")
    predict = commands.add_parser(
        "predict",
        help="predict emotion and polarity of clips, write a CSV",
        description="Predict for the clips of captioning.input, or of a data set's split (then also scored).",
    )
    add_config_arguments(predict)
    predict.add_argument("--dataset", metavar="NAME", help="instead of captioning.input: a data set of the table")
    predict.add_argument("--split", choices=("train", "test"), default="test", help="of --dataset (test)")
    predict.add_argument("--out", type=Path, required=True, metavar="FILE", help="CSV to write")
    predict.add_argument("--limit", type=int, metavar="N", help="the first N clips")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Train or predict."""
    args = build_parser().parse_args(argv)

    from affectgpt.config.captioning import CaptioningFile
    from affectgpt.config.load import load_config
    from affectgpt.core.runtime import setup_logging

    setup_logging()
    config = load_config(args.cfg_path, args.options, kind=CaptioningFile)
    if args.command == "train":
        ensemble = train_ensemble(config)
        if not args.no_test:
            print_scores(score_ensemble(config, ensemble))
        return 0
    return predict(args, config)


def train_ensemble(config: CaptioningFile) -> list[EnsembleClassifier]:
    """The ensemble of a configuration; what is trained already is read."""
    from affectgpt.captioning import ensemble
    from affectgpt.captioning.ensemble import build_head, encoder_keys, labelled_set
    from affectgpt.core.errors import ConfigError, DataError
    from affectgpt.datasets.base import open_dataset

    spec = config.captioning.crowd
    if not spec.sets:
        raise ConfigError("captioning.crowd.sets: name the human-labelled sets that the ensemble learns from")
    sets = []
    load = _loader(config)
    for name in spec.sets:
        try:
            dataset = open_dataset(config, name)
            samples = dataset.samples("train")
        except DataError as error:
            raise DataError(f"captioning.crowd.sets names {name}: {error}") from error
        sets.append(labelled_set(build_head(dataset.name, samples), samples, split="train", load=load))
    encoders = encoder_keys(config, visual_of(config))
    return ensemble.train_ensemble(spec, sets, folder=ensemble_folder(config), encoders=encoders)


def ensemble_folder(config: CaptioningFile) -> Path:
    """Folder of the classifiers."""
    from affectgpt.captioning.describe import work_folder

    return Path(config.captioning.crowd.folder or work_folder(config) / "crowd")


def visual_of(config: CaptioningFile) -> Modality:
    """The medium that the visual encoder sees."""
    from affectgpt.core.types import Modality

    return Modality(config.captioning.crowd.visual)


def features_of(
    config: CaptioningFile,
    title: str,
    split: str,
    samples: Sequence[Sample],
    *,
    encoders: Any = None,
) -> ClipFeatures:
    """Features of samples; those that the store lacks are computed first. ``encoders``: those loaded already.

    A clip whose files could not be read is tried again when they are there.
    """
    from affectgpt.captioning.ensemble import load_features, unstored
    from affectgpt.cli.extract_features import extract
    from affectgpt.core.types import Modality
    from affectgpt.processing.processor import media_reader

    visual = visual_of(config)
    loaded = encoders_of(config) if encoders is None else encoders

    def compute(modality: Modality) -> None:
        reader = media_reader(config, training=split == "train")
        extract(config, title, list(samples), split=split, modality=modality, reader=reader, encoders=loaded)

    lacking = [m for m in (visual, Modality.AUDIO) if unstored(config, samples, title=title, split=split, modality=m)]
    for modality in lacking:
        compute(modality)
    features = load_features(config, samples, title=title, split=split, visual=visual)
    there = [s for s in samples if s.name in features.missing and _files_are_there(s, visual)]
    if there and not lacking:
        for modality in (visual, Modality.AUDIO):
            compute(modality)
        features = load_features(config, samples, title=title, split=split, visual=visual)
    return features


def _files_are_there(sample: Sample, visual: Modality) -> bool:
    seen = sample.face if visual.value == "face" else sample.video
    return all(path is not None and path.is_file() for path in (seen, sample.audio))


def _loader(config: CaptioningFile):
    """Features of data sets one after the other; each encoder is loaded once at most."""
    return partial(features_of, config, encoders=encoders_of(config))


def encoders_of(config: CaptioningFile) -> Any:
    """The frozen encoders, each loaded when it is first needed."""
    from affectgpt.core.runtime import pick_device
    from affectgpt.inference.encode import Encoders

    return Encoders(config, device=pick_device(config.run.device))


def score_ensemble(config: CaptioningFile, ensemble: Sequence[EnsembleClassifier]) -> list[dict[str, Any]]:
    """Accuracy and F1 on the test splits of the sets that have one here."""
    from affectgpt.captioning.ensemble import split_scores

    load = _loader(config)
    found = [_test_split(config, ensemble, name, load=load) for name in config.captioning.crowd.sets]
    tests = [test for test in found if test is not None]
    return split_scores(ensemble, tests, neutral_band=config.captioning.crowd.neutral_band)


def _test_split(
    config: CaptioningFile, ensemble: Sequence[EnsembleClassifier], name: str, *, load: LoadFeatures
) -> LabelledSet | None:
    from affectgpt.captioning.ensemble import labelled_set
    from affectgpt.core.errors import DataError
    from affectgpt.core.runtime import logger
    from affectgpt.datasets.base import open_dataset

    try:
        dataset = open_dataset(config, name)
        samples = dataset.samples("test")
    except DataError as error:
        logger.warning("%s is not scored: %s", name, error)
        return None
    head = next((head for model in ensemble for head in model.heads if head.dataset == dataset.name), None)
    return None if head is None else labelled_set(head, samples, split="test", load=load)


def print_scores(rows: Sequence[dict[str, Any]]) -> None:
    """A table: one line per test split, accuracy and weighted F1 of the classifiers (mean) and of their majority."""
    head = ("classifiers: accuracy", "F1", "majority: accuracy", "F1")
    print(f"{'test split':14} {'task':9} {'clips':>6} {head[0]:>22} {head[1]:>6} {head[2]:>19} {head[3]:>6}")
    for row in rows:
        single = [sum(s[key] for s in row["classifiers"]) / len(row["classifiers"]) for key in ("accuracy", "f1")]
        majority = [row["majority"][key] for key in ("accuracy", "f1")]
        cells = [f"{100 * value:.1f}" for value in (*single, *majority)]
        print(f"{row['set']:14} {row['task']:9} {row['clips']:6} {cells[0]:>22} {cells[1]:>6} {cells[2]:>19}"
              f" {cells[3]:>6}")  # fmt: skip


def predict(args: argparse.Namespace, config: CaptioningFile) -> int:
    """Write the ensemble's votes on clips; with a data set of the table, its scores too."""
    from affectgpt.captioning.describe import load_clips, samples
    from affectgpt.captioning.ensemble import UNLABELLED, encoder_keys, load_ensemble, opinions
    from affectgpt.captioning.filters import Wheels, tally
    from affectgpt.captioning.output import to_csv
    from affectgpt.core.files import write_text
    from affectgpt.core.runtime import logger
    from affectgpt.datasets.base import open_dataset
    from affectgpt.evaluation.lexicon import find_lexicon

    ensemble, _ = load_ensemble(
        ensemble_folder(config), spec=config.captioning.crowd, encoders=encoder_keys(config, visual_of(config))
    )
    if args.dataset:
        dataset = open_dataset(config, args.dataset)
        title, split, found = dataset.name, args.split, dataset.samples(args.split, labels=False)
    else:
        title, split = config.name, UNLABELLED
        found = samples(load_clips(config.captioning.input, title=title))
    features = features_of(config, title, split, found[: args.limit])
    wheels = Wheels(find_lexicon(config.captioning.agreement.lexicon or None))
    votes = tally(
        opinions(ensemble, features.visual, features.acoustic),
        wheels,
        neutral_band=config.captioning.crowd.neutral_band,
    )
    rows = [
        (
            name, v.emotion, ", ".join(v.words), v.polarity.choice if v.polarity else "", ", ".join(v.polarities),
            *(f"{m.choice} {m.share:.2f}" for m in v.wheels),
        )
        for name, v in zip(features.names, votes, strict=True)
    ]  # fmt: skip
    header = ("name", "emotion", "emotion_votes", "polarity", "polarity_votes", *(f"wheel {n}" for n in wheels.names))
    write_text(args.out, to_csv(header, rows))
    for name, reason in list(features.missing.items())[:10]:
        logger.warning("%s: not predicted: %s", name, reason)
    logger.info("%d clips predicted, %d without features: %s", len(rows), len(features.missing), args.out)
    if args.dataset and args.split == "test":
        from affectgpt.captioning.ensemble import split_scores

        test = _test_split(config, ensemble, args.dataset, load=_loader(config))
        print_scores(split_scores(ensemble, [test], neutral_band=config.captioning.crowd.neutral_band) if test else [])
    return 1 if features.missing else 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
