"""How much memory of the host loading takes: weights go to their device tensor by tensor, or stay mapped files.

``/proc/self/smaps_rollup`` says what a process has for itself (``Anonymous``: pages of no file) and its share of files
that several have mapped (``Pss_File``). A model of the tiny folders is loaded first, so that weights are counted and
not imports.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny import folder_of, tiny_config

from affectgpt.core.types import Modality
from affectgpt.modeling import build

CPU = torch.device("cpu")
RANKS = 8
LLM = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 24}  # 101 million weights
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "peft", "transformers.models.qwen2.modeling_qwen2"])


@pytest.fixture(scope="module")
def large(tiny_models, tmp_path_factory) -> Path:
    """The tiny models, with an LLM of 200 MB in bfloat16."""
    from transformers import AutoConfig, AutoModelForCausalLM

    root = shutil.copytree(tiny_models, tmp_path_factory.mktemp("large") / "models")
    folder = folder_of(root, "Qwen25")
    numbers = json.loads((folder / "config.json").read_text()) | LLM | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    numbers.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(numbers))
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).state_dict()
    state = {name: torch.zeros(tensor.shape, dtype=torch.bfloat16) for name, tensor in empty.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return root


def weights(root: Path) -> int:
    return (folder_of(root, "Qwen25") / "model.safetensors").stat().st_size


def memory(kind: str) -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) * 1024


def _in_children(count: int, target, *arguments) -> list[int]:
    """What each of ``count`` processes that run at once sends."""
    ready = PROCESSES.Barrier(count)
    pipes = [PROCESSES.Pipe(duplex=False) for _ in range(count)]
    children = [PROCESSES.Process(target=target, args=(pipe[1], ready, *arguments)) for pipe in pipes]
    for child, (_, ours) in zip(children, pipes, strict=True):
        child.start()
        ours.close()
    try:
        return [pipe.recv() for pipe, _ in pipes]
    finally:
        for child in children:
            child.join(timeout=60)
            child.kill()


def _load(pipe, ready, root: Path, small: Path, device: str, options: dict) -> None:
    """Sends the growth of this process's own memory until LLM and encoders are loaded, and, when all processes have
    their whole model, that growth and its share of the files."""
    torch.set_num_threads(1)
    loaded: list[int] = []
    begin = build.AffectGPTForConditionalGeneration.__init__

    def assembled(self, *args, **kwargs):
        loaded.append(memory("Anonymous"))
        begin(self, *args, **kwargs)

    build.AffectGPTForConditionalGeneration.__init__ = assembled
    build.placeholder_ids = lambda _: {m.value: 2 + i for i, m in enumerate(Modality)}
    build.stop_sequences = lambda _: []
    tokenizer = SimpleNamespace(bos_token_id=0, eos_token_id=1, pad_token_id=1)

    def made(models: Path):
        config = tiny_config(models, llm_dtype="float16", encoder_dtype="float16", lora_r=1)
        return build.build_model(config, device=torch.device(device), tokenizer=tokenizer, **options)

    kept = [made(small)]
    before, files = memory("Anonymous"), memory("Pss_File")
    kept.append(made(root))
    for parameter in kept[-1].parameters():
        if parameter.device == CPU:
            parameter.detach().view(-1)[:: 4096 // parameter.itemsize].sum()  # every page, as reading them would
    ready.wait(timeout=120)
    pipe.send((loaded[-1] - before, memory("Anonymous") - before, memory("Pss_File") - files))
    ready.wait(timeout=120)
    pipe.close()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_loading_to_a_device_takes_little_memory_of_the_host(large, tiny_models, device, dtype):
    """The meta device plays the GPU. float16 is another dtype than the file's: cast tensor by tensor."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    [(loading, end, _)] = _in_children(1, _load, large, tiny_models, device, {"dtype": getattr(torch, dtype)})
    assert loading < 0.1 * weights(large) and end < 0.1 * weights(large)


def test_eight_ranks_that_shard_a_model_have_one_and_a_half_copies_of_it(large, tiny_models):
    """Until FSDP2 puts the LLM on the devices, in float16 as it is asked for, all ranks have mapped one file."""
    found = _in_children(RANKS, _load, large, tiny_models, "meta", {"sharded": True})
    assert sum(own + shared for _, own, shared in found) < 1.5 * weights(large)
    assert sum(shared for _, _, shared in found) > 0.9 * weights(large)  # it is there: the pages were read
