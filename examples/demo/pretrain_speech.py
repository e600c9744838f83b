"""The demo's tiny HuBERT: started from a filter bank, taught for some seconds to tell manners of speaking.

Its two convolutions stand for the seven of the real one: the first is a bank of band-pass filters (25 ms every 10 ms),
so that pitch and brightness need not be found from raw samples first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.core.files import write_json
from affectgpt.core.types import CLIP_SAMPLES, N_FRAMES, SAMPLE_RATE
from examples.demo import speech
from examples.demo.clips import draw_person
from examples.demo.language import EMOTIONS, FELT, draw_sentence

if TYPE_CHECKING:
    import numpy as np
    import torch

WIDTH = 56  # hidden size: differs from every other width of the demo
_WINDOW, _HOP = 400, 160  # samples
_BANDS = 40
_LEVEL_CHANNELS = 8  # see _filter_bank
_SENTENCES = 720
_EPOCHS = 20
_BATCH = 32


def draw_lessons(*, count: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Spoken sentences of training voices (float32 at 16 kHz), and their manner as an index into EMOTIONS."""
    import numpy as np

    rng = np.random.default_rng([seed, 102])
    waves, labels = [], []
    texts = (*FELT, "neutral", "neutral", "neutral")
    for i in range(count):
        label = i % len(EMOTIONS)
        voice = draw_person(seed=seed, number=1000 + int(rng.integers(400)), held_out=False).voice
        manner = speech.MANNERS["neutral"].between(speech.MANNERS[EMOTIONS[label]], float(rng.uniform(0.6, 1.1)))
        text = draw_sentence(rng, texts[int(rng.integers(len(texts)))])[0]
        waves.append(speech.speak(text=text, voice=voice, manner=manner, rng=rng))
        labels.append(label)
    return waves, np.array(labels)


def eight_clips(wave: np.ndarray) -> np.ndarray:
    """Eight clips of 2 s, float32 ``[8, 32000]``, normalised together, as a sample reaches the encoder."""
    import numpy as np

    wave = np.pad(wave, (0, max(CLIP_SAMPLES - len(wave), 0)))
    last = len(wave) / SAMPLE_RATE - CLIP_SAMPLES / SAMPLE_RATE
    starts = [int(i * last / N_FRAMES * SAMPLE_RATE) for i in range(N_FRAMES)]
    clips = np.stack([wave[s : s + CLIP_SAMPLES] for s in starts])
    clips = clips - clips.mean(axis=1, keepdims=True)
    return ((clips - clips.mean()) / np.sqrt(clips.var() + 1e-7)).astype(np.float32)


def _filter_bank(convolution: torch.nn.Conv1d) -> None:
    """Give a convolution band-pass filters of two phases each, and some channels of constant level.

    A layer norm over channels follows, which would hide how loud a moment is: against the constant channels it shows.
    """
    import numpy as np
    import torch

    lowest, highest = 2595 * np.log10(1 + np.array([90.0, 6500.0]) / 700)
    mel = np.linspace(lowest, highest, _BANDS)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    t = np.arange(_WINDOW) / SAMPLE_RATE
    window = np.hanning(_WINDOW)
    bank = [window * wave(2 * np.pi * f * t) * np.sqrt(f / 500) for f in hertz for wave in (np.sin, np.cos)]
    assert convolution.bias is not None
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.bias.zero_()
        weight = torch.tensor(np.stack(bank), dtype=torch.float32) / _WINDOW * 8
        convolution.weight[: len(bank), 0] = weight
        convolution.bias[len(bank) :] = torch.linspace(-1, 1, _LEVEL_CHANNELS)


def build_hubert() -> Any:
    """A HubertModel of demo size, random but for the filter bank."""
    from transformers import HubertConfig, HubertModel

    shape: dict[str, Any] = {
        "hidden_size": WIDTH, "intermediate_size": 136, "num_hidden_layers": 4, "num_attention_heads": 4,
        "conv_dim": (2 * _BANDS + _LEVEL_CHANNELS, 64), "conv_kernel": (_WINDOW, 8), "conv_stride": (_HOP, 6),
        "num_feat_extract_layers": 2, "conv_bias": True, "feat_extract_norm": "layer", "do_stable_layer_norm": True,
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 32,
        "hidden_dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0,
        "layerdrop": 0.0, "apply_spec_augment": False, "mask_time_prob": 0.0,
    }  # fmt: skip
    model: Any = HubertModel(HubertConfig(**shape))
    _filter_bank(model.feature_extractor.conv_layers[0].conv)
    return model


def embed(model: Any, clips: torch.Tensor) -> torch.Tensor:
    """``[N, samples]`` → ``[N, WIDTH]``: mean of the last four hidden states and over time, as AffectGPT uses them."""
    import torch

    out = model(input_values=clips, output_hidden_states=True)
    last_four = [*out.hidden_states[-4:-1], out.last_hidden_state]
    return torch.stack(last_four).mean(dim=0).mean(dim=1)


def pretrain_hubert(folder: Path, *, seed: int) -> dict[str, float]:
    """Make, pretrain and save the tiny HuBERT; returns its accuracy on the last lessons."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(seed)
    waves, emotions = draw_lessons(count=_SENTENCES, seed=seed)
    labels = torch.from_numpy(emotions)
    model = build_hubert()
    filters = model.feature_extractor.conv_layers[0]  # stays as it is, so its output is computed once
    with torch.no_grad():
        heard = torch.stack([filters(torch.from_numpy(eight_clips(w))[:, None]).half() for w in waves])
    model.feature_extractor.conv_layers[0] = torch.nn.Flatten(1, 2)  # heard is [N, 8, channels, time]
    head = torch.nn.Linear(WIDTH, len(EMOTIONS))
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.02)
    steps = _EPOCHS * (_SENTENCES // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.15)
    model.train()
    correct = []
    for _ in range(_EPOCHS):
        order = torch.randperm(_SENTENCES)
        for i in range(_SENTENCES // _BATCH):
            pick = order[i * _BATCH : (i + 1) * _BATCH]
            clips = heard[pick, torch.randint(N_FRAMES, (_BATCH,))].float()  # one of each sample's eight: they overlap
            logits = head(embed(model, clips))  # [B, emotions]
            loss = cross_entropy(logits, labels[pick], label_smoothing=0.05)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            correct.append((logits.argmax(1) == labels[pick]).float().mean().item())
    model.feature_extractor.conv_layers[0] = filters
    model.eval()
    model.save_pretrained(folder)
    write_json(
        folder / "preprocessor_config.json",
        {
            "do_normalize": True, "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1,
            "padding_side": "right", "padding_value": 0.0, "return_attention_mask": True, "sampling_rate": SAMPLE_RATE,
        },
    )  # fmt: skip
    return {"accuracy": sum(correct[-20:]) / 20}
