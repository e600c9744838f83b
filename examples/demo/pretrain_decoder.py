"""The demo's tiny Qwen2, taught to answer AffectGPT's questions from cues.

A 7B model knows what a smile means before it ever sees a clip; a random decoder does not, and LoRA cannot teach it.
So this one is first trained in full on made-up evidence: where a branch's token will later stand, it reads a mixture of
the embeddings of emotion words (plus noise). Projectors and LoRA then only have to learn to write such evidence from
real encoder outputs. No clip, no feature and no held-out sentence pairing is used here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.core.files import write_json
from affectgpt.core.types import Modality
from examples.demo import language
from examples.demo.clips import CHANNELS, TEXTS
from examples.demo.tokenizer import save_tokenizer, train_tokenizer

if TYPE_CHECKING:
    import numpy as np

WIDTH = 96  # differs from every other width of the demo
VOCABULARY = 832
STEPS = 420
_BATCH = 24
_LEARNING_RATE = 3e-3

# The prompts of AffectGPT (a test holds them equal to processing/).
_MULTI = "The audio and video merged info is: <Multi><MultiHere></Multi>. "
_AUDIO = "The audio content is as follows: <Audio><AudioHere></Audio>. "
_FRAMES = "Meanwhile, we uniformly sample raw frames from the video"
_FACE = f"{_FRAMES} and extract faces from these frames: <Video><FaceHere></Video>. "
_FRAME = f"{_FRAMES}: <Video><FrameHere></Video>. "
_SUBTITLE = "The subtitle of this video is: <Subtitle>{subtitle}</Subtitle>. "
_END = "Now, please answer my question based on all the provided information. {question} ###Assistant: "
MODES = {
    "multiface_audio_face_text": _MULTI + _AUDIO + _FACE + _SUBTITLE,
    "multiframe_audio_frame_text": _MULTI + _AUDIO + _FRAME + _SUBTITLE,
    "face": _AUDIO + _FACE + _SUBTITLE,
    "textonly": _SUBTITLE,
}
QUESTIONS = {
    "ovlabel": "Please recognize all possible emotional states of the character.",
    "description": "Please infer the person's emotional state and provide your reasoning process.",
}
_MODE_WEIGHTS = (0.5, 0.1, 0.25, 0.15)


def prompt(mode: str, *, subtitle: str, question: str) -> str:
    """The prompt of a mode, placeholders once each."""
    return "###Human: " + MODES[mode].replace("{subtitle}", subtitle) + _END.replace("{question}", QUESTIONS[question])


@dataclass(frozen=True)
class Lesson:
    """One made-up sample: a prompt, the answer, and per placeholder how much each emotion's cue weighs (``[6]``)."""

    prompt: str
    answer: str
    cues: dict[Modality, np.ndarray]


def draw_lesson(rng: np.random.Generator) -> Lesson:
    """A lesson with the odds of the sample corpus: emotion, where it shows, what the sentence says."""
    emotion = language.EMOTIONS[int(rng.integers(len(language.EMOTIONS)))]
    channel = CHANNELS[int(rng.integers(len(CHANNELS)))]
    text = TEXTS[int(rng.integers(len(TEXTS)))]
    face = emotion if channel != "voice" else "neutral"
    voice = emotion if channel != "face" else "neutral"
    said = "neutral"
    if text == "carries":
        said = emotion
    elif text == "conflicts":
        said = str(rng.choice([e for e in language.FELT if e != emotion]))
    words = language.draw_open_words(rng, emotion, float(rng.uniform(0.65, 1.1)))
    seen, heard = _evidence(rng, face), _evidence(rng, voice)
    both = _soften(rng, _log(seen) + _log(heard) - 1.5 * _is_neutral())
    cues = {Modality.FACE: seen, Modality.FRAME: seen, Modality.AUDIO: heard, Modality.MULTI: both}
    mode = str(rng.choice(list(MODES), p=_MODE_WEIGHTS))
    question = "ovlabel" if rng.random() < 0.6 else "description"
    if question == "ovlabel":
        answer = f"The character's emotional state is {', '.join(words)}."
    else:
        answer = language.describe(emotion_words=words, face=face, voice=voice, text=said)
    subtitle = language.draw_sentence(rng, said)[0]
    return Lesson(prompt(mode, subtitle=subtitle, question=question), answer, cues)


def _is_neutral() -> np.ndarray:
    import numpy as np

    return np.array([e == "neutral" for e in language.EMOTIONS], float)


def _log(weights: np.ndarray) -> np.ndarray:
    """Logarithm that keeps zeros finite."""
    import numpy as np

    return np.log(weights + 1e-3)


