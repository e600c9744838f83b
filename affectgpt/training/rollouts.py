"""Roll-outs as data: the model in training answers, and what it said comes back as the micro-batches of the next steps.

The loop knows no difference to labelled data. Who draws and who rewards is handed in (a ``Source``): this room knows
neither processors nor metrics.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from affectgpt.config.schema import Config
from affectgpt.core.errors import CheckpointError, ConfigError
from affectgpt.core.layout import layout_of
from affectgpt.core.runtime import logger
from affectgpt.core.types import Batch, Grades
from affectgpt.training.distributed import gather, sum_over_ranks
from affectgpt.training.objectives.grpo import Scorer, combined_advantages, resamples, scales
from affectgpt.training.run_state import Position
from affectgpt.training.step import Step

Key = tuple[int, int, int]  # of a clip: part, epoch, index


class Answered(Protocol):
    """One drawn answer: its text, and its tokens with what they were drawn with, up to and with the stop."""

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


class Drawn(Protocol):
    """A clip with the answers that were drawn for it."""

    key: Key
    answers: Sequence[Any]  # Answered


class Source(Protocol):
    """Who draws answers and rewards them; the same on every rank.

    ``mean_labels``: of the truths; ``notes``: the file for some answers, None: none.
    """

    mean_labels: float
    notes: Path | None

    def order(self, epoch: int, *, start: int) -> Iterator[list[Key]]:
        """The clips of an epoch's micro-batches, from number ``start`` on."""
        ...

    def draw(self, keys: Sequence[Key], *, number: int) -> list[Any]:
        """Drawn per clip; None for one that cannot be read. ``number``: of the roll-out."""
        ...

    def another(self, key: Key, *, number: int, attempt: int) -> Key:
        """A clip in place of one whose answers all earn the same."""
        ...

    def grade(self, drawn: Sequence[Any]) -> Grades:
        """The rewards of all answers."""
        ...

    def compared(self, drawn: Sequence[Any], *, number: int) -> dict[str, tuple[float, int]]:
        """What answers earn that never met their clip: name → (sum over clips, clips)."""
        ...

    def collate(self, drawn: Sequence[Any]) -> Batch:
        """The clips' prompts, padded on the left."""
        ...

    def note(self, drawn: Sequence[Any], grades: Grades, *, number: int) -> None:
        """Keep some of what was said, for people to read."""
        ...


