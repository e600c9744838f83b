"""What a run leaves on disk: checkpoints of the published layout, and ``last.state``."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from affectgpt.config.paths import checkpoint_name, list_checkpoints
from affectgpt.core.errors import AffectGPTError
from affectgpt.modeling.checkpoint import trained_state, write_checkpoint
from affectgpt.training.distributed import gather, is_main, whole
from affectgpt.training.resume import STATE, Position, random_state


class Saver:
    """Writes a run's files to ``folder``; of several ranks the first one does. All ranks must call its methods."""

    def __init__(
        self,
        folder: Path,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        config: Mapping[str, Any],
        keep_last: int,
        device: torch.device,
    ) -> None:
        self.folder = folder
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.config = dict(config)
        self.keep_last = keep_last
        self.device = device
        if is_main():
            for leftover in folder.glob(".*.tmp*"):  # of a save that was killed
                leftover.unlink()

    def epoch(self, epoch: int, loss: float) -> Path:
        """The checkpoint of a finished epoch (wire); older ones go as ``run.keep_last`` says, epoch 0 never."""
        path = self.folder / checkpoint_name(epoch, loss)
        content = {**self._content(), "epoch": epoch}
        if is_main():
            self._write(path, content)
            for file in list_checkpoints(self.folder):
                if self.keep_last and 0 < file.epoch <= epoch - self.keep_last:
                    file.path.unlink()
        return path

    def state(self, position: Position) -> Path:
        """``last.state``: everything that the next step depends on."""
        path = self.folder / STATE
        content = {
            **self._content(),
            "epoch": position.epoch,
            "position": asdict(position),
            "random": gather(random_state(self.device)),
        }
        if is_main():
            self._write(path, content)
        return path

    def _content(self) -> dict[str, Any]:
        optimizer = self.optimizer.state_dict()
        return {
            "model": {name: whole(tensor).detach().cpu() for name, tensor in trained_state(self.model).items()},
            "optimizer": {
                **optimizer,
                "state": {i: {k: whole(v) for k, v in s.items()} for i, s in optimizer["state"].items()},
            },
            "config": self.config,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        """To a temporary name, fsynced, renamed. Raises AffectGPTError when the disk does not take it."""
        try:
            write_checkpoint(path, content)
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else error.__context__ or error
            free = shutil.disk_usage(self.folder).free / 1e9
            kept = [file.path.name for file in list_checkpoints(self.folder)][-1:]
            kept += [STATE] if (self.folder / STATE).exists() else []
            raise AffectGPTError(
                f"{path} could not be written ({cause}); {free:.2f} GB are free there. Nothing of it was left behind, "
                f"and {' and '.join(kept) or 'no earlier file'} stayed as before. Make room (run.keep_last=2 keeps "
                "fewer checkpoints), then go on with run.resume_ckpt_path=auto."
            ) from error
