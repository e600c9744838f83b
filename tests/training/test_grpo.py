"""Reinforcement learning as a run: what it logs, what changes and what must not, kills, several processes, refusals."""

from __future__ import annotations

import json
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from rl_recipe import CLIPS, write_rl_recipe, write_start
from training_processes import Trouble, run_ranks, run_train
from training_recipe import run_folder

from affectgpt.cli.train import main
from affectgpt.config.load import load_config
from affectgpt.core.errors import AffectGPTError, CheckpointError, ConfigError, DataError


@pytest.fixture(scope="session")
def start(tmp_path_factory, tiny_models) -> Path:
    return write_start(tmp_path_factory.mktemp("start"), tiny_models)


@pytest.fixture
def recipe(tmp_path, tiny_models, training_set, start):
    """``recipe(grpo=…, **run)`` writes rl.yaml (two epochs of three steps) and gives its path."""
    return partial(write_rl_recipe, tmp_path, models=tiny_models, dataset=training_set, start=start)


def train(path: Path, *options: str) -> Path:
    assert main(["--cfg-path", str(path), *(["--options", *options] if options else [])]) == 0
    return run_folder(path)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def weights(folder: Path, file: str = "last.state") -> dict[str, torch.Tensor]:
    return torch.load(folder / file, weights_only=True)["model"]


SECONDS = ("seconds_rollout", "seconds_reward", "seconds_logprobs", "samples_per_s", "tokens_per_s", "memory_gb")


def curve(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in SECONDS} for line in lines(folder)]


def test_a_run_logs_what_is_watched_and_leaves_published_checkpoints(recipe, start):
    folder = train(recipe())
    logged = [line for line in lines(folder) if "loss" in line]
    assert [(line["epoch"], line["step"]) for line in logged] == [(e, s) for e in (1, 2) for s in (1, 2, 3)]
    for line in logged:
        assert {
            "reward", "reward_letters", "reward_constant", "reward_dealt", "labels_per_answer", "precision", "recall",
            "unreadable", "groups_without_variance", "answer_tokens", "entropy", "kl", "ratio", "clipped",
            "seconds_rollout", "seconds_reward", "seconds_logprobs",
        } <= line.keys()  # fmt: skip
        assert 0 <= line["reward"] <= 1 and 0 < line["answer_tokens"] <= 5 and line["entropy"] > 0
        assert line["ratio"] == 1.0  # exactly: one update, in float32
    assert logged[0]["kl"] == 0.0 and logged[-1]["kl"] > 0
    assert sum(line["groups_without_variance"] for line in logged) < 6
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "finished" and record["data"] == {"mine": len(CLIPS)}
    before, after = weights(folder, "checkpoint_000000_loss_0.000.pth"), weights(folder)
    assert all(torch.equal(before[name], tensor) for name, tensor in torch.load(start)["model"].items())
    assert any(".lora_" in n and not torch.equal(before[n], after[n]) for n in before)
    assert any(".lora_" not in n and not torch.equal(before[n], after[n]) for n in before)  # connectors learn too
    assert len(list(folder.glob("checkpoint_00000[12]_loss_*.pth"))) == 2
    assert (folder / "training.png").is_file()
    said = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    assert len(said) == 6 and len(said[0]["answers"]) == 4 and said[0]["truth"]


def test_the_same_seed_gives_the_same_curve_and_another_seed_another(recipe):
    one, two, other = (
        curve(train(recipe(name=name, seed=seed))) for name, seed in (("one", 1), ("two", 1), ("other", 2))
    )
    assert one == two != other


@pytest.fixture
def readable(monkeypatch):
    """Every answer has one label, as those of a trained model have; what a random one says mostly has none."""
    from affectgpt.evaluation import rewards

    monkeypatch.setattr(rewards, "read_labels", lambda text: ["happy"])