def _soften(rng: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    import numpy as np

    logits = logits + rng.normal(0, 0.5, len(logits))
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _evidence(rng: np.random.Generator, shown: str) -> np.ndarray:
    """What an encoder might say of ``shown``: mostly it, sometimes unsure."""
    import numpy as np

    strength = rng.uniform(1.5, 6.0)
    return _soften(rng, strength * np.array([e == shown for e in language.EMOTIONS], float))


def build_tokenizer() -> Any:
    """The tokenizer, trained on prompts, questions, sentences and answers without the mark that ends an answer."""
    import numpy as np

    rng = np.random.default_rng(7)
    lessons = [draw_lesson(rng) for _ in range(600)]
    lines = language.text_for_tokenizer()
    lines += [lesson.prompt for lesson in lessons] + [lesson.answer for lesson in lessons]
    lines += ["The person's sentiment is positive, negative, neutral.", "Please select the label."] * 20
    return train_tokenizer([line.replace("Here>", "> <") for line in lines], vocab_size=VOCABULARY)


def build_qwen2(tokenizer: Any) -> Any:
    """A random Qwen2ForCausalLM of demo size. Like the real one it has more embedding rows than tokens."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY + 64, "hidden_size": WIDTH, "intermediate_size": 256, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "rope_theta": 10_000.0,
        "tie_word_embeddings": False, "initializer_range": 0.05, "attn_implementation": "sdpa",
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"), "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }  # fmt: skip
    return Qwen2ForCausalLM(Qwen2Config(**shape))


class _Encoder:
    """Lessons → tensors. Placeholders become one position each, filled with evidence."""

    def __init__(self, tokenizer: Any) -> None:
        import re

        self.tokenizer = tokenizer
        self.bos, self.eos = (tokenizer.token_to_id(t) for t in ("<|im_start|>", "<|im_end|>"))
        self.split = re.compile("(" + "|".join(m.placeholder for m in Modality) + ")")
        self.by_text = {m.placeholder: m for m in Modality}
        words = [language.OPEN_WORDS[e][0] for e in language.EMOTIONS]
        ids = [tokenizer.encode(" " + word).ids for word in words]
        if any(len(one) != 1 for one in ids):
            raise AssertionError(f"the demo tokenizer splits an emotion word: {dict(zip(words, ids, strict=True))}")
        self.cue_ids = [one[0] for one in ids]

    def encode(self, lesson: Lesson, *, with_bos: bool) -> tuple[list[int], int, list[tuple[int, np.ndarray]]]:
        """Token ids, the length of the part that is not learnt, and (position, evidence) of the placeholders."""
        ids: list[int] = [self.bos] if with_bos else []
        slots = []
        for piece in self.split.split(lesson.prompt):
            if piece in self.by_text:
                slots.append((len(ids), lesson.cues[self.by_text[piece]]))
                ids.append(0)
            elif piece:
                ids += self.tokenizer.encode(piece).ids
        given = len(ids)
        ids += [*self.tokenizer.encode(lesson.answer + "###").ids, self.eos]
        return ids, given, slots

    def batch(self, model: Any, lessons: list[Lesson], rng: np.random.Generator) -> tuple[Any, Any, Any]:
        """inputs_embeds ``[B, L, WIDTH]``, attention mask and labels ``[B, L]``. Right-padded with eos."""
        import numpy as np
        import torch

        rows = [self.encode(lesson, with_bos=rng.random() < 0.7) for lesson in lessons]
        longest = max(len(ids) for ids, _, _ in rows)
        ids = torch.full((len(rows), longest), self.eos)
        labels = torch.full((len(rows), longest), -100)
        where, weights = [], []
        for i, (row, given, slots) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, given : len(row)] = ids[i, given : len(row)]
            where += [(i, position) for position, _ in slots]
            weights += [evidence for _, evidence in slots]
        mask = ids != self.eos
        embeds = model.get_input_embeddings()(ids)
        if where:
            meanings = model.get_input_embeddings().weight[self.cue_ids]  # [6, WIDTH]
            mixed = torch.tensor(np.stack(weights), dtype=torch.float32) @ meanings
            scale = mixed.detach().norm(dim=1, keepdim=True) / WIDTH**0.5
            mixed = mixed * torch.empty(len(where), 1).uniform_(0.6, 1.6) + 0.3 * scale * torch.randn_like(mixed)
            rows_at, columns = zip(*where, strict=True)
            embeds = embeds.index_put((torch.tensor(rows_at), torch.tensor(columns)), mixed)
        return embeds, mask, labels


def pretrain_qwen2(folder: Path, *, seed: int) -> dict[str, float]:
    """Make, pretrain and save the tiny Qwen2 with its tokenizer; returns the loss on the last lessons."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 103])
    tokenizer = build_tokenizer()
    encoder = _Encoder(tokenizer)
    model = build_qwen2(tokenizer)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=_LEARNING_RATE, betas=(0.9, 0.98),
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    model.train()
    losses, first_right = [], []
    for _ in range(STEPS):
        lessons = [draw_lesson(rng) for _ in range(_BATCH)]
        embeds, mask, labels = encoder.batch(model, lessons, rng)
        hidden = model.model(inputs_embeds=embeds, attention_mask=mask.long()).last_hidden_state[:, :-1]
        target = labels[:, 1:]
        learnt = target != -100
        logits = model.lm_head(hidden[learnt])  # only where there is something to learn
        wanted = target[learnt]
        loss = cross_entropy(logits, wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(loss.item())
        cue = torch.isin(wanted, torch.tensor(encoder.cue_ids))
        first_right.append((logits.argmax(1) == wanted)[cue].float().mean().item())
    model.eval()
    _save(model, tokenizer, folder)
    return {"loss": sum(losses[-20:]) / 20, "emotion words right": sum(first_right[-20:]) / 20}


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.generation_config = type(model.generation_config)()
    model.save_pretrained(folder)
    end, turn = (tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>"))
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": end, "pad_token_id": end, "do_sample": True, "eos_token_id": [turn, end],
            "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
        },
    )  # fmt: skip
    save_tokenizer(tokenizer, folder)
