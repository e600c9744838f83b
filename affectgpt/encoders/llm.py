"""LLMs before their weights are read: one row per family, its folder, its tokenizer.

The processor needs an LLM's tokens, the model its weights: both read them here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from affectgpt.config.paths import Weights, default_folder, model_folder, model_hint
from affectgpt.config.schema import Config
from affectgpt.core.errors import CheckpointError, ConfigError
from affectgpt.core.registry import Registry
from affectgpt.core.types import Modality
from affectgpt.encoders.base import ENCODERS, encoder_class, encoder_folder, read_config

_ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LLMRow:
    """One LLM family: any causal LM of transformers.

    Tokens: None is the tokenizer's own; pad is always set to eos. ``remote_code``: its model is code in its folder,
    which runs only with ``model.trust_remote_code: true``. ``architecture``: numbers of the default folder's
    config.json, for counting parameters without it. ``weights`` says where its folder is by default (None: only where
    ``paths.folders.NAME`` of a configuration says so).
    """

    name: str
    bos_token: str | None = None
    eos_token: str | None = None
    lora_targets: tuple[str, ...] = _ALL_LINEAR
    remote_code: bool = False
    architecture: Mapping[str, Any] | None = None
    weights: Weights | None = None


_QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip
LLMS = Registry("LLM")
for _row in (
    LLMRow(
        "Qwen25",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        architecture=_QWEN_7B,
        weights=Weights("Qwen2.5-7B-Instruct", "https://huggingface.co/Qwen/Qwen2.5-7B-Instruct"),
    ),
    LLMRow(
        "Qwen2",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        architecture=_QWEN_7B,
        weights=Weights("Qwen2-7B-Instruct", "https://huggingface.co/Qwen/Qwen2-7B-Instruct"),
    ),
    LLMRow(
        "Vicuna",
        architecture=_LLAMA_7B,
        weights=Weights("vicuna-7b-v1.5", "https://huggingface.co/lmsys/vicuna-7b-v1.5"),
    ),
    LLMRow(
        "LLaMA2",
        architecture=_LLAMA_7B,
        weights=Weights("Llama-2-7b-chat-hf", "https://huggingface.co/meta-llama/Llama-2-7b-chat-hf"),
    ),
    LLMRow(
        "LLaMA3",
        architecture={**_LLAMA_7B, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256},
        weights=Weights("Meta-Llama-3-8B-Instruct", "https://huggingface.co/meta-llama/Meta-Llama-3-8B-Instruct"),
    ),
    # Its query, key and value are one module, W_pack, which the published list of targets does not name (wire).
    LLMRow(
        "Baichuan2",
        lora_targets=("o_proj", "gate_proj", "up_proj", "down_proj"),
        remote_code=True,
        weights=Weights("Baichuan2-7B-Chat", "https://huggingface.co/baichuan-inc/Baichuan2-7B-Chat"),
    ),
):
    LLMS.register(_row.name)(_row)


def get_llm(name: str) -> LLMRow:
    """The row of an LLM; ConfigError with the nearest name otherwise."""
    return LLMS.get(name)


def configured_llm(config: Config) -> LLMRow:
    """The row that ``model.llama_model`` names. Raises ConfigError naming the key."""
    with config.naming("model.llama_model"):
        return get_llm(config.model.llama_model)


def llm_folder(config: Config, *, key: str = "model.llama_model", must_exist: bool = True) -> Path:
    """The configured LLM's folder. Raises CheckpointError saying what to download where it must exist and does not."""
    row = configured_llm(config)
    folder = default_folder(config, row.name, row.weights)
    if folder is not None and not must_exist:
        return folder
    return model_folder(config, row.name, key=key, weights=row.weights)


def allowed_llm(config: Config) -> LLMRow:
    """The configured row; ConfigError where its model is code in its folder and nobody has allowed that to run."""
    row = configured_llm(config)
    if row.remote_code and not config.model.trust_remote_code:
        raise ConfigError(
            f"model.llama_model: {row.name} is code in its own folder, which runs on your machine; read it, then allow "
            'it: --options "model.trust_remote_code=True"'
        )
    return row


def weights_folder(config: Config, key: str) -> Path:
    """Folder of the model that ``model.<key>`` (an encoder or the LLM) names. Raises CheckpointError without it."""
    return encoder_folder(config, key) if key in ENCODERS else llm_folder(config)


@contextmanager
def loading(config: Config, key: str) -> Iterator[Path]:
    """That folder; errors of what is done with it also say the key and what to download."""
    folder = weights_folder(config, key)
    try:
        yield folder
    except CheckpointError as error:
        weights = encoder_class(config, key).weights if key in ENCODERS else configured_llm(config).weights
        hint = model_hint(config, getattr(config.model, key), weights)
        raise CheckpointError(f"model.{key}: {getattr(config.model, key)}: {error}. {hint}") from error


