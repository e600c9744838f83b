"""What is said in the sample corpus: sentences (English and Chinese), emotion words, descriptions.

Sentences are put together from parts. A plain one says nothing about feelings; an emotional one opens with words that
carry one. Which sentence a clip gets is drawn apart from its emotion, so that text alone cannot tell it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

EMOTIONS = ("happy", "sad", "angry", "surprise", "worried", "neutral")  # the six words of MER2023
FELT = EMOTIONS[:5]  # neutral maps to nothing on most emotion wheels

# Open-vocabulary words: the one that always stands first, and those that may follow it (weak, strong).
OPEN_WORDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "happy": ("happy", ("pleased", "cheerful"), ("joyful", "delighted")),
    "sad": ("sad", ("gloomy", "lonely"), ("sorrowful", "heartbroken")),
    "angry": ("angry", ("annoyed", "irritated"), ("furious", "enraged")),
    "surprise": ("surprised", ("amazed",), ("astonished",)),
    "worried": ("worried", ("uneasy", "concerned"), ("anxious", "fearful")),
    "neutral": ("neutral", ("calm",), ("calm",)),
}

_WHO = (
    ("my brother", "我弟弟"), ("the teacher", "老师"), ("our neighbour", "我们的邻居"), ("the driver", "司机"),
    ("my cousin", "我表哥"), ("the doctor", "医生"), ("her uncle", "她叔叔"), ("the cook", "厨师"),
)  # fmt: skip
_DID = (
    ("bought some bread", "买了些面包"), ("took the keys", "拿走了钥匙"), ("moved the chairs", "搬了椅子"),
    ("called the office", "给办公室打了电话"), ("painted the door", "漆了门"), ("read the letter", "读了那封信"),
    ("closed the window", "关上了窗户"), ("parked the car", "停好了车"), ("cooked the rice", "煮了米饭"),
    ("wrote the address", "写下了地址"),
)  # fmt: skip
_WHEN = (
    ("this morning", "今天早上"), ("yesterday", "昨天"), ("last week", "上周"), ("after lunch", "午饭后"),
    ("on Monday", "星期一"), ("before the meeting", "开会前"),
)  # fmt: skip
_OPENERS: dict[str, tuple[tuple[str, str], ...]] = {
    "happy": (
        ("I am so glad", "我真高兴"), ("What wonderful news", "真是好消息"),
        ("I love this day", "我爱这一天"), ("That is great", "太好了"),
    ),
    "sad": (
        ("I feel so alone", "我觉得好孤单"), ("It breaks my heart", "这让我心碎"),
        ("I miss those days", "我怀念那些日子"), ("Nothing is left", "什么都没有了"),
    ),
    "angry": (
        ("How dare you", "你怎么敢"), ("I have had enough", "我受够了"),
        ("I hate this", "我讨厌这样"), ("Stop it right now", "马上停下"),
    ),
    "surprise": (
        ("I can't believe it", "我简直不敢相信"), ("Oh my goodness", "我的天哪"),
        ("Who would have thought", "谁能想到呢"), ("That is so unexpected", "太出乎意料了"),
    ),
    "worried": (
        ("I am afraid", "我很害怕"), ("What if it goes wrong", "万一出错怎么办"),
        ("I can't sleep", "我睡不着"), ("I don't know what to do", "我不知道该怎么办"),
    ),
}  # fmt: skip

FACE_PHRASES = {
    "happy": "The corners of the mouth rise and the eyes narrow.",
    "sad": "The corners of the mouth sink and the eyelids droop.",
    "angry": "The brows are pulled down and together and the lips are tight.",
    "surprise": "The brows are raised high and the mouth falls open.",
    "worried": "The inner brows are raised and the mouth is crooked.",
    "neutral": "The face hardly moves.",
}
VOICE_PHRASES = {
    "happy": "The voice is bright and lively.",
    "sad": "The voice is slow, low and fading.",
    "angry": "The voice is loud and harsh.",
    "surprise": "The voice is high and rises.",
    "worried": "The voice trembles and hesitates.",
    "neutral": "The voice is even.",
}


def _pick(rng: np.random.Generator, items: tuple):
    return items[int(rng.integers(len(items)))]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def draw_sentence(rng: np.random.Generator, text_emotion: str) -> tuple[str, str]:
    """An English sentence and its Chinese version; ``neutral``: one that says nothing about feelings."""
    who, did = _pick(rng, _WHO), _pick(rng, _DID)
    if text_emotion == "neutral":
        when = _pick(rng, _WHEN)
        return f"{_capital(when[0])} {who[0]} {did[0]}.", f"{when[1]}{who[1]}{did[1]}。"
    opener = _pick(rng, _OPENERS[text_emotion])
    return f"{opener[0]}, {who[0]} {did[0]}.", f"{opener[1]}，{who[1]}{did[1]}。"


def draw_open_words(rng: np.random.Generator, emotion: str, intensity: float) -> tuple[str, ...]:
    """One to three open-vocabulary words for an emotion; a strong one (intensity near 1) gets the stronger words.

    Seven sets in ten have one word, so that the mean stays under 1.5.
    """
    first, weak, strong = OPEN_WORDS[emotion]
    more = list(strong if intensity > 0.75 else weak)
    rng.shuffle(more)
    draw = rng.random()
    extra = 0 if draw < 0.7 else 1 if draw < 0.93 else 2
    return (first, *more[:extra])


def describe(*, emotion_words: tuple[str, ...], face: str, voice: str, text: str) -> str:
    """The description of a clip: what the face shows, how the voice sounds, what the words say, and the conclusion.

    ``face``, ``voice`` and ``text`` are the emotions that these carry (``neutral``: none).
    """
    felt = emotion_words[0]
    agrees = text != "neutral" and OPEN_WORDS[text][0] == felt
    if text == "neutral":
        words = "The words say little about feelings."
    elif agrees:
        words = "The words agree with this."
    else:
        words = "The words do not fit the face and the voice."
    listed = (
        " and ".join(emotion_words)
        if len(emotion_words) < 3
        else f"{', '.join(emotion_words[:-1])} and {emotion_words[-1]}"
    )
    return f"{FACE_PHRASES[face]} {VOICE_PHRASES[voice]} {words} So the person's emotional state is {listed}."


def text_for_tokenizer() -> list[str]:
    """Every part of a sentence, word and phrase: the demo tokenizer is trained on these and on the prompts."""
    lines = [f"{_capital(w[0])} {p[0]} {d[0]}." for w in _WHEN for p in _WHO for d in _DID]
    lines += [f"{o[0]}, {p[0]} {d[0]}." for os in _OPENERS.values() for o in os for p in _WHO for d in _DID]
    lines += [*FACE_PHRASES.values(), *VOICE_PHRASES.values()] * 20
    for first, weak, strong in OPEN_WORDS.values():
        for word in (first, *weak, *strong):
            lines += [f"So the person's emotional state is {first}, {word} and {first}."] * 20
    return lines