@pytest.mark.usefixtures("readable")
@pytest.mark.parametrize("kl", [0.0, 0.04])
def test_rewards_that_are_all_equal_change_no_weight(recipe, kl):
    """Without weight decay, which pulls at weights whatever the gradient."""
    folder = train(recipe(grpo=f"rewards: {{same: 1.0}}, kl: {kl}"))
    before, after = weights(folder, "checkpoint_000000_loss_0.000.pth"), weights(folder)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [line["groups_without_variance"] for line in lines(folder) if "loss" in line] == [1.0] * 6


@pytest.mark.usefixtures("readable")
def test_a_step_that_nothing_can_be_learnt_from_moves_nothing_at_all(recipe):
    """Not even by weight decay or the optimizer's momentum: kl is 0."""
    folder = train(recipe(grpo="rewards: {same: 1.0}, kl: 0.0", weight_decay=0.1))
    before, after = weights(folder, "checkpoint_000000_loss_0.000.pth"), weights(folder)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_every_variant_raises_the_reward_that_it_is_given(recipe, variant):
    """The gradient of each points up: what earned more becomes likelier."""
    from affectgpt.training.objectives.grpo import Scorer

    path = recipe(grpo=f"variant: {variant}, kl: 0.0, resample: 0", iters_per_epoch=1, max_epoch=1, init_lr=1e-3)
    kept = {}
    stream, model = rollouts_of(path)
    batches = [batch for batch in stream(1) if batch is not None]
    config = load_config(path)
    from affectgpt.training.step import build_train_step

    train_step = build_train_step(model, config, torch.device("cpu"), resumed=None)
    scorer = Scorer(model, autocast=train_step.autocast, keep_start=False)
    [batch] = batches
    kept["before"] = scorer.logprobs(batch).sum(dim=1)
    train_step.run([batch], lr=1e-3)
    gained = (scorer.logprobs(batch).sum(dim=1) - kept["before"]) * batch["advantages"]
    assert batch["advantages"].any() and gained.sum() > 0


def rollouts_of(path: Path):
    """The stream of a recipe and its model, as train.py builds them."""
    from contextlib import ExitStack

    from affectgpt.cli.train import build, check

    config = load_config(path)
    device = check(config, source=str(path), dry_run=False)
    with ExitStack() as locks:
        job = build(config, device=device, dry_run=False, locks=locks)
    return job.batches, job.model


def test_old_and_new_probabilities_are_the_same_to_the_bit_before_an_update(recipe):
    """Dropout is off wherever answers are scored, and prompts are padded as in the loss."""
    from affectgpt.training.objectives.grpo import GRPOObjective

    path = recipe(grpo="updates: 3, kl: 0.1")
    stream, model = rollouts_of(path)
    batch = next(stream(1))
    assert torch.equal(batch["old_logprobs"], batch["start_logprobs"])
    objective = GRPOObjective.from_config(model.train(), load_config(path))
    objective(batch).backward()
    seen = objective.take_metrics()
    assert seen["ratio"] == 1.0 and seen["kl"] == 0.0 and seen["clipped"] == 0.0


def test_what_is_scored_is_what_was_drawn(recipe):
    """The engine's own probabilities of its draws, through its cache, are those of the training forward."""
    stream, _ = rollouts_of(recipe(grpo="correction: token, updates: 3, max_new_tokens: 12"))
    batch = next(stream(1))
    mask = batch["answer_mask"]
    assert mask.sum() > 20
    assert torch.allclose(batch["drawn_logprobs"][mask], batch["old_logprobs"][mask], atol=1e-4)


def test_the_start_holds_connectors_as_well_as_lora(recipe):
    from affectgpt.training.objectives.grpo import Scorer

    stream, model = rollouts_of(recipe(grpo="updates: 3"))
    batch = next(stream(1))
    now = stream.scorer.logprobs(batch)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora" not in name:
                parameter.add_(0.1)
    assert not torch.equal(stream.scorer.logprobs(batch), now)
    assert torch.equal(stream.scorer.start_logprobs(batch), now)
    assert not torch.equal(Scorer(model, autocast=stream.scorer.autocast).start_logprobs(batch), now)


