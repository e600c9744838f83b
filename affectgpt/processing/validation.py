"""Batches whose loss is measured during training (``run.valid_splits``)."""

from __future__ import annotations

from affectgpt.config.schema import Config
from affectgpt.core.errors import ConfigError
from affectgpt.core.runtime import rank, world_size
from affectgpt.datasets.splits import hold_out
from affectgpt.processing.loader import BatchStream, labelled, trained_sets
from affectgpt.processing.processor import AffectGPTProcessor
from affectgpt.processing.sampler import SequentialBatches


def validation_batches(config: Config, *, processor: AffectGPTProcessor) -> dict[str, BatchStream]:
    """``run.valid_splits`` of the data sets trained on, each sample once: ``data set_split`` → its batches.

    ``valid`` are the samples that ``run.valid_ratio`` keeps out of training; another name is a split of the data sets
    that have it. Raises ConfigError when a split has no sample in any of them.
    """
    run = config.run
    streams: dict[str, BatchStream] = {}
    datasets = trained_sets(config) if run.valid_splits else []
    for split in run.valid_splits:
        found = len(streams)
        for dataset in datasets:
            if split == "valid":
                _, samples = hold_out(dataset.samples("train"), config)
            elif split in dataset.splits:
                samples = dataset.samples(split)
            else:
                continue
            if not samples:
                continue
            part = labelled(
                config, dataset, samples, split="train" if split == "valid" else split,
                processor=processor,
            )  # fmt: skip
            shared = world_size() > 1 and run.parallel != "fsdp2"  # shards go through every batch together
            streams[f"{dataset.name}_{split}"] = BatchStream(
                {dataset.name: part},
                batches=SequentialBatches(
                    len(part),
                    batch_size=run.batch_size_eval,
                    rank=rank() if shared else 0,
                    world_size=world_size() if shared else 1,
                ),
                num_workers=min(run.num_workers, 2),
                on_error=run.on_error,
            )
        if len(streams) == found:
            raise ConfigError(
                f"run.valid_splits: {split!r} has no sample in {', '.join(config.datasets)}; allowed: 'valid' with a "
                "run.valid_ratio above 0, or a split of these data sets"
            )
    return streams
