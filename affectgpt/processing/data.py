"""Training data, from the configuration to batches: label file → samples → TrainDataset[i] → collate → BatchStream.

From top to bottom: which data sets and samples are trained on; a sample's question, answer and media; which samples
make a batch; the loader with its processes; samples that cannot be read.
"""

from __future__ import annotations

import csv
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.config.schema import Config
from affectgpt.core.errors import AffectGPTError, ConfigError, DataError
from affectgpt.core.files import naming
from affectgpt.core.runtime import allowed_cpus, logger, rank, world_size
from affectgpt.core.seeds import seeded
from affectgpt.core.types import Batch, Modality, Sample
from affectgpt.datasets.base import EmotionDataset, hold_out, keep_fraction, open_dataset
from affectgpt.media.reader import tell_conversion
from affectgpt.processing.collate import share
from affectgpt.processing.features import stored_features
from affectgpt.processing.modes import get_mode
from affectgpt.processing.processor import AffectGPTProcessor, Example, FeatureOf
from affectgpt.processing.questions import (
    Context,
    check_block,
    get_label_type,
    question_context,
    render_answer,
    render_question,
)

if TYPE_CHECKING:
    import torch

Key = tuple[int, int, int]  # of a drawn sample: number of its data set, pass over that set, index

_WORKER_GRACE = 10  # seconds that a worker outlives a SIGTERM
_LENGTHS_ON_GPU = 8  # batches are padded to a multiple of it: kernels of half precision are faster so


def trained_sets(config: Config) -> list[EmotionDataset]:
    """The data sets of ``datasets:`` that training learns from; one with test clips alone is said and left out.

    Raises ConfigError where none is left.
    """
    listed = [open_dataset(config, name) for name in config.datasets]
    for dataset in listed:
        if dataset.splits and "train" not in dataset.splits:
            logger.info("datasets.%s: has no training split, so it is not trained on", dataset.key)
    found = [dataset for dataset in listed if "train" in dataset.splits or not dataset.splits]
    if not found:
        names = ", ".join(dataset.name for dataset in listed)
        raise ConfigError(f"datasets: {names} has no training split, so there is nothing to train on")
    return found


def training_batches(
    config: Config,
    *,
    processor: AffectGPTProcessor,
    failures: FailureLog | None = None,
) -> BatchStream:
    """The training stream of a configuration: its ``datasets:``, mixed, seeded, sharded by rank.

    Raises ConfigError and DataError naming the key, data set or file.
    """
    parts, weights = {}, []
    for dataset in trained_sets(config):
        name, block = dataset.key, dataset.block
        samples, _ = hold_out(dataset.samples("train"), config)
        if not samples:
            raise DataError(f"datasets.{name}: the training split of {dataset.name} is empty")
        parts[dataset.name] = train_dataset(
            config, dataset, keep_fraction(samples, ratio=block.ratio, seed=config.run.seed), split="train",
            processor=processor,
        )  # fmt: skip
        weights.append(block.sample_ratio)
    if any(weight is None for weight in weights) and not all(weight is None for weight in weights):
        raise ConfigError("datasets: give sample_ratio for all data sets or for none")
    batches = MixedBatches(
        [len(part) for part in parts.values()],
        weights=None if None in weights else [float(weight) for weight in weights if weight is not None],
        batch_size=config.run.batch_size_train,
        iters_per_epoch=config.run.iters_per_epoch * config.run.accum_grad_iters,
        seed=config.run.seed,
        rank=rank(),
        world_size=world_size(),
    )
    return BatchStream(
        parts,
        batches=batches,
        num_workers=config.run.num_workers,
        on_error=config.run.on_error,
        failures=failures,
        pin_memory=_on_gpu(config),
        batch_tokens=config.run.batch_tokens,
        packing=config.run.packing,
        pad_to_multiple_of=_LENGTHS_ON_GPU if _on_gpu(config) else 1,
    )


