"""Prompts: the published ones word for word, files, and what is left out where there is no subtitle."""

from __future__ import annotations

import pytest

from affectgpt.core.errors import ConfigError
from affectgpt.mllm.prompts import PROMPTS, default_run, find_prompt, parse_media

VIDEO = (
    "As an expert in the field of emotions, please focus on the facial expressions, body movements, environment, "
    "subtitle content, etc., in the video to discern clues related to the emotions of the individual. Please provide a "
    "detailed description and ultimately predict the emotional state of the individual in the video."
)
WITH = {
    "otter": f"Subtitle content of this video: Hi {{x}}; {VIDEO}",
    "videochat": f"Subtitle content of the video: Hi {{x}}; {VIDEO} ",
    "videochat2": f"Subtitle content of the video: Hi {{x}} {VIDEO} ",
    "chat-univi": "Subtitle content of this video: Hi {x}; As an expert in the field of emotions, please focus on the "
    "facial expressions, body movements, environment, subtitle content, etc., in the video and recognize all possible "
    "emotional states of the individual.",
    "qwen-audio": "Subtitle content of the audio: Hi {x}; As an expert in the field of emotions, please focus on the "
    "acoustic information and subtitle content in the audio to discern clues related to the emotions of the "
    "individual. Please provide a detailed description and ultimately predict the emotional state of the individual in "
    "the audio.",
    "salmonn": "Subtitle content of the video: Hi {x} Please predict the emotional state of the individual in the "
    "audio. ",
}  # fmt: skip


@pytest.mark.parametrize("name", WITH)
def test_published_prompts(name):
    assert find_prompt(f"published:{name.upper()}").text("Hi {x}") == WITH[name]


def test_the_subtitle_is_last_for_one_of_them():
    prompt = find_prompt("published:video-chatgpt")
    assert prompt.text("Hi").endswith("individual in the video. Subtitle content of the video: Hi ")
    assert prompt.text().endswith("individual in the video.")


@pytest.mark.parametrize("name", PROMPTS.names())
def test_without_a_subtitle_its_sentence_is_left_out(name):
    prompt = PROMPTS.get(name)
    assert "Subtitle content" not in prompt.text("  ") and prompt.text("").startswith(("As an expert", "Please"))
    assert parse_media(None, prompt) == prompt.media and "subtitle" in prompt.media
    assert prompt.answer("one.\ntwo\tthree\n") == "one.twothree"


def test_files(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Heard: {subtitle}\nWhat is felt?\n")
    prompt = find_prompt(str(path))
    assert prompt.text("Hi") == "Heard: Hi\nWhat is felt?" and prompt.text() == "What is felt?"
    assert prompt.answer(" one\r\n\r\ntwo ") == "one two"
    assert parse_media("subtitle,video", prompt) == ("video", "subtitle")
    path.write_text("{subtitle}")
    with pytest.raises(ConfigError, match="nothing is asked"):
        find_prompt(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"mine\.txt: cannot be read"):
        find_prompt(str(path))
    path.write_text("x" * 70_000)
    with pytest.raises(ConfigError, match="more than 65,536 bytes"):
        find_prompt(str(path))
    path.write_text("What is felt?")
    assert parse_media(None, find_prompt(str(path))) == ("video", "audio")
    with pytest.raises(ConfigError, match="no place"):
        parse_media("audio,subtitle", find_prompt(str(path)))


def test_run_names_are_folder_names():
    prompt = find_prompt("labels")
    assert default_run("Qwen/Qwen2.5-Omni-7B", prompt, ("video", "audio")) == "Qwen2.5-Omni-7B_labels_video+audio"
    assert default_run("../..", prompt, ("audio",)) == "_labels_audio"
    assert len(default_run("é" * 300, prompt, ("audio",)).encode()) <= 160
