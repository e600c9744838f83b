"""Tiny random models under the published folder names: everything a test needs that has no weights at hand.

All widths differ, so that a swapped dimension shows. ``make_tiny_models(root)`` writes the folders (about 3 MB);
``tiny_config(root, …)`` is a configuration that finds them. The fixture ``tiny_models`` makes them once per session.
"""

from __future__ import annotations

import json
from pathlib import Path

from affectgpt.config.schema import Config, ModelConfig, PathsConfig

VISUAL_WIDTHS = {
    "CLIP_VIT_LARGE": 48,
    "DINO2_LARGE": 36,
    "SigLIP_SO": 44,
    "EVA_CLIP_G": 52,
    "EVA_CLIP_G_NO_QFORMER": 60,
}
ACOUSTIC_WIDTHS = {"HUBERT_LARGE": 40, "WAVLM_LARGE": 28, "DATA2VEC_BASE": 24}
LLM_WIDTH = 64
QFORMER_WIDTH = 56
_SPEECH = {
    "conv_dim": [8] * 7,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
    "initializer_range": 0.3,  # wide, so that two inputs give clearly different outputs
}
_TEXT = [
    "###Human: The audio and video merged info is: <Multi></Multi>. The audio content is as follows: <Audio></Audio>. ",
    "Meanwhile, we uniformly sample raw frames from the video and extract faces from these frames: <Video></Video>. ",
    "The subtitle of this video is: <Subtitle>I am so glad that you came.</Subtitle>. ",
    "Now, please answer my question based on all the provided information. "
    "Please recognize all possible emotional states of the character. ###Assistant: ",
    "The character's emotional state is happy, sad, angry, surprised, worried, neutral, calm.###",
    "a## b# c### d## e#",
]


def folder_of(root: Path, name: str) -> Path:
    """Where the weights of an encoder or LLM are expected below a models folder."""
    from affectgpt.encoders.base import ACOUSTIC_ENCODERS, VISUAL_ENCODERS
    from affectgpt.encoders.llm import LLMS

    registry = next(r for r in (VISUAL_ENCODERS, ACOUSTIC_ENCODERS, LLMS) if name in r)
    return root / registry.get(name).weights.folder


def tiny_config(root: Path, *, name: str = "tiny", **model: object) -> Config:
    """The released recipe (attention) over the tiny models in ``root``; ``model`` overrides keys of its section."""
    recipe = {
        "multi_fusion_type": "attention",
        "video_fusion_type": "attention",
        "audio_fusion_type": "attention",
        "image_fusion_type": "mean",
        "lora_r": 4,
    }
    return Config(name=name, model=ModelConfig(**{**recipe, **model}), paths=PathsConfig(models_root=str(root)))


def make_tiny_models(root: Path, *, llm_width: int = LLM_WIDTH) -> Path:
    """Write all folders into ``root`` and return it. The weights are drawn from a fixed seed.

    ``llm_width=128``: an LLM whose heads vLLM takes on a CPU.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _make_clip(root)
        _make_dino(root)
        _make_siglip(root)
        _make_blip2(root)
        _make_speech(root)
        make_tiny_llm(folder_of(root, "Qwen25"), width=llm_width)
    _write(root / "bert-base-uncased" / "config.json", {
        "model_type": "bert", "hidden_size": QFORMER_WIDTH, "num_attention_heads": 4, "intermediate_size": 104,
        "num_hidden_layers": 12, "max_position_embeddings": 30, "vocab_size": 60, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
    })  # fmt: skip
    return root


def make_tiny_llm(folder: Path, *, width: int = LLM_WIDTH) -> Path:
    """A two-layer Qwen2 with a byte-level BPE tokenizer that has Qwen's special tokens."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    tokens = make_tokenizer(folder)
    config = Qwen2Config(
        hidden_size=width, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=800, max_position_embeddings=4096, tie_word_embeddings=False,
        initializer_range=0.1, bos_token_id=tokens["<|endoftext|>"], eos_token_id=tokens["<|im_end|>"],
        pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(7)
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokens["<|endoftext|>"],
        eos_token_id=[tokens["<|im_end|>"], tokens["<|endoftext|>"]],
        do_sample=True,
        top_k=20,
        top_p=0.8,
        temperature=0.7,
        repetition_penalty=1.05,
    )
    model.save_pretrained(folder)
    return folder


