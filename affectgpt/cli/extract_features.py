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
    from affectgpt.processing.modes import get_mode

    setup_logging()
    config = load_config(args.cfg_path, args.options)
    device = pick_device(config.run.device)
    words = args.datasets or list(config.datasets)
    if not words:
        raise ConfigError(f"{args.cfg_path}: names no data set; say which with --datasets")
    names = parse_names(",".join(words), custom=config.datasets)
    datasets = [open_dataset(config, name) for name in names]
    modes = [args.mode or _mode_of(config, dataset) for dataset in datasets]
    encoders: dict[str, Any] = {}
    failed = 0
    sources = [dataset.samples(args.split, labels=False) for dataset in datasets]  # what is missing shows at once
    for dataset, mode, samples in zip(datasets, modes, sources, strict=True):
        for modality in get_mode(mode).media:
            written, broken = extract(
                config, dataset.name, samples, split=args.split, modality=modality, device=device, encoders=encoders,
                dtype=args.dtype, batch_size=args.batch_size,
            )  # fmt: skip
            failed += broken
            logger.info(
                "%s %s %s: %d written, %d cannot be read", dataset.name, args.split, modality.value, written, broken
            )
    return 1 if failed else 0


def _mode_of(config: Any, dataset: EmotionDataset) -> str:
    from affectgpt.core.errors import ConfigError
    from affectgpt.inference.asker import training_mode

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
    device: Any,
    encoders: dict[str, Any],
    dtype: str = "float32",
    batch_size: int = 8,
) -> tuple[int, int]:
    """Encode one medium of those samples that the store lacks; how many were written, and how many cannot be read.

    ``encoders``: name → encoder, loaded at first use and kept there.
    """
    import torch
    from tqdm import tqdm

    from affectgpt.core.files import naming
    from affectgpt.core.runtime import rank, world_size
    from affectgpt.core.types import Modality
    from affectgpt.encoders.base import encoder_class, encoder_folder
    from affectgpt.processing.feature_key import crops_of, feature_key, store_folder
    from affectgpt.processing.features import FeatureWriter
    from affectgpt.processing.media_loader import media_batches

    is_audio = modality is Modality.AUDIO
    key = "acoustic_encoder" if is_audio else "visual_encoder"
    encoder_name, kind = getattr(config.model, key), encoder_class(config, key)
    processor = config.model.vis_processor.train if split == "train" else config.inference_frames
    folder = encoder_folder(config, key)
    writer = FeatureWriter(
        store_folder(config.paths.features_root, dataset=title, split=split, modality=modality, encoder=encoder_name),
        key=feature_key(
            config,
            modality,
            device_type=device.type,
            processor=processor,
            crops=crops_of(samples, modality),
            samples=samples,
        ),
        dtype=dtype,
        rank=rank(),
    )
    todo = [s for s in samples[rank() :: world_size()] if s.name not in writer.done]
    if todo and encoder_name not in encoders:
        weights = torch.float32 if device.type == "cpu" else getattr(torch, config.model.encoder_dtype)
        encoders[encoder_name] = kind.from_folder(folder, dtype=weights).to(device)
    written = broken = 0
    bar = tqdm(total=len(todo), desc=f"{title} {modality.value}", unit="clip", disable=None)
    try:
        for batch in media_batches(
            config,
            todo,
            modality=modality,
            transform=kind.transform_of(folder),
            batch_size=batch_size,
            processor=processor,
        ):
            if batch.names:
                # an image is a video of one frame: [B, 1, 3, H, W]
                media = batch.media.unsqueeze(1) if modality is Modality.IMAGE else batch.media
                features = encoders[encoder_name](media.to(device))  # [B, T, d]
                with naming(writer.folder):
                    for name, feature, flags, source in zip(
                        batch.names, features, batch.flags, batch.sources, strict=True
                    ):
                        if writer.write(name, feature.float(), flags=flags, source=source):
                            written += 1
                        else:
                            broken += 1
            with naming(writer.folder):
                for failure in batch.failures:
                    writer.fail(failure.name, failure.reason)
            broken += len(batch.failures)
            bar.update(len(batch.names) + len(batch.failures))
    finally:
        bar.close()
        with naming(writer.folder):
            writer.close()
    return written, broken


if __name__ == "__main__":
    sys.exit(run_cli(main))
