"""One row per label type: the question asked and the answer learnt (wire)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from affectgpt.config.schema import Config
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.registry import Registry
from affectgpt.core.types import Labels, Modality, Sample
from affectgpt.datasets.table import DATASETS, HYBRID
from affectgpt.processing.modes import get_mode

if TYPE_CHECKING:
    from affectgpt.datasets.base import EmotionDataset


@dataclass(frozen=True)
class Context:
    """Facts of the training split that a question may name."""

    candidates: Sequence[str] = ()  # labels of the training split, sorted
    value_range: tuple[float, float] | None = None  # of the training split


@dataclass(frozen=True)
class LabelType:
    """A kind of question: its text with ``{candidates}``, ``{min}``, ``{max}``, and the answer made from labels."""

    name: str
    question: str
    answer: Callable[[Labels], str | None]  # None: the sample has no such label


def _ovlabel(labels: Labels) -> str | None:
    if labels.ovlabels is None:
        return None
    return f"The character's emotional state is {', '.join(labels.ovlabels) or 'neutral'}."


def _sentiment(labels: Labels) -> str | None:
    if labels.valence is None:
        return None
    word = "positive" if labels.valence > 0 else "negative" if labels.valence < 0 else "neutral"
    return f"The character's sentiment state is {word}."


def _thought(labels: Labels) -> str | None:
    """The description as the thinking, the labels as the answer."""
    if not labels.description or labels.ovlabels is None:
        return None
    return f"<think>{labels.description}</think><answer>{_ovlabel(labels)}</answer>"


_VALENCE = (
    "Please identify the overall positive or negative emotional polarity of the main characters. "
    "The output should be a ﬂoating-point number ranging from {min} to {max}. "
    "Here, {min} indicates extremely negative emotions, 0 indicates neutral emotions, and {max} indicates extremely "
    "positive emotions. Please provide your judgment as a ﬂoating-point number."
)
LABEL_TYPES = Registry("label_type", words=(HYBRID,))
for _row in (
    LabelType(
        "description",
        "Please infer the person's emotional state and provide your reasoning process.",
        lambda labels: labels.description,
    ),
    LabelType("ovlabel", "Please recognize all possible emotional states of the character.", _ovlabel),
    LabelType(
        "onehot_w_candidates",
        "Please select the label that can best describe the person's emotional state from the provided candidate "
        "labels: {candidates}.",
        lambda labels: None if labels.emotion is None else f"The most likely label is {labels.emotion}.",
    ),
    LabelType(
        "onehot_wo_candidates",
        "Please recognize the character's most likely emotional state.",
        lambda labels: None if labels.emotion is None else f"The character's emotional state is {labels.emotion}.",
    ),
    LabelType(
        "sentiment",
        "Please select the most likely sentiment label that can best describe the person's emotional state: "
        "positive, negative, neutral.",
        _sentiment,
    ),
    LabelType(
        "valence",
        _VALENCE,
        lambda labels: None if labels.valence is None else f"The valence score is {labels.valence:.2f}.",
    ),
    LabelType(  # ours: AffectGPT-R1's form; its sentence is not known
        "think",
        "Please recognize all possible emotional states of the character. Output the thinking process in <think> "
        "</think> and the final answer in <answer> </answer> tags.",
        _thought,
    ),
    LabelType("qa", "{question}", lambda labels: labels.answer),  # instruction sets: both taken verbatim
):
    LABEL_TYPES.register(_row.name)(_row)


PUBLISHED_QUESTIONS = frozenset(LABEL_TYPES.names()) - {"qa"}


def get_label_type(name: str) -> LabelType:
    """The row of a label type; ConfigError with the nearest name otherwise."""
    return LABEL_TYPES.get(name)


def asks_for_labels(question: str) -> bool:
    """Return whether a question is that of a label type whose answers name labels (not a description, nor free
    text)."""
    openings = (
        LABEL_TYPES.get(name).question.partition("{")[0] for name in LABEL_TYPES.names() if name != "description"
    )
    return any(opening and question.startswith(opening) for opening in openings)


def check_block(config: Config, dataset: EmotionDataset) -> None:
    """Raise ConfigError naming file, line and key where a data set's block, or its row, names an unknown input mode or
    label type."""
    place, block = f"datasets.{dataset.key}", dataset.block
    with config.naming(f"{place}.face_or_frame"):
        get_mode(block.face_or_frame)
    types = dataset.learnt_types if "train" in dataset.splits or block.label_type != HYBRID else ()
    with config.naming(f"{place}.label_type"):
        for name in types:
            get_label_type(name)


def check_asked(config: Config, name: str) -> None:
    """Raise ConfigError where a data set has questions of its own: benchmark inference asks all sets one question.

    Its own: a column of questions, dialogues or captions, or a label type that the package lacks.
    """
    from affectgpt.datasets.base import open_dataset

    dataset = open_dataset(config, name)
    columns: list[str] = [role for role in ("question", "dialogue", "caption") if role in dataset.block.columns]
    types = [] if dataset.block.label_type == HYBRID else [dataset.block.label_type]
    if not dataset.block.columns:
        types += dataset.label_types if dataset.name.lower() in DATASETS else ()
    own = columns or [name for name in types if name not in PUBLISHED_QUESTIONS]
    if own:
        raise ConfigError(
            f"{config.where(f'datasets.{dataset.key}')}: {dataset.name} has a question of its own ({', '.join(own)}), "
            "which inference would not ask: it asks every clip of a data set one question, by default the one for "
            "open-vocabulary labels. Say which with --outside_user_message 'QUESTION'"
        )


def question_context(dataset: EmotionDataset, label_types: Sequence[str]) -> Context:
    """Return what the questions of these label types name of the training split; it is read only where one needs it.

    Raises DataError where a question that is asked alone names what no training sample has.
    """
    texts = [get_label_type(label_type).question for label_type in label_types]
    candidates = dataset.candidate_labels() if any("{candidates}" in text for text in texts) else []
    value_range = dataset.value_range() if any("{min}" in text for text in texts) else None
    if len(texts) == 1 and "{candidates}" in texts[0] and not candidates:
        raise DataError(f"{dataset.name}: its training split holds no emotion word, so there are no candidate labels")
    if len(texts) == 1 and "{min}" in texts[0] and value_range is None:
        raise DataError(f"{dataset.name}: its training split holds no valence, so there is no range to ask for")
    return Context(candidates=candidates, value_range=value_range)


def render_question(label_type: str, context: Context | None = None, labels: Labels | None = None) -> str:
    """The question of a label type. Raises ConfigError when it needs candidates or a range that are not there."""
    text = get_label_type(label_type).question
    context = context or Context()
    if "{candidates}" in text:
        if not context.candidates:
            raise ConfigError(f"label type {label_type}: the training split gives no candidate labels")
        return text.replace("{candidates}", ",".join(context.candidates))
    if "{min}" in text:
        if context.value_range is None:
            raise ConfigError(f"label type {label_type}: the training split gives no value range")
        low, high = context.value_range
        return text.replace("{min}", str(low)).replace("{max}", str(high))
    if text == "{question}":
        if labels is None or labels.question is None:
            raise ConfigError(f"label type {label_type}: the sample has no question")
        return labels.question
    return text


def render_answer(label_type: str, sample: Sample) -> str:
    """The answer to be learnt. Raises DataError naming the sample when it has no such label, an empty one, or one that
    holds a placeholder, for which media would be put into the answer."""
    answer = get_label_type(label_type).answer(sample.labels)
    if answer == "":
        raise DataError(f"{sample.dataset}: sample {sample.name!r}: its {label_type} is missing in the label file")
    if answer is None:
        raise DataError(
            f"{sample.dataset}: sample {sample.name!r} has no label of type {label_type} (an empty cell is none): no "
            "answer to learn"
        )
    for modality in Modality:
        if modality.placeholder in answer:
            raise DataError(
                f"{sample.dataset}: sample {sample.name!r}: its answer (label type {label_type}) holds "
                f"{modality.placeholder}, which stands for media in prompts; remove it from the label file"
            )
    return answer
