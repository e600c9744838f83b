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


NUMBERS = {  # as they are written; YAML 1.1 reads other numbers in some of them
    "run.seed": ["010", "1:30", "1_000", "0x10", "0o17", "0b11", ".inf", "-5", "99999999999999999999", "1e-400",
                 "1e400", "2026-01-01", "yes", "1.5", "٣", "--1", "1e99999999"],
    "run.init_lr": ["010", "1_0.5", "1:30.5", ".nan", "-.inf", "1e-400", "1e-320", "1e400", "0x1", "True"],
    "run.amp": ["1", "0", "y", "none", "tRUE"],
    "inference.seed": ["-1"],
    "inference.gpu": ["-1"],
}  # fmt: skip


@pytest.mark.parametrize("key", NUMBERS)
def test_a_value_that_would_become_another_is_an_error(tmp_path, key):
    section, _, name = key.partition(".")
    for value in NUMBERS[key]:
        path = write(tmp_path, "a.yaml", f"model: {{}}\n{section}:\n  {name}: {value}\n")
        with pytest.raises(ConfigError) as error:
            load_config(path)
        assert str(error.value).startswith(f"{path}:3: {key} is ") and value in str(error.value)
        with pytest.raises(ConfigError) as error:
            load_config(write(tmp_path, "a.yaml", "model: {}\n"), [f"{key}={value}"])
        assert str(error.value).startswith(f"--options '{key}={value}': {key} is ")


@pytest.mark.parametrize(
    "text",
    ["010", "1:30", "1_000", "0x10", "1e3", "0.10", "yes", "off", "True", "2026-01-01", "2026-01-01 10:20:30", ".nan",
     "99999999999999999999", "NO", "=", "<<", "-", "- x"],
)  # fmt: skip
def test_text_arrives_as_it_is_written(tmp_path, text):
    quoted = write(tmp_path, "a.yaml", f"paths:\n  folders: {{ '{text}': '{text}' }}\n")
    assert load_config(quoted).paths.folders == {text: text}
    if text not in ("=", "<<", "- x", "-"):  # these are YAML's own
        plain = write(tmp_path, "a.yaml", f"paths:\n  models_root: {text}\n  folders: {{ {text.split()[0]}: x }}\n")
        assert load_config(plain).paths.models_root == text
        assert load_config(plain).paths.folders == {text.split()[0]: "x"}
    assert load_config(quoted, [f"paths.models_root={text}"]).paths.models_root == text
    assert load_config(quoted, [f"paths.models_root='{text}'"]).paths.models_root == text


def test_options_keep_what_yaml_would_drop_or_refuse(tmp_path):
    path = write(tmp_path, "a.yaml", "run: {valid_splits: [off, 010]}\n")
    assert load_config(path).run.valid_splits == ("off", "010")
    for text in ("a # b", "a: b", "@x", "*x", "&x y", "!x", "x, y", "%x", "# x", "x]", 'x"y', "a\\tb"):
        assert load_config(path, [f"paths.models_root={text}"]).paths.models_root == text
    assert load_config(path, ["run.valid_splits=[010, 'a # b']"]).run.valid_splits == ("010", "a # b")
    assert load_config(path, ["run.max_epoch=9007199254740993"]).run.max_epoch == 9007199254740993
    assert load_config(path, ["run.clip_grad_norm=null", "run.seed=+7", "run.amp=no"]).run.amp is False
    with pytest.raises(ConfigError, match=r"what follows the list or section would be ignored: ' # b'"):
        load_config(path, ["run.valid_splits=[a] # b"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run:\n  seed: 1\n  seed: 2\n", r"a\.yaml:3: run\.seed is given twice, here as '2'"),
        ("run: {seed: 1}\nmodel: {}\nrun: {seed: 1}\n", r"a\.yaml:3: run is given twice"),
        ("run:\n  seed: !!int '010'\n", r"a\.yaml, line 2: the tag .*int of '010' is not read"),
        ("run: !!python/object:os.system {}\n", r"a\.yaml, line 1: the tag .* is not read"),
        ("run: {? [a] : 1}\n", "must be a word"),
        ("run: {seed: 1}\n---\nrun: {seed: 2}\n", "a single document"),
    ],
)
def test_what_yaml_would_choose_between_or_convert_is_an_error(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, "a.yaml", text))


def test_what_names_a_checkpoint_of_the_base_is_not_taken_over(tmp_path, caplog):
    write(
        tmp_path, "base.yaml",
        "inference: {test_epoch: 4, ckpt_root: runs/a, decoding: greedy}\nrun: {resume_ckpt_path: a.pth}\n",
    )  # fmt: skip
    write(
        tmp_path,
        "middle.yaml",
        "extends: base.yaml\nrun: {max_epoch: 60}\ninference: {test_epochs: 30-60, skip_epoch: 5}\n",
    )
    with caplog.at_level("INFO"):
        config = load_config(
            write(tmp_path, "a.yaml", "extends: middle.yaml\nrun: {max_epoch: 9}\ninference: {skip_epoch: 2}\n")
        )
    inference = config.inference
    assert (inference.test_epoch, inference.test_epochs, inference.ckpt_root, inference.ckpt_name) == (None,) * 4
    assert inference.skip_epoch == 2 and inference.decoding == "greedy" and config.run.resume_ckpt_path is None
    assert f"inference.test_epoch of {tmp_path}/base.yaml:1 is not taken over" in caplog.text
    middle = load_config(tmp_path / "middle.yaml").inference
    assert (middle.test_epochs, middle.skip_epoch) == ("30-60", 5)


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


def test_a_recipe_that_is_not_there_is_looked_for_among_train_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("demo_cpu.yaml").name == "demo_cpu"
    with pytest.raises(ConfigError, match=r"--cfg-path demo_cpu_fac\.yaml: no such file\. Did you mean 'demo_cpu_face"):
        load_config("demo_cpu_fac.yaml")
    (tmp_path / "train_configs").mkdir()
    write(tmp_path / "train_configs", "my_own_recipe.yaml", "run: {seed: 5}\n")
    assert load_config("my_own_recipe.yaml").run.seed == 5
    with pytest.raises(ConfigError, match=r"Did you mean 'my_own_recipe\.yaml'"):
        load_config("my_own_recip.yaml")


def test_an_epoch_that_was_chosen_of_as_many_is_inherited(tmp_path):
    write(tmp_path, "base.yaml", "run: {max_epoch: 4}\ninference: {test_epoch: 4, top_p: 0.8}\n")
    same = load_config(write(tmp_path, "same.yaml", "extends: base.yaml\n")).inference
    longer = load_config(write(tmp_path, "longer.yaml", "extends: base.yaml\nrun: {max_epoch: 6}\n")).inference
    assert (same.test_epoch, same.top_p) == (4, 0.8) and (longer.test_epoch, longer.top_p) == (None, 0.8)
