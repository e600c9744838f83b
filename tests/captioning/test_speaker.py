"""Who speaks: score files, and the built-in estimate on drawn mouths and sounds."""

from __future__ import annotations

import numpy as np
import pytest
from small_annotation import write_table

from affectgpt.captioning.describe import Clip
from affectgpt.captioning.speaker import judge_speakers, mouth_sound_correlation
from affectgpt.config.captioning import SpeakerConfig
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.types import Sample


def clips(*names: str) -> list[Clip]:
    return [Clip(Sample(name=name, dataset="x")) for name in names]


def talking(rng, seconds: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Loudness of syllables, 30 a second, and sound of that loudness at 16 kHz."""
    steps = int(30 * seconds)
    loud = np.convolve(rng.random(steps) ** 3, np.ones(4) / 4, mode="same")
    return loud, np.repeat(loud, 16_000 // 30) * rng.normal(0, 0.3, steps * (16_000 // 30))


def mouth(loud: np.ndarray, rng, *, turn: float = 0.0) -> np.ndarray:
    """Face crops ``[N, 64, 64, 3]`` whose dark mouth opens with ``loud``; the light changes by ``turn``."""
    crops = np.full((len(loud), 64, 64, 3), 180.0) + rng.normal(0, 4, (len(loud), 64, 64, 1))
    for crop, opening in zip(crops, loud / loud.max(), strict=True):
        height = 1 + int(10 * opening)
        crop[50 - height // 2 : 50 + height // 2 + 1, 24:40] = 40
    crops += turn * np.linspace(-1, 1, len(loud))[:, None, None, None]
    return crops.clip(0, 255).astype(np.uint8)


def test_own_voices_correlate_and_others_do_not():
    rng = np.random.default_rng(0)
    own, other = [], []
    for _ in range(20):
        loud, wave = talking(rng)
        crops = mouth(loud, rng, turn=10)
        own.append(mouth_sound_correlation(crops, wave))
        other.append(mouth_sound_correlation(crops, talking(rng)[1]))
    assert min(own) > max(other)
    assert np.mean(own) > 0.8 and np.mean(other) < 0.4


def test_a_still_face_and_silence_give_nothing():
    rng = np.random.default_rng(0)
    loud, wave = talking(rng)
    still = np.repeat(mouth(loud, rng)[:1], len(loud), axis=0)
    assert mouth_sound_correlation(still, wave) == 0
    assert mouth_sound_correlation(mouth(loud, rng), np.zeros_like(wave)) == 0


def test_frames_of_a_score_file_are_averaged(tmp_path):
    path = write_table(tmp_path / "s.csv", ("clip", "frame", "asd"), [("a", 0, 2), ("a", 1, -1), ("b", 0, -3)])
    spec = SpeakerConfig(source="csv", file=str(path), name_column="clip", score_column="asd")
    found = judge_speakers(clips("a", "b", "c"), spec, folder=tmp_path)
    assert found is not None and found.scores == {"a": 0.5, "b": -3.0}
    assert set(found.dropped) == {"b"} and "below 0" in found.dropped["b"]
    assert "no row" in found.unscored["c"]
    strict = SpeakerConfig(**{**vars(spec), "missing": "drop"})
    assert set(judge_speakers(clips("a", "b", "c"), strict, folder=tmp_path).dropped) == {"b", "c"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "x")], "line 2: score of 'a' is 'x'"),
        ([("a", "nan")], "expected a number"),
        ([("z", "1")], "a score for none of the 1 clips"),
    ],
)
def test_a_wrong_score_file_is_told_with_its_place(tmp_path, rows, message):
    path = write_table(tmp_path / "s.csv", ("name", "score"), rows)
    with pytest.raises(DataError, match=message):
        judge_speakers(clips("a"), SpeakerConfig(source="csv", file=str(path)), folder=tmp_path)
    with pytest.raises(DataError, match="no column 'scroe'"):
        judge_speakers(clips("a"), SpeakerConfig(source="csv", file=str(path), score_column="scroe"), folder=tmp_path)
    with pytest.raises(ConfigError, match=r"captioning\.speaker\.file"):
        judge_speakers(clips("a"), SpeakerConfig(source="csv"), folder=tmp_path)


def test_estimates_of_files_are_kept_and_gaps_told(tmp_path):
    import soundfile

    rng = np.random.default_rng(0)
    loud, wave = talking(rng)
    paths = {}
    for name, crops in (("good", mouth(loud, rng)), ("few", mouth(loud, rng)[:5])):
        face, audio = tmp_path / f"{name}.npy", tmp_path / f"{name}.wav"
        np.save(face, crops)
        soundfile.write(audio, wave, 16_000)
        paths[name] = (face, audio)
    wanted = [Clip(Sample(name=n, dataset="x", face=f, audio=a)) for n, (f, a) in paths.items()]
    wanted.append(Clip(Sample(name="gone", dataset="x", face=tmp_path / "gone.npy", audio=tmp_path / "gone.wav")))
    found = judge_speakers(wanted, SpeakerConfig(), folder=tmp_path)
    assert found.scores["good"] > 0.8 and not found.dropped
    assert "5 face crops" in found.unscored["few"] and "no such file" in found.unscored["gone"]
    np.save(paths["good"][0], mouth(loud, rng)[::-1])  # as many bytes: taken for the same, the score is kept
    assert judge_speakers(wanted, SpeakerConfig(), folder=tmp_path).scores == found.scores
    np.save(paths["good"][0], mouth(loud, rng)[:60])  # another file of this name
    assert judge_speakers(wanted, SpeakerConfig(), folder=tmp_path).scores["good"] != found.scores["good"]


def test_off_is_off(tmp_path):
    assert judge_speakers(clips("a"), SpeakerConfig(source="off"), folder=tmp_path) is None