def train_dataset(
    config: Config, dataset: EmotionDataset, samples: Sequence[Sample], *, split: str, processor: AffectGPTProcessor
) -> TrainDataset:
    """Samples of a data set with questions and answers, as its block of the configuration asks."""
    block = dataset.block
    check_block(config, dataset)
    return TrainDataset(
        samples,
        processor,
        mode=block.face_or_frame,
        label_types=dataset.learnt_types,
        context=question_context(dataset, dataset.learnt_types),
        seed=config.run.seed,
        features=stored_features(
            config, samples, dataset=dataset.name, split=split, mode=block.face_or_frame, policy=block.features
        ),
    )


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
            part = train_dataset(
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


def _on_gpu(config: Config) -> bool:
    import torch

    wanted = config.run.device
    return wanted.startswith("cuda") or (wanted == "auto" and torch.cuda.is_available())


class TrainDataset:
    """``dataset[index]`` or ``dataset[pass, index]`` → Example with the answer to learn; for a loader's workers.

    ``label_types``: one gives the question of every sample; of several each drawing of a sample draws one by (seed,
    pass, index) among those that the sample has labels for. Only the media that ``mode`` needs are read; ``features``
    may give encoder outputs in their place. Raises DataError naming data set and sample.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: AffectGPTProcessor,
        *,
        label_types: Sequence[str],
        mode: str | None = None,
        context: Context | None = None,
        features: Mapping[Modality, FeatureOf] | None = None,
        seed: int = 42,
    ) -> None:
        for label_type in label_types:
            get_label_type(label_type)
        self.samples, self.processor = samples, processor
        self.mode = get_mode(mode or processor.mode)
        self.label_types, self.context = tuple(label_types), context
        self.features = features or {}
        self.seed = seed
        for modality in self.mode.media:
            if modality not in self.features and modality not in processor.transforms:
                raise ConfigError(f"mode {mode} needs {modality.value}, but no transform for it was handed in")
        if Modality.FACE in self.mode.media and Modality.FACE not in self.features:
            tell_conversion(samples, wanted=processor.face_channels)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> Example:
        number, index = (0, key) if isinstance(key, int) else key
        sample = self.samples[index]
        example = self.text(index, epoch=number)
        with self._own_stream(sample, number):
            return self.processor.fill(example, sample, features=self.features)

    def text(self, index: int, *, epoch: int = 0) -> Example:
        """A sample with question and answer, without its media. ``epoch``: number of the pass over the data set."""
        sample = self.samples[index]
        label_type = self.label_types[0] if len(self.label_types) == 1 else self._draw(sample, epoch, index)
        answer = render_answer(label_type, sample)  # first: a sample without an answer may lack the question too
        question = render_question(label_type, self.context, sample.labels)
        return self.processor.text(sample, question=question, answer=answer, mode=self.mode.name)

    def _draw(self, sample: Sample, number: int, index: int) -> str:
        labelled = [t for t in self.label_types if get_label_type(t).answer(sample.labels) is not None]
        if not labelled:
            raise DataError(
                f"{sample.dataset}: sample {sample.name!r} has none of the labels {', '.join(self.label_types)} (an "
                "empty cell is none): no answer to learn"
            )
        return seeded(self.seed, number, index).choice(labelled)

    @contextmanager
    def _own_stream(self, sample: Sample, number: int) -> Iterator[None]:
        """Draw a transform's random numbers from (seed, pass, sample), however many workers there are."""
        import torch

        if all(modality in self.features for modality in self.mode.media):
            yield
            return
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seeded(self.seed, number, sample.dataset, sample.name).getrandbits(63))
            yield