class Rollouts:
    """The micro-batches of an epoch, drawn with the model as it is when the first of a step is asked for.

    A step has as many micro-batches as ``run.accum_grad_iters``; ``grpo.updates`` steps go over the same answers.
    """

    def __init__(self, source: Source, *, config: Config, scorer: Scorer, device: torch.device) -> None:
        run, grpo = config.run, config.grpo
        if run.iters_per_epoch % grpo.updates:
            raise ConfigError(
                f"{config.where('grpo.updates')} is {grpo.updates}, of which run.iters_per_epoch "
                f"({run.iters_per_epoch}) must be a multiple"
            )
        self.source, self.config, self.scorer, self.device = source, config, scorer, device
        self.guard = Guard(config, mean_labels=source.mean_labels)
        self.seconds = {"rollout": 0.0, "reward": 0.0, "logprobs": 0.0}  # of the last roll-out
        self._numbers: dict[str, float] = {}  # of the last roll-out, to be logged
        self._pending: tuple[int, list[Batch | None]] | None = None  # number of the roll-out, its micro-batches
        self._start = "" if scorer.start is None else _hash(scorer.start)

    def __call__(self, epoch: int, *, start: int = 0) -> Iterator[Batch | None]:
        """The micro-batches of an epoch (the first is 1), from number ``start`` on."""
        run, updates = self.config.run, self.config.grpo.updates
        step, inside = divmod(start, run.accum_grad_iters)
        assert inside == 0, "a run resumes between two steps"
        order = self.source.order(epoch, start=step // updates * run.accum_grad_iters)
        while step < run.iters_per_epoch:
            number = ((epoch - 1) * run.iters_per_epoch + step) // updates
            keys = [next(order) for _ in range(run.accum_grad_iters)]
            if self._pending is None or self._pending[0] != number:
                self._pending = number, self._rolled_out(keys, number=number)
            for _ in range(step % updates, updates):
                yield from self._pending[1]
                step += 1
            self._pending = None

    def after_step(self, at: Position, step: Step) -> dict[str, float]:
        """What is to be logged of a step; ``guard.verdict`` then says whether training should stop."""
        del at
        numbers = {**self._numbers, **step.metrics}
        self._numbers = {}
        return numbers

    @property
    def halt(self) -> str | None:
        """Why training should stop, in words; None: it should not. The same on every rank."""
        return self.guard.verdict

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on besides weights: the answers of steps to come, and what the guard has seen."""
        pending = None
        if self._pending is not None and self.config.grpo.updates > 1:
            batches = [
                None if batch is None else {"values": _plain(batch), "mode": batch.mode, "prompts": batch.prompts}
                for batch in self._pending[1]
            ]
            pending = {"number": self._pending[0], "batches": batches}
        return {"pending": pending, "guard": self.guard.state_dict(), "start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo ``state_dict``. Raises CheckpointError when the run began with other weights."""
        if state["start"] != self._start:
            raise CheckpointError(
                "the weights that this run began with (model.ckpt, ckpt_2, ckpt_3) are not those that it began with "
                "when it was saved: the distance to them (grpo.kl) would be another one. Set them as they were"
            )
        self.guard.load_state_dict(state["guard"])
        if state["pending"] is not None:
            batches = [None if batch is None else self._batch(**batch) for batch in state["pending"]["batches"]]
            self._pending = state["pending"]["number"], batches

    def _batch(self, *, values: Mapping[str, Any], mode: str, prompts: Sequence[str]) -> Batch:
        """Undo ``_plain``."""
        batch = Batch(values, mode=mode, prompts=prompts)
        return self._with_layout(batch)

    def _with_layout(self, batch: Batch) -> Batch:
        """A batch that says where its prompts' media are, and how many tokens the answers' rows have."""
        found = layout_of(
            input_ids=batch.input_ids, placeholder_ids=self.scorer.model.placeholder_ids,
            attention_mask=batch.attention_mask,
        )  # fmt: skip
        tokens = int(batch.attention_mask.sum(dim=1)[batch["clip_of"]].sum() + batch["answer_mask"].sum())
        batch["layout"] = replace(found, n_tokens=tokens)
        return batch

    def _rolled_out(self, keys: Sequence[Sequence[Key]], *, number: int) -> list[Batch | None]:
        """The micro-batches of one roll-out: drawn, rewarded, compared, and scored by the training forward."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        flat = [key for group in keys for key in group]
        drawn = self._timed("rollout", lambda: self.source.draw(flat, number=number))
        found: list[tuple[Any, Grades]] = []
        places: list[int] = []  # of each found clip, among all
        self._grade([(at, clip) for at, clip in enumerate(drawn) if clip is not None], found, places)
        dull = sum(_is_dull(grades) for _, grades in found)
        said = [clip for clip, _ in found]
        numbers = _sums(found)
        tried = self._again(found, places, flat, number=number)
        compared = self._timed("reward", lambda: self.source.compared(said, number=number))
        if found:
            self.source.note(said, found[0][1], number=number)
        batches: list[Batch | None] = []
        first, learning = 0, 0
        for group in keys:
            here = [pair for pair, at in zip(found, places, strict=True) if first <= at < first + len(group)]
            first += len(group)
            batch = self._micro_batch(here) if here else None
            learning += 0 if batch is None else int(bool(batch["advantages"].any()))
            batches.append(batch)
        (learns,) = sum_over_ranks(learning)
        if not learns and not self.config.grpo.kl:
            batches = [None] * len(batches)  # nothing can be learnt: no weight, and no moment of the optimizer, moves
        self._keep_numbers(numbers, compared, dull=dull, tried=tried)
        return batches

    def _again(self, found: list[tuple[Any, Grades]], places: list[int], flat: Sequence[Key], *, number: int) -> int:
        """Dynamic sampling (DAPO): other clips in place of those whose answers all earn the same. In place.

        Those for which none is found are left out. Gives how many were drawn.
        """
        most = resamples(self.config.grpo)
        if not most:
            return 0
        tried = 0
        wanted = [at for at in range(len(flat)) if at not in places] + [
            at for (_, grades), at in zip(found, places, strict=True) if _is_dull(grades)
        ]
        for attempt in range(1, most + 1):
            kept = [(pair, at) for pair, at in zip(found, places, strict=True) if not _is_dull(pair[1])]
            found[:], places[:] = [pair for pair, _ in kept], [at for _, at in kept]
            if not wanted:
                return tried
            others = [self.source.another(flat[at], number=number, attempt=attempt) for at in wanted]
            drawn = self._timed("rollout", lambda others=others: self.source.draw(others, number=number))
            tried += len(others)
            fresh: list[tuple[Any, Grades]] = []
            at_places: list[int] = []
            pairs = [(at, clip) for at, clip in zip(wanted, drawn, strict=True) if clip is not None]
            self._grade(pairs, fresh, at_places)
            good = [at for (_, grades), at in zip(fresh, at_places, strict=True) if not _is_dull(grades)]
            found += [pair for pair in fresh if not _is_dull(pair[1])]
            places += good
            wanted = [at for at in wanted if at not in good]
        return tried

    def _grade(self, pairs: Sequence[tuple[int, Any]], found: list[tuple[Any, Grades]], places: list[int]) -> None:
        if not pairs:
            return
        clips = [clip for _, clip in pairs]
        grades = self._timed("reward", lambda: self.source.grade(clips))
        for row, (at, clip) in enumerate(pairs):
            found.append((clip, _one(grades, row)))
            places.append(at)

    def _micro_batch(self, here: Sequence[tuple[Any, Grades]]) -> Batch:
        """Prompts, answers, advantages, and the log-probabilities that the loss needs."""
        grpo = self.config.grpo
        batch = self.source.collate([clip for clip, _ in here])
        answers = [answer for clip, _ in here for answer in clip.answers]
        T = max(len(answer.ids) for answer in answers)
        ids = torch.zeros((len(answers), T), dtype=torch.int64)  # [B, T]
        mask = torch.zeros((len(answers), T), dtype=torch.bool)
        drawn = torch.zeros((len(answers), T))
        for row, answer in enumerate(answers):
            ids[row, : len(answer.ids)] = torch.tensor(answer.ids)
            mask[row, : len(answer.ids)] = True
            if grpo.correction != "off":
                drawn[row, : len(answer.ids)] = torch.tensor(answer.logprobs)
        values = torch.stack([torch.from_numpy(grades.values[:, 0]) for _, grades in here], dim=1)  # [K, C, G]
        weights = torch.stack([torch.from_numpy(grades.weights[:, 0]) for _, grades in here], dim=1)  # [K, C]
        gains = combined_advantages(values, weights, scale=scales(grpo), each=grpo.normalise == "each")  # [C, G]
        batch["answer_ids"], batch["answer_mask"] = ids, mask
        batch["clip_of"] = torch.arange(len(here)).repeat_interleave(grpo.group_size)
        batch["advantages"] = gains.flatten().float()
        self._with_layout(batch)
        if grpo.correction != "off":
            batch["drawn_logprobs"] = drawn
        if grpo.updates > 1 or grpo.kl:
            self._timed("logprobs", lambda: self._score(batch))
        return batch

    def _score(self, batch: Batch) -> None:
        there = batch.to(self.device)
        if self.config.grpo.updates > 1:
            batch["old_logprobs"] = self.scorer.logprobs(there).cpu()
        if self.config.grpo.kl:
            batch["start_logprobs"] = self.scorer.start_logprobs(there).cpu()

    def _timed(self, stage: str, work: Any) -> Any:
        began = time.perf_counter()
        result = work()  # ends with results on the CPU: nothing is still under way on a GPU
        self.seconds[stage] += time.perf_counter() - began
        return result

    def _keep_numbers(
        self, sums: dict[str, float], compared: dict[str, tuple[float, int]], *, dull: int, tried: int
    ) -> None:
        """Means over all ranks' answers, for the log and the guard."""
        local = {**sums, "dull": float(dull), "resampled": float(tried)}
        for name, (total, count) in compared.items():
            local[f"sum {name}"], local[f"count {name}"] = total, float(count)
        everyone: dict[str, float] = {}
        for part in gather(local):
            for name, value in part.items():
                everyone[name] = everyone.get(name, 0.0) + value

        def mean(name: str, count: str) -> float | None:
            return everyone[name] / everyone[count] if everyone.get(count) else None

        names = {name.removeprefix("sum ") for name in everyone if name.startswith("sum ")}
        found = {name: mean(f"sum {name}", f"count {name}") for name in sorted(names)}
        found["groups_without_variance"] = mean("dull", "clips")
        if resamples(self.config.grpo):
            found["resampled_clips"] = everyone["resampled"]
        seconds = {f"seconds_{stage}": round(value, 4) for stage, value in self.seconds.items()}
        self._numbers = {name: round(value, 6) for name, value in found.items() if value is not None} | seconds
        self.guard.see(found.get("labels_per_answer"), found.get("precision"))


class Guard:
    """Notices when a policy collects reward by saying more: labels per answer rise past a limit while precision falls.

    HIT and recall never punish a further label. Looked at are means over ``grpo.guard_window`` roll-outs: the labels
    against the limit, the precision against its best so far (it may rise first, as recognition gets better).
    """

    def __init__(self, config: Config, *, mean_labels: float) -> None:
        self.on = config.run.guard == "on"
        self.grpo = config.grpo
        self.truth = mean_labels
        self.first: list[list[float]] = []  # (labels per answer, precision) of the first roll-outs
        self.last: deque[list[float]] = deque(maxlen=config.grpo.guard_window)
        self.best = 0.0  # the highest precision of a window
        self._warned = False

    def see(self, labels: float | None, precision: float | None) -> None:
        """One more roll-out; what has no precision (sentiment) is not watched."""
        if labels is None or precision is None:
            return
        if len(self.first) < self.grpo.guard_window:
            self.first.append([labels, precision])
        self.last.append([labels, precision])
        if len(self.last) == self.grpo.guard_window:
            self.best = max(self.best, _mean(self.last, 1))

    @property
    def limit(self) -> float:
        """The most labels per answer."""
        if self.grpo.guard_labels is not None:
            return self.grpo.guard_labels
        return 1.3 * max(self.truth, _mean(self.first, 0))

    @property
    def verdict(self) -> str | None:
        """Why training should stop; None: it should not, or the guard is off (then it is logged, once)."""
        if len(self.last) < self.grpo.guard_window or not self.first:
            return None
        labels, precision = _mean(self.last, 0), _mean(self.last, 1)
        if labels <= self.limit or precision > self.best - self.grpo.guard_precision:
            self._warned = False
            return None
        text = (
            f"answers have {labels:.2f} labels, more than the limit of {self.limit:.2f} (at first "
            f"{_mean(self.first, 0):.2f}; the truth has {self.truth:.2f}), while their precision fell from "
            f"{self.best:.3f} to {precision:.3f}: the policy lists words instead of recognising emotions, which "
            "scores such as HIT do not punish. Give the reward precision (grpo.rewards.precision) or wheel a weight, "
            "set grpo.length_penalty, or raise grpo.kl"
        )
        if self.on:
            return f"{text}. Everything is saved; run.guard=off with run.resume_ckpt_path=auto resumes all the same"
        if not self._warned:
            self._warned = True
            logger.warning("run.guard is off: %s", text)
        return None

    def state_dict(self) -> dict[str, Any]:
        """What it has seen."""
        return {"first": self.first, "last": list(self.last), "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo ``state_dict``."""
        self.first = [list(pair) for pair in state["first"]]
        self.best = state["best"]
        self.last = deque((list(pair) for pair in state["last"]), maxlen=self.grpo.guard_window)


def _plain(batch: Batch) -> dict[str, Any]:
    """A batch as what a state file may hold: tensors and text."""
    return {key: str(value) if key == "prefusion" else value for key, value in batch.items() if key != "layout"}


def _mean(pairs: Any, which: int) -> float:
    return sum(pair[which] for pair in pairs) / max(len(pairs), 1)


def _is_dull(grades: Grades) -> bool:
    """Whether all answers of a clip earn the same."""
    values = grades.values * (grades.weights[:, :, None] > 0)
    return bool((values == values[:, :, :1]).all())


def _one(grades: Grades, row: int) -> Grades:
    """The grades of one clip of several."""
    here = slice(row, row + 1)
    return Grades(
        grades.kinds, grades.values[:, here], grades.weights[:, here], grades.labels[here], grades.precision[here],
        grades.recall[here], grades.readable[here],
    )  # fmt: skip


def _sums(found: Sequence[tuple[Any, Grades]]) -> dict[str, float]:
    """Sums over answers, and how many they are of, as ``sum NAME`` and ``count NAME``; ``clips``."""
    sums: dict[str, float] = {"clips": float(len(found))}

    def add(name: str, total: float, count: float) -> None:
        sums[f"sum {name}"] = sums.get(f"sum {name}", 0.0) + total
        sums[f"count {name}"] = sums.get(f"count {name}", 0.0) + count

    for clip, grades in found:
        G = grades.labels.shape[1]
        add("reward", float(grades.totals.sum()), G)
        for k, kind in enumerate(grades.kinds):
            # A weight of 0 by choice is measured; whether a kind knows the clip shows in its values alone then.
            if grades.weights[k, 0] or grades.values[k].any():
                add(f"reward_{kind}", float(grades.values[k].sum()), G)
        add("labels_per_answer", float(grades.labels.sum()), G)
        if grades.precision.size and grades.precision[0, 0] == grades.precision[0, 0]:  # not NaN
            add("precision", float(grades.precision.sum()), G)
            add("recall", float(grades.recall.sum()), G)
        add("unreadable", float((~grades.readable).sum()), G)
        add("answer_tokens", float(sum(len(answer.ids) for answer in clip.answers)), G)
        add("finished", float(sum(answer.stopped for answer in clip.answers)), G)
    return sums


def _hash(tensors: Sequence[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
