"""Several processes as one: torchrun's group, sums over ranks, DDP and FSDP2."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn

from affectgpt.config.schema import RunConfig
from affectgpt.core.errors import ConfigError
from affectgpt.core.runtime import world_size

_TIMEOUT = timedelta(hours=2)  # one rank writes a checkpoint while the others wait


def world() -> int:
    """Processes of the running group; 1 outside one."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main() -> bool:
    """Return whether this process writes files."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


@contextmanager
def process_group(run: RunConfig, device: torch.device) -> Iterator[None]:
    """The group that torchrun asked for, for as long as the block lasts; none without torchrun.

    Numbers on the CPU travel over gloo, GPU tensors over NCCL. Raises ConfigError where the processes that there are
    and the configuration do not fit.
    """
    if run.parallel == "fsdp2" and world_size() == 1:
        raise ConfigError("run.parallel is fsdp2, which shards over several processes; start it with torchrun")
    if world_size() > 1:
        _check_launch(run)
    if world_size() == 1:
        yield
        return
    if device.type == "cuda":
        distributed.init_process_group("cpu:gloo,cuda:nccl", device_id=device, timeout=_TIMEOUT)
    else:
        distributed.init_process_group("gloo", timeout=_TIMEOUT)
    yield
    # Only here: NCCL's end waits for all ranks. One that fails alone prints its error and leaves (``cli.common``), and
    # torchrun ends the others.
    distributed.destroy_process_group()


def _check_launch(run: RunConfig) -> None:
    if not run.distributed:
        raise ConfigError(f"run.distributed is False, but torchrun started {world_size()} processes")
    if "MASTER_ADDR" not in os.environ:
        raise ConfigError("WORLD_SIZE is set, but MASTER_ADDR is not: start it with torchrun")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    if run.device.startswith("cuda:") and here > 1:
        raise ConfigError(
            f"run.device is {run.device}, which {here} processes of this machine would share: set run.device=cuda, of "
            "which each takes a GPU of its own"
        )


def sum_over_ranks(*values: float) -> list[float]:
    """Each number summed over the ranks, float64 (exact for whole numbers)."""
    if world() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(tensor)
    return tensor.tolist()


def gather(value: Any) -> list[Any]:
    """``value`` of every rank, in their order, on all ranks."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    distributed.all_gather_object(values, value)
    return values


def shard(objective: nn.Module, *, layers: Iterable[nn.Module], run: RunConfig, device: torch.device) -> None:
    """FSDP2: the parameters of each of ``layers``, and the rest, spread over the ranks. In place.

    The LLM's frozen weights, which are mapped files so far (``build_model(sharded=True)``), are put on the device one
    layer at a time, in the dtype they compute in: no process ever holds all of them.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if run.amp and run.amp_dtype == "float16" and device.type == "cuda":
        raise ConfigError(
            "run.parallel is fsdp2, which has no gradient scaling: set run.amp_dtype and model.llm_dtype to bfloat16"
        )
    if run.batch_tokens:
        raise ConfigError("run.parallel is fsdp2, whose ranks must take as many batches each: set run.batch_tokens=0")
    if run.on_error == "skip":
        raise ConfigError("run.parallel is fsdp2, whose ranks must all have a batch: set run.on_error=raise")
    mesh = init_device_mesh(device.type, (world(),))
    model: Any = objective.model
    llm = model.llm
    for part in (*layers, llm):
        for name, parameter in part.named_parameters():
            if ".lora_" not in name and not hasattr(parameter, "full_tensor"):
                parameter.data = parameter.data.to(device, llm.dtype_of_shards)
        fully_shard(part if part is not llm else objective, mesh=mesh)


def wrap(objective: nn.Module, run: RunConfig, device: torch.device) -> nn.Module:
    """The objective, its gradients averaged over the ranks."""
    if world() == 1 or run.parallel == "fsdp2":  # shards average their gradients themselves
        return objective
    # No buffer changes in training. torch renamed the argument that leaves them alone.
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    leave_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {leave_buffers: False}
    return nn.parallel.DistributedDataParallel(
        objective,
        device_ids=[device] if device.type == "cuda" else None,
        # Which branches a batch uses depends on its mode; a branch without a gradient on any rank keeps none.
        find_unused_parameters=True,
        **options,
    )


def last_backward(objective: nn.Module, is_last: bool) -> AbstractContextManager:
    """Around a micro-batch: gradients travel between ranks only in the last one of a step."""
    if isinstance(objective, nn.parallel.DistributedDataParallel) and not is_last:
        return objective.no_sync()
    return nullcontext()


def full_tensor(tensor: Any) -> Any:
    """A shard's full tensor on the CPU (all ranks must call this), or the tensor itself."""
    return tensor.full_tensor().detach().cpu() if hasattr(tensor, "full_tensor") else tensor
