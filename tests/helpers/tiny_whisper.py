"""A Whisper that hears something in every sound, and nothing that makes sense."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer


def make_tiny_whisper(folder: Path) -> Path:
    """A folder in Hugging Face's format: two random layers and a tokenizer of letters."""
    words = ["<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "<|startoftranscript|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    config = WhisperConfig(
        vocab_size=len(words), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, decoder_start_token_id=28, eos_token_id=0,
        pad_token_id=0, bos_token_id=0, max_target_positions=12,
    )  # fmt: skip
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    settings = model.generation_config
    settings.no_timestamps_token_id = 27
    settings.suppress_tokens = settings.begin_suppress_tokens = None
    settings.eos_token_id, settings.max_length = None, 8
    model.save_pretrained(folder)
    return folder
