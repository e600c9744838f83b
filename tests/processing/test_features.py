"""Stored encoder outputs equal computed ones, go on after a kill, and are refused when anything differs."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import zlib

import numpy as np
import pytest
import torch
import yaml

from affectgpt.cli.check_data import main as check_data
from affectgpt.cli.extract_features import main
from affectgpt.config.load import load_config
from affectgpt.core.errors import AffectGPTError, DataError
from affectgpt.core.files import locked
from affectgpt.core.types import Modality, Sample
from affectgpt.datasets.base import open_dataset
from affectgpt.datasets.table import get_row
from affectgpt.encoders.base import ACOUSTIC_ENCODERS, VISUAL_ENCODERS
from affectgpt.processing.data import training_batches
from affectgpt.processing.features import (
    FeatureReader,
    FeatureWriter,
    differing,
    feature_key,
    features_policy,
    read_index,
    store_folder,
)
from affectgpt.processing.processor import AffectGPTProcessor

MEDIA = (Modality.AUDIO, Modality.FACE)


@pytest.fixture(scope="module")
def world(make, tiny_models, tmp_path_factory):
    """A data set with media, tiny models, and a configuration that finds both."""
    root = tmp_path_factory.mktemp("world")
    make.layout(get_row("OVMERD"), root / "dataset", media=True)
    return root, tiny_models


@pytest.fixture
def cfg(world, tmp_path):
    """Path of a configuration with an empty store."""
    root, models = world
    content = {
        "model": {"video_fusion_type": "attention", "audio_fusion_type": "attention", "image_fusion_type": "mean"},
        "datasets": {"ovmerd": {"face_or_frame": "multiface_audio_face_text"}},
        "run": {"device": "cpu", "num_workers": 0, "batch_size_train": 2, "iters_per_epoch": 4},
        "paths": {
            "dataset_root": str(root / "dataset"),
            "models_root": str(models),
            "features_root": str(tmp_path / "features"),
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def folder_of(config, modality, split="train"):
    name = config.model.acoustic_encoder if modality is Modality.AUDIO else config.model.visual_encoder
    return store_folder(config.paths.features_root, dataset="OVMERD", split=split, modality=modality, encoder=name)


def entries_of(index):
    """Name → entry of a shard's journal."""
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    assert lines[0] == {"journal": 1, "key": "features"}
    return {line["name"]: line["value"] for line in lines[1:]}


def write_earlier(index, entries):
    """The index of a shard as commit 71ad866 wrote it: no head, a record's number is that of its line."""
    lines = [{"name": name, **{k: v for k, v in entry.items() if k != "record"}} for name, entry in entries.items()]
    index.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def reader_of(config, modality):
    return FeatureReader(folder_of(config, modality), key=feature_key(config, modality, device_type="cpu"))


def batches_of(config, tokenizer, *, features="auto"):
    spec = dataclasses.replace(config.datasets["ovmerd"], features=features)
    config = dataclasses.replace(config, datasets={"ovmerd": spec})
    models = config.paths.models_root
    visual = VISUAL_ENCODERS.get(config.model.visual_encoder).transform_of(f"{models}/clip-vit-large-patch14")
    acoustic = ACOUSTIC_ENCODERS.get(config.model.acoustic_encoder).transform_of(f"{models}/chinese-hubert-large")
    transforms = {m: acoustic if m is Modality.AUDIO else visual for m in Modality}
    return training_batches(
        config, processor=AffectGPTProcessor(tokenizer, n_tokens=dict.fromkeys(Modality, 1), transforms=transforms)
    )


def encoders_of(config):
    models = config.paths.models_root
    visual = VISUAL_ENCODERS.get("CLIP_VIT_LARGE").from_folder(f"{models}/clip-vit-large-patch14", dtype=torch.float32)
    acoustic = ACOUSTIC_ENCODERS.get("HUBERT_LARGE").from_folder(f"{models}/chinese-hubert-large", dtype=torch.float32)
    return {Modality.FACE: visual, Modality.AUDIO: acoustic}


