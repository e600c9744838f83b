"""The process around the work: logging, seeds, ranks, devices."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.core.errors import ConfigError, printable

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

logger = logging.getLogger("affectgpt")


class _Formatter(logging.Formatter):
    """Log lines name files and quote answers of others: what a terminal would obey is written out."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)


class _Stderr(logging.StreamHandler):
    """Writes to what ``sys.stderr`` is at the time, which may have been replaced since."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:  # type: ignore[override]
        """The stream that lines are written to."""
        return sys.stderr


def setup_logging(level: int = logging.INFO) -> None:
    """Send the package's log lines to stderr. Called by command lines only, never at import."""
    if logger.handlers:
        return
    handler = _Stderr()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(level if rank() == 0 else logging.WARNING)
    logger.propagate = False


def rank() -> int:
    """This process's number among those started by torchrun; 0 when it was not."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def one_thread() -> None:
    """One thread for each of torch's operations from here on, unless OMP_NUM_THREADS says otherwise.

    A toy's operations take less time on a CPU than threads need to meet; and with one thread their sums do not depend
    on how many cores a machine has.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


@contextmanager
def worker_pool(
    workers: int, *, start: Callable[..., None] | None = None, args: tuple = ()
) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes (spawned: the caller may run threads), each of which calls ``start(*args)`` first.

    Ctrl-C is for the caller alone: where anything goes wrong in the block, the workers are ended at once.
    """
    import multiprocessing

    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    from concurrent.futures import ProcessPoolExecutor

    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(start, args))
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _leave(number: int, frame: object) -> None:
    """End a worker within a second, but let it take away what it has half written."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(1)  # the pool takes the exception for the job's result and would hand it the next job
    raise SystemExit


def _start_worker(start: Callable[..., None] | None, args: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    if start is not None:
        start(*args)


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(wanted: str):
    """The torch device for a config's ``device``: ``cuda``, ``cuda:1``, ``cpu`` or ``auto`` (the GPU if there is one).

    Raises ConfigError when a GPU is asked for and there is none.
    """
    import torch

    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"run.device: {wanted!r} is not a device; use cuda, cuda:N, cpu or auto") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"run.device: {wanted!r}, but torch sees no GPU (torch {torch.__version__}). "
            'Run on a GPU machine, or say --options "run.device=cpu" (the released 7B recipes are too large for that).'
        )
    if device.type == "cuda" and device.index is None and world_size() > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda" and device.index is not None:
        there = torch.cuda.device_count()
        if device.index >= there:
            names = ", ".join(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(there))
            raise ConfigError(
                f"{device} is not there; there {'is' if there == 1 else 'are'} {names}. Set run.device or inference.gpu"
            )
        torch.cuda.set_device(device)  # kernels of other libraries run on the current device
    return device


def allowed_cpus() -> int:
    """Number of CPUs that this process may use, as torch counts them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Memory that a process can still get, bytes; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
