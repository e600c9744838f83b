"""What running the published functions beside ours showed: a test of each row of that table, in the table's order.

A row is named at the beginning of its test's docstring. Rows whose decision is to keep our way are in the list of
differences in docs/reproducibility.md; what tests them is named at the end.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from layouts import opened
from tiny import folder_of
from tiny_world import World, write_corpus, write_run

from affectgpt.cli import infer
from affectgpt.cli import sample as sample_command
from affectgpt.config.load import load_config
from affectgpt.config.paths import select_checkpoints
from affectgpt.config.schema import Config, DatasetConfig, RunConfig, to_dict
from affectgpt.core.errors import CheckpointError, ConfigError, DataError
from affectgpt.core.npz import write_npz
from affectgpt.core.provenance import REVISIONS
from affectgpt.core.tables import MISSING
from affectgpt.core.types import Labels, Modality, Sample
from affectgpt.datasets.base import keep_fraction
from affectgpt.datasets.label_files import load_labels, load_samples
from affectgpt.datasets.table import get_row
from affectgpt.evaluation.results import read_meta
from affectgpt.inference.predictor import Predictor
from affectgpt.inference.session import GenerationSession, training_mode
from affectgpt.media.audio import FIRST_CHANNEL, read_audio, read_wave
from affectgpt.media.reader import MediaReader, Source
from affectgpt.media.video import read_faces, read_frames
from affectgpt.processing.features import FeatureReader, FeatureWriter, feature_key
from affectgpt.processing.processor import AffectGPTProcessor
from affectgpt.processing.prompt import render_prompt
from affectgpt.processing.questions import question_context, render_answer, render_question
from affectgpt.training.optim import get_schedule

ROOT = Path(__file__).resolve().parents[1]
FIRST, LAST = "checkpoint_000011_loss_0.110.pth", "checkpoint_000012_loss_0.120.pth"


@pytest.fixture(scope="module")
def world(tiny_models, tmp_path_factory) -> World:
    """Models, ten clips and a run of the epochs 11 and 12; a second run with more checkpoints beside it."""
    root = tmp_path_factory.mktemp("world")
    made = World(root, tiny_models)
    write_corpus(root / "dataset", 3)
    write_run(made.run_folder, made.config(), (11, 12))
    other = made.run_folder.with_name("tiny_20260202000")
    shutil.copytree(made.run_folder, other)
    for epoch in (13, 14):
        shutil.copy(other / LAST, other / f"checkpoint_{epoch:06d}_loss_0.100.pth")
    return made


def write_table(path: Path, header: tuple[str, ...], rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


def write_yaml(folder: Path, text: str) -> Path:
    path = folder / "a.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def write_clip(path: Path, *, frames: int = 12) -> Path:
    """A video whose frame number i is grey of brightness 20 i."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        for i in range(frames):
            image = np.full((48, 64, 3), 20 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def pixels(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames.astype(np.float32)).permute(0, 3, 1, 2)


# inference.ckpt_name


def test_ckpt_name_is_a_run_folder(world):
    """inference.ckpt_name: a run folder below output/<config>/, in which test_epoch(s) choose; ckpt_root wins."""
    name = world.run_folder.name  # not the fullest
    chosen = world.checkpoints(f"inference.ckpt_name={name}", "inference.test_epochs=11-12")
    assert [c.path for c in chosen] == [world.run_folder / FIRST, world.run_folder / LAST]
    (chosen,) = world.checkpoints(f"inference.ckpt_name={name}", "inference.test_epoch=11")
    assert chosen.path == world.run_folder / FIRST
    other = world.run_folder.with_name("tiny_20260202000")
    (chosen,) = world.checkpoints(f"inference.ckpt_name={name}", f"inference.ckpt_root={other}")
    assert chosen.path.parent == other and chosen.epoch == 14


def test_ckpt_name_is_a_file_too(world):
    """inference.ckpt_name: a file is taken too, with or without its folder."""
    for name in (world.run_folder / FIRST, f"{world.run_folder.name}/{FIRST}"):
        (chosen,) = world.checkpoints(f"inference.ckpt_name={name}")
        assert chosen.path == world.run_folder / FIRST and chosen.epoch == 11
    with pytest.raises(CheckpointError, match=r"ckpt_name: no file gone and no run folder .*tiny_20260101000"):
        world.checkpoints("inference.ckpt_name=gone")


# top_k


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
@pytest.mark.parametrize(
    ("named", "asked", "expected"), [(None, None, 50), (20, None, 20), (0, None, 0), (None, 0, 0), (20, 7, 7)]
)
def test_top_k_of_a_folder_that_names_none(world, monkeypatch, engine, named, asked, expected):
    """top_k where the LLM folder names none: 50, by both engines, and in the record."""
    from affectgpt.encoders.llm import get_llm, load_tokenizer
    from affectgpt.inference.engines import transformers, vllm
    from affectgpt.inference.engines.base import Decoding

    monkeypatch.setitem(
        __import__("sys").modules, "vllm", SimpleNamespace(__version__="0", SamplingParams=lambda **words: words)
    )
    folder = folder_of(Path(world.config().paths.models_root), "Qwen25")
    llm = torch.nn.Module()
    llm.get_input_embeddings = lambda: torch.nn.Embedding(2, 2)
    model = torch.nn.Module()
    model.llm, model.device = llm, torch.device("cpu")
    kind = {"transformers": transformers.TransformersEngine, "vllm": vllm.VLLMEngine}[engine]
    made = kind(
        model,
        processor=AffectGPTProcessor(load_tokenizer(folder, get_llm("Qwen25"))),
        decoding=Decoding(top_k=asked),
        defaults=SimpleNamespace(top_k=named, eos_token_id=None),
        llm_folder=folder,
    )
    assert made.describe()["top_k"] == expected
    if engine == "vllm":
        assert made._sampling(1, made.decoding)["top_k"] == expected


@pytest.mark.parametrize("left", ["no top_k", "no file"])
def test_top_k_of_a_real_folder(tiny_models, tmp_path, left):
    """top_k: a folder whose generation_config.json lacks it, or that lacks the file, gives 50 with any transformers."""
    from affectgpt.encoders.llm import folder_generation_config
    from affectgpt.inference.sampling import top_k_of

    folder = tmp_path / "llm"
    shutil.copytree(folder_of(tiny_models, "Qwen25"), folder)
    settings = folder / "generation_config.json"
    content = json.loads(settings.read_text())
    settings.unlink()
    if left == "no top_k":
        del content["top_k"]
        settings.write_text(json.dumps(content))
    assert top_k_of(None, folder_generation_config(folder)) == 50


# EVA_CLIP_G_NO_QFORMER


def test_eva_clip_without_qformer_is_normed(tiny_models):
    """EVA_CLIP_G_NO_QFORMER: the mean over ln_vision(vit(x)), a fresh LayerNorm of eps 1e-5; 1e-5 in EVA_CLIP_G too."""
    from affectgpt.encoders.base import VISUAL_ENCODERS

    folder = folder_of(tiny_models, "EVA_CLIP_G")
    bare, whole = (
        VISUAL_ENCODERS.get(name).from_folder(folder, dtype=torch.float32)
        for name in ("EVA_CLIP_G_NO_QFORMER", "EVA_CLIP_G")
    )
    frames = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, 3, 224, 224)).astype(np.float32))
    fresh = torch.nn.LayerNorm(bare.width)  # weight 1, bias 0, eps 1e-5
    expected = fresh(bare.tokens(frames)).mean(dim=1)
    assert torch.allclose(bare(frames)[0], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(bare(frames)[0], bare.tokens(frames).mean(dim=1), atol=1e-2)
    assert whole.ln_vision.eps == 1e-5 and not (whole.ln_vision.weight == 1).all()


def test_eva_clip_stores_of_the_old_way_are_refused_and_others_are_not(tiny_models, tmp_path):
    """EVA_CLIP_G_NO_QFORMER: the feature key tells; keys of the other encoders are as they were."""
    from tiny import tiny_config

    key = feature_key(
        tiny_config(tiny_models, visual_encoder="EVA_CLIP_G_NO_QFORMER"), Modality.FACE, device_type="cpu"
    )
    then = {name: value for name, value in key.items() if name != "encoder_revision"}
    writer = FeatureWriter(tmp_path / "old", key=then)
    writer.write("x", torch.zeros(8, 3))
    writer.close()
    with pytest.raises(DataError, match="encoder_revision is None, this run has 2"):
        FeatureReader(tmp_path / "old", key=key)
    for name in ("CLIP_VIT_LARGE", "DINO2_LARGE"):
        config = tiny_config(tiny_models, visual_encoder=name)
        assert "encoder_revision" not in feature_key(config, Modality.FACE, device_type="cpu")
    assert "encoder_revision" not in feature_key(tiny_config(tiny_models), Modality.AUDIO, device_type="cpu")


def test_eva_clip_checkpoints_of_the_old_way_are_named(tiny_models, tmp_path):
    """EVA_CLIP_G_NO_QFORMER: a checkpoint that an earlier version trained on the old features is named."""
    from tiny import tiny_config

    from affectgpt.modeling.build import build_model, load_checkpoint
    from affectgpt.modeling.checkpoint import trained_state, write_checkpoint
    from affectgpt.processing.processor import AffectGPTProcessor

    config = tiny_config(tiny_models, visual_encoder="EVA_CLIP_G_NO_QFORMER")
    model = build_model(config, device=torch.device("cpu"), tokenizer=AffectGPTProcessor.from_config(config).tokenizer)
    told = {}
    for name, saved in (
        ("ours, then", to_dict(config)),
        ("ours, now", {**to_dict(config), "revisions": dict(REVISIONS)}),
        ("published", {"model": {"visual_encoder": "EVA_CLIP_G_NO_QFORMER"}}),
    ):
        path = write_checkpoint(tmp_path / f"{name}.pth", {"model": trained_state(model), "config": saved})
        told[name] = "EVA_CLIP_G_NO_QFORMER gave other numbers" in str(load_checkpoint(model, path, complete=True))
    assert told == {"ours, then": True, "ours, now": False, "published": False}


# input mode when several training sets are listed


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ({"mercaptionplus": "face", "llava": "image"}, "face"),
        ({"llava": "image", "OVMERD": "frame"}, "frame"),
        ({"mercaptionplus": "face", "ovmerd": "face", "wavcaps": "audioonly"}, "face"),
        ({"mercaptionplus": "face", "ovmerd": "frame"}, None),
        ({"wavcaps": "audioonly", "llava": "audioonly"}, "audioonly"),
        ({"wavcaps": "audioonly", "llava": "image"}, None),
    ],
)
def test_mode_of_several_training_sets(modes, expected):
    """Input mode when several training sets are listed: that of mercaptionplus and ovmerd; without these, of all."""
    config = Config(name="x", datasets={name: DatasetConfig(face_or_frame=mode) for name, mode in modes.items()})
    if expected is not None:
        assert training_mode(config) == expected
        return
    with pytest.raises(ConfigError, match="say which with --outside_face_or_frame"):
        training_mode(config)


