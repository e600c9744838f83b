"""Drawn faces and synthetic voices: what carries the emotion, and what does not."""

from __future__ import annotations

import numpy as np
import pytest

from examples.demo import faces, speech
from examples.demo.language import EMOTIONS

POSE = faces.Pose(x=0.5, y=0.46, roll=0.0)


@pytest.fixture(scope="module")
def who():
    return faces.draw_identity(np.random.default_rng(1))


@pytest.fixture(scope="module")
def background():
    return faces.draw_background(np.random.default_rng(2))


def test_expressions_differ_in_the_face_and_nowhere_else(who, background):
    frames = {e: faces.draw_frame(background, who, faces.EXPRESSIONS[e], POSE).astype(int) for e in EMOTIONS}
    rows, columns = np.mgrid[: faces.SIZE, : faces.SIZE] / faces.SIZE
    outside = np.hypot((columns - POSE.x) / who.head_w, (rows - POSE.y) / who.head_h) > 1.2
    for emotion in EMOTIONS[:-1]:
        changed = np.abs(frames[emotion] - frames["neutral"]).sum(axis=2) > 0
        assert changed.sum() > 200, emotion
        assert not changed[outside].any(), emotion


def test_the_mouth_opens(who, background):
    shut, wide = (
        faces.draw_frame(background, who, faces.Expression(open=value), POSE).astype(int) for value in (0.0, 0.9)
    )
    changed = np.argwhere(np.abs(shut - wide).sum(axis=2) > 0)
    assert len(changed) > 50
    assert changed[:, 0].min() / faces.SIZE > POSE.y + 0.05  # below the nose


def test_a_crop_follows_the_head(who, background):
    """Moved and rolled heads give nearly the same crop: the box is known from the drawing."""
    plain = np.full_like(background, 128)
    crops = []
    for pose in (POSE, faces.Pose(x=0.54, y=0.44, roll=6.0)):
        frame = faces.draw_frame(plain, who, faces.EXPRESSIONS["happy"], pose)
        crops.append(faces.crop_face(frame, who, pose).astype(int))
    assert crops[0].shape == (faces.CROP, faces.CROP, 3)
    centre = slice(25, 95)
    assert np.abs(crops[0] - crops[1])[centre, centre].mean() < 12


def say(emotion: str, *, voice=None, seed: int = 0) -> np.ndarray:
    voice = voice or speech.Voice("en-us", "m3", 45, 1.0)
    rng = np.random.default_rng(seed)
    return speech.speak(text="My brother moved the chairs.", voice=voice, manner=speech.MANNERS[emotion], rng=rng)


def loudness(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(wave**2)))


def pitch(wave: np.ndarray) -> float:
    """Median pitch in Hz of voiced frames, by autocorrelation."""
    found = []
    for start in range(0, len(wave) - 800, 400):
        frame = wave[start : start + 800] - wave[start : start + 800].mean()
        if np.sqrt(np.mean(frame**2)) < 0.5 * loudness(wave):
            continue
        correlation = np.correlate(frame, frame, "full")[799:]
        lag = 40 + int(np.argmax(correlation[40:250]))  # 64 to 400 Hz
        if correlation[lag] > 0.4 * correlation[0]:
            found.append(16_000 / lag)
    return float(np.median(found))


def test_pitch_loudness_and_rate_carry_the_emotion():
    waves = {emotion: say(emotion) for emotion in EMOTIONS}
    assert loudness(waves["angry"]) > 2 * loudness(waves["neutral"]) > 2 * loudness(waves["sad"])
    assert pitch(waves["surprise"]) > 1.25 * pitch(waves["neutral"]) > 1.25 * pitch(waves["sad"])
    spoken = {e: np.ptp(np.flatnonzero(np.abs(w) > 0.15 * np.abs(w).max())) for e, w in waves.items()}
    assert spoken["sad"] > 1.2 * spoken["happy"]


@pytest.mark.parametrize("timbre", [*speech.TRAIN_TIMBRES, *speech.HELDOUT_TIMBRES])
def test_every_voice_speaks(timbre):
    wave = say("neutral", voice=speech.Voice("en", timbre, 45, 1.0))
    assert wave.dtype == np.float32 and 32_000 <= len(wave) <= 64_000
    assert 0.02 < loudness(wave) < 0.3 and np.abs(wave).max() <= 1


@pytest.mark.parametrize("timbre", [*speech.TRAIN_TIMBRES, *speech.HELDOUT_TIMBRES])
def test_speech_does_not_depend_on_what_was_said_before(timbre):
    voice = speech.Voice("en-us", timbre, 45, 1.0)
    first = say("sad", voice=voice)
    say("happy", seed=5)
    assert np.array_equal(say("sad", voice=voice), first)


def test_mouth_follows_the_sound():
    wave = np.zeros(32_000, np.float32)
    wave[8_000:16_000] = 0.3
    opening = speech.mouth_opening(wave, frames=24, fps=12)
    assert opening.shape == (24,) and opening[:5].max() < 0.05 and opening[7:11].min() > 0.95
