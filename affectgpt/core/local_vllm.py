"""vLLM inside this process: how the inference engine and the text client start it, what memory it takes, how it ends.

Inside, because an engine in processes of its own outlives a killed command and holds its GPU, and cannot be started by
a script without a main guard. vLLM's state of parallel groups is one per process, so one engine runs at a time.
"""

from __future__ import annotations

import gc
import json
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from affectgpt.core.errors import AffectGPTError, ConfigError
from affectgpt.core.runtime import available_memory, logger

_IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
_running: weakref.finalize | None = None  # of the engine that runs; called, it ends it


class EngineFailedError(AffectGPTError):
    """vLLM failed to start, or failed at work; the next call starts it again."""


def import_vllm() -> Any:
    """The package. Its log goes to stderr: stdout is for results. Raises ImportError, with the reason, without it."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    try:
        import vllm
    except (RuntimeError, OSError, AttributeError) as error:  # a torch, or a torchvision, that it was not built for
        raise ImportError(_line(error)) from error
    return vllm


class LocalVLLM:
    """A vLLM engine of this process: started when it is wanted, gone with its owner, with ``stop``, or when another one
    is started; then it is simply started again."""

    def __init__(self) -> None:
        self._end: weakref.finalize | None = None

    @property
    def llm(self) -> Any:
        """The running ``vllm.LLM``; None when there is none."""
        alive = self._end.peek() if self._end is not None else None
        return alive[2][0] if alive else None

    def start(self, **settings: Any) -> Any:
        """``vllm.LLM(**settings)`` in this process; the one that runs is ended first.

        Raises EngineFailedError in one line. What vLLM changes of the environment is changed back.
        """
        global _running
        import torch

        if _running is not None:
            _running()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise ConfigError("vLLM cannot run in a process of a distributed training: use transformers there")
        if not torch.cuda.is_available():
            # vLLM's CPU sampler takes no seeds in a step that ends inside a prompt.
            settings.setdefault("enable_chunked_prefill", False)
        llm = None
        try:
            with _undone():
                llm = import_vllm().LLM(**settings)
        except Exception as error:
            raise EngineFailedError(f"vLLM could not be started on {settings.get('model')}: {_line(error)}") from error
        finally:
            if llm is None:
                _end(None)
        self._end = _running = weakref.finalize(self, _end, llm)
        return llm

    def stop(self) -> None:
        """End the engine and give its memory back."""
        if self._end is not None:
            self._end()

    @contextmanager
    def at_work(self, what: str) -> Iterator[None]:
        """Around a use of ``llm``: what vLLM raises ends the engine, in an unknown state, and is an EngineFailedError
        of one line. What is ended by Ctrl-C leaves no request behind either."""
        try:
            yield
        except AffectGPTError:
            raise
        except Exception as error:
            self.stop()
            raise EngineFailedError(f"vLLM failed while {what}: {_line(error)}") from error
        except BaseException:
            self.stop()
            raise


def _end(llm: Any) -> None:
    engine = getattr(llm, "llm_engine", None)
    with suppress(Exception):  # of an engine that has failed already
        if engine is not None:
            engine.engine_core.shutdown()
        elif llm is None:  # half of one: its process group must not stay
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()
    del engine, llm
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _undone() -> Iterator[None]:
    """vLLM's settings of a process are for processes of its own: they end with the starting of the engine."""
    import torch

    before, threads = dict(os.environ), torch.set_num_threads
    os.environ.update(_IN_PROCESS)
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        # Workers of tensor parallelism share memory between processes, which such segments cannot.
        if "expandable_segments" in os.environ.get(name, ""):
            kept = [item for item in os.environ[name].split(",") if not item.startswith("expandable_segments")]
            os.environ[name] = ",".join(kept)
            if not kept:
                del os.environ[name]
    try:
        yield
    finally:
        torch.set_num_threads = threads  # on a CPU vLLM switches it off
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def memory_settings(folder: str | Path, *, dtype: str, wanted: int, least: int = 0, spare: int = 0) -> dict[str, Any]:
    """Return how much vLLM may take of the memory that is free now, as settings of ``vllm.LLM``.

    On a GPU a share of it all: what is free, less ``spare`` bytes for what else works there. On a CPU, where vLLM would
    take a share of the whole machine, bytes for keys and values: ``wanted``, at most half of what the weights in
    ``folder`` leave as ``dtype``. Raises ConfigError when less than ``least`` is left.
    """
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        share = int(1000 * (free - spare) / total) / 1000
        if share <= 0:
            raise ConfigError(f"vLLM: {free / 1e9:.1f} GB are free on the GPU, {spare / 1e9:.1f} GB must stay so")
        return {"gpu_memory_utilization": share}
    free = available_memory() or 8 << 30
    weights = weight_bytes(folder, dtype=dtype)
    allowed = min(wanted, (free - weights) // 2)
    if allowed < max(least, 1):
        raise ConfigError(
            f"vLLM: the weights in {folder} need {weights / 1e9:.1f} GB in {dtype}, and {free / 1e9:.1f} GB are free: "
            "use a GPU, or a smaller language model"
        )
    logger.debug("vLLM: %.2f GB for keys and values", allowed / 1e9)
    return {"kv_cache_memory_bytes": allowed}


def weight_bytes(folder: str | Path, *, dtype: str) -> int:
    """Bytes of a model folder's weights when they are loaded as ``dtype`` (auto: as they are stored)."""
    stored = stored_dtype(folder)
    files = list(Path(folder).glob("*.safetensors")) or list(Path(folder).glob("*.bin"))
    size = sum(file.stat().st_size for file in files)
    return size * _width(stored if dtype == "auto" else dtype) // _width(stored)


def stored_dtype(folder: str | Path) -> str:
    """The dtype that a model folder's config.json names, ``float32`` where it names none."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        named = config.get("dtype") or config.get("torch_dtype")
    except (OSError, ValueError, AttributeError):
        named = None
    return named if isinstance(named, str) else "float32"


def _width(dtype: str) -> int:
    return 4 if dtype == "float32" else 2
