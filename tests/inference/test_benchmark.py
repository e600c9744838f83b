"""A data set's answers: the same in any batch, order, number of processes and after a restart; nothing is lost."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil

import pytest

from affectgpt.core.errors import DataError
from affectgpt.evaluation.results import beside, export, meta_path, read_answers, read_meta

DATASET = "OVMERDPlus"


@pytest.fixture(scope="module")
def reference(world, tmp_path_factory):
    """Answers of checkpoint 12, one clip at a time."""
    benchmark = world.benchmark(tmp_path_factory.mktemp("reference"), "inference.batch_size=1")
    return read_answers(benchmark.run(DATASET, world.checkpoints()[0]))


def test_the_reference_is_worth_comparing_with(reference):
    assert list(reference) == [f"sample_{i:08d}" for i in range(10)]
    assert len(set(reference.values())) > 7


@pytest.mark.parametrize(
    "options",
    [("inference.batch_size=3",), ("inference.batch_size=null",), ("inference.batch_size=4", "run.num_workers=2")],
)
def test_answers_do_not_depend_on_the_batch(world, reference, tmp_path, options):
    target = world.benchmark(tmp_path, *options).run(DATASET, world.checkpoints()[0])
    assert read_answers(target) == reference
    assert list(read_answers(target)) == list(reference)


def test_answers_do_not_depend_on_the_number_of_processes(world, reference, tmp_path):
    checkpoint = world.checkpoints()[0]
    shares = [world.benchmark(tmp_path, rank=rank, world_size=3) for rank in range(3)]
    assert shares[1].run(DATASET, checkpoint) is None
    assert shares[0].run(DATASET, checkpoint) is None
    target = shares[2].run(DATASET, checkpoint)
    assert read_answers(target) == reference
    assert shares[0].run(DATASET, checkpoint) == target  # it is there now
    assert sorted(p.name for p in target.parent.iterdir()) == sorted([target.name, meta_path(target).name])


def test_another_number_of_processes_goes_on(world, reference, tmp_path, monkeypatch):
    checkpoint = world.checkpoints()[0]
    world.benchmark(tmp_path, rank=1, world_size=2).run(DATASET, checkpoint)
    alone = world.benchmark(tmp_path)
    asked = count_clips(monkeypatch)
    assert read_answers(alone.run(DATASET, checkpoint)) == reference
    assert sum(asked) == 5


def count_clips(monkeypatch) -> list[int]:
    """How many clips each call of the engine answers from now on."""
    from affectgpt.inference.engines.transformers import TransformersEngine

    asked: list[int] = []
    generate = TransformersEngine.generate

    def counting(self, batch, *, seeds):
        asked.append(len(batch.names))
        return generate(self, batch, seeds=seeds)

    monkeypatch.setattr(TransformersEngine, "generate", counting)
    return asked


def test_seed_question_and_checkpoint_change_sampled_answers(world, reference, tmp_path):
    first, second = world.checkpoints("inference.test_epochs=11-12")
    benchmark = world.benchmark(tmp_path / "a")
    assert read_answers(benchmark.run(DATASET, first)) != reference
    other = benchmark.run(DATASET, second, question="How does he feel?", base_root=str(tmp_path / "q" / "results"))
    assert read_answers(other) != reference
    reseeded = world.benchmark(tmp_path / "b", "inference.seed=7").run(DATASET, second)
    assert read_answers(reseeded) != reference


def test_encoders_run_once_per_clip_for_all_checkpoints_and_questions(world, reference, tmp_path, monkeypatch):
    from affectgpt.inference.session import GenerationSession

    encoded: list[tuple[str, str]] = []
    encode = GenerationSession.encode

    def counting(self, modality, media, names):
        encoded.extend((name, modality) for name in names)
        return encode(self, modality, media, names)

    monkeypatch.setattr(GenerationSession, "encode", counting)
    benchmark = world.benchmark(tmp_path)
    results = {
        (checkpoint.epoch, question): benchmark.run(
            DATASET, checkpoint, question=question, base_root=str(tmp_path / (question or "labels") / "results")
        )
        for checkpoint in world.checkpoints("inference.test_epochs=11-12")
        for question in (None, "Why?")
    }
    assert sorted(encoded) == sorted((name, medium) for name in reference for medium in ("audio", "face"))
    assert read_answers(results[12, None]) == reference
    assert len({json.dumps(read_answers(path)) for path in results.values()}) == 4


def test_several_answers_of_a_checkpoint_are_a_run_of_their_own(world, reference, tmp_path, capsys):
    from affectgpt.cli import infer
    from affectgpt.cli.common import run_cli

    command = ["--dataset", DATASET, f"--cfg-path={world.yaml}", "--options", f"inference.base_root={tmp_path}/results"]
    assert run_cli(infer.main, [*command, "inference.samples=3"]) == 0
    stem = world.checkpoints()[0].path.stem
    files = sorted(tmp_path.rglob("*.npz"))
    assert [file.name for file in files] == [f"sample_{n}_{stem}.npz" for n in (1, 2, 3)]
    assert {file.parent.name for file in files} == {f"{world.run_folder.name}_samples"}
    first, second, third = (read_answers(file) for file in files)
    assert first == reference  # the answer that a single one is
    assert first != second != third != first and read_meta(files[1])["draw"] == 2
    assert run_cli(infer.main, [*command, "inference.samples=2", "inference.decoding=greedy"]) == 1
    assert "greedy answers are all the same" in capsys.readouterr().err


def test_a_result_that_exists_is_kept(world, tmp_path, monkeypatch):
    checkpoint = world.checkpoints()[0]
    target = world.benchmark(tmp_path).run(DATASET, checkpoint)
    before = target.stat().st_mtime_ns
    asked = count_clips(monkeypatch)
    assert world.benchmark(tmp_path).run(DATASET, checkpoint) == target
    assert (target.stat().st_mtime_ns, asked) == (before, [])


def test_a_run_that_broke_goes_on_behind_the_last_batch(world, reference, tmp_path, monkeypatch):
    from affectgpt.inference.session import GenerationSession

    generate = GenerationSession.generate
    calls = []

    def breaking(self, examples, *, seeds):
        calls.append(len(examples))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, examples, seeds=seeds)

    checkpoint = world.checkpoints()[0]
    with monkeypatch.context() as patch:
        patch.setattr(GenerationSession, "generate", breaking)
        with pytest.raises(KeyboardInterrupt):
            world.benchmark(tmp_path, "inference.batch_size=3").run(DATASET, checkpoint)
    asked = count_clips(monkeypatch)
    target = world.benchmark(tmp_path, "inference.batch_size=3").run(DATASET, checkpoint)
    assert asked == [3, 1]
    assert read_answers(target) == reference


@pytest.mark.parametrize("option", ["inference.seed=1", "inference.decoding=greedy", "inference.max_new_tokens=9"])
def test_answers_of_other_settings_are_not_mixed_in(world, tmp_path, monkeypatch, option):
    checkpoint = world.checkpoints()[0]
    world.benchmark(tmp_path, rank=0, world_size=2).run(DATASET, checkpoint)
    asked = count_clips(monkeypatch)
    world.benchmark(tmp_path, option).run(DATASET, checkpoint)
    assert sum(asked) == 10


def test_meta_says_what_made_the_answers(world, tmp_path):
    checkpoint = world.checkpoints()[0]
    target = world.benchmark(tmp_path).run(DATASET, checkpoint)
    meta = read_meta(target)
    assert meta["dataset"] == DATASET and meta["answers"] == 10 and meta["failed"] == {}
    assert meta["decoding"] == {
        "engine": "transformers", "greedy": False, "max_new_tokens": 24, "temperature": 1.0, "top_p": 0.9, "top_k": 20,
    }  # fmt: skip
    assert len(meta["checkpoint_sha256"]) == 64 and meta["seed"] == 42
    assert {"torch", "transformers", "affectgpt"} <= set(meta["versions"])
    assert meta["config"]["inference"]["batch_size"] == 4
    assert "-" in meta_path(target).stem  # published scoring takes checkpoint_* without a dash for results


def test_flags_and_tables(world, tmp_path):
    target = world.benchmark(tmp_path, "inference.max_new_tokens=3").run(DATASET, world.checkpoints()[0])
    flagged = read_meta(target)["flags"]
    assert len(flagged["never_stopped"]) >= 5
    rows = list(csv.DictReader(export(target, "csv").open(encoding="utf-8")))
    lines = [json.loads(line) for line in export(target, "jsonl").read_text("utf-8").splitlines()]
    assert [r["name"] for r in rows] == [line["name"] for line in lines] == list(read_answers(target))
    for row, line in zip(rows, lines, strict=True):
        assert row["answer"] == line["answer"] == read_answers(target)[row["name"]]
        assert ("never_stopped" in line["flags"]) == (row["name"] in flagged["never_stopped"])


@pytest.fixture
def broken(world, tmp_path):
    """The world with two clips that cannot be read."""
    dataset = tmp_path / "dataset"
    shutil.copytree(world.root / "dataset", dataset)
    folder = dataset / "ovmerdplus-process"
    (folder / "audio" / "sample_00000003.wav").write_bytes(b"RIFF no sound")
    (folder / "openface_face" / "sample_00000007.npy").unlink()
    return f"paths.dataset_root={dataset}"


def test_an_unreadable_clip_ends_the_run_by_name(world, broken, tmp_path):
    with pytest.raises(DataError, match=r"sample_0000000[37]"):
        world.benchmark(tmp_path, broken).run(DATASET, world.checkpoints()[0])


def test_unreadable_clips_are_left_out_and_named(world, broken, reference, tmp_path, monkeypatch, caplog):
    benchmark = world.benchmark(tmp_path, broken, "inference.on_error=skip")
    first, second = world.checkpoints("inference.test_epochs=11-12")
    benchmark.run(DATASET, first)
    target = benchmark.run(DATASET, second)
    lacking = {"sample_00000003", "sample_00000007"}
    assert read_answers(target) == {k: v for k, v in reference.items() if k not in lacking}
    assert set(read_meta(target)["failed"]) == lacking
    rows = list(csv.DictReader(beside(target, ".failed.csv").open(encoding="utf-8")))
    assert {r["sample"] for r in rows} == lacking and all(r["reason"] for r in rows)


def test_clips_that_were_put_right_are_answered_by_the_next_attempt(world, broken, reference, tmp_path):
    checkpoint = world.checkpoints()[0]
    shares = [
        world.benchmark(tmp_path, option, "inference.on_error=skip", rank=rank, world_size=2)
        for rank, option in ((0, broken), (0, "run.num_workers=0"), (1, "run.num_workers=0"))
    ]
    assert shares[0].run(DATASET, checkpoint) is None
    assert shares[1].run(DATASET, checkpoint) is None
    assert read_answers(shares[2].run(DATASET, checkpoint)) == reference


def test_a_failure_that_another_process_tries_again_is_awaited(tmp_path):
    from affectgpt.evaluation.results import ResultShard

    target = tmp_path / "results" / "checkpoint.npz"
    names = ["a", "b", "c", "d"]
    written = []

    def open_share(rank):
        return ResultShard(target, names=names, key="k", rank=rank, world_size=2)

    def finish(share):
        return share.finish(dataset=DATASET, order=names, write_meta=written.append)

    with ResultShard(target, names=names, key="k") as alone:  # a run of one process, ended after two clips
        alone.add("a", answer="[calm]", flags=(), tokens=3)
        alone.fail("b", "no such file")
    first, second = open_share(0), open_share(1)
    assert (first.pending, second.pending) == ({"c"}, {"b", "d"})
    first.add("c", answer="[happy]", flags=(), tokens=3)
    second.add("d", answer="[sad]", flags=(), tokens=3)
    assert not finish(first)  # "b" is being tried again
    second.fail("b", "still no such file")
    assert finish(second)
    assert written[0]["b"]["failed"] == "still no such file"
    assert list(read_answers(target)) == ["a", "c", "d"]


@pytest.mark.parametrize("kind", ["RuntimeError", "AcceleratorError"])
def test_a_vanished_gpu_says_that_the_answers_are_kept(world, reference, tmp_path, monkeypatch, kind):
    import torch

    from affectgpt.core.errors import AffectGPTError
    from affectgpt.inference.engines.transformers import TransformersEngine

    generate = TransformersEngine.generate
    calls = []

    def failing(self, batch, *, seeds):
        calls.append(len(batch.names))
        if len(calls) == 2:
            raise getattr(torch, kind, RuntimeError)("CUDA error: unspecified launch failure\nand much more")
        return generate(self, batch, seeds=seeds)

    checkpoint = world.checkpoints()[0]
    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "generate", failing)
        with pytest.raises(AffectGPTError, match=r"the GPU failed: CUDA error: .*are kept beside .*again to go on"):
            world.benchmark(tmp_path).run(DATASET, checkpoint)
    asked = count_clips(monkeypatch)
    assert read_answers(world.benchmark(tmp_path).run(DATASET, checkpoint)) == reference
    assert sum(asked) == len(reference) - calls[0]


def test_a_batch_that_does_not_fit_is_halved(world, reference, tmp_path, monkeypatch):
    import torch

    from affectgpt.inference.engines.transformers import TransformersEngine

    sizes = []
    generate = TransformersEngine.generate

    def limited(self, batch, *, seeds):
        sizes.append(len(batch.names))
        if len(batch.names) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(self, batch, seeds=seeds)

    monkeypatch.setattr(TransformersEngine, "generate", limited)
    target = world.benchmark(tmp_path, "inference.batch_size=8").run(DATASET, world.checkpoints()[0])
    assert read_answers(target) == reference
    assert sizes == [8, 4, 2, 2, 4, 2, 2, 2]


def test_a_full_disk_says_that_the_answers_are_kept(world, reference, tmp_path, monkeypatch):
    import errno

    from affectgpt.core.errors import AffectGPTError
    from affectgpt.core.journal import Journal

    add = Journal.add
    written = []

    def full(self, name, value):
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(name)
        add(self, name, value)

    checkpoint = world.checkpoints()[0]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", full)
        with pytest.raises(AffectGPTError, match=r"No space left on device.*are kept"):
            world.benchmark(tmp_path).run(DATASET, checkpoint)
    asked = count_clips(monkeypatch)
    assert read_answers(world.benchmark(tmp_path).run(DATASET, checkpoint)) == reference
    assert sum(asked) == 5


def test_a_checkpoint_that_does_not_fill_the_model_is_refused(world, tmp_path):
    """What another checkpoint left in the model must never answer in its name."""
    import torch

    from affectgpt.core.errors import CheckpointError

    content = torch.load(world.run_folder / "checkpoint_000012_loss_0.120.pth", weights_only=True)
    content["model"] = {k: v for k, v in content["model"].items() if "lora" not in k}
    torch.save(content, tmp_path / "checkpoint_000013_loss_0.100.pth")
    partial = world.checkpoints(f"inference.ckpt_root={tmp_path}")[0]
    benchmark = world.benchmark(tmp_path)
    benchmark.run(DATASET, world.checkpoints()[0])
    with pytest.raises(CheckpointError, match="another recipe"):
        benchmark.run(DATASET, partial)
    assert benchmark.session.checkpoint is None


def test_stored_features_answer_alike(world, reference, tmp_path, monkeypatch):
    from affectgpt.cli import extract_features
    from affectgpt.inference.session import GenerationSession

    option = f"paths.features_root={tmp_path / 'features'}"
    arguments = ["--dataset=OVMERDPlus", "--split=test", f"--cfg-path={world.yaml}", "--options", option]
    assert extract_features.main(arguments) == 0
    encoded = []
    encode = GenerationSession.encode
    monkeypatch.setattr(GenerationSession, "encode", lambda self, *args: encoded.append(args[0]) or encode(self, *args))
    benchmark = world.benchmark(tmp_path, option, "datasets.mercaptionplus.features=require")
    assert read_answers(benchmark.run(DATASET, world.checkpoints()[0])) == reference
    assert encoded == []  # no medium was read or encoded
    assert benchmark.session.model.visual_encoder is None is benchmark.session.model.acoustic_encoder
    decoding = world.benchmark(tmp_path / "off", option, "datasets.mercaptionplus.features=off")
    assert read_answers(decoding.run(DATASET, world.checkpoints()[0])) == reference
    assert encoded
    with pytest.raises(DataError, match="no features; compute them"):
        world.benchmark(tmp_path / "gone", "datasets.mercaptionplus.features=require",
                        f"paths.features_root={tmp_path}/gone").run(DATASET, world.checkpoints()[0])  # fmt: skip


def test_greedy_answers_need_no_seed(world, tmp_path):
    checkpoint = world.checkpoints()[0]
    answers = [
        read_answers(
            world.benchmark(tmp_path / str(seed), "inference.decoding=greedy", f"inference.seed={seed}").run(
                DATASET, dataclasses.replace(checkpoint)
            )
        )
        for seed in (1, 2)
    ]
    assert answers[0] == answers[1]
