"""What an answer claims, in many wordings, scored against the 411 true labels of MER2023's test split."""

from __future__ import annotations

import pytest

from affectgpt.core.npz import read_npz
from affectgpt.evaluation.extract_llm import clean_reply
from affectgpt.evaluation.grouping import grouping_of
from affectgpt.evaluation.labels import POLARITIES, read_labels, read_reply_labels, read_reply_polarity
from affectgpt.evaluation.lexicon import load_folder

# X: the true label, Y: another one of the six.
CLAIMED = [
    "The character's emotional state is X.",
    "The character's emotional state is X (80%).",
    "The character's emotional state is X (confidence: 0.8).",
    "The character's emotional states are: 1) X 2) calm",
    "The emotional states are:\n1. X\n2. calm",
    "The character's emotions:\n- **X**\n- calm",
    "The emotions are (1) X, (2) calm.",
    "<think>At first the emotion is Y.</think><answer>X</answer>",
    "<think>The emotion is Y, is it not?</think>\n\nThe character's emotional state is X.",
    "The emotion is Y.</think>\nX",
    "<answer>X</answer>",
    "<answer>The character's emotional state is X.</answer>",
    "The emotional state is not Y but X.",
    "The character's emotional state is X, not Y.",
    "The character's emotional state is X rather than Y.",
    "The character's emotional state is X instead of Y.",
    "The character is not Y; the emotional state is X.",
    '{"emotion": "X", "confidence": 0.93}',
    '{"emotions": ["X", "calm"]}',
    "{'emotion': 'X', 'reason': 'The brows tell of Y.'}",
    '```json\n{"emotional_state": "X"}\n```',
    'Here is the result: {"label": "X", "score": 0.5}',
    '{"result": {"emotion": {"label": "X"}}}',
    '[{"label": "X", "score": 0.9}, {"label": "Y", "score": 0.03}]',
    '["X", "calm"]',
    "[X, calm]",
    "[X]",
    "X",
    "X.",
    "X!",
    "**X**",
    "“X”",
    "- X\n- calm",
    "1. X\n2. calm",
    "X, calm",
    "X，calm。",
    "X、calm",
    "X and calm",
    "X/calm",
    "Mostly X.",
    "X (80%)",
    "X: 0.9, Y: 0.05",
    "Emotion: X",
    "Emotions: X; calm",
    "**Emotion:** X\n**Confidence:** high",
    "Label: X",
    "Answer: X",
    "Final answer: X.",
    "The answer is X.",
    "The most likely label is X, and not Y.",
    "The person is X.",
    "The man seems X.",
    "She appears to be X and tired.",
    "He feels X.",
    "I think the person in the video is X.",
    "It seems that the speaker is X.",
    "The emotional state of the character is X.",
    "The person's emotion is most likely X because the brows are raised.",
    "The character's emotional state is a bit X.",
    "The character's emotional state is happy, and a bit X.",
    "The dominant emotion is X, with no signs of Y.",
    "The character's emotional state is X, without any trace of Y or Y.",
    "The character's emotional state could be described as X.",
    "The primary emotion appears to be X, with a hint of calm.",
    "X is the dominant emotion.",
    "The man speaks slowly. His brows are drawn together. So the person's emotional state is X.",
    "He doesn't smile, so his emotional state is X.",
    "Emotion = X",
    "<emotion>X</emotion>",
    "The character’s emotional state is “X”.",
    "The emotion is X with 90% confidence.",
    "The emotion is X (not Y).",
]
NOT_CLAIMED = [
    "The character's emotional state is neutral, with no signs of anger or X.",
    "The character's emotional state is neutral, not surprised, angry or X.",
    "The character's emotional state is not X.",
    "The character's emotional state isn't X.",
    "The emotional state is neither X nor Y.",
    "The character is neither X nor Y.",
    "The character's emotional state is neutral, without X or Y.",
    "The character's emotional state is neutral rather than X.",
    "The character's emotional state is neutral and lacks any X.",
    "There is no evidence that the emotional state is X.",
    "I cannot tell whether the emotional state is X or Y.",
    "I don't think the emotion is X.",
    "It is not clear if his emotional state is X.",
    "<think>The emotional state is X.</think>",
    "<think>The emotional state is X.",
    "<think>X, surely X.</think><answer>neutral</answer>",
    '{"reason": "The emotion is X.", "emotion": "neutral"}',
    '{"X": 0.1, "neutral": 0.9}',
    "Is the emotional state X?",
    "He is not X.",
    "no X",
    "not X",
    "The emotion is anything but X.",
    "The emotional state is far from X.",
    "neutral (not X)",
    "The emotion is no longer X but neutral.",
]
NOTHING = [
    "I'm sorry, but I cannot determine the emotional state of the person.",
    "I am unable to identify the emotion in this video.",
    "As an AI language model, I cannot recognize emotions: happy, sad.",
    "Sorry.",
    "I apologize, I can't help with that.",
    "!" * 64,
    "...",
    "?!",
    "-",
    "0.93",
    "<think>hm",
    "<think></think>",
    "<answer></answer>",
    "{}",
    '{"confidence": 0.9}',
    "a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a",
    "抱歉，我无法回答。",
    "The man walks into the room and sits down next to the window.",
    "Please provide the video.",
    "I don't know.",
]


