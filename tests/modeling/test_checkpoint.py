"""Checkpoint files: round trips, what fits and what does not, damaged ones; export and back."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config

from affectgpt.cli import export
from affectgpt.cli.common import run_cli
from affectgpt.config.schema import to_dict
from affectgpt.core.errors import CheckpointError
from affectgpt.modeling.build import build_empty_model, build_model, load_checkpoint
from affectgpt.modeling.checkpoint import read_checkpoint, trained_state, write_checkpoint

QFORMER = {"video_fusion_type": "qformer", "audio_fusion_type": "qformer", "multi_fusion_type": "qformer"}


@pytest.fixture(scope="module")
def saved(make, tiny_models, tmp_path_factory):
    """Recipe → (model, checkpoint file)."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def get(**keys):
        model, _ = make(**keys)
        path = folder / f"{'-'.join(map(str, keys.values())) or 'released'}.pth"
        if not path.is_file():
            config = to_dict(tiny_config(tiny_models, name="taught", **keys))
            write_checkpoint(path, {"model": trained_state(model), "config": config, "epoch": 3})
        return model, path

    return get


def fresh(tiny_models, prepared, **keys):
    torch.manual_seed(9)
    config = tiny_config(tiny_models, **keys)
    return build_model(config, device=torch.device("cpu"), tokenizer=prepared.tokenizer).eval()


@pytest.mark.parametrize("keys", [{}, QFORMER], ids=["attention", "qformer"])
def test_round_trip(saved, make, tiny_models, batch_for, keys):
    model, path = saved(**keys)
    _, prepared = make(**keys)
    other = fresh(tiny_models, prepared, **keys)
    report = load_checkpoint(other, path, complete=True)
    assert report.complete and not report.unexpected
    assert list(report.loaded) == list(trained_state(model))
    batch = batch_for(prepared, [4, 7])
    with torch.no_grad():
        assert torch.equal(other(**batch).loss, model(**batch).loss)
    content = read_checkpoint(path)
    assert list(content) == ["model", "optimizer", "config", "scaler", "epoch"]
    assert content["epoch"] == 3 and content["config"]["model"]["lora_r"] == 4


def test_flat_safetensors(saved, make, tiny_models, tmp_path):
    model, _ = saved()
    save_file({n: t.contiguous() for n, t in trained_state(model).items()}, tmp_path / "flat.safetensors")
    other = fresh(tiny_models, make()[1])
    report = load_checkpoint(other, tmp_path / "flat.safetensors")
    assert report.complete
    assert all(torch.equal(t, trained_state(model)[n]) for n, t in trained_state(other).items())


def test_a_qformer_file_without_its_buffer_is_complete(saved, make, tiny_models, tmp_path):
    _, path = saved(**QFORMER)
    content = read_checkpoint(path)
    content["model"] = {n: t for n, t in content["model"].items() if not n.endswith("position_ids")}
    torch.save(content, tmp_path / "c.pth")
    assert load_checkpoint(fresh(tiny_models, make(**QFORMER)[1], **QFORMER), tmp_path / "c.pth").complete


def test_another_recipe_says_which_keys_differ_and_who_made_it(saved, make, tiny_models):
    _, path = saved(**QFORMER)
    other = fresh(tiny_models, make()[1])
    report = load_checkpoint(other, path)  # non-strict: LoRA and projections of equal shape are taken
    assert "video_attention_mlp.weight" in report.missing
    assert any(name.startswith("video_Qformer.") for name in report.unexpected)
    assert any(line.startswith("affectgpt_proj.weight: file (64, 56), model (64, 48)") for line in report.wrong_shape)
    assert "configuration 'taught'" in str(report)
    assert "model.video_fusion_type: qformer there, attention here" in str(report)
    with pytest.raises(CheckpointError, match=r"made by another recipe.*model.multi_fusion_type: qformer there"):
        load_checkpoint(fresh(tiny_models, make()[1]), path, complete=True)