class MixedBatches:
    """Batches of keys ``(part, pass, index)``; each batch comes from one part, drawn by weight.

    Every part is a stream of reshuffled passes over its samples that goes on from epoch to epoch, so that all samples
    are seen before one returns. The stream's order depends on (seed, part, pass) and the drawn parts on (seed, epoch):
    any batch of any epoch is found without loading those before it. All ranks draw the same part for a step and take
    disjoint samples of it.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        weights: Sequence[float] | None = None,
        batch_size: int,
        iters_per_epoch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        weights = list(weights) if weights is not None else [1.0] * len(sizes)
        if not sizes or 0 in sizes or len(weights) != len(sizes):
            raise ConfigError(f"cannot mix data sets of {list(sizes)} samples by weights {weights}")
        if min(weights) < 0 or not sum(weights) > 0:
            raise ConfigError(f"sample_ratio must be 0 or more and not all 0; found {weights}")
        self.sizes = list(sizes)
        self.weights = [weight / sum(weights) for weight in weights]
        self.batch_size = batch_size
        self.iters_per_epoch = iters_per_epoch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 1
        self.start = 0

    def __len__(self) -> int:
        return self.iters_per_epoch - self.start

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Choose the epoch (the first is 1) and how many of its batches to leave out (a restart within it)."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[Key]]:
        import numpy as np

        done = [0] * len(self.sizes)  # batches of each part before this epoch
        for epoch in range(1, self.epoch):
            for part, count in zip(*np.unique(self._parts(epoch), return_counts=True), strict=True):
                done[part] += int(count)
        orders: dict[tuple[int, int], np.ndarray] = {}
        for step, part in enumerate(self._parts(self.epoch).tolist()):
            first = (done[part] * self.world_size + self.rank) * self.batch_size
            done[part] += 1
            if step < self.start:
                continue
            batch = []
            for at in range(first, first + self.batch_size):
                number, offset = divmod(at, self.sizes[part])  # pass over the part, place in its order
                if (part, number) not in orders:
                    orders = {key: order for key, order in orders.items() if key[0] != part or key[1] >= number - 1}
                    orders[part, number] = self._order(part, number)
                batch.append((part, number + 1, int(orders[part, number][offset])))
            yield batch

    def _parts(self, epoch: int):
        """The part of each step of an epoch, int ``[iters_per_epoch]``."""
        import numpy as np

        if len(self.sizes) == 1:
            return np.zeros(self.iters_per_epoch, dtype=np.int64)
        generator = np.random.default_rng([self.seed, 1, epoch])
        return generator.choice(len(self.sizes), size=self.iters_per_epoch, p=self.weights)

    def _order(self, part: int, number: int):
        """A pass over one part: a permutation of its indices."""
        import numpy as np

        return np.random.default_rng([self.seed, 2, part, number]).permutation(self.sizes[part])


class SequentialBatches:
    """Batches of keys ``(0, 0, index)`` in order, each sample once; of several ranks each takes its share."""

    def __init__(self, size: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, size, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for at in range(0, len(self.indices), self.batch_size):
            yield [(0, 0, index) for index in self.indices[at : at + self.batch_size]]


class BatchStream:
    """Batches of one or several data sets. ``stream(epoch)`` or iteration gives Batch after Batch.

    ``on_error``: ``raise`` stops at the first sample that cannot be read; ``skip`` leaves it out of its batch (a batch
    of which nothing is left is left out too, or None in a training stream), notes it in ``failures``, and never puts
    another in its place.
    ``counts``: data set → number of samples.
    """

    def __init__(
        self,
        parts: Mapping[str, TrainDataset],
        *,
        batches: MixedBatches | SequentialBatches,
        num_workers: int = 0,
        on_error: str = "raise",
        failures: FailureLog | None = None,
        pin_memory: bool = False,
        batch_tokens: int = 0,
        packing: int = 0,
        pad_to_multiple_of: int = 1,
    ) -> None:
        import torch

        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error is {on_error!r}; allowed: raise, skip")
        self.parts = dict(parts)
        self.batches = batches
        self.on_error = on_error
        self.failures = failures if failures is not None else FailureLog()
        processor = next(iter(self.parts.values())).processor
        self._loader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
            _Fetch(list(self.parts.values())),  # type: ignore[arg-type]
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=loader_workers(num_workers),
            collate_fn=_SafeCollate(
                processor, batch_tokens=batch_tokens, packing=packing, pad_to_multiple_of=pad_to_multiple_of
            ),
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=quiet_worker,
            generator=torch.Generator(),  # the loader must not draw from the stream that dropout uses
        )

    @property
    def samples(self) -> dict[str, Sequence[Sample]]:
        """Data set → its samples."""
        return {name: part.samples for name, part in self.parts.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Data set → number of samples."""
        return {name: len(part) for name, part in self.parts.items()}

    @property
    def media(self) -> set[Modality]:
        """Media that need an encoder: those that some data set decodes instead of reading their features."""
        return {m for part in self.parts.values() for m in part.mode.media if m not in part.features}

    def __len__(self) -> int:
        return len(self.batches)

    def __call__(self, epoch: int, *, start: int = 0) -> Iterator[Batch | None]:
        """The batches of an epoch (the first is 1), from number ``start`` on; None: nothing was left of a batch."""
        if not isinstance(self.batches, MixedBatches):
            raise TypeError("only a training stream has epochs")
        self.batches.set_epoch(epoch, start=start)
        return self._drawn()

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch in self._drawn() if batch is not None)

    def _drawn(self) -> Iterator[Batch | None]:
        for batches, failures, fatal in loaded(self._loader):
            if fatal is not None:
                raise fatal
            for failure in failures:
                if self.on_error == "raise":
                    raise DataError(failure.reason)
                self.failures.add(failure)
            yield from batches or [None]


