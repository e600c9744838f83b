"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from affectgpt.config.load import to_dict
from affectgpt.config.paths import checkpoint_name
from affectgpt.config.schema import Config
from affectgpt.core.errors import AffectGPTError, ConfigError
from affectgpt.core.runtime import logger
from affectgpt.core.types import IGNORE_INDEX, Batch
from affectgpt.modeling.affectgpt import AffectGPT
from affectgpt.modeling.checkpoint import load_state, read_checkpoint, save_checkpoint, wire_name
from affectgpt.training.optim import get_schedule, parameter_groups

_MAX_BAD_STEPS = 3  # losses in a row that are no numbers before training stops


@dataclass
class Step:
    """What one optimizer step did."""

    loss: float  # mean over all learnt tokens of the step
    samples: int
    tokens: int  # of prompt and answer, padding not counted


def train(
    *,
    model: AffectGPT,
    config: Config,
    batches: Callable[[int], Iterable[Batch]],
    output_dir: Path,
    device: torch.device,
) -> Path:
    """Train for ``run.max_epoch`` epochs of ``run.iters_per_epoch`` steps; returns the last checkpoint.

    ``batches(epoch)`` gives an epoch's batches, ``iters_per_epoch × accum_grad_iters`` of them. Writes a checkpoint of
    the published layout before the first epoch (epoch 0) and after each, and one JSON line per logged step to
    ``log.txt``. Raises AffectGPTError when the loss is no number three steps in a row.
    """
    from tqdm import tqdm

    run = config.run
    schedule = get_schedule(run)
    optimizer = torch.optim.AdamW(
        parameter_groups(
            ((wire_name(name), p) for name, p in model.named_parameters() if p.requires_grad),
            weight_decay=run.weight_decay,
        ),
        lr=run.init_lr,
        betas=(0.9, run.beta2),
    )
    use_amp = run.amp and device.type == "cuda"
    scaler = torch.amp.GradScaler("cuda") if use_amp else None
    autocast = torch.autocast("cuda", dtype=torch.float16) if use_amp else nullcontext()

    def save(epoch: int, loss: float) -> Path:
        path = output_dir / checkpoint_name(epoch, loss)
        return save_checkpoint(
            path, model=model, optimizer=optimizer, scaler=scaler, config=to_dict(config), epoch=epoch
        )

    output_dir.mkdir(parents=True, exist_ok=True)
    first_epoch, latest = 1, None
    if run.resume_ckpt_path:
        first_epoch = _resume(Path(run.resume_ckpt_path), model=model, optimizer=optimizer, scaler=scaler) + 1
    else:
        latest = save(0, 0.0)
    model.train()
    bad_steps = 0
    with (output_dir / "log.txt").open("a", encoding="utf-8") as log:
        for epoch in range(first_epoch, run.max_epoch + 1):
            started, losses, samples, tokens = time.perf_counter(), [], 0, 0
            epoch_batches = iter(batches(epoch))
            bar = tqdm(range(run.iters_per_epoch), desc=f"epoch {epoch}/{run.max_epoch}", unit="step", disable=None)
            for i in bar:
                lr = schedule(epoch, i)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                fetched = _fetch(epoch_batches, run.accum_grad_iters)
                step = _step(model, fetched, optimizer=optimizer, scaler=scaler, autocast=autocast, device=device)
                bad_steps = 0 if math.isfinite(step.loss) else bad_steps + 1
                if bad_steps == _MAX_BAD_STEPS:
                    names = [name for batch in fetched for name in batch.names]
                    raise AffectGPTError(
                        f"epoch {epoch}, step {i}: the loss was no number {_MAX_BAD_STEPS} steps in a row; "
                        f"last batch: {', '.join(names)}. Lower run.init_lr or look at these samples."
                    )
                losses.append(step.loss)
                samples, tokens = samples + step.samples, tokens + step.tokens
                seconds = time.perf_counter() - started
                bar.set_postfix(loss=f"{step.loss:.3f}", lr=f"{lr:.1e}", samples_s=f"{samples / seconds:.1f}")
                if (i + 1) % run.log_freq == 0 or i + 1 == run.iters_per_epoch:
                    line = {
                        "epoch": epoch,
                        "step": i + 1,
                        "loss": round(step.loss, 6),
                        "lr": lr,
                        "samples_per_s": round(samples / seconds, 2),
                        "tokens_per_s": round(tokens / seconds, 1),
                    }
                    log.write(json.dumps(line) + "\n")
                    log.flush()
            mean = sum(losses) / len(losses)
            latest = save(epoch, mean)
            logger.info("epoch %d: loss %.3f, saved %s", epoch, mean, latest)
    if latest is None:
        raise ConfigError(
            f"run.resume_ckpt_path: {run.resume_ckpt_path} is of epoch {first_epoch - 1}, and run.max_epoch is "
            f"{run.max_epoch}: nothing is left to train"
        )
    return latest


def _fetch(batches: Iterator[Batch], count: int) -> list[Batch]:
    fetched = [batch for _, batch in zip(range(count), batches, strict=False)]
    if len(fetched) < count:
        raise AffectGPTError("the data gave fewer batches than run.iters_per_epoch asks for")
    return fetched


def _step(
    model: AffectGPT, fetched: list[Batch], *, optimizer: Any, scaler: Any, autocast: Any, device: torch.device
) -> Step:
    """Forward and backward over the micro-batches, one optimizer step. The loss is the mean over all learnt tokens."""
    learnt = [int((batch.labels != IGNORE_INDEX).sum()) for batch in fetched]
    total = 0.0
    for batch, count in zip(fetched, learnt, strict=True):
        with autocast:
            loss = model(batch.to(device)).loss * (count / sum(learnt))
        (loss if scaler is None else scaler.scale(loss)).backward()
        total += float(loss.detach())
    if scaler is None:
        if math.isfinite(total):
            optimizer.step()
    else:
        scaler.step(optimizer)  # leaves out steps whose gradients overflowed
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return Step(
        loss=total,
        samples=sum(len(batch.names) for batch in fetched),
        tokens=sum(int(batch.attention_mask.sum()) for batch in fetched),
    )


def _resume(path: Path, *, model: AffectGPT, optimizer: Any, scaler: Any) -> int:
    """Lay a checkpoint over model, optimizer and scaler; returns its epoch."""
    content = read_checkpoint(path)
    report = load_state(model, content["model"], source=str(path))
    if report.missing or report.wrong_shape:
        raise ConfigError(f"run.resume_ckpt_path: {path} was made by another recipe: {report}")
    if content.get("optimizer") and content["optimizer"].get("state"):
        optimizer.load_state_dict(content["optimizer"])
    if scaler is not None and content.get("scaler"):
        scaler.load_state_dict(content["scaler"])
    logger.info("resumed from %s (epoch %s): %s", path, content["epoch"], report)
    return int(content["epoch"])
