"""The micro-batches of the next step, read and copied to the GPU while it computes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from affectgpt.core.errors import AffectGPTError
from affectgpt.core.types import Batch


class Prefetcher:
    """Gives the micro-batches of one step after the other, on ``device``.

    ``count`` batches are drawn for a step; ``run.batch_tokens`` may have split each in several. An error of the data is
    raised by ``next``, when the step before it is done.
    """

    def __init__(self, stream: Iterator[Batch | None], *, count: int, device: torch.device) -> None:
        self.stream, self.count, self.device = stream, count, device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._fetched: list[Batch | None] | None = None
        self._error: Exception | None = None

    def fetch(self) -> None:
        """Read the next step's micro-batches and begin to copy them."""
        try:
            with torch.cuda.stream(self._copies):
                self._fetched = [batch if batch is None else batch.to(self.device) for batch in self._drawn()]
        except Exception as error:
            self._error = error

    def next(self) -> list[Batch | None]:
        """The micro-batches of the next step; fetched now where ``fetch`` was not called."""
        if self._fetched is None and self._error is None:
            self.fetch()
        if self._error is not None:
            raise self._error
        fetched, self._fetched = self._fetched or [], None
        if self._copies is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self._copies)

            def used(tensor: torch.Tensor) -> torch.Tensor:
                tensor.record_stream(computing)  # its memory is not given away before it is used
                return tensor

            for batch in fetched:
                if batch is not None:
                    batch.each(used)
        return fetched

    def _drawn(self) -> Iterator[Batch | None]:
        drawn = 0
        while drawn < self.count:
            try:
                batch = next(self.stream)
            except StopIteration:
                raise AffectGPTError("the data gave fewer batches than run.iters_per_epoch asks for") from None
            drawn += batch is None or not batch.more
            yield batch