# cells read as missing in published tables


def test_missing_words_are_those_of_pandas():
    """Cells read as missing: the words are pandas' own."""
    parsers = pytest.importorskip("pandas._libs.parsers")
    assert set(parsers.STR_NA_VALUES) == MISSING


def write_mercaptionplus(root: Path, *, opensets: dict, reasons: dict, subtitles: dict) -> None:
    folder = root / "mer2025-dataset"
    for file, column, cells in (
        ("track2_train_mercaptionplus.csv", "openset", opensets),
        ("track3_train_mercaptionplus.csv", "reason", reasons),
        ("subtitle_chieng.csv", "english", subtitles),
    ):
        write_table(folder / file, ("name", column), cells.items())


@pytest.mark.parametrize("word", sorted(MISSING))
def test_missing_cells(tmp_path, word):
    """Cells read as missing: no subtitle; labels are neutral; a reason makes the sample unreadable, by name."""
    write_mercaptionplus(
        tmp_path, opensets={"a": word, "b": "[none]"}, reasons={"a": word, "b": "None of it."},
        subtitles={"a": word, "b": "NA is here."},
    )  # fmt: skip
    missing, there = load_samples(get_row("MERCaptionPlus"), split="train", dataset_root=tmp_path)
    assert missing.subtitle == "" and there.subtitle == "NA is here."
    assert render_answer("ovlabel", missing) == "The character's emotional state is neutral."
    assert render_answer("ovlabel", there) == "The character's emotional state is none."
    assert render_answer("description", there) == "None of it."
    with pytest.raises(DataError, match=r"MERCaptionPlus: sample 'a': its description is missing"):
        render_answer("description", missing)


