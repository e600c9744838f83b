"""LoRA merged into files: what the files hold, and how much of it is in memory at once."""

from __future__ import annotations

import gc
import weakref

import pytest
import safetensors.torch
import torch
from tiny import folder_of

from affectgpt.encoders.llm import get_llm
from affectgpt.modeling import lora
from affectgpt.modeling.build import load_llm


@pytest.fixture
def llm(tiny_models):
    made = load_llm(folder_of(tiny_models, "Qwen25"), row=get_llm("Qwen25"), dtype=torch.float32, lora_r=4).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.1)
    return made


@pytest.mark.slow
def test_merged_files_hold_one_shard_in_memory_at_a_time(llm, tiny_models, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    ids = torch.arange(20)[None]
    expected = llm(ids).logits
    before = {name: tensor.clone() for name, tensor in llm.state_dict().items()}
    monkeypatch.setattr(lora, "_SHARD", 30_000)
    own = {tensor.data_ptr() for tensor in llm.state_dict().values()}
    merged: list[weakref.ref] = []
    save, most = safetensors.torch.save_file, []

    def watched(shard, *arguments, **options):
        merged.extend(weakref.ref(t) for t in shard.values() if t.data_ptr() not in own)
        gc.collect()
        most.append(sum(alive.nbytes for ref in merged if (alive := ref()) is not None))
        save(shard, *arguments, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", watched)
    folder = lora.write_merged(llm, llm_folder=folder_of(tiny_models, "Qwen25"), target=tmp_path / "merged")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == len(most) > 4 and (folder / "model.safetensors.index.json").is_file()
    largest = max(tensor.nbytes for tensor in before.values())
    assert 0 < max(most) < 30_000 + largest < sum(file.stat().st_size for file in files) / 3
    loaded = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in llm.state_dict().items())
    monkeypatch.undo()
    (file,) = lora.write_merged(llm, llm_folder=folder_of(tiny_models, "Qwen25"), target=tmp_path / "one").glob(
        "model*"
    )
    assert file.name == "model.safetensors"


def test_where_vllm_has_the_llm_its_weights_take_no_memory(llm):
    """LoRA and the embedding matrix stay as they are, also a matrix that is the output's as well."""
    embedding = llm.get_input_embeddings().weight
    values = {name: t.clone() for name, t in lora.lora_state(llm).items()}
    lora.drop_base_weights(llm)
    assert llm.get_input_embeddings().weight is embedding and not embedding.is_meta
    assert {name for name, p in llm.named_parameters() if not p.is_meta} == {
        "model.embed_tokens.weight", *(name.removeprefix(lora.PUBLISHED) for name in values),
    }  # fmt: skip
    assert all(torch.equal(tensor, values[name]) for name, tensor in lora.lora_state(llm).items())
    llm.lm_head.weight = embedding
    lora.drop_base_weights(llm)
    assert not llm.lm_head.weight.is_meta
