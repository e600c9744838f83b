"""The training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch

from affectgpt.config.schema import Config, to_dict
from affectgpt.core.errors import AffectGPTError, CheckpointError, ConfigError
from affectgpt.core.files import write_json
from affectgpt.core.runtime import logger
from affectgpt.core.types import Batch
from affectgpt.modeling.checkpoint import load_state, trained_parameters
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration as AffectGPT
from affectgpt.training.distributed import gather, is_main, shard, world, wrap
from affectgpt.training.interrupt import Interrupt, Interrupted
from affectgpt.training.objectives.base import OBJECTIVES
from affectgpt.training.optim import build_optimizer, get_schedule
from affectgpt.training.progress import Progress
from affectgpt.training.resume import Position, Resumed, load_optimizer, revisions_of, set_random_state
from affectgpt.training.saving import Saver
from affectgpt.training.step import Step, Stepper, prepare_llm
from affectgpt.training.validate import mean_loss

_MAX_BAD_STEPS = 3  # losses in a row that are no numbers before training stops


class Batches(Protocol):
    """What gives the data: an epoch's micro-batches from number ``start`` on; None: nothing of one could be read."""

    def __call__(self, epoch: int, *, start: int = 0) -> Iterator[Batch | None]: ...


def build_stepper(model: AffectGPT, config: Config, device: torch.device, *, resumed: Resumed | None) -> Stepper:
    """Model, optimizer and scaler, ready for steps: on one process or several, with what ``resumed`` holds laid over.

    Raises ConfigError and CheckpointError naming key or file.
    """
    run = config.run
    if resumed is not None:
        content = resumed.content
        report = load_state(model, content["model"], source=str(resumed.path), config=content.get("config"))
        if not report.complete:
            raise ConfigError(f"run.resume_ckpt_path: {resumed.path} was made by another recipe: {report}")
        logger.info("going on from %s: %s", resumed.path, report)
    prepare_llm(model, run)
    with config.naming("run.objective"):
        objective = OBJECTIVES.get(run.objective)(model, run)
    if run.parallel == "fsdp2":
        shard(objective, layers=model.llm.get_decoder().layers, run=run, device=device)
    optimizer = build_optimizer(trained_parameters(model), run=run)
    stepper = Stepper(objective, wrapped=wrap(objective, run, device), optimizer=optimizer, run=run, device=device)
    if resumed is not None:
        load_optimizer(optimizer, resumed.content.get("optimizer"), source=resumed.path)
        if stepper.scaler is not None and resumed.content.get("scaler"):
            stepper.scaler.load_state_dict(resumed.content["scaler"])
    return stepper