class _Fetch:
    """Key (part, epoch, index) → Example, or Failure where the sample cannot be read."""

    def __init__(self, parts: list[TrainDataset]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, key: Key) -> Example | Failure | AffectGPTError:
        part, number, index = key
        dataset = self.parts[part]
        try:
            return dataset[number, index]
        except DataError as error:
            sample = dataset.samples[index]
            return Failure(dataset=sample.dataset, name=sample.name, reason=str(error))
        except AffectGPTError as error:  # the configuration is wrong, not this sample
            return error


class _SafeCollate:
    """Examples and failures → (batches, failures, an error that ends the run or None).

    Errors are returned as values: the loader would wrap a raised one into a traceback of text. ``batch_tokens``: most
    tokens of a batch, which is split where it has more; 0: it never is.
    """

    def __init__(self, processor: AffectGPTProcessor, *, batch_tokens: int, packing: int, **options: int) -> None:
        self.processor = processor
        self.batch_tokens, self.packing = batch_tokens, packing
        self.options = options

    def __call__(self, items: list) -> tuple[list[Batch], list[Failure], AffectGPTError | None]:
        failures = [item for item in items if isinstance(item, Failure)]
        examples = [item for item in items if isinstance(item, Example)]
        fatal = next((item for item in items if isinstance(item, AffectGPTError)), None)
        batches: list[Batch] = []
        if fatal is None and examples:
            try:
                parts = split_by_tokens(examples, self.batch_tokens, padded=not self.packing)
                batches = [self.processor.collate(part, packing=self.packing, **self.options) for part in parts]
            except DataError as error:
                fatal = error
        for batch in batches:
            batch.more = batch is not batches[-1]
            media = (*batch.media.values(), *batch.features.values())
            share((batch.input_ids, batch.attention_mask, batch.labels, *media, *batch.layout.tensors()))
        return batches, failures, fatal


def split_by_tokens(examples: Sequence[Example], most: int, *, padded: bool) -> list[Sequence[Example]]:
    """Examples in their order, in parts of up to ``most`` tokens (0: all in one); an example with more is a part alone.

    ``padded``: those that padding adds count.
    """
    parts: list[list[Example]] = [[]]
    total = longest = 0
    for example in examples:
        length = len(example.input_ids)
        size = max(longest, length) * (len(parts[-1]) + 1) if padded else total + length
        if most and parts[-1] and size > most:
            parts.append([])
            total = longest = 0
        parts[-1].append(example)
        total, longest = total + length, max(longest, length)
    return parts  # type: ignore[return-value]


def loaded(loader: torch.utils.data.DataLoader) -> Iterator[Any]:
    """Iterate over a DataLoader. Raise AffectGPTError where one of its processes was killed or has crashed."""
    before = signal.getsignal(signal.SIGCHLD)
    items = None
    try:
        items = iter(loader)
        # torch's handler would raise wherever the main thread is, so that a checkpoint that is just being written would
        # be blamed. Without it a process that has ended is noticed here, with the next batch.
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGCHLD, before)
        while True:
            _check_workers(items)
            yield next(items)
    except StopIteration:
        return
    except (RuntimeError, OSError, EOFError):
        # From the second epoch on, iter() asks the workers of the first one.
        _check_workers(items or getattr(loader, "_iterator", None), wait=0.2)
        raise