def test_answers_are_drawn_with_the_weights_that_the_last_step_left(recipe, monkeypatch):
    """Labelled batches are read while the step before them computes; these cannot be."""
    from affectgpt.training.objectives.grpo import Rollouts
    from affectgpt.training.step import TrainStep

    drawn, left = [], []
    plain_draw, plain_run = Rollouts.draw, TrainStep.run

    def draw(self, keys, *, number):
        drawn.append(torch.cat([p.detach().flatten() for p in self.session.model.parameters() if p.requires_grad]))
        return plain_draw(self, keys, number=number)

    def run(self, fetched, **options):
        step = plain_run(self, fetched, **options)
        left.append(torch.cat([p.detach().flatten() for p in self.objective.model.parameters() if p.requires_grad]))
        return step

    monkeypatch.setattr(Rollouts, "draw", draw)
    monkeypatch.setattr(TrainStep, "run", run)
    train(recipe())
    assert len(drawn) == len(left) == 6
    for before, after in zip(drawn[1:], left, strict=False):
        assert torch.equal(before, after)
    assert not torch.equal(drawn[0], drawn[1])


def test_prompts_are_embedded_once_per_group(recipe, monkeypatch):
    from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration as Model

    rows = []
    plain = Model.connect
    monkeypatch.setattr(
        Model, "connect", lambda self, *a, **k: rows.append(len(k["input_ids"])) or plain(self, *a, **k)
    )
    train(recipe(max_epoch=1, iters_per_epoch=1))
    assert rows == [2, 2, 2]  # clips, not answers: drawn, scored by the start, learnt


def test_no_answer_depends_on_the_clips_beside_it(recipe):
    """Seeded by run, step, clip and number: alone or with others, in batches of any size."""
    texts = []
    for at_once in (64, 4):
        stream, _ = rollouts_of(recipe(grpo=f"answers_at_once: {at_once}"))
        keys = [key for _, micro_batch in zip(range(2), stream.order, strict=False) for key in micro_batch]
        texts.append([[a.text for a in answers] for _, answers in stream.draw(keys, number=0)])
        texts.append([[a.text for a in stream.draw([key], number=0)[0][1]] for key in keys])
    assert texts[0] == texts[1] == texts[2] == texts[3]
    assert stream.draw(keys, number=1)[0][1] != stream.draw(keys, number=0)[0][1]


def test_dynamic_sampling_leaves_no_group_without_variance(recipe):
    folder = train(recipe(grpo="variant: dapo, resample: 4", batch_size_train=3))
    for line in lines(folder):
        if "loss" in line:
            assert "resampled_clips" in line
    stream, _ = rollouts_of(recipe(grpo="variant: dapo, resample: 4, rewards: {same: 1.0, letters: 0.0}, kl: 0.0"))
    for batch in stream(1):
        assert batch is None or batch["advantages"].reshape(-1, 4).abs().sum(dim=1).gt(0).all()


def test_recomputed_activations_change_nothing(recipe):
    """transformers recomputes in training mode alone, and dropout is off all the same."""
    one, two = recipe(name="one", max_epoch=1), recipe(name="two", max_epoch=1, gradient_checkpointing=True)
    losses = [[(line["loss"], line["kl"], line["reward"]) for line in curve(train(path))] for path in (one, two)]
    assert losses[0] == [pytest.approx(values, abs=1e-5) for values in losses[1]]


def test_sets_with_other_inputs_and_other_labels_are_mixed(recipe, tmp_path):
    """Each micro-batch is of one set; a reward counts for the clips whose labels it knows."""
    path = recipe(grpo="rewards: {letters: 0.1, wheel: 1.0, hit: 1.0}", iters_per_epoch=6, max_epoch=1)
    rows = "".join(f"{name},Well.,{'happy' if i % 2 else 'sad'}\n" for i, name in enumerate(CLIPS))
    (tmp_path / "basic.csv").write_text("name,subtitle,emotion\n" + rows)
    mine = path.read_text().split("datasets: {")[1].split("paths:")[0].rstrip().removesuffix("}")
    folders = mine.split("folders: ")[1].split("}")[0] + "}"
    basic = (
        f"basic: {{path: {tmp_path / 'basic.csv'}, columns: {{name: name, subtitle: subtitle, emotion: emotion}}, "
        f"folders: {folders}, face_or_frame: audio_text, label_type: onehot_wo_candidates}}"
    )
    path.write_text(path.read_text().replace(mine, f"{mine}, {basic}"))
    folder = train(path)
    seen = {name for line in lines(folder) for name in line}
    assert json.loads((folder / "run.json").read_text())["data"] == {"mine": len(CLIPS), "basic": len(CLIPS)}
    assert {"reward_letters", "precision"} <= seen and len(lines(folder)) == 6
    asked = {json.loads(line)["clip"].split("/")[0] for line in (folder / "rollouts.jsonl").read_text().splitlines()}
    assert asked == {"mine", "basic"}


