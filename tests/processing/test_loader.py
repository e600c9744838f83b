"""From a configuration to batches: what is in them, seeds, workers, and samples that cannot be read."""

from __future__ import annotations

import copy
import csv
import dataclasses
import multiprocessing

import pytest
import torch

from affectgpt.config.schema import Config, DatasetConfig, ModelConfig, PathsConfig, RunConfig
from affectgpt.core.errors import AffectGPTError, ConfigError, DataError
from affectgpt.core.types import IGNORE_INDEX, Labels, Modality, Sample
from affectgpt.datasets.base import keep_fraction
from affectgpt.datasets.label_files import load_samples
from affectgpt.datasets.table import get_row
from affectgpt.processing.collate import collate
from affectgpt.processing.data import (
    BatchStream,
    Failure,
    FailureLog,
    SequentialBatches,
    TrainDataset,
    training_batches,
)
from affectgpt.processing.modes import MODES
from affectgpt.processing.processor import AffectGPTProcessor

N_TOKENS = dict.fromkeys(Modality, 1)


@pytest.fixture(scope="module")
def dataset_root(make, tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    for name in ("OVMERD", "MER2023"):
        make.layout(get_row(name), root, media=True)
    return root


@pytest.fixture
def config(dataset_root):
    return Config(
        name="test",
        model=ModelConfig(max_length=900),
        datasets={"ovmerd": DatasetConfig(), "mer2023": DatasetConfig(label_type="onehot_w_candidates")},
        run=RunConfig(batch_size_train=2, iters_per_epoch=8, num_workers=0, device="cpu"),
        paths=PathsConfig(dataset_root=str(dataset_root)),
    )


def with_run(config, **changes):
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **changes))


@pytest.fixture
def batches_of(tokenizer, transforms):
    def build(config, **more):
        processor = AffectGPTProcessor(tokenizer, n_tokens=N_TOKENS, transforms=transforms, max_length=900)
        return training_batches(config, processor=processor, **more)

    return build


@pytest.fixture
def dataset_of(dataset_root, tokenizer, transforms):
    def build(mode="multiface_audio_face_text", samples=None, **options):
        if samples is None:
            samples = load_samples(get_row("OVMERD"), split="train", dataset_root=dataset_root)
        options = options or {"label_types": ("description", "ovlabel")}
        processor = AffectGPTProcessor(tokenizer, n_tokens=N_TOKENS, transforms=transforms)
        return TrainDataset(samples, processor, mode=mode, **options)

    return build


@pytest.fixture
def asked(dataset_root, tokenizer, transforms):
    """``asked(mode, samples)`` → their examples for generation."""

    def build(mode="multiface_audio_face_text", samples=None):
        processor = AffectGPTProcessor(tokenizer, n_tokens=N_TOKENS, transforms=transforms, mode=mode)
        samples = samples or load_samples(get_row("OVMERD"), split="train", dataset_root=dataset_root)
        return [processor(sample, question="What?") for sample in samples]

    return build


def in_order(dataset, *, batch_size, num_workers, **options):
    """Every sample once."""
    batches = SequentialBatches(len(dataset), batch_size=batch_size)
    return BatchStream({"X": dataset}, batches=batches, num_workers=num_workers, **options)


def same(a, b):
    return (
        a.names == b.names and torch.equal(a.input_ids, b.input_ids) and a.media.keys() == b.media.keys()
        and all(torch.equal(a.media[m], b.media[m]) for m in a.media)
    )  # fmt: skip


