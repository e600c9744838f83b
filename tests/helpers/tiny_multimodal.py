"""Tiny random multimodal LLMs in folders: Qwen2-Audio as it is, Video-LLaVA with a processor without torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    WhisperFeatureExtractor,
)

_TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": False, "initializer_range": 0.5,
}  # fmt: skip
SIDE, PATCH = 16, 8


def _tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """Lower-case letters and blanks as single tokens, so that random replies are text; other bytes too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *special]})
    return fast


def make_audio_model(folder: Path) -> Path:
    """Qwen2-Audio of two layers, for sounds of up to two seconds."""
    tokenizer = _tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    features = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    Qwen2AudioProcessor(features, tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(
            audio_config=Qwen2AudioEncoderConfig(
                num_mel_bins=16, d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32,
                max_source_positions=100, init_std=0.5,
            ).to_dict(),
            text_config=Qwen2Config(vocab_size=len(tokenizer), **_TEXT).to_dict(),
            audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        )
    )  # fmt: skip
    return _save(model, tokenizer, folder)


class TinyVideoConfig(VideoLlavaConfig):
    model_type = "tiny_video"


class TinyVideoModel(VideoLlavaForConditionalGeneration):
    config_class = TinyVideoConfig
    config: TinyVideoConfig


class TinyVideoProcessor(ProcessorMixin):
    """Frames in numpy; notes in ``seen`` what it was called with."""

    attributes = ["tokenizer"]  # noqa: RUF012 - transformers 4 asks for these
    tokenizer_class = "AutoTokenizer"
    seen: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(tokenizer, chat_template=chat_template)

    def __call__(self, text=None, images=None, videos=None, audio=None, **settings: Any) -> BatchFeature:
        self.seen.append(settings)
        assert audio is None
        if any(len(frames) == 3 for group in videos or () for frames in group):
            raise ValueError("three frames are too few")
        pixels = {
            "pixel_values_videos": [np.stack([_small(f) for f in v]) for group in videos or () for v in group],
            "pixel_values_images": [_small(image) for group in images or () for image in group],
        }
        tokens = iter(["<video>" * len(v) * 5 for v in pixels["pixel_values_videos"]])
        text = ["".join(p + next(tokens) if i else p for i, p in _with_ends(one.split("<video>"))) for one in text]
        text = [one.replace("<image>", "<image>" * 4) for one in text]
        encoded = self.tokenizer(text, add_special_tokens=False, return_tensors="pt", **settings["text_kwargs"])
        stacked = {key: torch.tensor(np.stack(value)) for key, value in pixels.items() if value}
        return BatchFeature({**encoded, **stacked})


def _with_ends(pieces: list[str]) -> list[tuple[int, str]]:
    """Pieces with whether a video follows them."""
    return [(int(i + 1 < len(pieces)), piece) for i, piece in enumerate(pieces)]


def _small(picture: Any) -> np.ndarray:
    rows, columns = (np.linspace(0, length - 1, SIDE).astype(int) for length in np.asarray(picture).shape[:2])
    return (np.asarray(picture)[rows][:, columns].transpose(2, 0, 1) / 128 - 1).astype(np.float32)  # [3, SIDE, SIDE]


def make_video_model(folder: Path) -> Path:
    """Video-LLaVA of two layers; five tokens a frame, four an image."""
    AutoConfig.register("tiny_video", TinyVideoConfig, exist_ok=True)
    AutoProcessor.register(TinyVideoConfig, TinyVideoProcessor, exist_ok=True)
    AutoModelForImageTextToText.register(TinyVideoConfig, TinyVideoModel, exist_ok=True)
    tokenizer = _tokenizer("<image>", "<video>")
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
        "{% else %}{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
        "{% else %}<{{ part['type'] }}>{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    TinyVideoProcessor(tokenizer, chat_template=template).save_pretrained(folder)
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH, initializer_range=0.5,
    )  # fmt: skip
    config = TinyVideoConfig(
        vision_config=vision.to_dict(),
        text_config=LlamaConfig(vocab_size=len(tokenizer), **_TEXT).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )
    return _save(TinyVideoModel(config), tokenizer, folder)


def _save(model: Any, tokenizer: Any, folder: Path) -> Path:
    # The folder's own sampling: none of it may act.
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=1, repetition_penalty=2.0, temperature=0.1,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.no_grad():  # replies are of plain letters, so that they are text
        head = model.get_output_embeddings().weight
        letters = tokenizer.convert_tokens_to_ids([chr(97 + i) for i in range(26)])
        kept = head[letters].clone()
        head.zero_()
        head[letters] = kept
    model.save_pretrained(folder)
    return folder
