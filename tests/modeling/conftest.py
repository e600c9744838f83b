"""A model of the tiny folders, and batches for it."""

import numpy as np
import pytest
import torch
from tiny import tiny_config

from affectgpt.core.types import IGNORE_INDEX, Batch, Modality
from affectgpt.modeling.build import build_model
from affectgpt.processing.processor import AffectGPTProcessor


@pytest.fixture(scope="session")
def make(tiny_models):
    """``make(key=value, …)`` → model in eval mode and its preparation; LoRA's B matrices are not zero."""
    made = {}

    def build(**keys):
        name = tuple(sorted(keys.items()))
        if name not in made:
            config = tiny_config(tiny_models, **keys)
            prepared = AffectGPTProcessor.from_config(config)
            torch.manual_seed(1)
            model = build_model(config, device=torch.device("cpu"), tokenizer=prepared.tokenizer).eval()
            with torch.no_grad():
                for parameter_name, parameter in model.named_parameters():
                    if "lora_B" in parameter_name:
                        parameter.normal_(std=0.05)
            made[name] = model, prepared
        return made[name]

    return build


@pytest.fixture(scope="session")
def batch_for():
    """A training batch of ``lengths`` (answer tokens per sample) in the released face mode."""

    def build(prepared, lengths, *, first=0, kinds=(Modality.MULTI, Modality.AUDIO, Modality.FACE)):
        tokenizer, rows, media = prepared.tokenizer, [], {Modality.FACE: [], Modality.AUDIO: []}
        for number, length in enumerate(lengths, start=first):
            rng = np.random.default_rng(number)
            prompt = [int(i) for i in rng.integers(0, 250, 6)]
            for kind in kinds:
                prompt += [tokenizer.convert_tokens_to_ids(kind.placeholder)] * prepared.n_tokens[kind] + [5]
            answer = [int(i) for i in rng.integers(0, 250, length)] + [tokenizer.eos_token_id]
            rows.append(([tokenizer.bos_token_id, *prompt], answer))
            faces = rng.integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
            media[Modality.FACE].append(prepared.transforms[Modality.FACE](faces))
            wave = (rng.standard_normal((8, 32000)) * 0.1).astype(np.float32)
            media[Modality.AUDIO].append(prepared.transforms[Modality.AUDIO](wave))
        longest = max(len(p) + len(a) for p, a in rows)
        input_ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        for row, (prompt, answer) in enumerate(rows):
            input_ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        return Batch(
            names=[f"clip{n}" for n in range(first, first + len(rows))],
            mode="multiface_audio_face_text",
            input_ids=input_ids,
            attention_mask=input_ids != tokenizer.pad_token_id,
            labels=labels,
            prefusion=Modality.FACE,
            media={kind: torch.stack(tensors) for kind, tensors in media.items()},
        )

    return build
