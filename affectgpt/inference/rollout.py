"""Answers of a model in training, for reinforcement learning: several for each clip, in batches, seeded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.config.schema import Config
from affectgpt.core.runtime import logger
from affectgpt.core.seeds import seeded
from affectgpt.core.types import Batch, Grades, Sample
from affectgpt.datasets.base import EmotionDataset
from affectgpt.inference.encode import ENCODE_BATCH, DatasetFeatures
from affectgpt.inference.engines.base import Answer
from affectgpt.inference.sampling import sample_seed
from affectgpt.inference.session import GenerationSession
from affectgpt.processing.loader import Failure, FailureLog
from affectgpt.processing.modes import get_mode
from affectgpt.processing.processor import Example
from affectgpt.processing.questions import check_block, get_label_type, question_context, render_question
from affectgpt.processing.sampler import MixedBatches

Key = tuple[int, int, int]
_AT_ONCE = {"cuda": 128, "cpu": 64}  # answers drawn together where grpo.answers_at_once does not say
NOTES = "rollouts.jsonl"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A clip, its processed prompt, and the answers drawn for it."""

    key: Key
    sample: Sample
    example: Example
    answers: tuple[Answer, ...]


class Part:
    """The clips of one data set that answers are drawn for: their questions, encoder outputs, and truths.

    ``truths``: by name, of every sample. ``question``: asked of all; empty: that of the block's label type, of several
    one that the sample has labels for, drawn by (seed, epoch, index).
    """

    def __init__(
        self,
        config: Config,
        dataset: EmotionDataset,
        samples: Sequence[Sample],
        *,
        truths: Mapping[str, Any],
        question: str = "",
    ) -> None:
        self.dataset, self.samples, self.truths = dataset, list(samples), dict(truths)
        check_block(config, dataset)
        self.mode = get_mode(dataset.block.face_or_frame)
        self.seed, self.question = config.run.seed, question
        self.types = dataset.learnt_types
        self.context = None if question else question_context(dataset, self.types)
        # What cannot be read is a matter of training here.
        config = replace(config, inference=replace(config.inference, on_error=config.run.on_error))
        self.features = DatasetFeatures(
            config, samples, dataset=dataset.name, mode=self.mode.name, policy=dataset.block.features, split="train"
        )

    def ask(self, index: int, epoch: int) -> str:
        """The question of one clip."""
        if self.question:
            return self.question
        labels = self.samples[index].labels
        known = [name for name in self.types if get_label_type(name).answer(labels) is not None] or list(self.types)
        name = known[0] if len(known) == 1 else seeded(self.seed, epoch, index).choice(known)
        return render_question(name, self.context, labels)