def load_tokenizer(folder: str | Path, row: LLMRow, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of an LLM folder: placeholders appended in order, bos and eos of the row, pad = eos.

    Raises CheckpointError when the folder has no tokenizer or lacks one of the row's tokens.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers and tokenizers raise many kinds for damaged files
        model = Path(folder) / "tokenizer.model"  # the only one that Vicuna and Llama 2 have
        if model.is_file() and not (Path(folder) / "tokenizer.json").is_file() and not find_spec("sentencepiece"):
            raise CheckpointError(
                f"{model} is read by the package sentencepiece, which is not installed: pip install sentencepiece"
            ) from error
        raise CheckpointError(f"{folder}: no tokenizer could be read ({type(error).__name__}: {error})") from error
    if (Path(folder) / "tokenizer.model").is_file() and type(tokenizer).__name__.startswith("LlamaTokenizer"):
        tokenizer = _like_sentencepiece(tokenizer, Path(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": [m.placeholder for m in Modality]})
    for attribute, token in (("bos_token", row.bos_token), ("eos_token", row.eos_token)):
        if token is not None:
            if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
                raise CheckpointError(f"{folder}: the tokenizer has no token {token!r}, which {row.name} needs")
            setattr(tokenizer, attribute, token)
    if tokenizer.eos_token is None or tokenizer.bos_token is None:
        raise CheckpointError(f"{folder}: the tokenizer names no bos or eos token; give them in the row of {row.name}")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def _like_sentencepiece(tokenizer: Any, folder: Path) -> Any:
    """Return a tokenizer with the ids of ``use_fast=False``, with which published models were trained (wire).

    SentencePiece puts a ``▁`` before the text, with ``legacy`` before every piece between two special tokens, also
    where a piece already begins with a blank; transformers 5 does neither. A folder that does not say ``legacy`` has
    it on. The result is a plain fast tokenizer: saved as a Llama one, it would be rebuilt in transformers' way.
    """
    from tokenizers import normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    settings = folder / "tokenizer_config.json"
    written = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    if written.get("add_prefix_space") is False:
        return tokenizer
    backend, mark = tokenizer.backend_tokenizer, normalizers.Replace(" ", "▁")
    if written.get("legacy") in (None, True):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), mark])
        backend.pre_tokenizer = None
    else:
        # A normalizer sees one piece at a time and cannot know which is the first. A pre-tokenizer can, but puts no
        # mark where it finds one; so it looks for the blank, and the blanks of the text are already ``▁`` by then.
        backend.normalizer = mark
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(" ", prepend_scheme="first", split=False),
                pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=False),
            ]
        )
    names = {key: getattr(tokenizer, key) for key in ("bos_token", "eos_token", "unk_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        **names,
    )


def placeholder_ids(tokenizer: Any) -> dict[Modality, int]:
    """Modality → id of its placeholder token."""
    return {m: tokenizer.convert_tokens_to_ids(m.placeholder) for m in Modality}


def stop_sequences(tokenizer: Any) -> list[tuple[int, ...]]:
    """Token sequences that end an answer: ``###``; (##, #) and (#, ##) as tokenised after a letter."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    three, two, one = ids("###")[0], ids("a##")[-1], ids("a#")[-1]
    return [(three,), (two, one), (one, two)]


def folder_generation_config(folder: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The generation settings of an LLM folder: of generation_config.json, else of config.json.

    Raises CheckpointError when neither can be read.
    """
    from transformers import GenerationConfig

    try:
        if (Path(folder) / "generation_config.json").is_file():
            return GenerationConfig.from_pretrained(folder, local_files_only=True)
        return GenerationConfig.from_model_config(read_config(folder, trust_remote_code=trust_remote_code))
    except Exception as error:  # transformers raises many kinds for damaged files
        raise CheckpointError(f"{folder}: its generation settings cannot be read ({error})") from error


class StopSequences:
    """A stopping criterion for ``generate``: which rows of a batch end in one of the stop sequences.

    Called with token ids ``[B, n]``, of which the first ``prompt_length`` are the prompt's; gives bool ``[B]``.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], *, prompt_length: int = 0) -> None:
        self.sequences = [torch.tensor(tuple(sequence)) for sequence in sequences]
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any = None, **_: Any) -> torch.Tensor:
        if self.sequences and self.sequences[0].device != input_ids.device:  # copied once: a copy waits for the device
            self.sequences = [sequence.to(input_ids.device) for sequence in self.sequences]
        stop = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for sequence in self.sequences:
            if input_ids.shape[1] - self.prompt_length >= len(sequence):
                ending = input_ids[:, input_ids.shape[1] - len(sequence) :]
                stop |= (ending == sequence).all(dim=1)
        return stop