@pytest.fixture(scope="module")
def hit(merunibench):
    """A function: a wording → HIT in percent of the 411 clips answered in it, with the released lexicon."""
    corpus = read_npz(merunibench / "dataset/mer2023-dataset-process/label-6way.npz")["test1_corpus"]
    words = [row["emo"] for row in corpus.values()]
    others = sorted(set(words))
    grouping = grouping_of(load_folder(merunibench / "emotion_wheel"))

    def score(wording: str) -> float:
        hits = []
        for word in words:
            other = others[(others.index(word) + 1) % len(others)]
            labels = read_labels("".join({"X": word, "Y": other}.get(c, c) for c in wording)) or []
            for wheel, group in enumerate(grouping.groups(word)):
                if group is not None:
                    hits.append(group in {grouping.groups(label)[wheel] for label in labels})
        return 100 * sum(hits) / len(hits)

    return score


@pytest.mark.parametrize("wording", CLAIMED)
def test_what_is_claimed_is_read(hit, wording):
    assert hit(wording) == 100


@pytest.mark.parametrize("wording", NOT_CLAIMED)
def test_what_is_denied_or_only_thought_is_not_read(hit, wording):
    assert hit(wording) == 0


@pytest.mark.parametrize("answer", NOTHING)
def test_what_claims_nothing_gives_no_label(answer):
    assert not read_labels(answer)


LABEL_REPLIES = {
    "[happy, calm]": "[happy, calm]",
    "Output: [happy]": "[happy]",
    "happy, calm": "happy, calm",  # as published: read as it is
    "<think>He is not sad. Input is odd.</think>[happy, calm]": "[happy, calm]",
    "[**happy**, *calm*]": "[happy, calm]",
    "**[happy, calm]**": "[happy, calm]",
    "- happy\n- calm": "[happy, calm]",
    "1. happy\n2. calm": "[happy, calm]",
    "[1. happy, 2. calm]": "[happy, calm]",
    "[happy，calm]": "[happy, calm]",
    "happy、calm": "[happy, calm]",
    "```\n[happy, calm]\n```": "[happy, calm]",
    '```json\n["happy", "calm"]\n```': "[happy, calm]",
    "The emotional states are: [happy, calm]": "[happy, calm]",
    "Output: [happy, calm]\n\nHis smile shows it.": "[happy, calm]",
    "I'm sorry, but I can't help with that, happy or not.": "[]",
    "As an AI language model, I cannot identify emotions.": "[]",
    "!" * 64: "[]",
    "[]": "[]",
}
POLARITY_REPLIES = {
    "positive": "positive", "Output: negative": "negative", "Positive": "positive", '"positive"': "positive",
    "**Positive**": "positive", "```\npositive\n```": "positive", "- positive": "positive", "positive.": "positive",
    "[positive]": "positive", "The sentiment is positive.": "positive", "<think>negative?</think>positive": "positive",
    "Sentiment: Negative": "negative", "It is positive, not negative.": "positive",
    '{"sentiment": "negative"}': "negative",
    "I would say the words are negative overall.": "negative", "情感：positive": "positive",
    "positive or negative": "positive or negative", "I cannot say.": "I cannot say.", "mixed": "mixed",
}  # fmt: skip


@pytest.mark.parametrize(("reply", "item"), LABEL_REPLIES.items())
def test_label_replies_of_language_models(reply, item):
    assert read_reply_labels(reply, clean_reply(reply))[0] == item


@pytest.mark.parametrize(("reply", "item"), POLARITY_REPLIES.items())
def test_polarity_replies_of_language_models(reply, item):
    assert read_reply_polarity(reply, clean_reply(reply))[0] == item


def test_what_the_published_cleaning_reads_stays_as_it_is(merunibench):
    """Every extracted item of the released results, taken for a reply."""
    items = {False: set(), True: set()}
    for path in merunibench.glob("output*/results-*/*/*-openset*.npz"):
        items["sentiment" in path.name] |= set(read_npz(path)["fileitems"].tolist())
    assert len(items[False]) > 5000 and items[True]
    changed = [item for item in items[False] if read_reply_labels(item, clean_reply(item)) != (item, False)]
    # nine replies of 5,000 wordings were no list: "Based on the provided input, … the output is:[angry]"
    assert len(changed) < 10, changed
    assert all(read_reply_polarity(item, clean_reply(item)) == (item, False) for item in items[True] & set(POLARITIES))