def test_a_training_batch(config, batches_of, tokenizer):
    batches = batches_of(config)
    assert batches.counts == {"OVMERD": 4, "MER2023": 4} and len(batches) == 8
    epoch = list(batches(1))
    assert len(epoch) == 8
    batch = epoch[0]
    assert batch.input_ids.dtype == torch.int64 and batch.attention_mask.dtype == torch.bool
    assert batch.media[Modality.FACE].shape == (2, 8, 3, 224, 224) and batch.media[Modality.AUDIO].shape == (
        2,
        8,
        32000,
    )
    assert set(batch.media) == {Modality.FACE, Modality.AUDIO} and batch.prefusion is Modality.FACE
    assert torch.equal(batch.attention_mask, batch.input_ids != tokenizer.pad_token_id)  # the closing eos too (wire)
    assert (batch.input_ids[:, 0] == tokenizer.bos_token_id).all()
    learnt = batch.labels != IGNORE_INDEX
    assert torch.equal(batch.labels[learnt], batch.input_ids[learnt])
    asked = {p.split("information. ")[1].split(" ###")[0] for b in epoch for p in b.prompts}
    assert "Please recognize all possible emotional states of the character." in asked
    assert any("candidate labels: happy,sad." in question for question in asked)
    assert all(
        tokenizer.decode(row[row != IGNORE_INDEX]).endswith("###<|im_end|>") for b in epoch for row in b.labels
    )  # fmt: skip


def test_a_run_is_repeated_exactly_and_workers_change_nothing(config, batches_of):
    first, again = list(batches_of(config)(2)), list(batches_of(config)(2))
    workers = list(batches_of(with_run(config, num_workers=2))(2))
    assert all(same(a, b) and same(a, c) for a, b, c in zip(first, again, workers, strict=True))
    restarted = list(batches_of(config)(2, start=5))
    assert all(same(a, b) for a, b in zip(first[5:], restarted, strict=True)) and len(restarted) == 3
    assert not all(same(a, b) for a, b in zip(first, batches_of(config)(3), strict=True))


class _Jitter:
    """A transform that draws, as that of EVA-CLIP does in training."""

    def __call__(self, frames):
        return torch.rand(8, 3, 224, 224)


def test_what_transforms_draw_depends_on_sample_and_epoch_alone(config, tokenizer, transforms):
    def batches(epoch, **run):
        drawing = {**transforms, Modality.FACE: _Jitter()}
        processor = AffectGPTProcessor(tokenizer, n_tokens=N_TOKENS, transforms=drawing, max_length=900)
        stream = training_batches(with_run(config, **run), processor=processor)
        return list(stream(epoch))

    first = batches(2)
    for other in (batches(2), batches(2, num_workers=1), batches(2, num_workers=2)):
        assert all(same(a, b) for a, b in zip(first, other, strict=True))
    drawn = {
        (epoch, prompt, name): crop.sum().item()
        for epoch, part in ((2, first), (3, batches(3)))
        for batch in part
        for prompt, name, crop in zip(batch.prompts, batch.names, batch.media[Modality.FACE], strict=True)
    }
    assert len(set(drawn.values())) == len(drawn) > 8


def test_more_workers_than_cpus_are_not_started(config, batches_of, monkeypatch, log_lines, recwarn):
    monkeypatch.setattr("affectgpt.processing.data.allowed_cpus", lambda: 2)
    many, again = (batches_of(with_run(config, num_workers=7)) for _ in range(2))
    few = batches_of(with_run(config, num_workers=1))
    assert [stream._loader.num_workers for stream in (many, again, few)] == [2, 2, 1]
    assert [line for line in log_lines if "num_workers" in line] == [
        "run.num_workers is 7; this process may use 2 CPUs, so it starts 2"
    ]
    assert all(same(a, b) for a, b in zip(many(1), batches_of(config)(1), strict=True))
    assert not [warning for warning in recwarn if "worker processes" in str(warning.message)]


def test_loading_does_not_draw_from_the_global_stream(config, batches_of):
    torch.manual_seed(0)
    list(batches_of(config)(1))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


