"""A small byte-level BPE tokenizer in the form of a Qwen2.5 folder, trained on the demo's own text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from affectgpt.core.files import write_json, write_text

# Qwen2's pre-tokenizer: words with their leading space, single digits, runs of punctuation.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(lines: list[str], *, vocab_size: int) -> Any:
    """A ``tokenizers.Tokenizer`` of at most ``vocab_size`` tokens, the special ones last (as Qwen has them).

    ``#``, ``##`` and ``###`` are tokens of their own and ``.###`` is two, as the stop rule of generation needs.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator([*lines, *["###", "##"] * 1000], trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write tokenizer.json, vocab.json, merges.txt and tokenizer_config.json."""
    model = json.loads(tokenizer.to_str())
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    vocabulary = dict(sorted(model["model"]["vocab"].items(), key=lambda item: item[1]))
    write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["model"]["merges"]]
    write_text(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{pair}\n" for pair in pairs))
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(token)): {"content": token, **plain} for token in SPECIAL_TOKENS
            },
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "bos_token": None,
            "chat_template": _CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 2048,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