# --- resuming -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("updates", "kills"), [(1, (2, 2)), (3, (1, 3))], ids=["one-update", "three-updates"])
def test_a_killed_run_resumes_to_the_bit(recipe, updates, kills):
    """Also between two updates on the same answers, which the weights of then have drawn."""
    run = {"save_state_every": 1, "resume_ckpt_path": "auto", "grpo": f"updates: {updates}, kl: 0.1"}
    quiet, disturbed = recipe(name="quiet", **run), recipe(name="disturbed", **run)
    assert run_train("--cfg-path", str(quiet)).status == 0
    for after in kills:
        outcome = run_train("--cfg-path", str(disturbed), trouble=Trouble(kill_after_step=after + 1))
        assert outcome.status == -signal.SIGKILL, outcome.stderr
    outcome = run_train("--cfg-path", str(disturbed))
    assert outcome.status == 0, outcome.stderr
    one, two = (torch.load(run_folder(p) / "last.state", weights_only=True) for p in (quiet, disturbed))
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    for index, state in one["optimizer"]["state"].items():
        assert all(torch.equal(state[key], two["optimizer"]["state"][index][key]) for key in state)
    assert repr(one["batches"]) == repr(two["batches"])
    assert curve(run_folder(quiet)) == curve(run_folder(disturbed)) and len(curve(run_folder(quiet))) == 6


def test_ctrl_c_between_two_updates_keeps_the_answers(recipe):
    run = {"save_state_every": 0, "resume_ckpt_path": "auto", "grpo": "updates: 3, kl: 0.1"}
    run["mode"] = "multiface_audio_face_text"
    quiet, path = recipe(name="quiet", **run), recipe(**run)
    assert run_train("--cfg-path", str(quiet)).status == 0
    outcome = run_train("--cfg-path", str(path), trouble=Trouble(signal_in_step=(2, signal.SIGINT)))
    assert outcome.status == 130, outcome.stderr
    assert torch.load(run_folder(path) / "last.state", weights_only=True)["batches"][0]["pending"]["number"] == 0
    assert run_train("--cfg-path", str(path)).status == 0
    assert curve(run_folder(path)) == curve(run_folder(quiet))


def test_another_start_or_other_rewards_are_not_resumed(recipe, tmp_path, start):
    path = recipe(save_state_every=1)
    state = train(path) / "last.state"
    resumed = [f"run.resume_ckpt_path={state}", "run.max_epoch=3"]
    with pytest.raises(ConfigError, match=r"grpo\.rewards was .*letters.*grpo\.top_k was 0, is 5"):
        main(["--cfg-path", str(path), "--options", *resumed, "grpo.rewards.wheel=1", "grpo.top_k=5"])
    with pytest.raises(ConfigError, match=r"run\.objective was 'grpo', is 'sft'"):
        main(["--cfg-path", str(path), "--options", *resumed, "run.objective=sft"])
    content = torch.load(start, weights_only=True)
    content["model"] = {name: tensor + 0.01 for name, tensor in content["model"].items()}
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="the weights that this run began with"):
        main(["--cfg-path", str(path), "--options", *resumed, f"model.ckpt={tmp_path / 'other.pth'}"])


