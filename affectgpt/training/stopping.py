"""Why a run stops before its last step: it is asked to, memory runs out, a process is lost, losses are not numbers."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import distributed, nn

from affectgpt.core.errors import AffectGPTError
from affectgpt.core.files import write_json
from affectgpt.core.runtime import logger
from affectgpt.core.types import Batch
from affectgpt.training.distributed import gather, is_main, world
from affectgpt.training.run_state import Position

_MAX_BAD_STEPS = 3  # losses in a row that are not numbers before training stops


class Interrupted(Exception):  # noqa: N818 - not an error: what was asked for was done
    """Training was stopped from outside, and saved. ``status`` is the exit status a shell expects."""

    def __init__(self, message: str, *, signum: int) -> None:
        super().__init__(message)
        self.status = 128 + signum


class Interrupt:
    """Ctrl-C and SIGTERM (a cluster's pre-emption): finish the step, save, leave.

    While the block lasts, the first SIGINT or SIGTERM is noted in ``asked``; a second SIGINT ends the process.
    Outside the main thread (where Python delivers no signals) it notes nothing.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, object] = {}

    @property
    def asked(self) -> bool:
        """True once the process was asked to stop."""
        return self.signum != 0

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        logger.warning("%s: saving after this step", signal.Signals(signum).name)

    def __enter__(self) -> Interrupt:
        for signum in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[signum] = signal.signal(signum, self._note)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]


class BadSteps:
    """End a run whose loss is not a number three steps in a row, and says where that may come from."""

    def __init__(self, folder: Path, model: nn.Module) -> None:
        self.path = folder / "bad_batches.json"
        self.model = model
        self._steps: list[dict[str, list[str]]] = []  # of the last steps whose loss was not a number

    def check(self, at: Position, fetched: Sequence[Batch | None]) -> None:
        """After a step over ``fetched``; all ranks must call this. Raises AffectGPTError naming the samples."""
        self._steps = [*self._steps, _describe(fetched)][-at.bad_steps :] if at.bad_steps else []
        if at.bad_steps < _MAX_BAD_STEPS:
            return
        first = at.step - len(self._steps) + 1
        steps = [_join(parts) for parts in zip(*gather(self._steps), strict=True)]  # of all ranks
        if is_main():
            numbered = [{"epoch": at.epoch, "step": number, **step} for number, step in enumerate(steps, start=first)]
            write_json(self.path, numbered)
        raise AffectGPTError(
            f"epoch {at.epoch}, step {at.step}: the loss was not a number {at.bad_steps} steps in a row. The samples "
            f"are in {self.path}: {', '.join(steps[-1]['names'])}. No weight was changed by these steps. "
            f"{self._advice(steps)}"
        )

    def _advice(self, steps: list[dict[str, list[str]]]) -> str:
        odd = list(dict.fromkeys(entry for step in steps for entry in step["not_finite"]))
        local = ((name, p.to_local() if hasattr(p, "to_local") else p) for name, p in self.model.named_parameters())
        weights = [name for name, p in local if not p.isfinite().all()]
        weights = list(dict.fromkeys(name for rank in gather(weights) for name in rank))
        if odd:
            return (
                f"Inputs of these samples are not finite: {'; '.join(odd[:5])}{'; …' if len(odd) > 5 else ''}. Their "
                "files or stored features are damaged: affectgpt check_data --decode names them (run.on_error=skip "
                "leaves out what cannot be read)."
            )
        if weights:
            return (
                f"All inputs are finite, but {len(weights)} weights of the model are not, first {weights[0]}: the "
                "model folder or the checkpoint that it came from is damaged (affectgpt doctor)."
            )
        return (
            "All inputs and weights are finite. Lower run.init_lr, set run.amp_dtype and model.llm_dtype to bfloat16 "
            "where the GPU has it, or look at these samples."
        )


def _describe(fetched: Sequence[Batch | None]) -> dict[str, list[str]]:
    """The samples of a step's batches, and which inputs of theirs are not finite (``NAME: face``)."""
    names, odd = [], []
    for batch in fetched:
        if batch is not None:
            names += batch.names
            inputs = [(m, t) for m, t in (*batch.media.items(), *batch.features.items()) if t.is_floating_point()]
            for row, name in enumerate(batch.names):
                media = [modality.value for modality, tensor in inputs if not tensor[row].isfinite().all()]
                odd += [f"{name}: {', '.join(media)}"] if media else []
    return {"names": names, "not_finite": odd}


def _join(parts: Sequence[dict[str, list[str]]]) -> dict[str, list[str]]:
    return {key: [entry for part in parts for entry in part[key]] for key in parts[0]}


@contextmanager
def explained() -> Iterator[None]:
    """Around a run: what to do where memory ran out or another process of the group is gone, as AffectGPTError."""
    try:
        yield
    except RuntimeError as error:
        explanation = _explain(error)
        if explanation is None:
            raise
        raise explanation from error


def _explain(error: RuntimeError) -> AffectGPTError | None:
    what = str(error).partition("\n")[0]
    if isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error):  # the latter on a CPU
        return AffectGPTError(
            f"memory ran out ({what}); lower run.batch_size_train (and raise run.accum_grad_iters by as much), set "
            "run.gradient_checkpointing=True, lower model.max_length, or spread the model over several GPUs with "
            "torchrun and run.parallel=fsdp2"
        )
    lost = (distributed.DistBackendError, distributed.DistNetworkError)
    if world() > 1 and (isinstance(error, lost) or "gloo" in str(error)):
        return AffectGPTError(
            f"another process of the group ended ({what}); its own message says why. run.resume_ckpt_path=auto "
            "resumes from the last state that was saved"
        )
    return None