def _check_workers(items: Any, *, wait: float = 0.0) -> None:
    """Raise AffectGPTError where a process of a DataLoader's iterator has failed.

    ``wait``: seconds for each, as its broken pipe is seen a moment before it has ended.
    """
    for worker in getattr(items, "_workers", ()):
        if wait:
            worker.join(wait)
        if worker.exitcode:
            raise AffectGPTError(_how_a_worker_ended(worker.exitcode)) from None


def _how_a_worker_ended(status: int) -> str:
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    if how == "SIGBUS":
        return (
            "a loader process ended with SIGBUS: /dev/shm, which the loader's workers share, is full. Give it more "
            "(docker run --shm-size=8g), or set run.num_workers=0"
        )
    # SIGALRM is how a worker ends some time after a SIGTERM
    if how in ("SIGKILL", "SIGTERM", "SIGALRM"):
        what = f"a loader process was ended from outside ({how}): out of memory? No file is the reason"
    else:
        what = f"a loader process crashed ({how}), in a library that reads media or in one of your own"
    return (
        f"{what}. Use fewer workers (run.num_workers), then resume: training with --options "
        "run.resume_ckpt_path=auto, any other command by running it again"
    )


def loader_workers(asked: int) -> int:
    """Return how many loader processes to start: as many as asked for, at most one per CPU. Batches do not depend on
    it."""
    allowed = allowed_cpus()
    if asked > allowed:
        _tell_workers(asked, allowed)
    return min(asked, allowed)


@cache
def _tell_workers(asked: int, allowed: int) -> None:
    logger.info("run.num_workers is %d; this process may use %d CPUs, so it starts %d", asked, allowed, allowed)


def quiet_worker(_: int) -> None:
    """A worker is one of several processes: its libraries start no threads, and signals are for the main process.

    Ctrl-C and a cluster's SIGTERM reach the whole process group; a worker that died of them at once would end the main
    process before it has saved.
    """
    import cv2

    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_WORKER_GRACE))


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample that could not be read, and why."""

    dataset: str
    name: str
    reason: str


class FailureLog:
    """The samples that were skipped: every time is counted; each sample is logged once, and once in ``path`` where one
    is given.

    ``path`` has data set, sample, reason, and continues that of an earlier run.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.failures: list[Failure] = []  # in the order of their first time
        self.times = 0
        self._noted: set[Failure] = set()
        self._earlier: set[Failure] | None = None  # in the file before this run

    def __len__(self) -> int:
        return len(self.failures)

    def add(self, failure: Failure) -> None:
        """Note one skipped sample."""
        self.times += 1
        if failure in self._noted:
            if self.times in (10, 100) or self.times % 1000 == 0:
                logger.warning("skipped %d times, %d different samples", self.times, len(self._noted))
            return
        self._noted.add(failure)
        self.failures.append(failure)
        logger.warning("skipped sample %d: %s", len(self._noted), failure.reason)
        self._write(failure)

    def write_to(self, path: Path) -> None:
        """Give it its file, for what was noted before too."""
        self.path = path
        for failure in self.failures:
            self._write(failure)

    def _write(self, failure: Failure) -> None:
        if self.path is None:
            return
        if self._earlier is None:
            self._earlier = _rows(self.path)
        if failure in self._earlier:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        with naming(self.path), self.path.open("a", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle)
            if is_new:
                writer.writerow(("dataset", "sample", "reason"))
            writer.writerow((failure.dataset, failure.name, failure.reason))


def _rows(path: Path) -> set[Failure]:
    if not path.is_file():
        return set()
    with path.open(encoding="utf-8", newline="") as handle:
        return {Failure(*row) for row in csv.reader(handle) if len(row) == 3}