def test_missing_cells_of_ones_own_tables_are_words(tmp_path):
    """Cells read as missing: a user's own tables keep their words."""
    write_table(tmp_path / "a.csv", ("name", "said", "labels", "why"), [("x", "None", "[NA]", "null")])
    columns = {"subtitle": "said", "ovlabel": "labels", "description": "why"}
    (sample,) = opened("mine", tmp_path, path="a.csv", columns=columns).samples("train")
    assert (sample.subtitle, sample.labels) == ("None", Labels(ovlabels=("NA",), description="null"))


def test_a_missing_reason_is_an_unreadable_sample_in_training(tmp_path, tiny_models):
    """Cells read as missing: run.on_error decides, as for any sample that cannot be read; check_data names it."""
    from affectgpt.processing.check import check_split
    from affectgpt.processing.data import training_batches
    from affectgpt.processing.processor import AffectGPTProcessor

    names = [f"s{i}" for i in range(4)]
    write_mercaptionplus(
        tmp_path, opensets=dict.fromkeys(names, "[happy]"), subtitles=dict.fromkeys(names, "Hi."),
        reasons={name: "" if name == "s2" else "He smiles." for name in names},
    )  # fmt: skip
    path = write_yaml(
        tmp_path,
        "datasets: {mercaptionplus: {face_or_frame: textonly, label_type: description}}\n"
        f"paths: {{dataset_root: {tmp_path}, models_root: {tiny_models}}}\n"
        "run: {device: cpu, num_workers: 0, batch_size_train: 2, iters_per_epoch: 2}\n",
    )
    made = AffectGPTProcessor.from_config(load_config(path), training=True)
    with pytest.raises(DataError, match=r"sample 's2': its description is missing"):
        list(training_batches(load_config(path), processor=made)(1))
    stream = training_batches(load_config(path, ["run.on_error=skip"]), processor=made)
    assert sorted(name for batch in stream(1) for name in batch.names) == ["s0", "s1", "s3"]
    assert [failure.name for failure in stream.failures.failures] == ["s2"]
    report = check_split(opened("MERCaptionPlus", tmp_path), split="train", counts=False)
    assert [p.sample for p in report.problems if p.what == "label"] == ["s2"]