# --- several processes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["grpo", "dapo"])
def test_two_processes_learn_what_one_does(recipe, variant):
    whole = recipe(name="whole", grpo=f"variant: {variant}, resample: 0", batch_size_train=4)
    spread = recipe(name="spread", grpo=f"variant: {variant}, resample: 0", batch_size_train=1, accum_grad_iters=2)
    assert run_train("--cfg-path", str(whole)).status == 0
    for outcome in run_ranks(2, "--cfg-path", str(spread)):
        assert outcome.status == 0, outcome.stderr
    one, two = curve(run_folder(whole)), curve(run_folder(spread))
    for key in ("reward", "labels_per_answer", "answer_tokens", "reward_constant", "groups_without_variance"):
        assert [line[key] for line in one] == pytest.approx([line[key] for line in two], abs=1e-6), key
    for key in ("loss", "kl", "entropy", "grad_norm"):
        assert [line[key] for line in one] == pytest.approx([line[key] for line in two], abs=2e-3), key


def test_killed_processes_resume_to_the_bit(recipe):
    run = {"save_state_every": 1, "resume_ckpt_path": "auto", "batch_size_train": 1}
    quiet, disturbed = recipe(name="quiet", **run), recipe(name="disturbed", **run)
    assert [o.status for o in run_ranks(2, "--cfg-path", str(quiet))] == [0, 0]
    outcomes = run_ranks(2, "--cfg-path", str(disturbed), trouble=Trouble(kill_after_step=3))
    assert {o.status for o in outcomes} & {-signal.SIGKILL}, outcomes
    outcomes = run_ranks(2, "--cfg-path", str(disturbed))
    assert [o.status for o in outcomes] == [0, 0], outcomes
    one, two = weights(run_folder(quiet)), weights(run_folder(disturbed))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_shards_are_refused_with_the_reason(recipe):
    with pytest.raises(ConfigError, match=r"run\.parallel is fsdp2.*token by token with the whole model.*ddp"):
        main(["--cfg-path", str(recipe(parallel="fsdp2"))])


# --- guards and refusals ------------------------------------------------------------------------------------------


GUARD = "rewards: {recall: 1.0, letters: 0.1}, guard_window: 2, guard_labels: 1.5"


@pytest.fixture
def listing(monkeypatch):
    """The policy lists more with every roll-out, and less of it is right."""
    from affectgpt.evaluation import rewards
    from affectgpt.training.objectives.grpo import Rollouts

    words, plain = ["happy", "sad", "angry", "worried", "surprised"], Rollouts.draw
    now = [0]

    def draw(self, keys, *, number):
        now[0] = number
        return plain(self, keys, number=number)

    monkeypatch.setattr(Rollouts, "draw", draw)
    monkeypatch.setattr(rewards, "read_labels", lambda text: words[: now[0] + 1])


@pytest.mark.usefixtures("listing")
def test_the_guard_stops_a_policy_that_lists_more_and_more(recipe):
    path = recipe(grpo=GUARD, labels=lambda i: "happy")
    with pytest.raises(AffectGPTError) as stopped:
        main(["--cfg-path", str(path)])
    message = str(stopped.value)
    for part in ("epoch 1, step 3", "labels, more than the limit of 1.50", "precision fell from", "run.guard=off"):
        assert part in message
    folder = run_folder(path)
    assert json.loads((folder / "run.json").read_text())["state"] == "failed"
    assert torch.load(folder / "last.state", weights_only=True)["position"]["step"] == 3
    options = ["run.guard=off", "run.resume_ckpt_path=auto"]
    assert main(["--cfg-path", str(path), "--options", *options]) == 0
    assert len(lines(folder)) == 6


@pytest.mark.usefixtures("listing")
def test_more_labels_alone_do_not_stop_a_policy_that_stays_right(recipe):
    """A window in which precision does not fall: all five are true."""
    train(recipe(grpo=GUARD, labels=lambda i: "happy, sad, angry, worried, surprised"))


def test_test_clips_are_refused_by_name(recipe):
    with pytest.raises(DataError, match=r"1 clips .* mine/clip_00 \(OVMERDPlus tests on a clip of this name\)"):
        main(["--cfg-path", str(recipe(clips=["clip_00", *CLIPS]))])