def test_another_width(saved, make, tiny_models):
    _, path = saved()
    model, prepared = make(visual_encoder="DINO2_LARGE", lora_r=8)
    before = {n: t.clone() for n, t in trained_state(model).items()}
    report = load_checkpoint(fresh(tiny_models, prepared, visual_encoder="DINO2_LARGE", lora_r=8), path)
    assert "model.visual_encoder: CLIP_VIT_LARGE there, DINO2_LARGE here" in str(report)
    assert "model.lora_r: 4 there, 8 here" in str(report)
    assert len(report.wrong_shape) > 10 and before


def test_nothing_fits(make, tmp_path):
    model, _ = make()
    torch.save({"model": {"other.weight": torch.zeros(2)}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: not one trained tensor fits"):
        load_checkpoint(model, tmp_path / "x.pth")


class Evil:
    def __reduce__(self):
        return (print, ("this must never be run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state": {}}, "expected a dict with the key 'model'; found the keys state"),
        ([1, 2], "expected a dict with the key 'model'"),
        ({"model": {"a": "text"}}, "'a' is none"),
        ({"model": {"a": Evil()}}, "damaged or no checkpoint"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, content, message, capsys):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "c.pth")
    assert "never be run" not in capsys.readouterr().out


def test_damaged_and_missing_files(saved, tmp_path):
    _, path = saved()
    whole = path.read_bytes()
    for name, data in (("half.pth", whole[: len(whole) // 2]), ("empty.pth", b""), ("text.safetensors", b"hello")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            read_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"has no connectors\.safetensors"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("keys", [{}, QFORMER], ids=["attention", "qformer"])
def test_export_and_back(saved, make, tiny_models, tmp_path, batch_for, keys):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, path = saved(**keys)
    _, prepared = make(**keys)
    assert export.main(["--checkpoint", str(path), "--out", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["adapter", "connectors.safetensors"]
    connectors = load_file(tmp_path / "out" / "connectors.safetensors")
    assert set(connectors) == {n for n in trained_state(model) if not n.startswith("llama_model.")}

    # peft and transformers alone
    llm = AutoModelForCausalLM.from_pretrained(tiny_models / "Qwen2.5-7B-Instruct")
    adapted = PeftModel.from_pretrained(llm, tmp_path / "out" / "adapter").eval()
    ids = torch.tensor([[3, 14, 15, 92, 65]])
    with torch.no_grad():
        assert torch.allclose(adapted(input_ids=ids).logits, model.llm(input_ids=ids).logits, atol=1e-5)
    adapter = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (4, 32)
    assert adapter["base_model_name_or_path"].endswith("Qwen2.5-7B-Instruct")

    # the folder itself is a checkpoint, and a .pth can be made of it again
    other = fresh(tiny_models, prepared, **keys)
    assert load_checkpoint(other, tmp_path / "out", complete=True)
    assert export.main(["--checkpoint", str(tmp_path / "out"), "--out", str(tmp_path / "back.pth")]) == 0
    again, first = (torch.load(p, weights_only=True) for p in (tmp_path / "back.pth", path))
    assert list(again) == list(first)
    assert list(again["model"]) == list(first["model"])
    assert all(
        torch.equal(again["model"][n], t) and again["model"][n].dtype == t.dtype for n, t in first["model"].items()
    )
    assert again["epoch"] == 3
    assert json.dumps(again["config"]) == json.dumps(first["config"])


def test_merged(saved, make, tiny_models, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, path = saved()
    out = tmp_path / "merged"
    assert run_cli(export.main, ["--checkpoint", str(path), "--out", str(out), "--merge"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(out / "llm").eval()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    ids = torch.tensor([[3, 14, 15, 92, 65]])
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, model.llm(input_ids=ids).logits, atol=1e-4)
    assert AutoTokenizer.from_pretrained(out / "llm").convert_tokens_to_ids("<|im_end|>") is not None
    assert merged.generation_config.top_k == 20
    capsys.readouterr()
    assert run_cli(export.main, ["--checkpoint", str(out), "--out", str(tmp_path / "b.pth")]) == 1
    assert "cannot be taken out again" in capsys.readouterr().err
    assert run_cli(export.main, ["--checkpoint", str(path), "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_merging_into_another_llm_is_refused(saved, tiny_models, tmp_path, capsys):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    _, path = saved()
    Qwen2ForCausalLM(
        Qwen2Config(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=2, vocab_size=100)
    ).save_pretrained(tmp_path / "llm")  # fmt: skip
    arguments = ["--checkpoint", str(path), "--out", str(tmp_path / "o"), "--merge", "--llm", str(tmp_path / "llm")]
    assert run_cli(export.main, arguments) == 1
    assert "does not fit the LLM" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["llm"]  # nothing half-written


def test_names_shapes_and_order_do_not_need_weights(tiny_models, make):
    model, _ = make(**QFORMER)
    empty = build_empty_model(tiny_config(tiny_models, **QFORMER))
    assert [(n, t.shape) for n, t in trained_state(empty).items()] == [
        (n, t.shape) for n, t in trained_state(model).items()
    ]


def _replaced(content, name, tensor):
    return {**content, "model": {**content["model"], name: tensor}}


BROKEN = {  # what becomes of one tensor → what the error says
    "NaN": (lambda t: t.clone().fill_(float("nan")), "holds NaN or infinity"),
    "one infinity": (lambda t: t.clone().index_fill_(0, torch.tensor([0]), float("-inf")), "holds NaN or infinity"),
    "int8": (lambda t: t.to(torch.int8), r"holds torch\.int8, expected torch\.float32"),
    "bool": (lambda t: t.bool(), r"holds torch\.bool"),
    "complex": (lambda t: t.to(torch.complex64), r"holds torch\.complex64"),
    "sparse": (lambda t: t.to_sparse(), "expected a dense one"),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), r"holds torch\.float8"),
}


@pytest.mark.parametrize(("broken", "message"), BROKEN.values(), ids=BROKEN)
def test_values_that_are_no_weights_are_refused_by_name(saved, make, tiny_models, tmp_path, broken, message):
    _, path = saved()
    content = read_checkpoint(path)
    name = "affectgpt_proj.weight"
    torch.save(_replaced(content, name, broken(content["model"][name])), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=rf"c\.pth: {name} .*{message}|c\.pth: {name} .*{message}"):
        load_checkpoint(fresh(tiny_models, make()[1]), tmp_path / "c.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off_and_logged(saved, make, tiny_models, tmp_path, caplog, prefix):
    model, path = saved()
    content = read_checkpoint(path)
    names = [name.replace("llama_model.", f"llama_model.{prefix}") for name in content["model"]]
    wrapped = dict(zip((prefix + name for name in names), content["model"].values(), strict=True))
    torch.save({**content, "model": wrapped}, tmp_path / "c.pth")
    other = fresh(tiny_models, make()[1])
    with caplog.at_level("INFO", logger="affectgpt"):
        assert load_checkpoint(other, tmp_path / "c.pth").complete
    assert all(torch.equal(t, trained_state(model)[n]) for n, t in trained_state(other).items())
    assert f"taken off the names of {len(names)} tensors" in caplog.text


def test_no_flipped_bit_gives_other_content(saved, tmp_path):
    """Each of 60 mutations is refused, or reads as what was written."""
    _, path = saved()
    whole, data = read_checkpoint(path), path.read_bytes()
    draw = random.Random(3)
    refused = 0
    for number in range(60):
        at = draw.randrange(len(data))
        if number % 3 == 2:
            damaged = data[:at]  # cut short
        else:
            damaged = data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
        (tmp_path / "c.pth").write_bytes(damaged)
        try:
            content = read_checkpoint(tmp_path / "c.pth")
        except CheckpointError as error:
            assert "c.pth" in str(error)
            refused += 1
            continue
        assert content["model"].keys() == whole["model"].keys() and content["config"] == whole["config"]
        assert all(torch.equal(content["model"][name], tensor) for name, tensor in whole["model"].items())
    assert refused >= 50
