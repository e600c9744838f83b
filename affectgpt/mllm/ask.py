"""Answers of any multimodal LLM for whole data sets, written as the usual result files."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from affectgpt.core.errors import AffectGPTError, ConfigError, DataError, printable
from affectgpt.core.files import write_json
from affectgpt.core.provenance import REVISIONS, installed_versions, settings_hash
from affectgpt.core.runtime import logger
from affectgpt.core.types import Sample
from affectgpt.datasets.base import EmotionDataset
from affectgpt.evaluation.results import ResultShard, beside, meta_path, read_meta, write_failed
from affectgpt.media.guard import Decoder
from affectgpt.media.video import video_reader
from affectgpt.mllm.clip import (
    ClipMedia,
    MediaOptions,
    folder_conversation,
    prompt_text,
    read_clip,
    server_conversation,
)
from affectgpt.mllm.prompts import SUBTITLE, Prompt
from affectgpt.mllm.senses import Sense, check_senses, probe_clips, refuse_faults
from affectgpt.textllm.base import (
    Conversation,
    ConversationsFailedError,
    Sampling,
    TextLLM,
    TextLLMError,
    TextReply,
)  # fmt: skip
from affectgpt.textllm.messages import no_answer, without_thoughts

TRUNCATED, THOUGHTS = "truncated", "thoughts_left_out"


@dataclass
class Outcome:
    """One data set's result file; ``failed``: clips without an answer and why, ``stopped``: why not all were asked."""

    dataset: str
    target: Path
    clips: int = 0
    asked: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    written: bool = False
    stopped: TextLLMError | None = None


class _Conversations(Sequence):
    """Conversations that are built when they are taken: media of all clips would not fit into memory."""

    def __init__(self, samples: Sequence[Sample], build: Callable[[Sample], Conversation]) -> None:
        self._samples, self._build = samples, build

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        return self._build(self._samples[index])