def test_the_hybird_label_type_is_drawn_by_seed_epoch_and_index(dataset_of):
    dataset = dataset_of("textonly")
    drawn = [[dataset[epoch, i].prompt for i in range(4)] for epoch in range(8)]
    assert drawn == [[dataset[epoch, i].prompt for i in range(4)] for epoch in range(8)]
    descriptions = sum("reasoning process" in prompt for epoch in drawn for prompt in epoch)
    assert 6 <= descriptions <= 26 and len({tuple(epoch) for epoch in drawn}) > 4
    other = dataset_of("textonly", label_types=("description", "ovlabel"), seed=7)
    assert drawn != [[other[epoch, i].prompt for i in range(4)] for epoch in range(8)]


def test_only_label_types_that_a_sample_has_are_drawn(dataset_of):
    samples = [Sample(name="a", dataset="X", labels=Labels(ovlabels=("happy",))), Sample(name="b", dataset="X")]
    dataset = dataset_of("textonly", samples)
    assert all("recognize all possible" in dataset[epoch, 0].prompt for epoch in range(10))
    with pytest.raises(DataError, match="X: sample 'b' has none of the labels description, ovlabel"):
        dataset[1]


@pytest.mark.parametrize("mode", sorted(MODES))
def test_every_mode_reads_just_its_media(mode, asked, dataset_root, tmp_path):
    from PIL import Image

    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    sample = load_samples(get_row("OVMERD"), split="train", dataset_root=dataset_root)[0]
    needed = MODES[mode].media
    kept = {"audio": Modality.AUDIO, "face": Modality.FACE, "video": Modality.FRAME}
    paths = {field: getattr(sample, field) if m in needed else tmp_path / "gone" for field, m in kept.items()}
    sample = dataclasses.replace(sample, image=tmp_path / "a.png", **paths)
    batch = collate([asked(mode, [sample])[0]] * 2, pad_token_id=0, placeholder_ids={})
    assert set(batch.media) == set(needed) and batch.mode == mode
    if mode == "image":
        assert batch.media[Modality.IMAGE].shape == (2, 3, 224, 224)


def test_questions_are_padded_on_the_left_and_come_in_order(asked):
    examples = asked()[:3]
    batch = collate(examples, pad_token_id=0, placeholder_ids={})
    assert batch.names == [example.name for example in examples]
    lengths = batch.attention_mask.sum(dim=1).tolist()
    assert batch.labels is None and len(set(lengths)) > 1
    for row, length in enumerate(lengths):
        assert batch.attention_mask[row, -length:].all() and not batch.attention_mask[row, :-length].any()
        assert batch.input_ids[row, -length:].tolist() == examples[row].input_ids


def test_mixed_modes_and_missing_media_are_refused_by_name(asked, dataset_of):
    face, text = asked("face"), asked("textonly")
    with pytest.raises(DataError, match=r"sample 'sample_00000000' is face, sample 'sample_00000000' is textonly"):
        collate([face[0], text[0]], pad_token_id=0, placeholder_ids={})
    example = copy.deepcopy(face[1])
    del example.media[Modality.AUDIO]
    with pytest.raises(DataError, match=r"sample 'Ses05F_impro01_F000': mode face needs audio, which is missing"):
        collate([face[0], example], pad_token_id=0, placeholder_ids={})
    example = face[1]
    example.media[Modality.AUDIO] = torch.zeros(7, 32000)
    with pytest.raises(DataError, match=r"sample 'Ses05F_impro01_F000': audio media \[7, 32000\] do not fit"):
        collate([face[0], example], pad_token_id=0, placeholder_ids={})
    with pytest.raises(DataError, match="one has labels to learn"):
        collate([text[0], dataset_of("textonly")[0]], pad_token_id=0, placeholder_ids={})


