"""The view of a run: a bar, ``log.txt`` in JSON lines, TensorBoard, and ``training.png`` at the end."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from affectgpt.config.schema import RunConfig
from affectgpt.core.errors import ConfigError
from affectgpt.core.files import atomic_path, naming, write_text
from affectgpt.core.runtime import logger
from affectgpt.training.distributed import is_main
from affectgpt.training.run_state import Position
from affectgpt.training.step import Step

LOG = "log.txt"
_BAR = "{desc} {percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt}{postfix}"
_FEW = 40  # points of a curve that are marked one by one


class Progress:
    """Bar and logs of a run; of several ranks the first one has them. A context manager."""

    def __init__(self, folder: Path, *, run: RunConfig, start: Position, device: torch.device) -> None:
        self.folder = folder
        self.run = run
        self.device = device
        self._start = start
        self._bar: Any = None
        self._log: Any = None
        self._board: Any = None
        self._around = ExitStack()
        self._began = self._window = time.perf_counter()
        self._done = self._samples = self._tokens = 0
        self._more: dict[str, list[float]] = {}  # what else was measured since the last line

    def __enter__(self) -> Progress:
        if not is_main():
            return self
        drop_lines_after(self.folder / LOG, self._start)
        self._log = (self.folder / LOG).open("a", encoding="utf-8")
        if self.run.tensorboard:
            self._board = tensorboard_writer()(self.folder / "tensorboard")
        from tqdm.contrib.logging import logging_redirect_tqdm

        self._around.enter_context(logging_redirect_tqdm(loggers=[logger]))  # log lines stand above the bar
        return self

    def __exit__(self, *exc: object) -> None:
        with naming(self.folder / LOG):
            for part in (self._bar, self._log, self._board):
                if part is not None:
                    part.close()
        self._around.close()

    def epoch(self, epoch: int, step: int) -> None:
        """A new bar for an epoch of which ``step`` steps are done."""
        if not is_main():
            return
        from tqdm import tqdm

        if self._bar is not None:
            self._bar.close()
        self._bar = tqdm(
            total=self.run.iters_per_epoch, initial=step, desc=f"epoch {epoch}/{self.run.max_epoch}", bar_format=_BAR,
            disable=None,
        )  # fmt: skip

    def step(self, position: Position, step: Step, *, lr: float, more: Mapping[str, float] | None = None) -> None:
        """Show a finished step, and log it where ``run.log_freq`` says. ``position`` is that after the step.

        ``more``: what else was measured, of which the line has the mean over its steps.
        """
        if not is_main():
            return
        for name, value in (more or {}).items():
            self._more.setdefault(name, []).append(value)
        self._done += 1
        self._samples += step.samples
        self._tokens += step.tokens
        now = time.perf_counter()
        steps = self.run.iters_per_epoch
        left = (self.run.max_epoch - position.epoch + 1) * steps - position.step
        seconds = max(now - self._window, 1e-9)
        shown = (
            f"loss {step.loss:.3f}",
            *(f"{name} {more[name]:.3f}" for name in ("reward",) if more and name in more),
            f"lr {lr:.1e}",
            f"{_clock(left * (now - self._began) / self._done)} left",  # of the whole run
            f"{self._samples / seconds:.1f} samples/s",
            f"{self._tokens / seconds:.0f} tokens/s",
            f"{memory_gb(self.device):.1f} GB",
        )
        self._bar.set_postfix_str(", ".join(shown), refresh=False)
        self._bar.update()
        if position.step % self.run.log_freq == 0 or position.step == steps:
            self.line(
                {
                    "epoch": position.epoch,
                    "step": position.step,
                    "loss": _number(step.loss),
                    "lr": lr,
                    "grad_norm": _number(step.grad_norm),
                    "samples_per_s": round(self._samples / seconds, 2),
                    "tokens_per_s": round(self._tokens / seconds, 1),
                    "memory_gb": round(memory_gb(self.device), 2),
                    **{name: _number(sum(values) / len(values)) for name, values in self._more.items()},
                }
            )
            self._more = {}
            self._window, self._samples, self._tokens = time.perf_counter(), 0, 0

    def line(self, values: dict[str, Any]) -> None:
        """One line of the log, and its numbers in TensorBoard."""
        if not is_main():
            return
        with naming(self.folder / LOG):
            self._log.write(json.dumps(values) + "\n")
            self._log.flush()
        if self._board is not None:
            at = (values["epoch"] - 1) * self.run.iters_per_epoch + values["step"]
            for key, value in values.items():
                if key not in ("epoch", "step") and isinstance(value, int | float):
                    self._board.add_scalar(key, value, at)


def tensorboard_writer() -> Any:
    """TensorBoard's writer class. Raises ConfigError when it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"run.tensorboard is True, but tensorboard is not installed ({error}): pip install 'affectgpt[track]'"
        ) from error
    return SummaryWriter


def drop_lines_after(log: Path, start: Position) -> None:
    """Take lines of steps that are about to be done again out of a log."""
    if not log.is_file():
        return
    kept = [
        line
        for line in log.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.endswith("\n") and _at(line) <= (start.epoch, start.step)
    ]
    write_text(log, "".join(kept))


def _at(line: str) -> tuple[int, int]:
    values = json.loads(line)
    return values["epoch"], values["step"]


def memory_gb(device: torch.device) -> float:
    """The most memory held so far, GB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _number(value: float) -> float | None:
    """Rounded; None (JSON has no infinity) for the loss or gradient of a step that overflowed."""
    return round(value, 6) if math.isfinite(value) else None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def draw_training(folder: Path) -> Path | None:
    """``training.png`` from ``log.txt``: loss, learning rate and throughput over the steps; None without a line."""
    lines = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    if not steps:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    last = max(line["step"] for line in steps)  # steps of an epoch

    def at(line: dict[str, Any]) -> float:
        return line["epoch"] - 1 + line["step"] / last

    figure = Figure(figsize=(8, 8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(folder.name, fontsize="medium")
    rewarded = [line for line in steps if "reward" in line]
    loss, lr, speed, *others = figure.subplots(4 if rewarded else 3, 1, sharex=True)
    style = {"linewidth": 1, "marker": "." if len(steps) < _FEW else ""}
    where = [at(line) for line in steps]
    loss.plot(where, [line["loss"] for line in steps], label="training", **style)
    for name in sorted({key for line in lines for key in line if key.startswith("valid_loss")}):
        seen = [line for line in lines if name in line]
        loss.plot([at(line) for line in seen], [line[name] for line in seen], "o-", label=name.replace("_", " "))
    loss.set_ylabel("loss per learnt token")
    loss.legend()
    lr.plot(where, [line["lr"] for line in steps], **style)
    lr.set_ylabel("learning rate")
    speed.plot(where, [line["samples_per_s"] for line in steps], **style)
    speed.set_ylabel("samples per second")
    for axes in others:
        for name in ("reward", "reward_dealt", "reward_constant", "precision", "recall"):
            seen = [line for line in rewarded if name in line]
            if seen:
                axes.plot([at(line) for line in seen], [line[name] for line in seen], label=name, **style)
        axes.set_ylabel("reward, precision, recall")
        axes.legend(fontsize="small")
    (others or [speed])[-1].set_xlabel("epochs done")
    for axes in (loss, lr, speed, *others):
        axes.grid(alpha=0.3)
    path = folder / "training.png"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return path
