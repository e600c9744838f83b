"""From unlabelled clips to a filtered training set: describe, merge, low-level filter, high-level filter, output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from affectgpt.captioning import review
from affectgpt.captioning.ask import Answers, FailedStep
from affectgpt.captioning.describe import ACOUSTIC, VISUAL, Clip, describe, load_clips, merge, work_folder
from affectgpt.captioning.describe import STEP as MERGE
from affectgpt.captioning.filters import ClipVotes, LabelAgreement, LengthFit, Wheels, cut_lengths, high_level
from affectgpt.captioning.labels import ClipLabels, extract_labels, open_extractor
from affectgpt.captioning.speaker import SpeakerScores, judge_speakers
from affectgpt.config.captioning import STEPS, CaptioningFile
from affectgpt.core.runtime import logger
from affectgpt.evaluation.lexicon import find_lexicon
from affectgpt.textllm.base import TextLLMError

SPEAKER, LENGTH, HIGH, PERSON = "speaker", "length", "crowd", "person"

# The ensemble's votes on clips, and name → reason of clips that it cannot judge. Handed in by the command line, which
# may build encoders and train classifiers.
Vote = Callable[[Sequence[Clip], Wheels], tuple[dict[str, ClipVotes], dict[str, str]]]


@dataclass(frozen=True)
class Run:
    """The steps that one run takes. Those that it leaves out take what earlier runs have kept."""

    steps: tuple[str, ...] = STEPS
    limit: int | None = None  # the first so many clips
    dry_run: bool = False  # send nothing, write nothing but the cache's looks
    retry: bool = False  # ask again where a model refused or said nothing

    @property
    def last(self) -> int:
        """Number of the last step wanted."""
        return max(STEPS.index(step) for step in self.steps)

    @property
    def suffix(self) -> str:
        """Behind the names of files: a run of fewer clips or steps does not replace what a whole one left."""
        step = "" if self.last >= STEPS.index("high_level") else f"-{STEPS[self.last]}"
        return step + (f"-first{self.limit}" if self.limit is not None else "")

    def asks(self, step: str) -> bool:
        """True if models may be asked in this step."""
        return step in self.steps and not self.dry_run


@dataclass
class State:
    """Everything known of the clips after a run."""

    clips: list[Clip]
    answers: dict[str, Answers] = field(default_factory=dict)  # step → texts and failures
    descriptions: dict[str, str] = field(default_factory=dict)  # with a person's corrections
    decisions: dict[str, review.Decision] = field(default_factory=dict)
    speakers: SpeakerScores | None = None
    fit: LengthFit | None = None
    labels: dict[str, ClipLabels] = field(default_factory=dict)
    votes: dict[str, ClipVotes] = field(default_factory=dict)
    agreements: dict[str, LabelAgreement] = field(default_factory=dict)
    dropped: dict[str, tuple[str, str]] = field(default_factory=dict)  # name → filter, reason
    failures: list[FailedStep] = field(default_factory=list)
    suffix: str = ""  # of the names of files, see Run
    done: int = -1  # number of the last step that was gone through

    @property
    def stopped(self) -> TextLLMError | None:
        """Why the run could not be finished, if a server was down."""
        return next((a.stopped for a in self.answers.values() if a.stopped is not None), None)

    @cached_property
    def _failure_of(self) -> dict[str, FailedStep]:
        """The first failure of each clip; read once all are known."""
        found: dict[str, FailedStep] = {}
        for failure in self.failures:
            found.setdefault(failure.name, failure)
        return found

    @property
    def kept(self) -> list[Clip]:
        """The clips that passed everything; empty before the last filter has run."""
        if self.done < STEPS.index("high_level"):
            return []
        return [clip for clip in self.clips if clip.name in self.labels and clip.name not in self.dropped]

    def verdict(self, name: str) -> tuple[str, str]:
        """``kept``, ``dropped`` or ``waiting``, and why."""
        if name in self.dropped:
            filter_, reason = self.dropped[name]
            return "dropped", f"{filter_}: {reason}"
        if name in self.labels and self.done >= STEPS.index("high_level"):
            decision = self.decisions.get(name)
            return "kept", f"{PERSON}: {decision.keep}" if decision and decision.keep else ""
        failure = self._failure_of.get(name)
        if failure is not None:
            return "waiting", f"{failure.step}: {failure.reason}"
        return "waiting", f"not gone further than {STEPS[self.done] if self.done >= 0 else 'the start'}"


def annotate(config: CaptioningFile, run: Run, *, vote: Vote) -> State:
    """Run the steps. What models said is kept under ``<work>/cache`` as it arrives; nothing earlier is removed.

    Raises AffectGPTError for input that cannot be used; a server that is down ends in ``State.stopped``.
    """
    spec = config.captioning
    work = work_folder(config)
    clips = load_clips(spec.input, title=config.name, limit=run.limit)
    state = State(clips, decisions=review.read_decisions(review.file_of(spec, work)), suffix=run.suffix)
    logger.info("%d clips from %s", len(clips), spec.input.root)

    _describe(config, run, state, cache=work / "cache")
    if run.last >= STEPS.index("low_level") and not run.dry_run:
        _low_level(config, state, cache=work / "cache")
    if run.last >= STEPS.index("high_level"):
        _high_level(config, run, state, cache=work / "cache", vote=vote)
    state.failures += [f for a in state.answers.values() for f in a.failures.values() if f.name not in state.dropped]
    state.done = run.last
    return state


def _describe(config: CaptioningFile, run: Run, state: State, *, cache: Path) -> None:
    spec = config.captioning
    clues: dict[str, Answers] = {}
    known = spec.merge.client == "file"  # then no clue is worth asking for; those in a file are shown
    for kind, asked in ((ACOUSTIC, spec.audio), (VISUAL, spec.visual)):
        if asked.client == "off" or (known and asked.client != "file"):
            continue
        clues[kind] = state.answers[kind] = describe(
            kind, state.clips, asked, folder=cache, retry=run.retry, dry_run=not run.asks("describe")
        )
        _log(clues[kind], run)
    if run.last < STEPS.index("merge"):
        return
    merged = merge(
        state.clips, acoustic=clues.get(ACOUSTIC), visual=clues.get(VISUAL), spec=spec.merge, folder=cache,
        retry=run.retry, dry_run=not run.asks("merge"),
    )  # fmt: skip
    state.answers[MERGE] = merged
    _log(merged, run)
    state.descriptions = dict(merged.texts)
    for clip in state.clips:
        decision = state.decisions.get(clip.name)
        if decision is not None and decision.description:
            state.descriptions[clip.name] = decision.description
            merged.failures.pop(clip.name, None)


def _low_level(config: CaptioningFile, state: State, *, cache: Path) -> None:
    """Both halves look at all described clips; a person's decision goes over theirs."""
    spec = config.captioning
    described = [clip for clip in state.clips if clip.name in state.descriptions]
    state.speakers = judge_speakers(described, spec.speaker, folder=cache)
    short_or_long, state.fit = cut_lengths(state.descriptions, spec.length)
    for clip in described:
        decision = state.decisions.get(clip.name)
        if decision is not None and decision.keep:
            if decision.keep == review.DROP:
                state.dropped[clip.name] = (PERSON, decision.note or "a person dropped it")
        elif state.speakers is not None and clip.name in state.speakers.dropped:
            state.dropped[clip.name] = (SPEAKER, state.speakers.dropped[clip.name])
        elif clip.name in short_or_long:
            state.dropped[clip.name] = (LENGTH, short_or_long[clip.name])


