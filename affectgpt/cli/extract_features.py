"""Compute the outputs of the frozen encoders once; training and inference then read them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from affectgpt.cli.common import add_config_arguments, run_cli

if TYPE_CHECKING:
    from affectgpt.datasets.base import EmotionDataset


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="affectgpt extract_features",
        description="Write the outputs of a configuration's frozen encoders to paths.features_root. Run it again to go "
        "on after an interruption; started by torchrun, each process writes its own shard.",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--datasets", nargs="+", metavar="NAME", help="default: those of the configuration; inferenceData: all nine"
    )
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--mode", metavar="MODE", help="input mode whose media are encoded (default: the data set's)")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the stored numbers")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Encode every sample that the store does not have; 1 when the media of some cannot be read."""
    args = build_parser().parse_args(argv)

    from affectgpt.config.load import load_config
    from affectgpt.core.errors import ConfigError
    from affectgpt.core.runtime import logger, pick_device, setup_logging
    from affectgpt.datasets.base import open_dataset
    from affectgpt.datasets.table import parse_names

    setup_logging()
    config = load_config(args.cfg_path, args.options)
    words = args.datasets or list(config.datasets)
    if not words:
        raise ConfigError(f"{args.cfg_path}: names no data set; say which with --datasets")
    names = parse_names(",".join(words), custom=config.datasets)

    from affectgpt.inference.encode import Encoders  # torch and transformers, which take seconds
    from affectgpt.processing.modes import get_mode
    from affectgpt.processing.processor import media_reader

    device = pick_device(config.run.device)
    datasets = [open_dataset(config, name) for name in names]
    modes = [args.mode or _mode_of(config, dataset) for dataset in datasets]
    failed = 0
    sources = [dataset.samples(args.split, labels=False) for dataset in datasets]  # what is missing shows at once
    reader = media_reader(config, training=args.split == "train")
    encoders = Encoders(config, device=device)
    for dataset, mode, samples in zip(datasets, modes, sources, strict=True):
        for modality in get_mode(mode).media:
            written, broken = extract(
                config, dataset.name, samples, split=args.split, modality=modality, reader=reader, encoders=encoders,
                dtype=args.dtype, batch_size=args.batch_size,
            )  # fmt: skip
            failed += broken
            logger.info(
                "%s %s %s: %d written, %d cannot be read", dataset.name, args.split, modality.value, written, broken
            )
    return 1 if failed else 0


def _mode_of(config: Any, dataset: EmotionDataset) -> str:
    from affectgpt.core.errors import ConfigError
    from affectgpt.inference.session import training_mode

    if dataset.key in config.datasets:
        return dataset.block.face_or_frame
    try:
        return training_mode(config)
    except ConfigError:
        where = f"{config.name}: which media does {dataset.name} need"
        raise ConfigError(f"{where}? Say the input mode with --mode") from None


def extract(
    config: Any,
    title: str,
    samples: list,
    *,
    split: str,
    modality: Any,
    reader: Any,
    encoders: Any,
    dtype: str = "float32",
    batch_size: int = 8,
) -> tuple[int, int]:
    """Encode one medium of those samples that the store lacks; how many were written, and how many cannot be read."""
    from tqdm import tqdm

    from affectgpt.core.files import naming
    from affectgpt.core.runtime import rank, world_size
    from affectgpt.core.types import Modality
    from affectgpt.inference.encode import encode_into
    from affectgpt.processing.features import FeatureWriter, crops_of, feature_key, store_folder

    encoder = config.model.acoustic_encoder if modality is Modality.AUDIO else config.model.visual_encoder
    frames = config.model.vis_processor.train if split == "train" else config.inference_frames
    store = FeatureWriter(
        store_folder(config.paths.features_root, dataset=title, split=split, modality=modality, encoder=encoder),
        key=feature_key(
            config,
            modality,
            device_type=encoders.device.type,
            processor=frames,
            crops=crops_of(samples, modality),
            samples=samples,
        ),
        dtype=dtype,
        rank=rank(),
    )
    todo = [(s, [modality]) for s in samples[rank() :: world_size()] if s not in store]
    written = broken = 0
    bar = tqdm(total=len(todo), desc=f"{title} {modality.value}", unit="clip", disable=None)
    try:
        for batch in encode_into(
            {modality: store}, todo, reader=reader, encode=encoders, batch_size=batch_size,
            num_workers=config.run.num_workers,
        ):  # fmt: skip
            broken += sum(bool(failed) for _, failed in batch)
            written += sum(not failed for _, failed in batch)
            bar.update(len(batch))
    finally:
        bar.close()
        with naming(store.folder):
            store.close()
    return written, broken


if __name__ == "__main__":
    sys.exit(run_cli(main))
