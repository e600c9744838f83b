"""A model as a folder that ``transformers`` loads by itself, with its processor, chat template and model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoProcessor, GenerationConfig

from affectgpt.config.schema import Config
from affectgpt.core.errors import CheckpointError, ConfigError
from affectgpt.core.files import naming, write_text
from affectgpt.core.runtime import logger
from affectgpt.encoders.base import ENCODERS, encoder_class
from affectgpt.encoders.llm import configured_llm, folder_generation_config, llm_folder
from affectgpt.inference.engines.base import top_k_of
from affectgpt.inference.session import training_mode
from affectgpt.modeling.build import build_model, load_checkpoint
from affectgpt.modeling.configuration_affectgpt import AffectGPTConfig
from affectgpt.modeling.lora import has_lora, lora_state, merge_lora, write_adapter
from affectgpt.modeling.modeling_affectgpt import AUTO_MODELS, AffectGPTForConditionalGeneration
from affectgpt.processing.processor import DEFAULT_MODE, AffectGPTProcessor
from affectgpt.processing.prompt import chat_template

ADAPTER = "adapter"


def register() -> None:
    """Make the Auto classes of transformers know AffectGPT, so that no code of a folder needs to be trusted."""
    AutoConfig.register(AffectGPTConfig.model_type, AffectGPTConfig, exist_ok=True)
    AutoProcessor.register(AffectGPTConfig, AffectGPTProcessor, exist_ok=True)
    for name in AUTO_MODELS:
        if hasattr(transformers, name):
            getattr(transformers, name).register(AffectGPTConfig, AffectGPTForConditionalGeneration, exist_ok=True)


def export_hf(
    config: Config,
    checkpoint: str | Path,
    out: str | Path,
    *,
    mode: str | None = None,
    adapter: bool = False,
    dtype: torch.dtype | None = None,
    scores: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model of a configuration and checkpoint as a new folder; it appears when it is complete.

    LoRA is merged in float32, or with ``adapter`` written beside the weights as ``adapter/`` for peft. ``dtype`` of the
    LLM and the encoders: as the LLM's folder has it where not given. ``scores``: for the model card.
    Raises CheckpointError and ConfigError.
    """
    out = Path(out)
    if out.exists():
        raise CheckpointError(f"--out {out}: exists already; name a new folder")
    row = configured_llm(config)
    if row.remote_code:
        raise ConfigError(
            f"{row.name} is code in its own folder: a folder with it cannot be loaded by transformers alone"
        )
    mode = mode or (training_mode(config) if config.datasets else DEFAULT_MODE)
    processor = AffectGPTProcessor.from_config(config, mode=mode)
    processor.chat_template = chat_template(mode)
    folder = llm_folder(config)
    dtype = dtype or _stored_dtype(folder)
    model = build_model(config, device=torch.device("cpu"), tokenizer=processor.tokenizer, dtype=dtype).eval()
    logger.info("%s: %s", checkpoint, load_checkpoint(model, checkpoint, complete=True))
    lora = {}
    if has_lora(model.llm):
        if adapter:
            lora = lora_state(model.llm)
        merge_lora(model.llm, add=not adapter)
    model.config.lora_r = 0
    defaults = folder_generation_config(folder)
    inference = config.inference
    sampling: dict[str, Any] = {"do_sample": False}  # transformers refuses to save sampling's numbers with it
    if inference.decoding == "sampling":
        sampling = {
            "do_sample": True, "temperature": inference.temperature, "top_p": inference.top_p,
            "top_k": top_k_of(inference.top_k, defaults),
        }  # fmt: skip
    model.generation_config = GenerationConfig(
        **sampling,
        max_new_tokens=inference.max_new_tokens,
        eos_token_id=processor.eos_ids,
        bos_token_id=processor.tokenizer.bos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    temporary = out.with_name(f".{out.name}.tmp{os.getpid()}")
    try:
        with naming(out, instead_of=temporary):
            temporary.mkdir(parents=True)
            model.save_pretrained(temporary)
            processor.save_pretrained(temporary)
            if lora:
                write_adapter(temporary / ADAPTER, lora, llm=".", prefix="llm.")
            card = _card(
                config, processor, checkpoint=Path(checkpoint), adapter=bool(lora), scores=scores, name=out.name
            )
            write_text(temporary / "README.md", card)
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _stored_dtype(folder: Path) -> torch.dtype:
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    found = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
    return getattr(torch, found) if isinstance(found, str) else found


def _card(
    config: Config,
    processor: AffectGPTProcessor,
    *,
    checkpoint: Path,
    adapter: bool,
    scores: Mapping[str, Any] | None,
    name: str,
) -> str:
    """The model card: what it is, how it is asked, where its parts come from, what it scored."""
    model = config.model
    sources = [f"- {getattr(model, key)}: {_source(encoder_class(config, key).weights)}" for key in ENCODERS]
    sources.append(f"- {model.llama_model}: {_source(configured_llm(config).weights)}")
    rows = [f"| {key} | {value} |" for key, value in (scores or {}).items()]
    table = ["| data set | score |", "|---|---|", *rows] if rows else ["No score is recorded with this export."]
    how = "LoRA is in `adapter/` (peft)" if adapter else "LoRA is merged"
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: any-to-any",
            "license: other",
            "license_name: see-card",
            "tags: [affectgpt, emotion-recognition, multimodal]",
            "---",
            f"# {name}",
            "",
            "AffectGPT (Lian et al., ICML 2025, https://arxiv.org/abs/2501.16566): audio, face or frames and subtitle "
            "of a clip in, open-vocabulary emotion labels or a description out.",
            "",
            f"Made from `{checkpoint.name}`; {how}. Input mode: `{processor.mode}`.",
            "",
            "```python",
            "from transformers import AutoModelForImageTextToText, AutoProcessor",
            "",
            f'processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)  # pip install affectgpt',
            f'model = AutoModelForImageTextToText.from_pretrained("{name}", trust_remote_code=True)',
            "```",
            "or `affectgpt.Predictor.from_pretrained(FOLDER)`, which also finds the face.",
            "",
            "## Parts and licences",
            "",
            "The frozen parts keep the licences of their sources; what was trained is subject to those of the data:",
            *sources,
            "",
            "## Scores",
            "",
            *table,
            "",
            "Not for decisions about people: the model names what an expression suggests, not what somebody feels.",
            "",
        ]
    )


def _source(weights: Any) -> str:
    return weights.source or weights.folder if weights is not None else "unknown"