def make_tokenizer(folder: Path) -> dict[str, int]:
    """Train and save the tokenizer; returns the ids of its special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    split = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    tokenizer.add_special_tokens(special)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "additional_special_tokens": special[1:], "model_max_length": 4096,
        "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    })  # fmt: skip
    return {token: tokenizer.token_to_id(token) for token in special}


def _make_clip(root: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    folder = folder_of(root, "CLIP_VIT_LARGE")
    config = CLIPConfig(
        text_config={"hidden_size": 20, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1,
                     "vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={"hidden_size": 32, "intermediate_size": 72, "num_attention_heads": 4, "num_hidden_layers": 2,
                       "patch_size": 32, "image_size": 224},
        projection_dim=VISUAL_WIDTHS["CLIP_VIT_LARGE"],
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    _write(folder / "preprocessor_config.json", {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": 224, "resample": 3,
        "do_center_crop": True, "crop_size": 224, "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    })  # fmt: skip


def _make_dino(root: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    folder = folder_of(root, "DINO2_LARGE")
    config = Dinov2Config(
        hidden_size=VISUAL_WIDTHS["DINO2_LARGE"], num_hidden_layers=2, num_attention_heads=4, patch_size=28,
        image_size=448, initializer_range=0.2,
    )  # fmt: skip
    Dinov2Model(config).save_pretrained(folder)
    _write(folder / "preprocessor_config.json", {
        "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": 256},
        "resample": 3, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "do_rescale": True,
        "rescale_factor": 0.00392156862745098, "do_normalize": True, "do_convert_rgb": True,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    })  # fmt: skip


def _make_siglip(root: Path) -> None:
    from transformers import SiglipConfig, SiglipModel

    folder = folder_of(root, "SigLIP_SO")
    config = SiglipConfig(
        text_config={"hidden_size": 20, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1,
                     "vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={"hidden_size": VISUAL_WIDTHS["SigLIP_SO"], "intermediate_size": 72, "num_attention_heads": 4,
                       "num_hidden_layers": 2, "patch_size": 48, "image_size": 384},
    )  # fmt: skip
    SiglipModel(config).save_pretrained(folder)
    _write(folder / "preprocessor_config.json", {
        "image_processor_type": "SiglipImageProcessor", "do_resize": True, "size": {"height": 384, "width": 384},
        "resample": 3, "do_rescale": True, "rescale_factor": 0.00392156862745098, "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    })  # fmt: skip


def _make_blip2(root: Path) -> None:
    from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

    folder = folder_of(root, "EVA_CLIP_G")
    config = Blip2Config(
        vision_config={"hidden_size": VISUAL_WIDTHS["EVA_CLIP_G_NO_QFORMER"], "intermediate_size": 72,
                       "num_attention_heads": 4, "num_hidden_layers": 3, "patch_size": 32, "image_size": 224,
                       "initializer_range": 0.2},
        qformer_config={"hidden_size": VISUAL_WIDTHS["EVA_CLIP_G"], "intermediate_size": 68, "num_attention_heads": 4,
                        "num_hidden_layers": 4, "cross_attention_frequency": 2, "vocab_size": 50,
                        "initializer_range": 0.2,
                        "encoder_hidden_size": VISUAL_WIDTHS["EVA_CLIP_G_NO_QFORMER"]},
        text_config=OPTConfig(hidden_size=16, word_embed_proj_dim=16, ffn_dim=16, num_hidden_layers=1,
                              num_attention_heads=2, vocab_size=50, max_position_embeddings=16).to_dict(),
        num_query_tokens=32,
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config)
    model.query_tokens.data.normal_(std=0.5)  # fresh ones are zeros, which would hide a query that is never read
    model.vision_model.post_layernorm.weight.data.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    _write(folder / "preprocessor_config.json", {
        "image_processor_type": "BlipImageProcessor", "do_resize": True, "size": {"height": 224, "width": 224},
        "resample": 3, "do_rescale": True, "rescale_factor": 0.00392156862745098, "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    })  # fmt: skip


def _make_speech(root: Path) -> None:
    from transformers import (
        Data2VecAudioConfig,
        Data2VecAudioModel,
        HubertConfig,
        HubertModel,
        WavLMConfig,
        WavLMModel,
    )

    stable = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    for name, config_class, model_class, more in (
        ("HUBERT_LARGE", HubertConfig, HubertModel, stable),
        ("WAVLM_LARGE", WavLMConfig, WavLMModel, {**stable, "conv_bias": False, "num_buckets": 20}),
        ("DATA2VEC_BASE", Data2VecAudioConfig, Data2VecAudioModel, {"conv_pos_kernel_size": 5}),
    ):
        folder = folder_of(root, name)
        model_class(config_class(hidden_size=ACOUSTIC_WIDTHS[name], **_SPEECH, **more)).save_pretrained(folder)
        _write(folder / "preprocessor_config.json", {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "feature_size": 1,
            "padding_side": "right", "padding_value": 0.0, "return_attention_mask": True, "sampling_rate": 16000,
        })  # fmt: skip


def _write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))
