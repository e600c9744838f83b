"""Every shipped configuration parses; the released ones have the released keys and values."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from layouts import opened
from openpyxl import Workbook

from affectgpt.config.load import load_config
from affectgpt.config.schema import to_dict
from affectgpt.datasets.base import open_dataset
from affectgpt.processing.modes import get_mode
from affectgpt.training.optim import get_schedule

FOLDER = Path(__file__).resolve().parents[2] / "train_configs"
FILES = sorted(p for p in FOLDER.glob("*.yaml") if p.stem != "captioning")  # that one: tests/captioning
FACE = "emercoarse_highlevelfilter4_outputhybird_bestsetup_bestfusion_lz"
FRAME = "mercaptionplus_outputhybird_bestsetup_bestfusion_frame_lz"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_file_parses_and_names_things_that_exist(path):
    config = load_config(path)
    assert config.name == path.stem
    assert config.datasets
    for name, spec in config.datasets.items():
        get_mode(spec.face_or_frame)
        dataset = open_dataset(config, name)
        assert "train" in dataset.splits
        assert set(dataset.learnt_types) <= {*dataset.label_types, "think"}  # that one: made of two of their labels
    assert get_schedule(config.run)(1, 0) > 0


def test_released_files_differ_in_the_input_mode_alone():
    face, frame = (yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in (FACE, FRAME))
    assert face["datasets"]["mercaptionplus"].pop("face_or_frame") == "multiface_audio_face_text"
    assert frame["datasets"]["mercaptionplus"].pop("face_or_frame") == "multiframe_audio_frame_text"
    assert face == frame


@pytest.mark.parity
def test_released_recipe_is_that_of_a_released_checkpoint(golden):
    """The recipe that a checkpoint of the published code carries has our keys and values, device and loader apart."""
    torch = pytest.importorskip("torch")
    [path] = (golden / "attention").glob("checkpoint_*.pth")
    theirs = torch.load(path, map_location="cpu", weights_only=True)["config"]
    ours = yaml.safe_load((FOLDER / f"{FACE}.yaml").read_text())
    for key in ("num_workers", "amp", "device", "distributed", "output_dir"):  # of the machine it was made on
        theirs["run"].pop(key, None)
        ours["run"].pop(key, None)
    for key in ("init_lr", "min_lr", "warmup_lr"):  # YAML reads 1e-5 as a string
        ours["run"][key] = float(ours["run"][key])
    assert ours == theirs


def changed(name: str) -> dict:
    """``section.key → value`` of what a file changes in the released face recipe."""

    def flat(tree, where=""):
        if isinstance(tree, dict) and tree:
            for key, value in tree.items():
                yield from flat(value, f"{where}.{key}" if where else key)
        else:
            yield where, tree

    released = dict(flat(to_dict(load_config(FOLDER / f"{FACE}.yaml"))))
    mine = dict(flat(to_dict(load_config(FOLDER / f"ablation_{name}.yaml"))))
    return {k: v for k, v in mine.items() if released.get(k) != v and k != "name"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("prefusion_none", {"datasets.mercaptionplus.face_or_frame": "face"}),
        ("prefusion_qformer", {"model.multi_fusion_type": "qformer"}),
        ("input_audio", {"datasets.mercaptionplus.face_or_frame": "audioonly"}),
        ("input_face", {"datasets.mercaptionplus.face_or_frame": "faceonly"}),
        ("input_frame", {"datasets.mercaptionplus.face_or_frame": "frameonly"}),
        ("input_text", {"datasets.mercaptionplus.face_or_frame": "textonly"}),
        ("input_audio_face_frame_text", {"datasets.mercaptionplus.face_or_frame": "multiface_audio_face_frame_text"}),
        ("lora_none", {"model.lora_r": 0}),
        ("lora_8", {"model.lora_r": 8}),
        ("lora_32", {"model.lora_r": 32}),
        ("llm_qwen2", {"model.llama_model": "Qwen2"}),
        ("llm_vicuna", {"model.llama_model": "Vicuna"}),
        ("llm_llama2", {"model.llama_model": "LLaMA2"}),
        ("llm_llama3", {"model.llama_model": "LLaMA3"}),
        ("llm_baichuan2", {"model.llama_model": "Baichuan2"}),
        ("audio_wavlm", {"model.acoustic_encoder": "WAVLM_LARGE"}),
        ("audio_data2vec", {"model.acoustic_encoder": "DATA2VEC_BASE"}),
        ("audio_imagebind", {"model.acoustic_encoder": "IMAGEBIND"}),
        ("video_dino2", {"model.visual_encoder": "DINO2_LARGE"}),
        ("video_siglip", {"model.visual_encoder": "SigLIP_SO"}),
        ("video_evaclip", {"model.visual_encoder": "EVA_CLIP_G"}),
        ("video_evaclip_mean", {"model.visual_encoder": "EVA_CLIP_G_NO_QFORMER"}),
    ],
)
def test_an_ablation_changes_what_its_name_says(name, expected):
    assert changed(name) == expected


_TURNS = [{"from": "human", "value": "<image>\nIs it glad?"}, {"from": "gpt", "value": "It is."}]
_CLIP = {"text": "No!", "caption": "He frowns.", "smp_reason_caption": "He frowns."}
# Training set of table 3 → its file as it is published, of one sample, and a media file.
PUBLISHED = {
    "minigpt4": ({"annotations": [{"image_id": "2", "caption": "A cat."}]}, "2.jpg"),
    "llava": ([{"id": "33", "image": "33.jpg", "conversations": _TURNS}], "33.jpg"),
    "emovit": ([{"id": "a", "image": "amusement/a.jpg", "conversations": _TURNS}], "amusement/a.jpg"),
    "videochat": ([{"video": "050/77.mp4", "QA": [{"q": "Who?", "a": "He."}]}], "050/77.mp4"),
    "wavcaps": ({"num_captions_per_audio": 1, "data": [{"id": "17", "caption": "Rain."}]}, "17.flac"),
    "mafw": ([["video_name", "English"], ["00001.mp4", "He smiles."]], "00001.mp4"),
    "merr_coarse": ({"sample_7": _CLIP}, "sample_7.mp4"),
    "merr_fine": ({"sample_7": _CLIP}, "sample_7.mp4"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_training_set_of_table_3_is_read_where_its_file_says(name, tmp_path):
    content, medium = PUBLISHED[name]
    config = load_config(FOLDER / f"ablation_data_{name}.yaml")
    for key, spec in config.datasets.items():
        file = tmp_path / spec.path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".xlsx":
            book = Workbook()
            for row in content:
                book.active.append(row)
            book.save(file)
        else:
            file.write_text(json.dumps(content))
        media = tmp_path / spec.folders[spec.data_type] / medium
        media.parent.mkdir(parents=True, exist_ok=True)
        media.touch()
        [sample] = opened(key, tmp_path, **dataclasses.asdict(spec)).samples("train")
        assert getattr(sample, spec.data_type) == media
        if spec.label_type == "qa":
            assert sample.labels.question and sample.labels.answer
        else:
            assert sample.labels.description and sample.face is not None and sample.audio is not None
    assert {key.partition(".")[0] for key in changed(f"data_{name}")} == {"datasets"}


@pytest.mark.parametrize("path", [p for p in FILES if not p.stem.startswith("demo")], ids=lambda path: path.stem)
def test_shipped_file_builds_with_tiny_parts(path, tiny_models):
    """Every part that a file names exists and fits the others; only the demo's files need models that it makes."""
    from affectgpt.modeling.build import build_empty_model

    options = [f"paths.models_root={tiny_models}"]
    if "baichuan2" in path.stem:
        pytest.skip("Baichuan2 is code in its own folder, which is not here")
    config = load_config(path, options)
    model = build_empty_model(config)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any("lora_" in name for name in names) == (config.model.lora_r > 0)
    assert any(name.startswith("multi.qformer") for name in names) == (config.model.multi_fusion_type == "qformer")


@pytest.mark.parametrize(
    ("name", "trained"),
    [("lora_none", 0), ("lora_8", 20_185_088), ("lora_32", 80_740_352), ("input_text", 40_370_176)],
)
def test_lora_of_the_real_llm_has_the_papers_numbers_of_parameters(name, trained):
    """Paper, table 8; the last is the released rank of 16."""
    from affectgpt.modeling.build import build_empty_model

    model = build_empty_model(load_config(FOLDER / f"ablation_{name}.yaml", ["paths.models_root=/nowhere"]))
    assert sum(p.numel() for p in model.llm.parameters() if p.requires_grad) == trained