def test_stored_features_stand_in_for_media(cfg, tokenizer):
    config = load_config(cfg)
    assert batches_of(config, tokenizer).media == set(MEDIA)  # auto, and nothing is stored
    assert main(["--cfg-path", str(cfg), "--batch-size", "2"]) == 0
    stored, decoded = batches_of(config, tokenizer, features="require"), batches_of(config, tokenizer, features="off")
    assert stored.media == set() and decoded.media == set(MEDIA)  # no encoder is needed any more
    encoders = encoders_of(config)
    for with_store, without in zip(stored(1), decoded(1), strict=True):
        assert with_store.names == without.names and torch.equal(with_store.input_ids, without.input_ids)
        assert with_store.media == {} and without.features == {}
        for modality in MEDIA:
            expected = encoders[modality](without.media[modality])
            torch.testing.assert_close(with_store.features[modality], expected, rtol=0, atol=0)
            assert with_store.features[modality].shape[-1] == reader_of(config, modality).width


def test_half_precision_is_smaller_and_near(cfg, tokenizer):
    config = load_config(cfg)
    assert main(["--cfg-path", str(cfg)]) == 0
    samples = open_dataset(config, "ovmerd").samples("train")
    whole = [reader_of(config, Modality.FACE)(s)[0] for s in samples]
    size = (folder_of(config, Modality.FACE) / "shard-0000.bin").stat().st_size
    with pytest.raises(DataError, match="dtype is float32, this run writes float16"):
        main(["--cfg-path", str(cfg), "--dtype", "float16"])
    options = [f"paths.features_root={config.paths.features_root}-half"]
    assert main(["--cfg-path", str(cfg), "--dtype", "float16", "--options", *options]) == 0
    half_config = load_config(cfg, options)
    half = [reader_of(half_config, Modality.FACE)(s)[0] for s in samples]
    assert (folder_of(half_config, Modality.FACE) / "shard-0000.bin").stat().st_size == size // 2
    assert all(h.dtype == torch.float32 for h in half)
    torch.testing.assert_close(torch.stack(half), torch.stack(whole), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("left", ["half a record", "a record without its line", "half a line", "a line too many"])
def test_extraction_goes_on_after_a_kill(left, cfg):
    config = load_config(cfg)
    assert main(["--cfg-path", str(cfg)]) == 0
    samples = open_dataset(config, "ovmerd").samples("train")
    before = [reader_of(config, Modality.AUDIO)(s)[0] for s in samples]
    data, index = (folder_of(config, Modality.AUDIO) / f"shard-0000.{s}" for s in ("bin", "jsonl"))
    record = data.stat().st_size // len(samples)
    lines = index.read_bytes().splitlines(keepends=True)
    data_left = {"half a record": 2.5, "a record without its line": 3, "half a line": 3, "a line too many": 2}[left]
    data.write_bytes(data.read_bytes()[: int(data_left * record)])
    head, *lines = lines
    rest = {"half a line": lines[2][:9], "a line too many": lines[2]}.get(left, b"")
    index.write_bytes(b"".join([head, *lines[:2], rest]))
    assert len(reader_of(config, Modality.AUDIO).missing(samples)) == 2  # readable as it is, as far as it goes
    assert main(["--cfg-path", str(cfg)]) == 0
    assert data.stat().st_size == record * len(samples)
    after = [reader_of(config, Modality.AUDIO)(s)[0] for s in samples]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_each_process_writes_its_own_shard(cfg, monkeypatch):
    config = load_config(cfg)
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main(["--cfg-path", str(cfg)]) == 0
    names = [list(entries_of(path)) for path in sorted(folder_of(config, Modality.FACE).glob("*.jsonl"))]
    samples = open_dataset(config, "ovmerd").samples("train")
    assert [len(n) for n in names] == [2, 2] and {x for n in names for x in n} == {s.name for s in samples}
    reader = pickle.loads(pickle.dumps(reader_of(config, Modality.FACE)))
    assert all(reader(s)[0].shape == reader.shape for s in samples) and reader.missing(samples) == []


@pytest.mark.parametrize(
    "option, message",
    [
        ("model.audio_clip_spacing=7", "preprocessing.audio_clip_spacing is 8, this run has 7"),
        ("model.vis_processor.train.n_frms=4", "preprocessing.n_frames is 8, this run has 4"),
        ("weights", "weights_sha256 is "),
        ("version", "versions.torch is '0.0'"),
        ("encoder", "encoder is 'OTHER', this run has 'CLIP_VIT_LARGE'"),
    ],
)
def test_stale_and_foreign_features_are_refused_by_key(option, message, cfg, tokenizer, caplog, monkeypatch):
    config = load_config(cfg)
    assert main(["--cfg-path", str(cfg)]) == 0
    path = folder_of(config, Modality.FACE) / "key.json"
    meta = json.loads(path.read_text())
    if option == "weights":
        meta["key"]["weights_sha256"] = "0" * 64
    elif option == "version":
        meta["key"]["versions"]["torch"] = "0.0"
    elif option == "encoder":
        meta["key"]["encoder"] = "OTHER"
    else:
        config = load_config(cfg, [option])
    path.write_text(json.dumps(meta))
    with pytest.raises(DataError) as error:
        batches_of(config, tokenizer, features="require")
    assert message in str(error.value) and "run affectgpt extract_features" in str(error.value)
    monkeypatch.setattr(logging.getLogger("affectgpt"), "propagate", True)
    batches = batches_of(config, tokenizer, features="auto")  # says why, and decodes
    assert batches.media and message in caplog.text
    if "=" in option:
        with pytest.raises(DataError, match="holds other features"):
            main(["--cfg-path", str(cfg), "--options", option])


def test_incomplete_features(cfg, tokenizer):
    config = load_config(cfg)
    assert main(["--cfg-path", str(cfg)]) == 0
    index = folder_of(config, Modality.FACE) / "shard-0000.jsonl"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(DataError, match="no features for 1 of 4 samples, first '名字_1'"):
        batches_of(config, tokenizer, features="require")
    assert batches_of(config, tokenizer).media == {Modality.FACE}  # auto: the sound is complete
    with pytest.raises(DataError, match="no features; compute them"):
        index.with_name("key.json").unlink()
        batches_of(config, tokenizer, features="require")


def test_a_sample_that_cannot_be_read_stays_one(cfg, world, make, tokenizer, tmp_path):
    make.layout(get_row("OVMERD"), tmp_path / "own", media=True)
    root = tmp_path / "own" / "mer2025-dataset"
    (root / "audio" / f"{make.names[1]}.wav").write_bytes(b"no sound")
    options = [f"paths.dataset_root={tmp_path / 'own'}"]
    config = load_config(cfg, options)
    assert main(["--cfg-path", str(cfg), "--options", *options]) == 1
    batches = batches_of(config, tokenizer, features="require")
    with pytest.raises(DataError, match=r"OVMERD: sample 'Ses05F_impro01_F000': .*cannot be read as sound"):
        for epoch in range(1, 4):
            list(batches(epoch))
    make.sound(root / "audio" / f"{make.names[1]}.wav")
    assert main(["--cfg-path", str(cfg), "--options", *options]) == 0  # tried again
    assert [len(b.names) for b in batches_of(config, tokenizer, features="require")(1)] == [2] * 4


def test_a_file_that_changed_is_not_answered_for(cfg, make, tmp_path):
    """The store speaks of the file that was encoded; one that is gone changes nothing."""
    config = load_config(cfg)
    root = tmp_path / "own"
    make.layout(get_row("OVMERD"), root, media=True)
    option = f"paths.dataset_root={root}"
    assert main(["--cfg-path", str(cfg), "--options", option]) == 0
    samples = open_dataset(load_config(cfg, [option]), "ovmerd").samples("train")
    reader = reader_of(config, Modality.FACE)
    make.faces(samples[0].face, n=5)
    samples[1].face.unlink()
    with pytest.raises(DataError, match=r"its face file has 188288 bytes, its stored features were computed from 451"):
        reader(samples[0])
    assert reader(samples[1])[0].shape == reader.shape


def test_a_file_of_the_same_size_is_told_from_a_copy(cfg, make, tmp_path):
    """Crops made again in the other channel order have the same bytes in number; a copy has another time only."""
    import os

    root = tmp_path / "own"
    make.layout(get_row("OVMERD"), root, media=True)
    option = f"paths.dataset_root={root}"
    assert main(["--cfg-path", str(cfg), "--options", option]) == 0
    samples = open_dataset(load_config(cfg, [option]), "ovmerd").samples("train")
    reader = reader_of(load_config(cfg), Modality.FACE)
    os.utime(samples[0].face, (1, 1))
    crops = np.load(samples[1].face)
    np.save(samples[1].face, crops[..., ::-1])
    assert reader(samples[0])[0].shape == reader.shape
    with pytest.raises(DataError, match=r"its face file has other content than its stored features were computed from"):
        reader(samples[1])


def test_faces_stored_by_an_earlier_version_are_refused_in_one_line(cfg, tokenizer, caplog, monkeypatch):
    config = load_config(cfg)
    assert main(["--cfg-path", str(cfg)]) == 0
    path = folder_of(config, Modality.FACE) / "key.json"
    meta = json.loads(path.read_text())
    del meta["key"]["crops"], meta["key"]["preprocessing"]["face_channels"]
    path.write_text(json.dumps(meta))
    said = "do not say which channel order the crops had; remove the folder and run affectgpt extract_features"
    with pytest.raises(DataError, match=said):
        batches_of(config, tokenizer, features="require")
    with pytest.raises(DataError, match=said):
        main(["--cfg-path", str(cfg)])
    monkeypatch.setattr(logging.getLogger("affectgpt"), "propagate", True)
    assert batches_of(config, tokenizer).media == {Modality.FACE}  # decoded; the sound is read from the store
    told = {record.getMessage() for record in caplog.records if record.levelname == "WARNING"}
    assert len(told) == 1 and said in told.pop()


def test_crops_of_another_framing_are_other_crops(cfg, make, tmp_path):
    root = tmp_path / "own"
    layout = make.layout(get_row("OVMERD"), root, media=True)
    option = f"paths.dataset_root={root}"
    record = layout.root / "openface_face" / "crops.json"
    record.write_text('{"channels": "bgr", "framing": "loose"}')
    assert main(["--cfg-path", str(cfg), "--options", option]) == 0
    record.write_text('{"channels": "bgr", "framing": "tight"}')
    with pytest.raises(DataError, match=r"crops\.framing is 'loose', this run has 'tight'"):
        main(["--cfg-path", str(cfg), "--options", option])


def test_the_test_split_is_prepared_as_inference_does(cfg, world, make):
    """As many frames as in training, always of 224 pixels."""
    options = ["model.vis_processor.train.n_frms=4", "model.vis_processor.train.image_size=112"]
    make_test = ["--cfg-path", str(cfg), "--datasets", "OVMERDPlus", "--split", "test", "--mode", "faceonly"]
    root = world[0] / "dataset"
    make.layout(get_row("OVMERDPlus"), root, media=True)
    assert main([*make_test, "--options", *options]) == 0
    config = load_config(cfg, options)
    folder = store_folder(
        config.paths.features_root, dataset="OVMERDPlus", split="test", modality=Modality.FACE,
        encoder="CLIP_VIT_LARGE",
    )  # fmt: skip
    processor = config.inference_frames
    reader = FeatureReader(folder, key=feature_key(config, Modality.FACE, device_type="cpu", processor=processor))
    assert reader.shape[0] == 4
    with pytest.raises(DataError, match="image_size is 224, this run has 112"):
        FeatureReader(folder, key=feature_key(config, Modality.FACE, device_type="cpu"))


def test_one_shard_has_one_writer(tmp_path):
    writer = FeatureWriter(tmp_path / "s", key={"a": 1})
    with pytest.raises(AffectGPTError, match=r"shard-0000\.jsonl: another process is writing this file"):
        FeatureWriter(tmp_path / "s", key={"a": 1})
    writer.close()
    FeatureWriter(tmp_path / "s", key={"a": 1}).close()


def test_inference_follows_the_policy_of_the_configuration():
    from affectgpt.config.schema import Config, DatasetConfig

    def policy(**blocks):
        sets = {name: DatasetConfig(features=value) for name, value in blocks.items()}
        return features_policy(Config(name="x", datasets=sets), "MELD")

    assert policy() == "auto" and policy(sims="off") == "off" and policy(sims="off", mer2023="require") == "auto"
    assert policy(sims="off", meld="require") == "require"


def test_flags_are_kept(tmp_path):
    writer = FeatureWriter(tmp_path / "s", key={"a": 1})
    writer.write("x", torch.ones(8, 3), flags=("no_audio_track",))
    with pytest.raises(DataError, match=r"sample 'y' gives \[8, 4\], others \[8, 3\]"):
        writer.write("y", torch.ones(8, 4))
    writer.close()
    feature, flags = FeatureReader(tmp_path / "s", key={"a": 1})(Sample(name="x", dataset="d"))
    assert flags == ("no_audio_track",) and feature.shape == (8, 3)
    (tmp_path / "s" / "key.json").write_text("{")
    with pytest.raises(DataError, match=r"key\.json: damaged"):
        FeatureReader(tmp_path / "s", key={"a": 1})


def test_differences_are_told_by_name():
    assert differing({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert differing({"a": {"b": 1}}, {"a": {"b": 2}}) == "a.b is 1, this run has 2"
    assert differing({}, {"c": 3}) == "c is None, this run has 3"


def test_encoding_leaves_the_random_stream_as_with_stored_features(cfg, tokenizer, tiny_models):
    from tiny import tiny_config

    from affectgpt.modeling.build import build_model

    config = tiny_config(tiny_models)
    model = build_model(
        config, device=torch.device("cpu"), tokenizer=AffectGPTProcessor.from_config(config).tokenizer
    ).train()  # HuBERT draws for its layer drop even in eval mode
    batch = next(batches_of(load_config(cfg), tokenizer, features="off")(1))
    torch.manual_seed(0)
    model.encode(**batch)
    drawn = torch.rand(4)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(4))


def overwrite(config, modality, *, record, values):
    """Other bytes in place of a stored record; the sample it belongs to."""
    data = folder_of(config, modality) / "shard-0000.bin"
    entries = read_index(data.with_suffix(".jsonl"))
    size = data.stat().st_size // len(entries)
    with data.open("r+b") as handle:
        handle.seek(record * size)
        handle.write(values[:size])
    return next(name for name, entry in entries.items() if entry["record"] == record)


def train(cfg, *options):
    from affectgpt.cli.train import main as train

    run = ["run.max_epoch=1", "run.lr_sched=warmup_cosine", "datasets.ovmerd.features=require"]
    return train(["--cfg-path", str(cfg), "--options", f"paths.output_root={cfg.parent / 'output'}", *run, *options])


@pytest.mark.parametrize("values", [b"\xff" * 9999, b"\x00" * 9999], ids=["not a number", "zeros"])
def test_overwritten_records_are_named_by_training_and_by_check_data(cfg, capsys, values):
    config = load_config(cfg)
    assert main(["--cfg-path", str(cfg)]) == 0
    check = ["--cfg-path", str(cfg), "--splits", "train", "--media", "none", "--any-count"]
    assert check_data(check) == 0
    name = overwrite(config, Modality.FACE, record=2, values=values)
    told = rf"sample '{name}'.* \(record 2 of .*OVMERD.*shard-0000\.bin\) are damaged .*Remove shard-0000\.bin and"
    with pytest.raises(DataError, match="(?i)" + told):
        train(cfg)
    capsys.readouterr()
    assert check_data(check) == 1
    assert f"OVMERD train {name}: features unreadable" in capsys.readouterr().out
    for path in folder_of(config, Modality.FACE).glob("shard-*"):
        path.unlink()
    assert main(["--cfg-path", str(cfg)]) == 0  # as the message says
    assert check_data(check) == 0 and train(cfg) == 0


def test_a_store_without_checksums_loads_with_a_note(cfg, log_lines):
    config = load_config(cfg)
    assert main(["--cfg-path", str(cfg)]) == 0
    for modality in MEDIA:
        path = folder_of(config, modality) / "shard-0000.jsonl"
        entries = entries_of(path)
        write_earlier(path, {n: {k: v for k, v in e.items() if k != "crc32"} for n, e in entries.items()})
    samples = open_dataset(config, "ovmerd").samples("train")
    reader = reader_of(config, Modality.FACE)
    assert all(reader(sample)[0].isfinite().all() for sample in samples)
    [note] = [line for line in log_lines if "checksum" in line]
    assert "4 of 4 records have no checksum" in note
    name = overwrite(config, Modality.FACE, record=1, values=b"\xff" * 9999)
    with pytest.raises(DataError, match=f"sample '{name}'.* values that are not finite"):
        train(cfg)


def test_outputs_that_are_not_finite_are_not_stored(tmp_path):
    writer = FeatureWriter(tmp_path / "s", key={"a": 1}, dtype="float16")
    assert writer.write("good", torch.ones(2, 3))
    assert not writer.write("nan", torch.full((2, 3), float("nan")))
    assert not writer.write("large", torch.full((2, 3), 1e6))
    writer.close()
    reader = FeatureReader(tmp_path / "s", key={"a": 1})
    assert reader(Sample(name="good", dataset="d"))[0].tolist() == [[1] * 3] * 2
    for name, told in (("nan", "not finite"), ("large", "--dtype float32")):
        with pytest.raises(DataError, match=f"sample '{name}': .*{told}"):
            reader(Sample(name=name, dataset="d"))


DAMAGED = (
    '{"flags": []}', "[]", '{"name": "x"}', '{"name": "x", "flags": [], "crc32": "1"}', '{"name": "x", "value": {}}',
    '{"name": "x", "value": 3}', '{"name": "x", "value": {"record": -1, "flags": []}}', "[" * 9999,
)  # fmt: skip


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_index_is_named(tmp_path, line):
    writer = FeatureWriter(tmp_path / "s", key={"a": 1})
    writer.write("good", torch.ones(2, 3))
    writer.close()
    path = tmp_path / "s" / "shard-0000.jsonl"
    path.write_text(path.read_text() + line + "\n")
    for opened in (FeatureReader, FeatureWriter):
        with pytest.raises(DataError, match=r"shard-0000\.jsonl: damaged"):
            opened(tmp_path / "s", key={"a": 1})


def values_of(folder, *names):
    reader = FeatureReader(folder, key={"a": 1})
    return [reader(Sample(name=name, dataset="d"))[0].unique().tolist() for name in names]


@pytest.mark.parametrize("torn", [b"", b'{"name": "torn", "fla'])
def test_a_store_of_an_earlier_version_is_read_and_continued(tmp_path, torn):
    """The files as commit 71ad866 wrote them: no head in the index, failures between records, a line torn by a kill."""
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "key.json").write_text(json.dumps({"key": {"a": 1}, "shape": [2, 3], "dtype": "float32"}))
    records = [np.full((2, 3), number, np.float32).tobytes() for number in range(3)]
    (folder / "shard-0000.bin").write_bytes(b"".join(records) + b"half a rec")
    lines = [
        {"name": "名字_1", "flags": ["no_audio_track"], "crc32": zlib.crc32(records[0])},
        {"name": "broken", "failed": "b.mp4: no such file"},
        {"name": "b", "flags": [], "crc32": zlib.crc32(records[1]), "bytes": 4, "mtime": 5, "parts": 6},
        {"name": "c", "flags": [], "crc32": zlib.crc32(records[2])},
    ]
    index = folder / "shard-0000.jsonl"
    index.write_bytes("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in lines).encode() + torn)
    before = index.read_bytes()
    assert values_of(folder, "名字_1", "b", "c") == [[0], [1], [2]]
    with pytest.raises(DataError, match=r"sample 'broken': b\.mp4: no such file"):
        values_of(folder, "broken")
    assert index.read_bytes() == before  # reading changes nothing
    writer = FeatureWriter(folder, key={"a": 1})
    assert writer.done == {"名字_1", "b", "c"}  # what failed is tried again
    writer.write("broken", torch.full((2, 3), 3.0))
    writer.close()
    assert values_of(folder, "名字_1", "broken", "b", "c") == [[0], [3], [1], [2]]
    assert entries_of(index)["b"] == {"record": 1, "flags": [], "crc32": zlib.crc32(records[1]), "bytes": 4,
                                      "mtime": 5, "parts": 6}  # fmt: skip
    assert FeatureReader(folder, key={"a": 1})(Sample(name="名字_1", dataset="d"))[1] == ("no_audio_track",)


def test_an_index_of_an_earlier_version_that_is_being_written_is_left_alone(tmp_path):
    (tmp_path / "shard-0000.jsonl").write_text('{"name": "x", "failed": "y"}\n')
    with locked(tmp_path / "shard-0000.jsonl"), pytest.raises(AffectGPTError, match="another process is writing"):
        FeatureWriter(tmp_path, key={"a": 1})
    assert (tmp_path / "shard-0000.jsonl").read_text() == '{"name": "x", "failed": "y"}\n'


def test_records_that_a_power_cut_took_are_computed_again(tmp_path):
    """The index is there, the data are not: no name may be left with the number of another's record."""
    folder = tmp_path / "s"
    writer = FeatureWriter(folder, key={"a": 1})
    for number, name in enumerate("abcd"):
        writer.write(name, torch.full((2, 3), float(number)))
    writer.close()
    data = folder / "shard-0000.bin"
    data.write_bytes(data.read_bytes()[: 24 + 10])
    writer = FeatureWriter(folder, key={"a": 1})
    assert writer.done == {"a"}
    writer.write("d", torch.full((2, 3), 7.0))
    writer.close()
    reader = FeatureReader(folder, key={"a": 1})
    assert reader.missing([Sample(name=name, dataset="d") for name in "abcd"]) == ["b", "c"]
    assert values_of(folder, "a", "d") == [[0], [7]] and data.stat().st_size == 2 * 24


def test_records_without_the_key_of_their_store_are_refused(tmp_path):
    writer = FeatureWriter(tmp_path / "s", key={"a": 1})
    writer.write("a", torch.ones(2, 3))
    writer.close()
    (tmp_path / "s" / "key.json").unlink()
    with pytest.raises(DataError, match=r"key\.json, which says .* is not there; remove the folder"):
        FeatureWriter(tmp_path / "s", key={"a": 2})


def test_check_data_names_stores_that_do_not_say_the_order_of_the_faces(cfg, capsys):
    """They were stored by an earlier version; training and inference would not take them."""
    assert main(["--cfg-path", str(cfg)]) == 0
    check = ["--cfg-path", str(cfg), "--splits", "train", "--media", "none", "--any-count"]
    assert check_data(check) == 0
    key = folder_of(load_config(cfg), Modality.FACE) / "key.json"
    content = json.loads(key.read_text())
    del content["key"]["crops"]
    key.write_text(json.dumps(content))
    capsys.readouterr()
    assert check_data(check) == 1
    told = "OVMERD train: features unreadable"
    assert told in (out := capsys.readouterr().out) and "do not say which channel order" in out