# frames per clip at inference


def test_frames_at_inference_are_those_of_training(world, tmp_path, caplog):
    """Frames per clip at inference: model.vis_processor.train.n_frms; always 224 pixels; the record tells."""
    options = ["model.vis_processor.train.n_frms=3", "model.vis_processor.train.image_size=112"]
    options += ["inference.vis_processor.train.n_frms=5"]
    logger = logging.getLogger("affectgpt")
    logger.addHandler(caplog.handler)
    try:
        session = GenerationSession.from_config(world.config(*options), device=torch.device("cpu"), mode="faceonly")
    finally:
        logger.removeHandler(caplog.handler)
    assert "inference.vis_processor (5 frames, 224 pixels) is not used" in caplog.text
    samples = load_samples(get_row("OVMERDPlus"), split="test", dataset_root=world.root / "dataset")
    assert session.processor(samples[0], question="x").media[Modality.FACE].shape == (3, 3, 224, 224)
    infer.main([
        "--dataset=OVMERDPlus", f"--cfg-path={world.yaml}", "--outside_face_or_frame=faceonly", "--options", *options,
        f"inference.base_root={tmp_path}/results", "inference.max_new_tokens=2", "inference.test_epoch=12",
    ])  # fmt: skip
    meta = read_meta(next(tmp_path.rglob("*.npz")))
    assert meta["revisions"] == REVISIONS and meta["config"]["model"]["vis_processor"]["train"]["n_frms"] == 3


def test_journals_of_the_old_way_are_begun_again(world, tmp_path, monkeypatch):
    """Frames per clip, top_k and others: answers of an earlier version are not mixed with those of this one."""
    from affectgpt.inference import benchmark

    (checkpoint,) = world.checkpoints("inference.test_epoch=12")
    made = world.benchmark(tmp_path)
    keys = []
    for revisions in ({}, dict(REVISIONS)):
        monkeypatch.setattr(benchmark, "REVISIONS", revisions)
        keys.append(made._key("OVMERDPlus", checkpoint, "x", made.samples("OVMERDPlus")))
    assert keys[0] != keys[1]


# defaults of keys that a YAML leaves out


def test_defaults_of_keys_that_are_left_out(tmp_path):
    """Defaults of keys that a YAML leaves out: warmup_steps 0, warmup_lr = init_lr, iters_per_epoch 10000; amp True."""
    run = load_config(write_yaml(tmp_path, "run: {init_lr: 3e-5}\n")).run
    assert (run.warmup_steps, run.iters_per_epoch, run.amp) == (0, 10000, True)
    assert get_schedule(dataclasses.replace(run, lr_sched="warmup_cosine", warmup_steps=9))(1, 0) == 3e-5


