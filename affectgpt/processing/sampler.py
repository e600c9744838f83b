"""Which samples make a batch: several data sets mixed by weight, seeded, restartable anywhere, shared by ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from affectgpt.core.errors import ConfigError


class MixedBatches:
    """Batches of keys ``(part, pass, index)``; each batch comes from one part, drawn by weight.

    Every part is a stream of reshuffled passes over its samples that goes on from epoch to epoch, so that all samples
    are seen before one returns. The stream's order depends on (seed, part, pass) and the drawn parts on (seed, epoch):
    any batch of any epoch can be told without those before it being loaded. All ranks draw the same part for a step
    and take disjoint samples of it.
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

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
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
                which, offset = divmod(at, self.sizes[part])
                if (part, which) not in orders:
                    orders = {key: order for key, order in orders.items() if key[0] != part or key[1] >= which - 1}
                    orders[part, which] = self._order(part, which)
                batch.append((part, which + 1, int(orders[part, which][offset])))
            yield batch

    def _parts(self, epoch: int):
        """The part of each step of an epoch, int ``[iters_per_epoch]``."""
        import numpy as np

        if len(self.sizes) == 1:
            return np.zeros(self.iters_per_epoch, dtype=np.int64)
        generator = np.random.default_rng([self.seed, 1, epoch])
        return generator.choice(len(self.sizes), size=self.iters_per_epoch, p=self.weights)

    def _order(self, part: int, which: int):
        """A pass over one part: a permutation of its indices."""
        import numpy as np

        return np.random.default_rng([self.seed, 2, part, which]).permutation(self.sizes[part])


class SequentialBatches:
    """Batches of keys ``(0, 0, index)`` in order, each sample once; of several ranks each takes its share."""

    def __init__(self, size: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, size, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for at in range(0, len(self.indices), self.batch_size):
            yield [(0, 0, index) for index in self.indices[at : at + self.batch_size]]
