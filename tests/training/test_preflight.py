"""What is found before gigabytes are loaded, as a GPU machine would find it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import folder_of, tiny_config

from affectgpt.cli.train import main
from affectgpt.config.load import load_config
from affectgpt.core.errors import ConfigError
from affectgpt.core.runtime import pick_device
from affectgpt.modeling.build import build_model
from affectgpt.processing.processor import AffectGPTProcessor
from affectgpt.training.distributed import process_group
from affectgpt.training.dry_run import check_memory, check_precision, step_memory

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = sorted((ROOT / "train_configs").glob("*bestsetup*_lz.yaml"))
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has GPUs; ``gpu``: which one was made the current one."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr("affectgpt.modeling.build.build_model", lambda *_, **__: pytest.fail("a model was loaded"))
    return chosen


@pytest.mark.parametrize(
    ("amp", "llm"), [("bfloat16", "float16"), ("float16", "bfloat16"), ("bfloat16", None)],
)  # fmt: skip
def test_an_llm_in_the_other_half_precision_is_refused(recipe, gpu, amp, llm):
    """Autocast would convert every weight at every use, and backward would keep the copies."""
    model = f"llm_dtype: {llm}" if llm else ""
    path = recipe(mode="textonly", device="cuda", amp_dtype=amp, model=model)
    with pytest.raises(ConfigError) as raised:
        main(["--cfg-path", str(path)])
    found = f"run.amp_dtype is {amp}, but model.llm_dtype is {llm or 'float16'}"
    assert found in str(raised.value) and f'--options "model.llm_dtype={amp}"' in str(raised.value)
    assert f"{path.name}:" in str(raised.value)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_published_recipes_have_one_precision(path):
    assert len(PUBLISHED) == 2
    for options in (
        [],
        ["run.amp_dtype=bfloat16", "model.llm_dtype=bfloat16"],
        ["run.amp_dtype=bfloat16", "model.llm_dtype=float32"],
        ["run.amp=False", "model.llm_dtype=bfloat16"],
    ):
        check_precision(load_config(path, options), GPU)
    check_precision(load_config(path, ["run.amp_dtype=bfloat16"]), CPU)  # where everything is float32
    with pytest.raises(ConfigError, match=r"run\.amp is False, but model\.llm_dtype is float16"):
        check_precision(load_config(path, ["run.amp=False"]), GPU)  # nothing would scale the loss


def test_a_gpu_with_a_number_is_the_current_one(gpu):
    """Kernels of other libraries run on the current device, which is cuda:0 where nobody says otherwise."""
    assert pick_device("cuda:1") == torch.device("cuda:1") and gpu == [torch.device("cuda:1")]
    assert pick_device("cuda") == GPU and len(gpu) == 1


def test_a_gpu_that_is_not_there_is_named_with_those_that_are(gpu):
    with pytest.raises(ConfigError, match=r"cuda:2 is not there; there are cuda:0 \(GPU 0\), cuda:1 \(GPU 1\)"):
        pick_device("cuda:2")
    assert gpu == []


def test_ranks_of_a_machine_are_not_all_put_on_one_gpu(recipe, gpu, monkeypatch):
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: pytest.fail("a group was made"))
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, str(value))
    path = recipe(mode="textonly", device="cuda:0")
    with pytest.raises(ConfigError, match=r"run\.device is cuda:0, which 2 processes .* run\.device=cuda"):
        main(["--cfg-path", str(path)])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # a machine each: cuda:0 of every one
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    gpu.clear()
    with process_group(load_config(path).run, pick_device("cuda:0")):
        assert gpu == [torch.device("cuda:0")]


@pytest.fixture(params=["safetensors", "bin"])
def models(request, tiny_models, tmp_path) -> Path:
    """The tiny models, their weights as safetensors or as older files are."""
    if request.param == "safetensors":
        return tiny_models
    root = shutil.copytree(tiny_models, tmp_path / "models")
    for path in root.rglob("*.safetensors"):
        torch.save(load_file(path), path.with_name("pytorch_model.bin"))
        path.unlink()
    return root


def test_memory_is_counted_as_the_model_takes_it(models, tiny_models, monkeypatch):
    """Whatever the files: CLIP's text tower is in them and is not kept."""
    config = tiny_config(models)
    built = build_model(
        tiny_config(tiny_models), device=CPU, tokenizer=AffectGPTProcessor.from_config(config).tokenizer
    )
    frozen = sum(p.numel() for n, p in built.named_parameters() if n.startswith(("llm.", "visual", "acoustic")))
    trained = sum(p.numel() for p in built.parameters() if p.requires_grad)
    lora = sum(p.numel() for n, p in built.named_parameters() if n.startswith("llm.") and p.requires_grad)
    encoders = sum(p.numel() for n, p in built.named_parameters() if n.startswith(("visual", "acoustic")))
    frozen -= lora
    assert frozen + trained == sum(p.numel() for p in built.parameters()) and encoders > 0
    free, more = [0], 3 * 4 * trained  # a gradient and Adam's two moments
    monkeypatch.setattr("affectgpt.training.dry_run.available_memory", lambda: free[0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free[0], 0))
    for device, encoded, needed in (
        (CPU, True, 4 * (frozen + trained) + more),
        (CPU, False, 4 * (frozen - encoders + trained) + more),
        (GPU, True, 2 * frozen + 4 * trained + more),
    ):
        free[0] = needed
        check_memory(config, device, encoders=encoded)
        free[0] = needed - 1
        with pytest.raises(ConfigError, match="GB are free") as raised:
            check_memory(config, device, encoders=encoded)
        assert ("HUBERT_LARGE" in str(raised.value)) == encoded
        assert "activations" in str(raised.value) and "a batch of 3 × 200 tokens" in str(raised.value)
    free[0] = needed - more  # without training
    check_memory(replace(config, run=replace(config.run, evaluate=True)), GPU)


def test_a_batch_that_will_not_fit_is_foretold(tiny_models, monkeypatch, log_lines):
    config = tiny_config(tiny_models)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (step_memory(config, GPU).total - 1, 0))
    check_memory(config, GPU)
    assert len(log_lines) == 1 and "If memory runs out: lower run.batch_size_train" in log_lines[0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (step_memory(config, GPU).total, 0))
    check_memory(config, GPU)
    assert len(log_lines) == 1


def test_weights_of_an_llm_that_is_code_in_its_folder_are_counted(tiny_models, tmp_path, monkeypatch):
    """As it is loaded: with ``model.trust_remote_code``, and without a question on the terminal."""
    import transformers

    folder = tmp_path / "own_llm"
    shutil.copytree(folder_of(tiny_models, "Qwen25"), folder)
    numbers = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnLLM"}
    (folder / "config.json").write_text(json.dumps({**numbers, "model_type": "own", "auto_map": classes}))
    (folder / "code.py").write_text(
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n\n\n"
        "class OwnConfig(Qwen2Config):\n    model_type = 'own'\n\n\n"
        "class OwnLLM(Qwen2ForCausalLM):\n    config_class = OwnConfig\n"
    )
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    monkeypatch.setattr("affectgpt.training.dry_run.available_memory", lambda: 0)
    config = tiny_config(tiny_models, llama_model="Baichuan2", lora_r=0, trust_remote_code=True)
    config = replace(config, paths=replace(config.paths, folders={"Baichuan2": str(folder)}))
    with pytest.raises(ConfigError, match="a model of Baichuan2"):
        check_memory(config, CPU)