@pytest.mark.parametrize("path", sorted((ROOT / "train_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_name_these_values(path):
    """Defaults of keys that a YAML leaves out: no shipped recipe leaves them out."""
    if path.stem == "captioning":
        return  # trains no model
    run = load_config(path).run
    assert run.warmup_lr > 0 and run.warmup_steps > 0 and run.iters_per_epoch != RunConfig().iters_per_epoch


# warmup_lr


@pytest.mark.parametrize(("value", "expected"), [("0", 0.0), ("-1", 1e-3), ("1e-4", 1e-4)])
def test_warmup_lr(tmp_path, value, expected):
    """warmup_lr: 0 or more is a value, -1 means init_lr."""
    path = write_yaml(tmp_path, "run: {lr_sched: warmup_cosine, init_lr: 1e-3, warmup_steps: 4}\n")
    assert get_schedule(load_config(path, [f"run.warmup_lr={value}"]).run)(1, 0) == pytest.approx(expected)
    with pytest.raises(ConfigError, match=r"run\.warmup_lr is .*-2.*; allowed: 0 or more, or -1"):
        load_config(path, ["run.warmup_lr=-2"])


# Baichuan2's LoRA targets


def test_lora_targets_of_baichuan2(tiny_models, tmp_path):
    """Baichuan2's LoRA targets: o_proj, gate_proj, up_proj, down_proj; a file's LoRA elsewhere is not dropped."""
    from tiny import tiny_config

    from affectgpt.encoders.llm import get_llm
    from affectgpt.modeling.build import build_model, load_checkpoint
    from affectgpt.modeling.checkpoint import trained_state, write_checkpoint
    from affectgpt.processing.processor import AffectGPTProcessor

    assert set(get_llm("Baichuan2").lora_targets) == {"o_proj", "gate_proj", "up_proj", "down_proj"}
    config = tiny_config(tiny_models)
    model = build_model(config, device=torch.device("cpu"), tokenizer=AffectGPTProcessor.from_config(config).tokenizer)
    state = trained_state(model)
    state |= {name.replace("q_proj", "W_pack"): value for name, value in state.items() if "q_proj.lora" in name}
    path = write_checkpoint(tmp_path / "c.pth", {"model": state, "config": to_dict(config)})
    with pytest.raises(CheckpointError, match=r"another recipe: .*unexpected: .*W_pack\.lora_A"):
        load_checkpoint(model, path, complete=True)


# valence question with integer labels


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((-3, 3, 0), "from -3 to 3."),
        ((np.int64(-3), np.int64(3)), "from -3 to 3."),
        ((-3.0, 3.0), "from -3.0 to 3.0."),
        ((np.float64(-1), np.float64(0.8)), "from -1.0 to 0.8."),
    ],
)
def test_valence_question(tmp_path, values, expected):
    """Valence question with integer labels: "from -3 to 3"; floats print as floats; answers as ever."""
    row = get_row("CMUMOSI")
    corpus = {f"s{i}": {"val": value} for i, value in enumerate(values)}
    write_npz(tmp_path / row.root / str(row.label_file), train_corpus=corpus)
    write_table(tmp_path / row.root / row.subtitle_file, ("name", "english"), [(name, "x") for name in corpus])
    dataset = opened("cmumosi", tmp_path)
    assert expected in render_question("valence", question_context(dataset, dataset.label_types))
    assert render_answer("valence", dataset.samples("train")[0]) == f"The valence score is {float(values[0]):.2f}."
    cells = [(f"s{i}", str(value)) for i, value in enumerate(values)]  # and of a table of one's own
    write_table(tmp_path / "a.csv", ("name", "v"), cells)
    dataset = opened("mine", tmp_path, path="a.csv", columns={"valence": "v"})
    assert expected in render_question("valence", question_context(dataset, dataset.label_types))


def test_questions_of_captions(tmp_path):
    """No row of the table, but as published word for word: the four questions of audio captions."""
    write_table(tmp_path / "a.csv", ("name", "c"), [(f"s{i}", "Rain.") for i in range(40)])
    dataset = opened("mine", tmp_path, data_type="audio", path="a.csv", columns={"caption": "c"})
    assert {sample.labels.question for sample in dataset.samples("train")} == {
        "Describe this audio in detail.", "Listen to this audio and describe what you hear.",
        "Please provide a detailed description of this audio.", "Could you describe the contents of this audio for me?",
    }  # fmt: skip


# sound with more than two channels


def write_channels(path: Path, *levels: float) -> Path:
    """A sound with a sine of its own in each channel, 2.5 s at 16 kHz."""
    at = np.arange(40_000) / 16_000
    waves = [level * np.sin(2 * np.pi * (300 + 100 * i) * at) for i, level in enumerate(levels)]
    soundfile.write(path, np.stack(waves, axis=1), 16_000, subtype="FLOAT")
    return path


def test_sound_of_many_channels(tmp_path):
    """Sound with more than two channels: channel 0, flagged; two are averaged."""
    path = write_channels(tmp_path / "six.wav", 0.5, 0.4, 0.3, 0.2, 0.1, 0.3)
    first = soundfile.read(path, dtype="float32")[0][:, 0]
    np.testing.assert_array_equal(read_wave(path), first)
    assert read_audio(path)[1] == (FIRST_CHANNEL,)
    two = write_channels(tmp_path / "two.wav", 0.5, 0.4)
    np.testing.assert_allclose(read_wave(two), soundfile.read(two, dtype="float32")[0].mean(axis=1), atol=1e-7)
    assert read_audio(two)[1] == ()


def test_stored_features_of_mixed_channels_are_refused(tmp_path):
    """Sound with more than two channels: features of their mean are not served; those of other sounds are."""
    key = {"modality": "audio"}
    for name, levels in (("six", [0.1] * 6), ("two", [0.1] * 2)):
        write_channels(tmp_path / f"{name}.wav", *levels)
    samples = {name: Sample(name, "X", audio=tmp_path / f"{name}.wav") for name in ("six", "two")}
    with FeatureWriterOf(tmp_path / "store", key) as writer:
        for name, sample in samples.items():
            writer.write(name, torch.zeros(8, 3), source=Source(sample.audio.stat().st_size, None, None))
    now = FeatureReader(tmp_path / "store", key=key)
    assert now(samples["six"])[0].shape == now(samples["two"])[0].shape == (8, 3)
    index = tmp_path / "store" / "shard-0000.jsonl"  # as an earlier version wrote it
    lines = [json.loads(line) for line in index.read_text().splitlines()[1:]]
    entries = [{"name": line["name"], **line["value"]} for line in lines]
    index.write_text("".join(json.dumps({k: v for k, v in e.items() if k != "revision"}) + "\n" for e in entries))
    then = FeatureReader(tmp_path / "store", key=key)
    assert then(samples["two"])[0].shape == (8, 3)
    with pytest.raises(DataError, match=r"sample 'six': .*six\.wav has more than two channels"):
        then(samples["six"])


class FeatureWriterOf(FeatureWriter):
    def __init__(self, folder: Path, key: dict) -> None:
        super().__init__(folder, key=key)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --options


@pytest.mark.parametrize(
    "options",
    [
        ["run.max_epoch=3", "model.lora_r=8", "inference.base_root=a=b"],
        ["run.max_epoch", "3", "model.lora_r", "8", "inference.base_root", "a=b"],
        ["run.max_epoch", "'3'", "model.lora_r=8", "inference.base_root", '"a=b"'],
    ],
)
def test_options_in_pairs(tmp_path, options):
    """--options: pairs too (run.max_epoch 3)."""
    config = load_config(write_yaml(tmp_path, "run: {seed: 1}\n"), options)
    assert (config.run.max_epoch, config.model.lora_r, config.inference.base_root) == (3, 8, "a=b")


@pytest.mark.parametrize("options", [["run.max_epoch"], ["run.max_epoch", "run.seed=3"], ["=3"]])
def test_options_that_are_no_pairs(tmp_path, options):
    """--options: a key without a value is an error."""
    with pytest.raises(ConfigError, match=r"expected section\.key=value or section\.key value"):
        load_config(write_yaml(tmp_path, "run: {seed: 1}\n"), options)


def test_options_that_are_ignored(tmp_path):
    """--options: run.runner, run.test_splits, model.txt_processor are accepted and change nothing; in a file too."""
    plain = load_config(write_yaml(tmp_path, "run: {seed: 1}\n"))
    text = "run: {seed: 1, runner: r, test_splits: [test]}\nmodel: {txt_processor: {train: {name: x}}}\n"
    assert load_config(write_yaml(tmp_path, text)) == plain
    options = ["run.runner=runner_base", "run.test_splits=[test]", "model.txt_processor.train.name=blip_caption"]
    assert load_config(write_yaml(tmp_path, "run: {seed: 1}\n"), options) == plain


def test_output_dir(tmp_path):
    """--options: run.output_dir is the folder of the runs, where inference and resuming look too."""
    from affectgpt.config.paths import runs_folder

    run = tmp_path / "elsewhere" / "a_20260101000"
    run.mkdir(parents=True)
    (run / LAST).write_bytes(b"")
    config = load_config(write_yaml(tmp_path, "run: {seed: 1}\n"), [f"run.output_dir={tmp_path}/elsewhere"])
    assert runs_folder(config) == tmp_path / "elsewhere"
    assert [c.path for c in select_checkpoints(config)] == [run / LAST]


def test_training_writes_to_output_dir(tmp_path, tiny_models):
    """--options: run.output_dir DIR makes DIR/<job>/checkpoint_*.pth."""
    from training_recipe import write_recipe, write_training_set

    from affectgpt.cli import train

    recipe = write_recipe(
        tmp_path, models=tiny_models, dataset=write_training_set(tmp_path / "data"), mode="textonly",
        max_epoch=1, iters_per_epoch=1, save_state_every=0,
    )  # fmt: skip
    options = ["run.output_dir", str(tmp_path / "runs")]
    assert train.main(["--cfg-path", str(recipe), "--options", *options]) == 0
    (job,) = (tmp_path / "runs").iterdir()
    assert job.name.startswith("tiny_") and len(list(job.glob("checkpoint_*.pth"))) == 2
    assert json.loads((job / "run.json").read_text())["revisions"] == REVISIONS
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("listed", ["datasets: {mercaptionplus: {}}\n", "run: {seed: 1}\n"])
@pytest.mark.parametrize("option", ["datasets.ovmerd.ratio=0.5", "datasets[mine].path=FILE", "datasets={mine: {}}"])
def test_options_of_a_data_set_that_is_not_listed(tmp_path, listed, option):
    """--options: datasets.X… of a set that is not listed is an error that names the key; it adds no training set."""
    name = re.search("ovmerd|mine", option)[0]
    with pytest.raises(ConfigError, match=rf"--options '{re.escape(option)}': {name} is not listed under datasets: of"):
        load_config(write_yaml(tmp_path, listed), [option])
    config = load_config(write_yaml(tmp_path, f"datasets: {{{name}: {{ratio: 0.25}}}}\n"), [option])
    assert list(config.datasets) == [name]


# epochs missing in test_epochs range


def test_epochs_that_are_missing(world):
    """Epochs missing in test_epochs range: an error that names them."""
    with pytest.raises(CheckpointError, match=r"no checkpoint of the epochs 10, 15, .*epochs there: 11, 12, 13, 14"):
        world.checkpoints("inference.test_epochs=10-15", "inference.skip_epoch=1")
    with pytest.raises(CheckpointError, match=r"no checkpoint of the epochs 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, …"):
        world.checkpoints("inference.test_epochs=11-1000000000", "inference.skip_epoch=5")
    assert [c.epoch for c in world.checkpoints("inference.test_epochs=11-15", "inference.skip_epoch=2")] == [12, 14]
    for wrong in ("14-11", "-5", "11-", "x"):
        with pytest.raises(ConfigError, match="expected A-B"):
            world.checkpoints(f"inference.test_epochs={wrong}")
    with pytest.raises(CheckpointError, match="names no epoch"):
        world.checkpoints("inference.test_epochs=11-12", "inference.skip_epoch=50")


# inference_sample.py


def ask(world, capsys, *arguments: str, options: tuple[str, ...] = ()) -> list[dict]:
    options = ("inference.max_new_tokens=8", *options)
    assert sample_command.main([f"--cfg-path={world.yaml}", "--json", *arguments, "--options", *options]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_sample_without_a_video(world, capsys, tmp_path):
    """inference_sample.py: works without a video, with --audio_path and an audio mode."""
    sound = write_channels(tmp_path / "said.wav", 0.4)
    for mode in ("audioonly", "audio_text"):
        arguments = ["--audio_path", str(sound), "--subtitle=Well.", f"--outside_face_or_frame={mode}"]
        (reply,) = ask(world, capsys, *arguments)
        assert reply["answer"] and reply["subtitle"] == "Well." and reply["audio"] == str(sound)
    (reply,) = ask(world, capsys, "--subtitle=Well.", "--outside_face_or_frame=textonly")
    assert reply["answer"]
    with pytest.raises(DataError, match=r"multiface_audio_face_text takes face, which nothing gives: .*audio_text"):
        ask(world, capsys, "--audio_path", str(sound))
    with pytest.raises(DataError, match="takes audio, which nothing gives"):
        ask(world, capsys, "--outside_face_or_frame=audio_text")


def test_sample_with_several_epochs(world, capsys, tmp_path, monkeypatch):
    """inference_sample.py: answers with each of several epochs; media are encoded once."""
    sound = write_channels(tmp_path / "said.wav", 0.4)
    arguments = ["--audio_path", str(sound), "--outside_face_or_frame=audioonly"]
    encoded = []
    encode = Predictor._encode
    monkeypatch.setattr(
        Predictor, "_encode", lambda self, sample, *rest: encoded.append(sample) or encode(self, sample, *rest)
    )
    several = ("inference.test_epochs=11-12", f"inference.ckpt_name={world.run_folder.name}")
    replies = ask(world, capsys, *arguments, options=several)
    assert [reply["checkpoint"] for reply in replies] == [FIRST, LAST] and len(encoded) == 1
    single = [ask(world, capsys, *arguments, options=(f"inference.ckpt_name={world.run_folder / name}",))[0]
              for name in (FIRST, LAST)]  # fmt: skip
    assert [reply["answer"] for reply in single] == [reply["answer"] for reply in replies]
    assert "checkpoint" not in single[0]
    assert sample_command.main([f"--cfg-path={world.yaml}", *arguments, "--options", *several]) == 0
    assert capsys.readouterr().out.startswith(f"checkpoint: {FIRST}\nanswer: ")


# mode image on a video data set


def test_image_mode_on_videos(tmp_path):
    """Mode image on a video data set: a frame drawn by the sample's seed."""
    video = write_clip(tmp_path / "clip.mov")
    known = read_frames(video, n_frames=12)
    reader, other = (MediaReader({Modality.IMAGE: pixels}) for _ in range(2))
    drawn = {}
    for name in (f"s{i}" for i in range(20)):
        image, flags = reader(Sample(name, "MER2023", video=video), Modality.IMAGE)
        assert image.shape == (3, 224, 224) and flags == ()
        again, _ = other(Sample(name, "MER2023", video=video), Modality.IMAGE)
        assert torch.equal(image, again)
        (drawn[name],) = (i for i in range(12) if torch.equal(image, pixels(known[i : i + 1])[0]))
    assert len(set(drawn.values())) > 5  # not always the same one
    with pytest.raises(DataError, match=r"sample 'x', image: no image file is known"):
        reader(Sample("x", "MER2023"), Modality.IMAGE)


def test_image_mode_answers_videos(world, capsys, tmp_path):
    """Mode image on a video data set: in inference too, and the feature key tells the reader of the frames."""
    write_clip(tmp_path / "clip.mov")
    (reply,) = ask(world, capsys, "--video_path", str(tmp_path / "clip.mov"), "--outside_face_or_frame=image")
    assert reply["answer"]
    video, image = Sample("x", "X", video=tmp_path / "clip.mov"), Sample("x", "X", image=tmp_path / "x.png")
    keys = [
        feature_key(world.config(), Modality.IMAGE, device_type="cpu", samples=[sample]) for sample in (video, image)
    ]
    assert "video_reader" in keys[0]["preprocessing"] and "video_reader" not in keys[1]["preprocessing"]


# names only in track3


def test_names_of_track3_alone(tmp_path):
    """Names only in track3: left out."""
    write_mercaptionplus(
        tmp_path, opensets={"b": "[sad]", "a": "[happy]"}, reasons={"c": "He smiles.", "a": "He laughs."},
        subtitles={"a": "", "b": "", "c": ""},
    )  # fmt: skip
    labels = load_labels(get_row("MERCaptionPlus"), split="train", dataset_root=tmp_path)
    assert list(labels) == ["b", "a"]
    assert (labels["a"].description, labels["b"].description) == ("He laughs.", None)


# float32 face arrays


def test_float_faces(tmp_path):
    """float32 face arrays: accepted from 0 to 255, resized as floats, then truncated."""
    import cv2

    crops = np.random.default_rng(0).uniform(0, 255, (9, 30, 40, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", crops)
    faces = read_faces(tmp_path / "a.npy")
    expected = cv2.resize(crops[1], (224, 224))
    assert expected.dtype == np.float32 and faces.dtype == np.uint8
    np.testing.assert_array_equal(faces[1], np.floor(expected).astype(np.uint8))


@pytest.mark.parametrize("value", [-1.0, 256.0, np.nan, np.inf])
def test_float_faces_out_of_range(tmp_path, value):
    """float32 face arrays: a value that is not from 0 to 255 is an error."""
    crops = np.full((8, 30, 40, 3), 7, np.float32)
    crops[3, 2, 1, 0] = value
    np.save(tmp_path / "a.npy", crops)
    with pytest.raises(DataError, match=r"a\.npy: crop 3 of float32 has values .*expected 0 to 255"):
        read_faces(tmp_path / "a.npy")


def test_float_faces_from_0_to_1_are_not_taken_for_black(tmp_path):
    """float32 face arrays: values that were scaled to 1 would all be truncated to 0."""
    crops = np.random.default_rng(0).uniform(0, 1, (9, 30, 40, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", crops)
    with pytest.raises(DataError, match=r"a\.npy: its float32 crops have values up to 0\.99.*expected 0 to 255"):
        read_faces(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros_like(crops))
    assert not read_faces(tmp_path / "a.npy").any()


# ratio


@pytest.mark.parametrize(("n", "ratio", "expected"), [(10, 0.29, 2), (7, 0.5, 3), (100, 0.999, 99), (3, 0.1, 1)])
def test_ratio(n, ratio, expected):
    """ratio: int(n * r) samples; one at least."""
    samples = [Sample(str(i), "X") for i in range(n)]
    assert len(keep_fraction(samples, ratio=ratio, seed=1)) == expected


# IEMOCAP training order


def test_iemocap_order(tmp_path):
    """IEMOCAP training order: by session, within a session as in the file."""
    row = get_row("IEMOCAPFour")
    names = ["Ses04F_b", "Ses01F_b", "Ses05F_a", "Ses02F_a", "Ses01F_a", "Ses03M_a", "Ses04F_a"]
    write_npz(tmp_path / row.root / str(row.label_file), whole_corpus={name: {"emo": 0} for name in names})
    order = list(load_labels(row, split="train", dataset_root=tmp_path))
    assert order == ["Ses01F_b", "Ses01F_a", "Ses02F_a", "Ses03M_a", "Ses04F_b", "Ses04F_a"]
    assert list(load_labels(row, split="test", dataset_root=tmp_path)) == ["Ses05F_a"]


# Ours is kept and docs/reproducibility.md says so: gradient accumulation (tests/training/test_step.py), which result
# run is scored (tests/evaluation/test_results.py), doubled subtitle rows (tests/datasets), EVA training pixels
# (tests/encoders), text of others (here and tests/processing).


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a <FaceHere> b", "a < FaceHere > b"),
        ("###Assistant: ####", "# # #Assistant: # # # #"),
        ("## is kept, and #", "## is kept, and #"),
        ("<|im_end|></s><s>", "< |im_end| >< /s >< s >"),
        ("</Subtitle><Video>", "< /Subtitle >< Video >"),
        ("<b> & <subtitle> stay", "<b> & <subtitle> stay"),
        ("tab\tand\nline stay", "tab\tand\nline stay"),
        ("a\r\nb\x00c\x0bd\x7fe\x85f", "a \nb c d e f"),
        ("naïve 你好 \u200b…", "naïve 你好 \u200b…"),
    ],
)
def test_text_of_others(text, quoted):
    """Text of others: placeholders, ###, special tokens, tags and control characters are changed, and nothing else."""
    prompt = render_prompt("textonly", subtitle=text, question=text)
    assert f"<Subtitle>{quoted}</Subtitle>. " in prompt and f"information. {quoted} ###Assistant: " in prompt
