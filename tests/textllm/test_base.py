"""Sampling, messages, seeds and the registry of clients."""

from __future__ import annotations

import subprocess
import sys

import pytest

from affectgpt.core.errors import CheckpointError, ConfigError, DataError
from affectgpt.textllm.base import CLIENTS, Sampling, TextLLMError, check_folder, folder_identity, open_client, seed_for
from affectgpt.textllm.messages import text_only, user_message


def test_the_defaults_are_those_of_label_extraction():
    assert Sampling() == Sampling(temperature=0.7, top_p=0.8, repetition_penalty=1.05, max_tokens=512, seed=42)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"repetition_penalty": 0}, {"max_tokens": 0}],
)
def test_sampling_out_of_bounds(wrong):
    with pytest.raises(TextLLMError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_seeds_depend_on_conversation_and_seed_alone():
    one, two = [user_message("one")], [user_message("two")]
    seeds = {seed_for(one, 1), seed_for(one, 2), seed_for(two, 1)}
    assert len(seeds) == 3 and all(0 <= seed < 2**31 for seed in seeds)
    assert seed_for(tuple(one), 1) == seed_for(one, 1)
    assert seed_for(one, 42) == 417406414  # a change would silently change every seeded result


def test_three_clients_are_registered_and_nothing_heavy_is_imported():
    code = (
        "import sys; from affectgpt.textllm.base import CLIENTS; from affectgpt.evaluation import extract;"
        "print(CLIENTS.names(), sorted({'torch', 'transformers', 'vllm', 'openai', 'pandas'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "['openai', 'transformers', 'vllm'] []"
    assert set(CLIENTS.names()) >= {"openai", "transformers", "vllm"}


def test_an_unknown_client_gets_a_hint():
    with pytest.raises(ConfigError, match="transformers"):
        open_client("transfomers", model="x")


def test_media_are_read_with_care(tmp_path):
    with pytest.raises(DataError, match=r"none\.png.*cannot be read"):
        user_message("x", images=[tmp_path / "none.png"])
    with pytest.raises(DataError, match=r"notes\.txt"):
        user_message("x", images=[tmp_path / "notes.txt"])
    with pytest.raises(DataError, match="wav"):
        user_message("x", audio=tmp_path / "notes.txt")


def test_a_text_client_refuses_media(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    talk = [[user_message("fine")], [user_message("x", images=[tmp_path / "a.png"])]]
    with pytest.raises(TextLLMError, match=r"conversation 1.*image_url"):
        text_only(talk, client="transformers")


def test_model_folders(tmp_path):
    folder = tmp_path / "Some-Model"
    with pytest.raises(CheckpointError, match="no such model folder"):
        check_folder(folder)
    assert folder_identity(folder) == {"model": "Some-Model", "model_sha256": None}
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        check_folder(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="model_type"):
        check_folder(folder)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(CheckpointError, match="no weights"):
        check_folder(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        check_folder(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert check_folder(folder) == folder
    first = folder_identity(folder)["model_sha256"]
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    assert folder_identity(folder)["model_sha256"] not in (first, None)
