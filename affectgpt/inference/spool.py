"""Encoder outputs of clips, kept on disk while several checkpoints or questions are asked about them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from affectgpt.core.types import Modality


class FeatureSpool:
    """Name → encoder outputs by modality, in a nameless temporary file of ``folder``: memory does not grow with clips.

    About 57 kB per clip for the released recipes (0.7 GB for MER-UniBench); it goes away with the process.
    """

    def __init__(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, prefix="features-")  # noqa: SIM115 - closed with the spool
        self._end = 0
        self._index: dict[str, dict[Modality, tuple[int, tuple[int, ...], torch.dtype]]] = {}
        self._flags: dict[str, tuple[str, ...]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def __len__(self) -> int:
        return len(self._index)

    def put(self, name: str, features: Mapping[Modality, torch.Tensor], *, flags: tuple[str, ...] = ()) -> None:
        """Keep the outputs (any shapes and dtypes) of one clip."""
        entry = {}
        for modality, tensor in features.items():
            data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            at, view = self._end, memoryview(data)
            while view:
                written = os.pwrite(self._file.fileno(), view, self._end)
                self._end += written
                view = view[written:]
            entry[modality] = (at, tuple(tensor.shape), tensor.dtype)
        self._index[name] = entry
        self._flags[name] = flags

    def get(self, name: str) -> dict[Modality, torch.Tensor]:
        """The outputs of one clip, to the bit."""
        features = {}
        for modality, (at, shape, dtype) in self._index[name].items():
            size = int(np.prod(shape)) * dtype.itemsize
            data = bytearray(os.pread(self._file.fileno(), size, at))
            features[modality] = torch.frombuffer(data, dtype=dtype).reshape(shape)
        return features

    def flags(self, name: str) -> tuple[str, ...]:
        """What was odd about the clip's media."""
        return self._flags[name]

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()
