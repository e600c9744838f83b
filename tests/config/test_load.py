"""Wrong keys and values are told with their place; files may extend one another."""

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
