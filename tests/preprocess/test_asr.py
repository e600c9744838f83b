"""Speech to text by a Whisper folder of either format.

With AFFECTGPT_WHISPER=FOLDER[:FOLDER…] real ones are tried on synthesised English (pytest -m weights).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from tiny_whisper import make_tiny_whisper
from transformers import WhisperForConditionalGeneration

from affectgpt.core.errors import ConfigError
from affectgpt.preprocess.asr import Transcriber

SENTENCES = ("I don't know where my sister went yesterday.", "Please open the window, it is very warm in this room.")
FOLDERS = [folder for folder in os.environ.get("AFFECTGPT_WHISPER", "").split(os.pathsep) if folder]


@pytest.fixture(scope="module")
def random_whisper(tmp_path_factory):
    return make_tiny_whisper(tmp_path_factory.mktemp("whisper"))


def test_a_folder_of_hugging_face_needs_no_other_package(random_whisper, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faster_whisper", None)
    transcribe = Transcriber(random_whisper, device="cpu")
    wave = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "a.wav", wave, 16_000)
    text = transcribe(tmp_path / "a.wav")
    assert text and text == transcribe(tmp_path / "a.wav")


def test_silence_says_nothing(random_whisper, tmp_path):
    from examples.demo.clips import write_video

    transcribe = Transcriber(random_whisper, device="cpu")
    soundfile.write(tmp_path / "a.wav", np.zeros(32_000, np.float32), 16_000)
    assert transcribe(tmp_path / "a.wav") == ""
    write_video(tmp_path / "a.mp4", np.zeros((10, 64, 64, 3), np.uint8), np.zeros(16_000, np.float32))
    assert transcribe(tmp_path / "a.mp4") == ""


def test_the_command_hears_clips_without_a_subtitle_file(random_whisper, tmp_path):
    import csv

    from drawn_clip import picture

    from affectgpt.cli.preprocess import main
    from examples.demo.clips import write_video

    wave = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1
    (tmp_path / "videos").mkdir()
    for name in ("heard", "written"):
        write_video(tmp_path / "videos" / f"{name}.mp4", np.stack([picture()] * 10), wave)
    (tmp_path / "videos" / "written.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nSo it is.\n")
    arguments = ["--video-dir", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), "--frames", "1"]
    assert main([*arguments, "--asr", str(random_whisper)]) == 0
    with (tmp_path / "out" / "subtitle.csv").open(newline="", encoding="utf-8") as file:
        subtitles = dict(csv.reader(file))
    assert subtitles["written"] == "So it is." and subtitles["heard"]
    with pytest.raises(ConfigError, match="--asr-language goes with --asr"):
        main([*arguments, "--asr-language", "en"])


def test_what_is_no_folder_of_either_format(random_whisper, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="gone: no such folder"):
        Transcriber(tmp_path / "gone")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="no Whisper folder"):
        Transcriber(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Transcriber(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "faster_whisper", None)
    with pytest.raises(ConfigError, match=r"needs faster-whisper: pip install 'affectgpt\[asr\]'"):
        Transcriber(tmp_path)
    with pytest.raises(ConfigError, match="knows English only, the language asked for is zh"):
        Transcriber(random_whisper, language="zh")


@pytest.fixture
def multilingual(random_whisper, tmp_path, monkeypatch):
    """The same model, which says that it knows English and Chinese."""
    folder = shutil.copytree(random_whisper, tmp_path / "multilingual")
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text())
    settings.pop("_from_model_config", None)
    settings |= {"is_multilingual": True, "lang_to_id": {"<|en|>": 5, "<|zh|>": 6}}
    settings["task_to_id"] = {"transcribe": 7, "translate": 8}
    path.write_text(json.dumps(settings))
    monkeypatch.setattr("affectgpt.preprocess.asr._MULTILINGUAL", 10)
    return folder


def test_a_language_that_the_model_does_not_know_is_refused_when_it_is_loaded(multilingual, tmp_path):
    with pytest.raises(ConfigError, match=r"--asr-language chinesse: not a language of .* Did you mean 'chinese'"):
        Transcriber(multilingual, language="chinesse")
    with pytest.raises(ConfigError, match=r"--asr-language fr: not a language of .* Known: chinese, en, english, zh"):
        Transcriber(multilingual, language="fr")
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    for known in ("zh", "EN", "chinese"):
        assert Transcriber(multilingual, device="cpu", language=known)(tmp_path / "a.wav") is not None


def test_the_language_reaches_the_model_from_the_command_for_single_clips(multilingual, tmp_path, monkeypatch, capsys):
    from affectgpt.cli import sample
    from affectgpt.inference.predictor import Predictor, Reply

    heard = []
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)

    class Listening:
        """Stands in for the model: hears, and answers nothing."""

        def __init__(self, recognise):
            self.recognise = recognise

        def use(self, _checkpoint):
            pass

        def __call__(self, _video, *, audio, **_):
            heard.append(self.recognise(tmp_path / audio))
            return Reply("", [], "")

    monkeypatch.setattr(Predictor, "from_config", classmethod(lambda cls, *_, recognise, **__: Listening(recognise)))
    monkeypatch.setattr("affectgpt.config.paths.select_checkpoints", lambda config: [SimpleNamespace(path=tmp_path)])
    config = tmp_path / "a.yaml"
    config.write_text("model: {}\nrun: {device: cpu}\n")
    generate, languages = WhisperForConditionalGeneration.generate, []

    def noted(self, *args, **options):
        languages.append(options.get("language"))
        return generate(self, *args, **options)

    monkeypatch.setattr(WhisperForConditionalGeneration, "generate", noted)
    arguments = [f"--cfg-path={config}", "--outside_face_or_frame=audio_text", "--audio_path", str(tmp_path / "a.wav")]
    assert sample.main([*arguments, "--asr", str(multilingual), "--asr-language", "zh"]) == 0
    assert languages == ["zh"] and len(heard) == 1
    with pytest.raises(ConfigError, match="--asr-language fr: not a language"):
        sample.main([*arguments, "--asr", str(multilingual), "--asr-language", "fr"])
    with pytest.raises(ConfigError, match="--asr-language goes with --asr FOLDER"):
        sample.main([*arguments, "--asr-language", "zh"])


def word_errors(heard: str, said: str) -> int:
    """Edit distance in words, without case and punctuation."""
    a, b = (re.findall(r"[a-z']+", text.lower()) for text in (heard, said))
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


@pytest.mark.weights
@pytest.mark.parametrize("folder", FOLDERS or [None])
def test_spoken_english_becomes_subtitles(folder, tmp_path):
    """From clips to subtitle.csv by the command itself."""
    if folder is None:
        pytest.skip("AFFECTGPT_WHISPER names no Whisper folder")
    import csv

    from affectgpt.cli.preprocess import main
    from examples.demo.clips import write_video
    from examples.demo.faces import EXPRESSIONS, Pose, draw_background, draw_frame, draw_identity
    from examples.demo.speech import Manner, Voice, speak

    (tmp_path / "videos").mkdir()
    for i, sentence in enumerate(SENTENCES):
        voice, rng = Voice("en-us", "m3", 50, 1.0), np.random.default_rng(1)
        pose = Pose(x=0.5, y=0.45, roll=0.0)
        face = draw_frame(draw_background(rng), draw_identity(rng), EXPRESSIONS["happy"], pose)
        wave = speak(text=sentence, voice=voice, manner=Manner(), rng=rng, longest=8)
        write_video(tmp_path / "videos" / f"{i}.mp4", np.stack([face] * int(len(wave) / 1600)), wave)
    out = tmp_path / "out"
    assert main(["--video-dir", str(tmp_path / "videos"), "--out", str(out), "--frames", "4", "--asr", folder]) == 0
    with (out / "subtitle.csv").open(newline="", encoding="utf-8") as file:
        heard = dict(csv.reader(file))
    errors = sum(word_errors(heard[str(i)], sentence) for i, sentence in enumerate(SENTENCES))
    assert errors <= 2, heard