def train(
    *,
    model: AffectGPT,
    config: Config,
    batches: Batches,
    output_dir: Path,
    device: torch.device,
    resumed: Resumed | None = None,
    held_out: Mapping[str, Callable[[], Iterable[Batch]]] | None = None,
    score: Callable[[Path], Mapping[str, float]] | None = None,
) -> Path:
    """Train for ``run.max_epoch`` epochs of ``run.iters_per_epoch`` steps; returns the last checkpoint.

    An epoch has ``iters_per_epoch × accum_grad_iters`` micro-batches. Writes to ``output_dir`` a checkpoint of the
    published layout before the first epoch (epoch 0) and after each, ``last.state`` every ``run.save_state_every``
    steps, and ``log.txt``. ``held_out``: split → its batches, whose loss is logged after an epoch; ``score``:
    checkpoint → named scores. Raises Interrupted after Ctrl-C or SIGTERM, with everything saved, and AffectGPTError
    when the loss is no number three steps in a row or the disk is full.
    """
    run = config.run
    schedule = get_schedule(run)
    stepper = build_stepper(model, config, device, resumed=resumed)
    saver = Saver(
        output_dir, model=model, optimizer=stepper.optimizer, scaler=stepper.scaler,
        config={**to_dict(config), "revisions": revisions_of(resumed)}, keep_last=run.keep_last, device=device,
    )  # fmt: skip
    at = resumed.position if resumed is not None else Position()
    if at.epoch > run.max_epoch:
        raise CheckpointError(
            f"{resumed and resumed.path} ends epoch {at.epoch - 1} of {run.max_epoch}: nothing is left"
        )
    if resumed is None:
        saver.epoch(0, 0.0)
    if resumed is not None and "random" in resumed.content:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        set_random_state(resumed.content["random"][rank], device)
    bad: list[dict[str, list[str]]] = []  # of the last steps whose loss was not a number
    latest = output_dir
    model.train()
    with Interrupt() as interrupt, Progress(output_dir, run=run, start=at, device=device) as progress:
        while at.epoch <= run.max_epoch:
            stream = batches(at.epoch, start=at.step * run.accum_grad_iters)
            progress.epoch(at.epoch, at.step)
            while at.step < run.iters_per_epoch:
                lr = schedule(at.epoch, at.step)
                fetched = _fetch(stream, run.accum_grad_iters)
                step = stepper.run(fetched, lr=lr, stop=interrupt.asked)
                at.step += 1
                _count(at, step)
                progress.step(at, step, lr=lr)
                bad = [*bad, _inputs(fetched)][-at.bad_steps :] if at.bad_steps else []
                if at.bad_steps >= _MAX_BAD_STEPS:
                    _give_up(output_dir, at, bad, model)
                step.stop |= world() == 1 and interrupt.asked  # several ranks agree with the next step
                if step.stop or (run.save_state_every and at.step % run.save_state_every == 0):
                    saver.state(at)
                if step.stop:
                    raise Interrupted(
                        f"stopped after step {at.step} of epoch {at.epoch}, saved in {output_dir}; "
                        "run.resume_ckpt_path=auto resumes it",
                        signum=interrupt.signum or 15,
                    )
            latest = saver.epoch(at.epoch, at.loss_sum / max(at.loss_count, 1))
            logger.info("epoch %d: loss %.3f, saved %s", at.epoch, at.loss_sum / max(at.loss_count, 1), latest.name)
            if held_out and at.epoch % run.valid_every == 0:
                losses = {f"valid_loss_{k}": mean_loss(stepper, part()) for k, part in held_out.items()}
                logger.info("epoch %d: %s", at.epoch, ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))
                progress.line({"epoch": at.epoch, "step": at.step, **losses})
            if score is not None and run.score_every and at.epoch % run.score_every == 0:
                progress.line({"epoch": at.epoch, "step": at.step, **score(latest)})
            model.train()
            at = Position(epoch=at.epoch + 1, bad_steps=at.bad_steps)
            saver.state(at)
    return latest


def _fetch(stream: Iterator[Batch | None], count: int) -> list[Batch | None]:
    fetched = [batch for _, batch in zip(range(count), stream, strict=False)]
    if len(fetched) < count:
        raise AffectGPTError("the data gave fewer batches than run.iters_per_epoch asks for")
    return fetched


def _count(at: Position, step: Step) -> None:
    if step.is_number:
        at.loss_sum, at.loss_count, at.bad_steps = at.loss_sum + step.loss, at.loss_count + 1, 0
    else:
        at.bad_steps += 1


def _inputs(fetched: list[Batch | None]) -> dict[str, list[str]]:
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


def _give_up(output_dir: Path, at: Position, bad: list[dict[str, list[str]]], model: AffectGPT) -> None:
    """The loss was not a number too often: save the samples' names, say where that may come from, and stop."""
    path = output_dir / "bad_batches.json"
    numbers = range(at.step - len(bad) + 1, at.step + 1)
    ranks = gather(bad)
    steps = [{key: [x for rank in ranks for x in rank[i][key]] for key in bad[i]} for i in range(len(bad))]
    if is_main():
        write_json(path, [{"epoch": at.epoch, "step": s, **step} for s, step in zip(numbers, steps, strict=True)])
    odd = list(dict.fromkeys(entry for step in steps for entry in step["not_finite"]))
    local = ((name, p.to_local() if hasattr(p, "to_local") else p) for name, p in model.named_parameters())
    weights = [name for name, p in local if not p.isfinite().all()]
    weights = list(dict.fromkeys(name for rank in gather(weights) for name in rank))
    if odd:
        advice = (
            f"Inputs of these samples are not finite: {'; '.join(odd[:5])}{'; …' if len(odd) > 5 else ''}. Their files "
            "or stored features are damaged: affectgpt check_data --decode names them (run.on_error=skip leaves out "
            "what cannot be read)."
        )
    elif weights:
        advice = (
            f"All inputs are finite, but {len(weights)} weights of the model are not, first {weights[0]}: the model "
            "folder or the checkpoint that it came from is damaged (affectgpt doctor)."
        )
    else:
        advice = (
            "All inputs and weights are finite. Lower run.init_lr, set run.amp_dtype=bfloat16 where the GPU has it, or "
            "look at these samples."
        )
    raise AffectGPTError(
        f"epoch {at.epoch}, step {at.step}: the loss was not a number {at.bad_steps} steps in a row. The samples are "
        f"in {path}: {', '.join(steps[-1]['names'])}. No weight was changed by these steps. {advice}"
    )
