"""The training loop, and the micro-batches of the next step that are read while one computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from affectgpt.config.schema import Config, to_dict
from affectgpt.core.errors import AffectGPTError, CheckpointError
from affectgpt.core.runtime import logger
from affectgpt.core.types import Batch
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.processing.data import BatchStream
from affectgpt.training.distributed import world
from affectgpt.training.objectives.base import OBJECTIVES
from affectgpt.training.optim import get_schedule
from affectgpt.training.progress import Progress
from affectgpt.training.run_state import Position, Resumed, Saver, revisions_of
from affectgpt.training.step import build_train_step
from affectgpt.training.stopping import BadSteps, Interrupt, Interrupted
from affectgpt.training.validation import HeldOut, Score, held_out_losses

if TYPE_CHECKING:
    from affectgpt.training.objectives.grpo import Rollouts


class Prefetcher:
    """The micro-batches of one step after the other, on ``device``.

    ``count`` batches are drawn for a step; ``run.batch_tokens`` may have split each in several. An error of the data is
    raised by ``next``, when the step before it is done. Without ``ahead`` nothing is read before ``next``: batches that
    the model in training makes need its weights of then, and the GPU's stream that computes them.
    """

    def __init__(self, stream: Iterator[Batch | None], *, count: int, device: torch.device, ahead: bool = True) -> None:
        self.stream, self.count, self.device, self.ahead = stream, count, device, ahead
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" and ahead else None
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


def train(
    *,
    model: AffectGPTForConditionalGeneration,
    config: Config,
    batches: BatchStream | Rollouts,
    output_dir: Path,
    device: torch.device,
    resumed: Resumed | None = None,
    held_out: HeldOut | None = None,
    score: Score | None = None,
    made_from: Mapping[str, Any] | None = None,
) -> Path:
    """Train for ``run.max_epoch`` epochs of ``run.iters_per_epoch`` steps; returns the last checkpoint.

    An epoch has ``iters_per_epoch × accum_grad_iters`` micro-batches. Writes to ``output_dir`` a checkpoint of the
    published layout before the first epoch (epoch 0) and after each, ``last.state`` every ``run.save_state_every``
    steps, and ``log.txt``. ``held_out``: split → its batches, whose loss is logged after an epoch; ``score``:
    checkpoint → named scores; ``made_from``: see ``run_state.made_from``. Roll-outs depend on the model in training:
    they are drawn when a step needs them, have a state of their own in ``last.state``, and may end the run.

    Raises Interrupted after Ctrl-C or SIGTERM, with everything saved, and AffectGPTError
    when the loss is not a number three steps in a row, the disk is full, or the batches ask to stop.
    """
    run = config.run
    schedule = get_schedule(run)
    train_step = build_train_step(model, config, device, resumed=resumed)
    live: Rollouts | None = batches if OBJECTIVES.get(run.objective).draws else None  # type: ignore[assignment]
    saver = Saver(
        output_dir, model=model, optimizer=train_step.optimizer, scaler=train_step.scaler,
        config={**to_dict(config), "revisions": revisions_of(resumed), "made_from": dict(made_from or {})},
        keep_last=run.keep_last, device=device,
        batches=None if live is None else live.state_dict,
    )  # fmt: skip
    at = Position()
    if resumed is None:
        saver.epoch(0, 0.0)
    else:
        at = resumed.position
        if at.epoch > run.max_epoch:
            raise CheckpointError(f"{resumed.path} ends epoch {at.epoch - 1} of {run.max_epoch}: nothing is left")
        resumed.restore_random_state(device)
        if live is not None:
            resumed.restore_batches(live)
    latest = output_dir
    bad_steps = BadSteps(output_dir, model)
    model.train()
    with Interrupt() as interrupt, Progress(output_dir, run=run, start=at, device=device) as progress:
        while at.epoch <= run.max_epoch:
            stream = batches(at.epoch, start=at.step * run.accum_grad_iters)
            micro_batches = Prefetcher(stream, count=run.accum_grad_iters, device=device, ahead=live is None)
            progress.epoch(at.epoch, at.step)
            while at.step < run.iters_per_epoch:
                lr = schedule(at.epoch, at.step)
                fetched = micro_batches.next()
                ahead = micro_batches.ahead and at.step + 1 < run.iters_per_epoch
                step = train_step.run(
                    fetched, lr=lr, stop=interrupt.asked, meanwhile=micro_batches.fetch if ahead else None
                )
                at.advance(step.loss)
                progress.step(at, step, lr=lr, more=step.metrics if live is None else live.after_step(step))
                bad_steps.check(at, fetched)
                stop = step.stop or (world() == 1 and interrupt.asked)  # several ranks agree with the next step
                if stop or (run.save_state_every and at.step % run.save_state_every == 0):
                    saver.state(at)
                if stop:
                    raise Interrupted(
                        f"stopped after step {at.step} of epoch {at.epoch}, saved in {output_dir}; "
                        "run.resume_ckpt_path=auto resumes it",
                        signum=interrupt.signum or 15,
                    )
                if live is not None and live.halt is not None:
                    saver.state(at)
                    raise AffectGPTError(f"epoch {at.epoch}, step {at.step}: training stops, as {live.halt}")
            latest = saver.epoch(at.epoch, at.mean_loss)
            logger.info("epoch %d: loss %.3f, saved %s", at.epoch, at.mean_loss, latest.name)
            if held_out and at.epoch % run.valid_every == 0:
                losses = held_out_losses(train_step, held_out)
                logger.info("epoch %d: %s", at.epoch, ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))
                progress.line({"epoch": at.epoch, "step": at.step, **losses})
            if score is not None and run.score_every and at.epoch % run.score_every == 0:
                progress.line({"epoch": at.epoch, "step": at.step, **score(latest)})
            model.train()
            at = Position(epoch=at.epoch + 1, bad_steps=at.bad_steps)
            saver.state(at)
    return latest