def test_test_clips_are_refused_by_their_content(recipe, training_set, tmp_path):
    media = training_set / "mer2025-dataset"
    shutil.copytree(media, tmp_path / "copy" / "mer2025-dataset", symlinks=True)
    root = tmp_path / "copy"
    shutil.copytree(training_set / "ovmerdplus-process", root / "ovmerdplus-process", symlinks=True)
    shutil.copy(media / "audio" / "clip_02.wav", root / "mer2025-dataset" / "audio" / f"{CLIPS[0]}.wav")
    path = recipe(dataset=root)
    with pytest.raises(DataError, match=rf"mine/{CLIPS[0]} \(its audio is that of OVMERDPlus/clip_02\)"):
        main(["--cfg-path", str(path)])


def test_a_set_that_no_reward_scores_is_refused(recipe):
    with pytest.raises(DataError, match=r"datasets\.mine: no clip of the training split of mine has a truth"):
        main(["--cfg-path", str(recipe(grpo="rewards: {hit: 1.0}"))])


def test_clips_without_a_truth_to_score_by_are_left_out_by_name(recipe):
    labels = {0: "table", 3: "chair, lamp"}
    folder = train(recipe(labels=lambda i: labels.get(i, "happy")))
    assert json.loads((folder / "run.json").read_text())["data"] == {"mine": len(CLIPS) - 2}
    noted = (folder / "failed.csv").read_text()
    assert CLIPS[0] in noted and CLIPS[3] in noted and noted.count("no label that can be scored") == 2


def test_a_clip_that_cannot_be_read_ends_the_run_or_is_left_out(recipe, training_set, tmp_path):
    shutil.copytree(training_set, tmp_path / "copy", symlinks=True)
    broken = tmp_path / "copy" / "mer2025-dataset" / "openface_face" / CLIPS[1] / f"{CLIPS[1]}.npy"
    broken.write_bytes(b"no array")
    with pytest.raises(DataError, match=CLIPS[1]):
        main(["--cfg-path", str(recipe(dataset=tmp_path / "copy"))])
    folder = train(recipe(name="skips", dataset=tmp_path / "copy", on_error="skip"))
    assert CLIPS[1] in (folder / "failed.csv").read_text() and len(lines(folder)) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.ckpt="], "set model.ckpt to a checkpoint of supervised training"),
        (["grpo.updates=2"], "of which run.iters_per_epoch (3) must be a multiple"),
        (["run.packing=512"], "run.packing"),
        (["run.batch_tokens=512"], "run.batch_tokens"),
        (["grpo.rewards={dual: 1}"], "grpo.rewards.dual reads a thinking"),
        (["grpo.group_size=1"], "grpo.group_size is '1'; allowed: at least 2"),
        (["grpo.variant=ppo"], "allowed: one of grpo, dr_grpo, dapo, gspo"),
        (["grpo.rewards={hit: 1, letters: 0, nothing: 1}"], "unknown reward 'nothing'"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(recipe, monkeypatch, options, message):
    from affectgpt.modeling import build

    if "updates" not in options[0]:
        monkeypatch.setattr(build, "build_model", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises((ConfigError, DataError)) as refused:
        main(["--cfg-path", str(recipe()), "--options", *options])
    assert message in str(refused.value)


def test_the_dry_run_says_how_long_roll_outs_take(recipe, capsys):
    path = recipe(iters_per_epoch=100)
    assert main(["--cfg-path", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "waiting for roll-outs and rewards" in said and "200 steps at" in said and "hours" in said
    assert not (path.parent / "output").exists()


def test_held_out_losses_and_scores_are_taken_as_in_supervised_training(recipe):
    folder = train(
        recipe(
            valid_ratio=0.25,
            valid_splits='["valid"]',
            score_every=1,
            score_datasets='["OVMERDPlus"]',
            score_samples=2,
            batch_size_eval=2,
        )
    )
    epochs = [line for line in lines(folder) if "loss" not in line]
    assert [line["valid_loss_mine_valid"] > 0 for line in epochs if "valid_loss_mine_valid" in line] == [True, True]
    assert len([line for line in epochs if "score_OVMERDPlus" in line]) == 2