def test_a_video_without_sound_is_flagged_and_a_lost_wav_is_an_error(asked, make, tmp_path):
    silent = Sample(name="a", dataset="X", video=make.video(tmp_path / "a.mp4", sound=False), audio=tmp_path / "a.wav")
    example = asked("audioonly", [silent])[0]
    assert example.flags == ("no_audio_track",) and not example.media[Modality.AUDIO].any()
    spoken = dataclasses.replace(silent, video=make.video(tmp_path / "b.mp4"))
    with pytest.raises(DataError, match=r"X: sample 'a', audio: .*a\.wav: no such file, though .*b\.mp4 has sound"):
        asked("audioonly", [spoken])
    alone = dataclasses.replace(spoken, audio=None)
    assert asked("audioonly", [alone])[0].media[Modality.AUDIO].any()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_sample_ends_the_run_or_is_left_out_and_noted(num_workers, dataset_of, dataset_root, tmp_path):
    samples = load_samples(get_row("OVMERD"), split="train", dataset_root=dataset_root)
    broken = tmp_path / "broken.npy"
    broken.write_bytes(b"no faces")
    samples[1] = dataclasses.replace(samples[1], face=broken)
    samples[2] = dataclasses.replace(samples[2], audio=tmp_path / "gone.wav", video=None)
    dataset = dataset_of(samples=samples)
    with pytest.raises(DataError, match=r"^OVMERD: sample 'Ses05F_impro01_F000', face: .*broken\.npy: no plain npy"):
        list(in_order(dataset, batch_size=2, num_workers=num_workers))
    log = FailureLog(tmp_path / "out" / "failed.csv")
    loader = in_order(dataset, batch_size=1, num_workers=num_workers, on_error="skip", failures=log)
    assert [n for b in loader for n in b.names] == [samples[0].name, samples[3].name]
    with log.path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.reader(handle))
    assert [row[:2] for row in rows] == [["dataset", "sample"], *(["OVMERD", s.name] for s in samples[1:3])]
    assert "gone.wav: no such file" in rows[2][2] and len(log) == 2


def test_a_wrong_configuration_is_no_broken_sample(config, batches_of):
    wrong = dataclasses.replace(config, datasets={"ovmerd": DatasetConfig(label_type="onehot_w_candidates")})
    with pytest.raises(DataError, match="no emotion word"):
        batches_of(wrong)
    for datasets, message in (
        ({"ovmerdplus": DatasetConfig()}, "OVMERDPlus has no training split"),
        ({"ovmerd": DatasetConfig(label_type="ovlabels")}, "Did you mean 'ovlabel'"),
        ({"ovmerd": DatasetConfig(sample_ratio=1.0), "mer2023": DatasetConfig()}, "for all data sets or for none"),
        ({"ovmerd": DatasetConfig(face_or_frame="faces")}, "unknown input mode"),
    ):
        with pytest.raises(ConfigError, match=message):
            batches_of(dataclasses.replace(config, datasets=datasets))


def test_a_fraction_is_seeded_and_keeps_its_order():
    samples = [Sample(name=str(i), dataset="X") for i in range(100)]
    kept = keep_fraction(samples, ratio=0.3, seed=1)
    assert len(kept) == 30 and kept == sorted(kept, key=lambda s: int(s.name))
    assert kept == keep_fraction(samples, ratio=0.3, seed=1) != keep_fraction(samples, ratio=0.3, seed=2)
    assert keep_fraction(samples, ratio=1.0, seed=1) == samples and len(keep_fraction(samples, ratio=0.0, seed=1)) == 1


def test_a_sample_skipped_in_every_epoch_is_written_once(tmp_path):
    path = tmp_path / "failed.csv"
    for _ in range(2):  # two runs into one folder
        log = FailureLog(path)
        for name in "abab" * 5:
            log.add(Failure(dataset="X", name=name, reason="broken"))
        assert len(log) == 2 and log.times == 20
    assert path.read_text().splitlines() == ["dataset,sample,reason", "X,a,broken", "X,b,broken"]


def test_a_worker_that_is_ended_from_outside_is_said_to_be(config, batches_of):
    """As a system whose memory is full ends it: no fault of any file, and no traceback."""
    drawn = iter(batches_of(with_run(config, num_workers=1))(1))
    next(drawn)
    for worker in multiprocessing.active_children():
        worker.kill()
    with pytest.raises(AffectGPTError, match=r"ended from outside.*run\.num_workers.*run\.resume_ckpt_path=auto"):
        list(drawn)
