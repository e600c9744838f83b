"""A configuration → a model: frozen keys, checkpoints over one another, counts, refusals."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import tiny_config

from affectgpt.cli import params
from affectgpt.config.schema import Config, ModelConfig, PathsConfig
from affectgpt.core.errors import CheckpointError, ConfigError
from affectgpt.encoders.base import ACOUSTIC_ENCODERS, VISUAL_ENCODERS
from affectgpt.encoders.llm import LLMS, load_tokenizer, placeholder_ids
from affectgpt.modeling.build import build_empty_model, build_model, count_parameters
from affectgpt.modeling.checkpoint import trained_parameters, trained_state
from affectgpt.processing.processor import AffectGPTProcessor

QFORMER = {"video_fusion_type": "qformer", "audio_fusion_type": "qformer", "multi_fusion_type": "qformer"}
CPU = torch.device("cpu")
RELEASED = ModelConfig(
    video_fusion_type="attention",
    audio_fusion_type="attention",
    multi_fusion_type="attention",
    image_fusion_type="mean",
)


def build(config, **more):
    return build_model(config, device=CPU, tokenizer=AffectGPTProcessor.from_config(config).tokenizer, **more)


@pytest.mark.parametrize(
    ("key", "frozen"),
    [
        ("frozen_video_proj", ("affectgpt_proj.",)),
        ("frozen_audio_proj", ("audio_llama_proj.",)),
        ("frozen_multi_llama_proj", ("multi_llama_proj.",)),
        ("frozen_video_Qformer", ("video_Qformer.", "video_query_tokens", "video_frame_position_embedding.")),
        ("frozen_audio_Qformer", ("audio_Qformer.", "audio_query_tokens", "audio_position_embedding.")),
        ("frozen_multi_Qformer", ("multi_Qformer.", "multi_query_tokens", "multi_position_embedding.")),
        ("frozen_llm", ("llama_model.",)),
    ],
)
def test_frozen_keys_freeze_what_they_name(tiny_models, key, frozen):
    every = dict(trained_parameters(build_empty_model(tiny_config(tiny_models, **QFORMER))))
    some = dict(trained_parameters(build_empty_model(tiny_config(tiny_models, **QFORMER, **{key: True}))))
    gone = set(every) - set(some)
    assert gone == {name for name in every if name.startswith(frozen)}
    assert all(any(name.startswith(prefix) for name in gone) for prefix in frozen)


def test_a_frozen_qformer_still_saves_its_buffer(tiny_models):
    model = build_empty_model(tiny_config(tiny_models, **QFORMER, frozen_video_Qformer=True))
    assert [n for n in trained_state(model) if n.startswith("video_Qformer")] == [
        "video_Qformer.bert.embeddings.position_ids"
    ]


def test_order_of_the_published_file(tiny_models):
    names = list(trained_state(build_empty_model(tiny_config(tiny_models, **QFORMER))))
    assert names[:3] == ["video_query_tokens", "audio_query_tokens", "multi_query_tokens"]
    modules = list(dict.fromkeys(name.split(".")[0] for name in names[3:]))
    assert modules == [
        "llama_model", "image_llama_proj", "video_frame_position_embedding", "video_Qformer", "affectgpt_proj",
        "audio_position_embedding", "audio_Qformer", "audio_llama_proj", "multi_audio_embs", "multi_video_embs",
        "multi_position_embedding", "multi_Qformer", "multi_llama_proj",
    ]  # fmt: skip


def test_rank_zero_is_no_lora(tiny_models):
    model = build(tiny_config(tiny_models, lora_r=0))
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert not any(name.startswith("llama_model") for name in trained_state(model))


def test_checkpoints_lie_over_one_another(tiny_models, tmp_path):
    paths = []
    for number, names in enumerate((("affectgpt_proj.bias", "fc_att.bias"), ("fc_att.bias",), ("fc_att.bias",))):
        shapes = {"affectgpt_proj.bias": 64, "fc_att.bias": 2}
        path = tmp_path / f"{number}.pth"
        torch.save({"model": {name: torch.full((shapes[name],), float(number)) for name in names}}, path)
        paths.append(str(path))
    model = build(tiny_config(tiny_models, ckpt=paths[0], ckpt_2=paths[1], ckpt_3=paths[2]))
    assert model.video.proj.bias.unique().tolist() == [0.0]
    assert model.multi.weights.bias.unique().tolist() == [2.0]
    model = build(tiny_config(tiny_models, ckpt=paths[2], ckpt_3=paths[1]))
    assert model.multi.weights.bias.unique().tolist() == [1.0]


@pytest.mark.parametrize(("rank", "lora"), [(0, 0), (8, 20_185_088), (16, 40_370_176), (32, 80_740_352)])
def test_parameters_of_the_released_recipe(tmp_path, rank, lora):
    config = Config("released", model=replace(RELEASED, lora_r=rank), paths=PathsConfig(models_root=str(tmp_path)))
    counts = count_parameters(build_empty_model(config))
    assert counts["LoRA"] == {"trained": lora, "frozen": 0}
    assert sum(group["trained"] for group in counts.values()) == 57_168_644 - 40_370_176 + lora
    assert counts["LLM"] == {"trained": 0, "frozen": 7_615_616_512}


@pytest.mark.parametrize("name", [*VISUAL_ENCODERS.names(), *ACOUSTIC_ENCODERS.names()])
def test_every_encoder_has_its_published_width(tmp_path, name):
    widths = {
        "CLIP_VIT_LARGE": 768, "DINO2_LARGE": 1024, "SigLIP_SO": 1152, "EVA_CLIP_G": 768,
        "EVA_CLIP_G_NO_QFORMER": 1408, "HUBERT_LARGE": 1024, "WAVLM_LARGE": 1024, "DATA2VEC_BASE": 768,
        "IMAGEBIND": 1024,
    }  # fmt: skip
    kind = (VISUAL_ENCODERS if name in VISUAL_ENCODERS.names() else ACOUSTIC_ENCODERS).get(name)
    with torch.device("meta"):
        assert kind.from_config(kind.config_of(kind.architecture)).width == widths[name]


def test_every_llm_has_a_folder():
    assert all(row.weights for row in LLMS.values())


@pytest.mark.parametrize("name", [name for name, row in LLMS.items() if not row.remote_code])
def test_every_llm_takes_lora(tmp_path, name):
    config = Config("x", model=replace(RELEASED, llama_model=name), paths=PathsConfig(models_root=str(tmp_path)))
    assert count_parameters(build_empty_model(config))["LoRA"]["trained"] > 30_000_000


def test_params_command(tmp_path, capsys):
    (tmp_path / "released.yaml").write_text(
        "model: {multi_fusion_type: attention, video_fusion_type: attention, audio_fusion_type: attention, "
        f"image_fusion_type: mean}}\npaths: {{models_root: {tmp_path}}}\n"
    )
    assert params.main(["--cfg-path", str(tmp_path / "released.yaml"), "--options", "model.lora_r=8"]) == 0
    table = capsys.readouterr().out
    assert "20,185,088" in table and "36,983,556" in table
    assert params.main(["--cfg-path", str(tmp_path / "released.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["trained"] == 57_168_644


def test_without_encoders(tiny_models, make, batch_for):
    model, prepared = make()
    config = tiny_config(tiny_models)
    bare = build(config, encoders=False)
    assert bare.visual_encoder is None and bare.acoustic_encoder is None
    assert {n: t.shape for n, t in trained_state(bare).items()} == {n: t.shape for n, t in trained_state(model).items()}
    batch = batch_for(prepared, [4])
    features = {modality.features: z for modality, z in model.encode(**batch).items()}
    for medium in ("face", "audio"):
        del batch[medium]
    assert torch.isfinite(bare(**batch, **features).loss)


def test_a_missing_or_incomplete_folder_names_key_folder_and_download(tiny_models, tmp_path):
    shutil.copytree(tiny_models, tmp_path / "models")
    config = tiny_config(tmp_path / "models")
    clip = tmp_path / "models" / "clip-vit-large-patch14"
    (clip / "preprocessor_config.json").rename(clip / "elsewhere.json")
    with pytest.raises(
        CheckpointError, match=r"model\.visual_encoder: CLIP_VIT_LARGE: .*preprocessor_config.*Download"
    ):
        AffectGPTProcessor.from_config(config)
    (clip / "elsewhere.json").rename(clip / "preprocessor_config.json")
    tokenizer = AffectGPTProcessor.from_config(config).tokenizer
    (clip / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.visual_encoder: CLIP_VIT_LARGE: .*does not load.*Download it"):
        build_model(config, device=CPU, tokenizer=tokenizer)
    shutil.rmtree(tmp_path / "models" / "Qwen2.5-7B-Instruct")
    with pytest.raises(CheckpointError, match=r"model\.llama_model: Qwen25: no model folder .*huggingface\.co/Qwen"):
        AffectGPTProcessor.from_config(config)


def test_an_unknown_name_is_answered_with_the_nearest(tiny_models):
    with pytest.raises(ConfigError, match="Did you mean 'CLIP_VIT_LARGE'"):
        AffectGPTProcessor.from_config(tiny_config(tiny_models, visual_encoder="CLIP_VIT_LARG"))
    with pytest.raises(ConfigError, match="Did you mean 'Qwen25'"):
        AffectGPTProcessor.from_config(tiny_config(tiny_models, llama_model="Qwen2.5"))


REMOTE = """
from transformers import PretrainedConfig, Qwen2ForCausalLM, Qwen2Config
class HomemadeConfig(Qwen2Config):
    model_type = "homemade"