def _high_level(config: CaptioningFile, run: Run, state: State, *, cache: Path, vote: Vote) -> None:
    spec = config.captioning
    left = {name: text for name, text in state.descriptions.items() if name not in state.dropped}
    with open_extractor(spec.extractor) as extractor:
        state.labels, steps = extract_labels(left, extractor, folder=cache, dry_run=not run.asks("high_level"))
    for answers in steps:
        state.answers[answers.step] = answers
        _log(answers, run)
    if run.dry_run or spec.agreement.rule == "off" or not state.labels:
        return
    wheels = Wheels(find_lexicon(spec.agreement.lexicon or None))
    labelled = [clip for clip in state.clips if clip.name in state.labels]
    state.votes, missing = vote(labelled, wheels)
    state.agreements, dropped = high_level(state.labels, state.votes, wheels, spec=spec.agreement)
    for name, reason in {**missing, **dropped}.items():
        decision = state.decisions.get(name)
        if decision is not None and decision.keep == review.KEEP:
            continue
        if name in missing:
            state.failures.append(FailedStep(name, HIGH, missing[name], again=True))
            state.labels.pop(name)
        else:
            state.dropped[name] = (HIGH, reason)


def _log(answers: Answers, run: Run) -> None:
    would = "would be asked" if run.dry_run else "to ask"
    logger.info(
        "%s: %d kept from before, %d %s, %d without a result",
        answers.step, answers.reused, answers.asked, would, len(answers.failures),
    )  # fmt: skip
    if answers.truncated:
        logger.warning(
            "%s: %d replies were cut at max_tokens (first: %s); raise captioning's max_tokens to ask for whole ones",
            answers.step, len(answers.truncated), ", ".join(answers.truncated[:3]),
        )  # fmt: skip