class RolloutSource:
    """Draws with a session's model as it is, and rewards by a grader that is handed in.

    ``grade``: truths and answers → Grades (evaluation/rewards); ``constant``: the best answer that is the same for all
    clips. ``lazy``: clips are encoded when they are first drawn, not all before the first step.
    """

    def __init__(
        self,
        config: Config,
        parts: Sequence[Part],
        *,
        session: GenerationSession,
        batches: MixedBatches,
        grade: Callable[..., Grades],
        constant: str,
        failures: FailureLog,
        lazy: bool = False,
    ) -> None:
        self.config, self.parts, self.session, self.batches = config, list(parts), session, batches
        self._grade, self.constant, self.failures = grade, constant, failures
        self._ready = lazy
        counts = [len(truth.labels) for part in self.parts for truth in part.truths.values() if truth.labels]
        self.mean_labels = sum(counts) / max(len(counts), 1)
        self.notes: Path | None = None  # the file of some answers

    def order(self, epoch: int, *, start: int) -> Iterator[list[Key]]:
        """The clips of an epoch's micro-batches, from number ``start`` on."""
        if not self._ready:
            self._encode_all()
        self.batches.set_epoch(epoch, start=start)
        return iter(self.batches)

    def draw(self, keys: Sequence[Key], *, number: int) -> list[Drawn | None]:
        """``grpo.group_size`` answers to each clip, None for one that cannot be read.

        An answer depends on run seed, number of the roll-out, clip and its own number, not on the clips beside it.
        """
        session, G = self.session, self.config.grpo.group_size
        examples = self._examples(keys)
        drawn: list[Drawn | None] = [None] * len(keys)
        at_once = self.config.grpo.answers_at_once or _AT_ONCE[session.device.type]
        step = max(1, at_once // G)
        was = session.model.training
        session.model.eval()
        try:
            for mode in dict.fromkeys(self.parts[key[0]].mode.name for key in keys):
                here = [at for at, key in enumerate(keys) if at in examples and self.parts[key[0]].mode.name == mode]
                here.sort(key=lambda at: -len(examples[at].input_ids))
                for first in range(0, len(here), step):
                    rows = here[first : first + step]
                    seeds = [
                        sample_seed(self.config.run.seed, number, example.dataset, example.name, draw)
                        for example in (examples[at] for at in rows)
                        for draw in range(G)
                    ]
                    answers = session.generate([examples[at] for at in rows], seeds=seeds)
                    for row, at in enumerate(rows):
                        mine = tuple(answers[row * G : (row + 1) * G])
                        drawn[at] = Drawn(keys[at], self._sample(keys[at]), examples[at], mine)
        finally:
            session.model.train(was)
        return drawn

    def another(self, key: Key, *, number: int, attempt: int) -> Key:
        """A clip of the same part, by (seed, roll-out, clip, attempt)."""
        part, epoch, index = key
        rng = seeded(self.config.run.seed, "again", number, part, index, attempt)
        return part, epoch, rng.randrange(len(self.parts[part].samples))

    def grade(self, drawn: Sequence[Drawn]) -> Grades:
        """The rewards of all answers."""
        return self._grade([self._truth(clip) for clip in drawn], [clip.answers for clip in drawn])

    def compared(self, drawn: Sequence[Drawn], *, number: int) -> dict[str, tuple[float, int]]:
        """What the same answers earn when they are dealt out to other clips, and what the best constant one earns."""
        if not drawn:
            return {}
        truths = [self._truth(clip) for clip in drawn]
        constant = Answer(text=self.constant, tokens=0, stopped=True)
        found = {"reward_constant": self._mean(truths, [(constant,)] * len(drawn))}
        if len(drawn) > 1:
            circle = list(range(len(drawn)))
            seeded(self.config.run.seed, "dealt", number).shuffle(circle)
            given: list[Sequence[Answer]] = [()] * len(drawn)
            for at, place in enumerate(circle):  # each clip gets the answers of its neighbour in a random circle
                given[place] = drawn[circle[at - 1]].answers
            found["reward_dealt"] = self._mean(truths, given)
        return found

    def _mean(self, truths: Sequence[Any], answers: Sequence[Sequence[Answer]]) -> tuple[float, int]:
        totals = self._grade(truths, answers, read=False).totals
        return float(np.mean(totals, axis=1).sum()), len(truths)

    def collate(self, drawn: Sequence[Drawn]) -> Batch:
        """The clips' prompts, padded on the left."""
        return self.session.processor.collate([clip.example for clip in drawn])

    def note(self, drawn: Sequence[Drawn], grades: Grades, *, number: int) -> None:
        """A line of ``rollouts.jsonl``: the first clip's answers with their rewards."""
        if self.notes is None or number % self.config.run.log_freq:
            return
        clip, totals = drawn[0], grades.totals[0]
        truth = self._truth(clip)
        line = {
            "rollout": number,
            "clip": f"{clip.sample.dataset}/{clip.sample.name}",
            "truth": list(truth.labels) or ("positive" if truth.positive else "negative"),
            "answers": [
                {"text": answer.text, "reward": round(float(value), 4)}
                for answer, value in zip(clip.answers, totals, strict=True)
            ],
        }
        with self.notes.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _sample(self, key: Key) -> Sample:
        return self.parts[key[0]].samples[key[2]]

    def _truth(self, clip: Drawn) -> Any:
        return self.parts[clip.key[0]].truths[clip.sample.name]

    def _examples(self, keys: Sequence[Key]) -> dict[int, Example]:
        """Position → the processed clip, of those that can be read."""
        found: dict[int, Example] = {}
        for number, part in enumerate(self.parts):
            mine = [at for at, key in enumerate(keys) if key[0] == number]
            readable = {sample.name for sample in self._encoded(part, [self._sample(keys[at]) for at in mine])}
            for at in mine:
                sample = self._sample(keys[at])
                if sample.name in readable:
                    question = part.ask(keys[at][2], keys[at][1])
                    example = self.session.processor.text(sample, question=question, mode=part.mode.name)
                    found[at] = self.session.processor.fill(example, sample, features=part.features.readers)
        return found

    def _encoded(self, part: Part, samples: Sequence[Sample]) -> list[Sample]:
        """The samples whose encoder outputs are known or can be made; the others are noted as failures."""
        unique = list({sample.name: sample for sample in samples}.values())
        before = set(part.features.unreadable)
        ready = list(
            part.features.ready(
                unique, reader=self.session.processor.media, encode=self.session.encode,
                batch_size=ENCODE_BATCH[self.session.device.type],
            )
        )  # fmt: skip
        for name in part.features.unreadable.keys() - before:
            self.failures.add(Failure(part.dataset.name, name, part.features.unreadable[name]))
        return ready

    def _encode_all(self) -> None:
        """Every clip's media once: encoders are frozen, and epochs and updates follow."""
        self._ready = True
        for part in self.parts:
            if part.features.needs_encoders:
                logger.info("%s: encoding %d clips, once", part.dataset.name, len(part.samples))
                self._encoded(part, part.samples)