class HomemadeForCausalLM(Qwen2ForCausalLM):
    config_class = HomemadeConfig
"""


def test_code_in_a_model_folder_runs_only_when_it_is_allowed(tiny_models, tmp_path):
    refused = tiny_config(tiny_models, llama_model="Baichuan2")
    with pytest.raises(ConfigError, match=r"model\.trust_remote_code=True"):
        AffectGPTProcessor.from_config(refused)

    folder = tmp_path / "homemade"
    shutil.copytree(tiny_models / "Qwen2.5-7B-Instruct", folder)
    (folder / "homemade.py").write_text(REMOTE)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "homemade",
        "architectures": ["HomemadeForCausalLM"],
        "auto_map": {"AutoConfig": "homemade.HomemadeConfig", "AutoModelForCausalLM": "homemade.HomemadeForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    paths = PathsConfig(models_root=str(tiny_models), folders={"Qwen25": str(folder)})
    plain = replace(tiny_config(tiny_models), paths=paths)
    tokenizer = load_tokenizer(tiny_models / "Qwen2.5-7B-Instruct", LLMS["Qwen25"])
    with pytest.raises(CheckpointError, match=r"trust_remote_code=True"):
        build_model(plain, device=CPU, tokenizer=tokenizer)
    allowed = replace(plain, model=replace(plain.model, trust_remote_code=True))
    assert type(build(allowed).llm).__name__ == "HomemadeForCausalLM"


def test_special_tokens(tiny_models):
    tokenizer = load_tokenizer(tiny_models / "Qwen2.5-7B-Instruct", LLMS["Qwen25"])
    ids = list(placeholder_ids(tokenizer).values())
    assert ids == list(range(ids[0], ids[0] + 5)) and ids[-1] == len(tokenizer) - 1
    names = ["<ImageHere>", "<AudioHere>", "<FrameHere>", "<FaceHere>", "<MultiHere>"]
    assert tokenizer.convert_ids_to_tokens(ids) == names
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )


def test_a_tokenizer_without_the_rows_tokens(tiny_models, tmp_path):
    folder = tmp_path / "llm"
    shutil.copytree(tiny_models / "Qwen2.5-7B-Instruct", folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("<|im_start|>", "<|other|>"))
    with pytest.raises(CheckpointError, match=r"no token '<\|im_start\|>', which Qwen25 needs"):
        load_tokenizer(folder, LLMS["Qwen25"])
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="no tokenizer could be read"):
        load_tokenizer(folder, LLMS["Qwen25"])