@dataclass
class Asker:
    """Asks one model one prompt about data sets. Result files are ``{base_root}-{data set}/{run}/seed_N.npz``.

    ``server``: media travel as files inside messages, else as arrays. ``allow_deaf``: a model that does not take in
    what it is sent is asked all the same, and its record says so. ``skip_failed``: write the result file without the
    clips that have no answer; otherwise it is written once all have one.
    """

    client: TextLLM
    server: bool
    prompt: Prompt
    options: MediaOptions
    sampling: Sampling
    base_root: str
    run: str
    allow_deaf: bool = False
    skip_failed: bool = False
    decoder: Decoder = field(default_factory=Decoder)
    senses: list[Sense] | None = None  # None: not checked yet
    _odd: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)  # flags of what was read, by clip

    def target(self, dataset: EmotionDataset) -> Path:
        """The result file of a data set."""
        return Path(f"{self.base_root}-{dataset.name.lower()}") / self.run / f"seed_{self.sampling.seed}.npz"

    def conversation(self, sample: Sample, clip: ClipMedia | None = None) -> Conversation:
        """Return what is asked about a clip. Raises DataError where its media cannot be read."""
        if clip is None:
            clip = read_clip(sample, self.options, self.decoder)
            self._odd[sample.dataset, sample.name] = clip.flags
        build = server_conversation if self.server else folder_conversation
        return build(prompt_text(sample, self.prompt, self.options), clip, self.options)

    def answer(self, dataset: EmotionDataset) -> Outcome:
        """Ask what is not answered yet, and write the result file when all clips are.

        Raises AffectGPTError; what was answered so far is kept, and running again resumes there.
        """
        target, samples = self.target(dataset), dataset.samples("test", labels=False)
        if not samples:
            raise DataError(f"{dataset.name}: the test split is empty, there is nothing to answer")
        settings = self.settings(dataset, samples)
        key = settings_hash(settings)
        outcome = Outcome(dataset.name, target, clips=len(samples))
        if target.exists():
            return self._kept(outcome, key)
        started = time.perf_counter()
        names = [sample.name for sample in samples]
        with ResultShard(target, names=names, key=key) as shard:
            pending = [sample for sample in samples if sample.name in shard.pending]
            outcome.asked = len(pending)
            if pending:
                self._check(pending, samples)
                self._ask(shard, pending, outcome)
            failed_path = beside(target, ".failed.csv")
            if outcome.stopped is None and (self.skip_failed or not outcome.failed):
                if len(outcome.failed) == len(samples):
                    write_failed(failed_path, dataset.name, outcome.failed)
                    raise DataError(f"{target}: no clip has an answer; {self._why(outcome)}")
                outcome.written = shard.finish(
                    dataset=dataset.name,
                    order=names,
                    write_meta=lambda entries: self._write_meta(
                        target, settings, key, entries, seconds=time.perf_counter() - started
                    ),
                )
            elif outcome.failed:
                write_failed(failed_path, dataset.name, outcome.failed)
        if outcome.written:
            logger.info("%s: written", target)
        return outcome

    def problem(self, outcome: Outcome) -> str | None:
        """Return what a user must know where the result file was not written."""
        if outcome.written:
            return None
        kept = "What is answered is kept; run the same command again to ask for the rest"
        if outcome.stopped is not None:
            return f"{outcome.target}: stopped: {outcome.stopped}. {kept}"
        return f"{outcome.target}: {self._why(outcome)}. {kept}, or write the file without them: --skip-failed"

    def _why(self, outcome: Outcome) -> str:
        kinds = Counter(reason.replace(name, "CLIP") for name, reason in outcome.failed.items())
        said = "; ".join(f"{count}: {reason}" for reason, count in kinds.most_common(3))
        return (
            f"{len(outcome.failed)} of {outcome.clips} clips have no answer ({said}); "
            f"{beside(outcome.target, '.failed.csv').name} lists them"
        )

    def settings(self, dataset: EmotionDataset, samples: Sequence[Sample]) -> dict[str, Any]:
        """Everything that an answer depends on, and so what answers of one journal must share."""
        subtitles = SUBTITLE in self.options.media
        return {
            "dataset": dataset.name,
            "samples": settings_hash([(s.name, s.subtitle if subtitles else "") for s in samples]),
            "client": self.client.name,
            **self.client.identity(),
            "prompt": self.prompt.name,
            "prompt_text": "".join(self.prompt.pieces),
            "prompt_hash": self.prompt.hash,
            "media": list(self.options.media),
            "sent": self.options.sent(server=self.server),
            "decoding": self.sampling.as_dict(),
            "revisions": dict(REVISIONS),
        }

    def _kept(self, outcome: Outcome, key: str) -> Outcome:
        record = read_meta(outcome.target)
        if record.get("settings_hash") != key:
            raise ConfigError(
                f"{outcome.target}: is there, made with other settings (its record: {meta_path(outcome.target)}); give "
                "this run another name with --run NAME, or delete the file"
            )
        logger.info("%s exists, kept", outcome.target)
        if lacking := record.get("failed"):
            logger.warning("%s lacks %d clips without an answer; delete it to ask again", outcome.target, len(lacking))
        outcome.written = True
        return outcome

    def _check(self, pending: Sequence[Sample], samples: Sequence[Sample]) -> None:
        """Once, before anything is asked: does the model take in what it is sent?"""
        media = [medium for medium in self.options.media if medium != SUBTITLE]
        if self.senses is not None or not media:
            return
        later = [sample for sample in samples if sample not in pending]
        try:
            clips = probe_clips([*pending, *later], media, lambda s: read_clip(s, self.options, self.decoder))
        except DataError as error:
            if not self.allow_deaf:
                raise
            logger.warning("hearing and sight are not checked: %s", error)
            self.senses = []
            return
        logger.info("checking on %d clips that the model takes in %s", len(clips), " and ".join(media))
        senses = check_senses(self.client, clips, media, self.conversation, sampling=self.sampling)
        refuse_faults(senses, allow=self.allow_deaf)
        self.senses = senses

    def _ask(self, shard: ResultShard, pending: Sequence[Sample], outcome: Outcome) -> None:
        from tqdm import tqdm

        done: set[int] = set()

        def fail(index: int, reason: str) -> None:
            done.add(index)
            outcome.failed[pending[index].name] = reason
            shard.fail(pending[index].name, reason)

        with tqdm(
            total=len(pending), desc=printable(f"{outcome.dataset} {self.run}"), unit="clip", disable=None
        ) as bar:

            def on_result(index: int, reply: TextReply) -> None:
                text = without_thoughts(reply.text)
                if reason := no_answer(text):
                    if reply.text.strip() and not text.strip():
                        reason = "the model was still thinking when its reply was cut; raise --max-tokens"
                    fail(index, reason)
                else:
                    done.add(index)
                    sample = pending[index]
                    odd = self._odd.pop((sample.dataset, sample.name), ())
                    shard.add(
                        sample.name,
                        answer=self.prompt.answer(text),
                        flags=[*odd, *[TRUNCATED] * reply.truncated, *[THOUGHTS] * (text != reply.text)],
                        tokens=reply.reply_tokens or 0,
                        **_costs(reply),
                    )
                bar.update()

            try:
                conversations = _Conversations(pending, self.conversation)
                self.client.chat_many(conversations, sampling=self.sampling, on_result=on_result)
            except ConversationsFailedError as error:
                for index, why in error.failed.items():
                    fail(index, why.reason)
                outcome.stopped = error if len(done) < len(pending) else None
            except TextLLMError as error:
                outcome.stopped = error

    def _write_meta(
        self, target: Path, settings: Mapping[str, Any], key: str, entries: Mapping[str, Any], *, seconds: float
    ) -> None:
        flags: dict[str, list[str]] = {}
        for name, entry in entries.items():
            for flag in entry.get("flags", ()):
                flags.setdefault(flag, []).append(name)
        senses = self.senses or []
        record = {
            **settings,
            **self.client.details(),
            "settings_hash": key,
            "options": asdict(self.options),
            "answers": sum("answer" in entry for entry in entries.values()),
            "failed": {name: entry["failed"] for name, entry in entries.items() if "failed" in entry},
            "flags": flags,
            "tokens": sum(entry.get("tokens", 0) for entry in entries.values()),
            "prompt_tokens": sum(entry.get("prompt_tokens", 0) for entry in entries.values()),
            "request_seconds": round(sum(entry.get("request_seconds", 0.0) for entry in entries.values()), 2),
            "seconds": round(seconds, 2),
            "senses": None if self.senses is None else {sense.medium: sense.as_dict() for sense in senses},
            "deaf_or_blind": [sense.medium for sense in senses if sense.fault],
            "allow_deaf": self.allow_deaf,
            "video_reader": video_reader(),
            "versions": installed_versions(),
        }
        write_json(meta_path(target), record)


def _costs(reply: TextReply) -> dict[str, float]:
    costs = {"prompt_tokens": reply.prompt_tokens, "request_seconds": reply.seconds}
    return {what: value for what, value in costs.items() if value is not None}


def ask_all(asker: Asker, datasets: Sequence[EmotionDataset]) -> list[Outcome]:
    """Answer data set after data set. A server that is down or refuses everything ends it.

    Raises AffectGPTError at the end where a result file could not be written.
    """
    outcomes = []
    for dataset in datasets:
        outcomes.append(asker.answer(dataset))
        if outcomes[-1].stopped is not None:
            break
    problems = [words for outcome in outcomes if (words := asker.problem(outcome))]
    if problems:
        raise AffectGPTError("\n".join(problems))
    return outcomes
