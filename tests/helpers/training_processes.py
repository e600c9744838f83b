"""train.py in processes of their own that can be killed, limited and signalled at a chosen step."""

from __future__ import annotations

import io
import json
import multiprocessing
import multiprocessing.util
import os
import resource
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")  # torch is imported once; every run is a fresh process all the same
_SERVER.set_forkserver_preload(["torch", "peft", "transformers.models.qwen2.modeling_qwen2", "affectgpt.training.loop"])


@dataclass(frozen=True)
class Trouble:
    """What happens to a run. Steps count from 1 within the process."""

    kill_after_step: int | None = None
    kill_in_save: int | None = None  # SIGKILL when half of the n-th file is written
    signal_in_step: tuple[int, int] | None = None  # step, signal
    signal_worker_in_step: tuple[int, int] | None = None  # the same for a worker of the loader
    max_file_size: tuple[int, int] | None = None  # from this step on, no file may be larger than so many bytes
    nan_from_step: int | None = None
    fails_in_step: int | None = None  # an error of this process alone; leaving the group blocks, as NCCL's does then
    no_dropout: bool = False  # LoRA's, whose noise depends on how samples are spread over processes


@dataclass(frozen=True)
class Outcome:
    """Exit status (negative: the signal that ended it) and what was printed."""

    status: int
    stderr: str


def run_train(*arguments: str, seen: Path | None = None, trouble: Trouble | None = None) -> Outcome:
    """Run train.py to its end. ``seen``: a file that gets one line per finished step with its samples."""
    log = Path(arguments[1]).with_suffix(".stderr")
    process = _SERVER.Process(target=_child, args=(arguments, log, seen, trouble or Trouble()))
    process.start()
    process.join(timeout=240)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"train.py hung: {log.read_text()}")
    return Outcome(process.exitcode, log.read_text())


def run_ranks(
    count: int, *arguments: str, trouble: Trouble | None = None, of_last: Trouble | None = None
) -> list[Outcome]:
    """Run train.py as torchrun would: ``count`` processes of one group on this machine; ``of_last``: trouble that the
    last of them has instead."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = [Path(arguments[1]).with_suffix(f".stderr{rank}") for rank in range(count)]
    processes = []
    for rank, log in enumerate(logs):
        group = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
        meets = of_last if of_last is not None and rank == count - 1 else trouble or Trouble()
        processes.append(_SERVER.Process(target=_child, args=(arguments, log, None, meets, group)))
        processes[-1].start()
    for process in processes:
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
    return [Outcome(process.exitcode, log.read_text()) for process, log in zip(processes, logs, strict=True)]


def _child(
    arguments: tuple[str, ...], log: Path, seen: Path | None, trouble: Trouble, group: dict[str, str] | None = None
) -> None:
    os.environ.update(group or {})
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    import torch

    from affectgpt.cli.common import run_cli
    from affectgpt.cli.train import main
    from affectgpt.core.errors import DataError
    from affectgpt.modeling import lora
    from affectgpt.training.step import Step, TrainStep

    torch.set_num_threads(1)
    if trouble.no_dropout:
        lora.LORA_DROPOUT = 0.0
    steps, saves = [0], [0]
    plain_run, plain_save = TrainStep.run, torch.save

    def run(self, fetched, **options) -> Step:
        steps[0] += 1
        if steps[0] == trouble.fails_in_step:
            torch.distributed.destroy_process_group = lambda *_: time.sleep(1000)
            multiprocessing.util.Finalize(None, time.sleep, args=(1000,), exitpriority=100)  # at the process' end too
            raise DataError("clip_03: this rank alone cannot read it")
        if trouble.signal_in_step and steps[0] == trouble.signal_in_step[0]:
            os.kill(os.getpid(), trouble.signal_in_step[1])
        if trouble.signal_worker_in_step and steps[0] == trouble.signal_worker_in_step[0]:
            os.kill(multiprocessing.active_children()[0].pid, trouble.signal_worker_in_step[1])
        if trouble.max_file_size and steps[0] == trouble.max_file_size[0]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (trouble.max_file_size[1],) * 2)
        if trouble.nan_from_step and steps[0] >= trouble.nan_from_step:
            with torch.no_grad():
                next(p for p in self.parameters if p.grad is None).fill_(float("nan"))
        step = plain_run(self, fetched, **options)
        if seen is not None:
            with seen.open("a") as handle:
                handle.write(json.dumps([name for batch in fetched for name in batch.names]) + "\n")
        if steps[0] == trouble.kill_after_step:
            os.kill(os.getpid(), signal.SIGKILL)
        return step

    def save(content, handle, **options) -> None:
        if options:  # torch's own, for messages between ranks
            return plain_save(content, handle, **options)
        saves[0] += 1
        if saves[0] == trouble.kill_in_save:
            whole = io.BytesIO()
            plain_save(content, whole)
            handle.write(whole.getvalue()[: whole.tell() // 2])
            handle.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return plain_save(content, handle)

    TrainStep.run = run
    torch.save = save
    sys.exit(run_cli(main, list(arguments)))
