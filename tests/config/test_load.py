"""Wrong keys and values are told with their place; files may extend one another."""

import re

import pytest

from affectgpt.cli.train import main as train
from affectgpt.config.load import load_config
from affectgpt.core.errors import CheckpointError, ConfigError


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_wrong_key_names_line_and_neighbour(tmp_path):
    path = write(tmp_path, "a.yaml", "model:\n  arch: affectgpt\nrun:\n  max_epoch: 3\n  warmup_step: 5\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:5: unknown key 'run.warmup_step'. Did you mean 'warmup_steps'"):
        load_config(path)


def test_key_in_the_wrong_section_names_the_right_one(tmp_path):
    path = write(tmp_path, "a.yaml", "run:\n  lora_r: 8\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:2: .*Did you mean 'model.lora_r'"):
        load_config(path)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("run.batch_size_train", "0", "at least 1"),
        ("run.init_lr", "abc", "a number"),
        ("run.max_epoch", "1.5", "a whole number"),
        ("run.amp", "maybe", "True or False"),
        ("run.amp_dtype", "float8", "float16, bfloat16"),
        ("run.clip_grad_norm", "0", "more than 0"),
        ("run.beta2", "1", "less than 1"),
        ("datasets.mercaptionplus.ratio", "2", "at most 1"),
        ("model.lora_r", "-1", "0 or more"),
    ],
)
def test_wrong_value_names_key_value_and_what_is_allowed(tmp_path, key, value, allowed):
    path = write(tmp_path, "a.yaml", "datasets: {mercaptionplus: {}}\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, [f"{key}={value}"])
    assert f"--options '{key}={value}'" in str(error.value)
    assert allowed in str(error.value)


def test_wrong_value_in_a_base_names_the_base(tmp_path):
    write(tmp_path, "base.yaml", "run:\n  seed: 1\n  max_epoch: none\n")
    path = write(tmp_path, "a.yaml", "extends: base.yaml\nrun: {seed: 2}\n")
    with pytest.raises(ConfigError, match=r"base\.yaml:3: run.max_epoch is 'none'"):
        load_config(path)


def test_extends_merges_sections_and_replaces_data_sets(tmp_path):
    write(tmp_path, "base.yaml", "model: {lora_r: 8}\nrun: {seed: 1, max_epoch: 3}\ndatasets: {mercaptionplus: {}}\n")
    path = write(tmp_path, "a.yaml", "extends: base.yaml\nrun: {seed: 2}\ndatasets: {ovmerd: {ratio: 0.5}}\n")
    config = load_config(path, ["datasets.ovmerd.label_type='ovlabel'"])
    assert (config.name, config.model.lora_r, config.run.seed, config.run.max_epoch) == ("a", 8, 2, 3)
    assert list(config.datasets) == ["ovmerd"]
    assert (config.datasets["ovmerd"].ratio, config.datasets["ovmerd"].label_type) == (0.5, "ovlabel")


def test_extends_of_nothing_and_in_a_circle(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.yaml:1: extends .*bsae\.yaml: no such file"):
        load_config(write(tmp_path, "a.yaml", "extends: bsae.yaml\n"))
    write(tmp_path, "b.yaml", "extends: c.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        load_config(write(tmp_path, "c.yaml", "extends: b.yaml\n"))


def test_the_word_off_is_a_word_where_words_are_asked_for(tmp_path):
    path = write(tmp_path, "a.yaml", "datasets: {mercaptionplus: {features: off}}\n")
    assert load_config(path).datasets["mercaptionplus"].features == "off"


def test_weights_that_are_not_where_the_working_folder_is(tmp_path, monkeypatch):
    """As outside the clone: the message says where it looked, where they are, and what to set."""
    clone, elsewhere = tmp_path / "clone", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (clone / "train_configs").mkdir(parents=True)
    path = clone / "train_configs" / "tiny.yaml"
    path.write_text("run: {device: cpu}\npaths: {dataset_root: .}\ndatasets: {mercaptionplus: {}}\n")
    monkeypatch.chdir(elsewhere)

    def told(*options: str) -> str:
        with pytest.raises(CheckpointError) as raised:
            train(["--cfg-path", "../clone/train_configs/tiny.yaml", "--options", "run.device=cpu", *options])
        return str(raised.value)

    missing = told(f"paths.dataset_root={tmp_path}")
    assert f"Looked for {elsewhere}/models/" in missing and f"configuration is in {clone}/train_configs" in missing
    assert "paths.models_root=FOLDER" in missing and "It is there" not in missing
    (clone / "models" / "clip-vit-large-patch14").mkdir(parents=True)
    assert f"set paths.models_root={clone}/models, or run in {clone}" in told()
    assert "Looked for" not in told(f"paths.models_root={tmp_path}")
    (clone / "mine").mkdir()
    assert f"set paths.folders.CLIP_VIT_LARGE={clone}/mine" in told("paths.folders.CLIP_VIT_LARGE=mine")


def test_results_are_below_the_output_root_where_nothing_else_is_said(tmp_path):
    path = write(tmp_path, "a.yaml", "datasets: {mercaptionplus: {}}\npaths: {output_root: elsewhere}\n")
    assert load_config(path).results_root == "elsewhere/results"
    assert load_config(path, ["inference.base_root=mine"]).results_root == "mine"


@pytest.mark.parametrize(
    ("yaml", "key", "message"),
    [
        ("run: {max_epoch: 010}", "max_epoch", "'010'; allowed: a whole number in decimal"),
        ("run: {max_epoch: 1:30}", "max_epoch", "'1:30'"),
        ("run: {max_epoch: 0x10}", "max_epoch", "'0x10'"),
        ("run: {init_lr: 1:30.5}", "init_lr", "1:30.5"),
        ("run: {seed: -1}", "seed", "0 or more"),
        ("inference: {seed: -3}", "seed", "0 or more"),
        ("run: {seed: 99999999999999999999}", "seed", "at most"),
    ],
)
def test_numbers_that_yaml_would_change_are_refused(tmp_path, yaml, key, message):
    (tmp_path / "a.yaml").write_text(f"# a comment\n{yaml}\n")
    with pytest.raises(ConfigError, match=rf"a\.yaml:2: \w+\.{key} .*{re.escape(message)}"):
        load_config(tmp_path / "a.yaml")
    section, item = yaml.split(": {")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config("train_configs/demo_cpu.yaml", [f"{section}.{item.rstrip('}').replace(': ', '=')}"])


def test_values_arrive_as_they_are_written(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "inference: {ckpt_root: 010, ckpt_name: 1e5}\npaths: {output_root: no, models_root: 2026-01-01}\n"
        "run: {max_epoch: 99999999999999999999, init_lr: 1e-7, seed: 4294901760}\n"
    )
    config = load_config(tmp_path / "a.yaml")
    assert (config.inference.ckpt_root, config.inference.ckpt_name) == ("010", "1e5")
    assert (config.paths.output_root, config.paths.models_root) == ("no", "2026-01-01")
    assert (config.run.max_epoch, config.run.init_lr, config.run.seed) == (99999999999999999999, 1e-7, 4294901760)
    options = ["inference.ckpt_root=007", "paths.output_root=off", "run.weight_decay=.05", "run.max_epoch=3"]
    config = load_config(tmp_path / "a.yaml", options)
    assert (config.inference.ckpt_root, config.paths.output_root) == ("007", "off")
    assert (config.run.weight_decay, config.run.max_epoch) == (0.05, 3)
    with pytest.raises(ConfigError, match=r"'a', without what follows"):
        load_config(tmp_path / "a.yaml", ["paths.output_root=a # b"])


def test_an_epoch_chosen_for_another_length_is_not_inherited(tmp_path, caplog):
    (tmp_path / "base.yaml").write_text("run: {max_epoch: 4}\ninference: {test_epoch: 4, top_p: 0.8}\n")
    (tmp_path / "same.yaml").write_text("extends: base.yaml\n")
    (tmp_path / "longer.yaml").write_text("extends: base.yaml\nrun: {max_epoch: 6}\n")
    (tmp_path / "own.yaml").write_text("extends: base.yaml\nrun: {max_epoch: 6}\ninference: {test_epoch: 6}\n")
    with caplog.at_level("INFO", logger="affectgpt"):
        found = {name: load_config(tmp_path / f"{name}.yaml").inference for name in ("same", "longer", "own")}
    assert [found[name].test_epoch for name in ("same", "longer", "own")] == [4, None, 6]
    assert found["longer"].top_p == 0.8 and "inference.test_epoch=4 of base.yaml does not count here" in caplog.text


def test_a_recipe_that_is_not_there_leads_to_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"Did you mean 'train_configs/demo_cpu\.yaml'"):
        load_config("demo_cp.yaml")
