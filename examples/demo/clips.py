"""One synthetic clip: what it shall show (a plan), and the files it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.core.files import atomic_path
from affectgpt.core.types import SAMPLE_RATE
from examples.demo import faces, language, speech

if TYPE_CHECKING:
    import numpy as np

FPS = 12
N_CROPS = 8  # face crops kept per clip: all frames of all clips would be hundreds of megabytes
CHANNELS = ("both", "face", "voice")  # where the emotion shows
TEXTS = ("plain", "plain", "plain", "carries", "conflicts")  # what the sentence does; plain counts three times


@dataclass(frozen=True)
class Person:
    """Who is seen and heard. Drawn from a number that knows nothing of emotions."""

    look: faces.Identity
    voice: speech.Voice


@dataclass(frozen=True)
class ClipPlan:
    """Everything that decides a clip. ``face``, ``voice`` and ``text`` are the emotions that each of them shows."""

    name: str
    emotion: str
    face: str
    voice: str
    text: str
    intensity: float
    open_words: tuple[str, ...]
    english: str
    chinese: str
    person: Person
    seed: tuple[int, ...]

    @property
    def description(self) -> str:
        return language.describe(emotion_words=self.open_words, face=self.face, voice=self.voice, text=self.text)

    @property
    def valence(self) -> float:
        """Sentiment in [-1, 1], a multiple of 0.2 as in SIMS."""
        sign = {"happy": 1, "sad": -1, "angry": -1, "worried": -1, "surprise": 1, "neutral": 0}[self.emotion]
        step = 0.2 if self.emotion == "surprise" else round(min(self.intensity, 1.0) * 5) / 5
        return round(sign * step, 1)


def draw_person(*, seed: int, number: int, held_out: bool) -> Person:
    """The person with this number; held-out persons look different and speak with timbres of their own."""
    import numpy as np

    rng = np.random.default_rng([seed, 77, int(held_out), number])
    timbres = speech.HELDOUT_TIMBRES if held_out else speech.TRAIN_TIMBRES
    return Person(look=faces.draw_identity(rng), voice=speech.draw_voice(rng, timbres))


def plan_clip(*, name: str, emotion: str, channel: str, text: str, person: Person, seed: tuple[int, ...]) -> ClipPlan:
    """Fill in a plan. channel: see CHANNELS; text: see TEXTS."""
    import numpy as np

    rng = np.random.default_rng([*seed, 1])
    if text == "carries":
        text_emotion = emotion
    elif text == "conflicts":
        others = [e for e in language.FELT if e != emotion]
        text_emotion = others[int(rng.integers(len(others)))]
    else:
        text_emotion = "neutral"
    intensity = float(rng.uniform(0.65, 1.1))
    english, chinese = language.draw_sentence(rng, text_emotion)
    return ClipPlan(
        name=name,
        emotion=emotion,
        face=emotion if channel in ("both", "face") else "neutral",
        voice=emotion if channel in ("both", "voice") else "neutral",
        text=text_emotion,
        intensity=intensity,
        open_words=language.draw_open_words(rng, emotion, intensity),
        english=english,
        chinese=chinese,
        person=person,
        seed=seed,
    )


def render_speech(plan: ClipPlan) -> np.ndarray:
    """The clip's sound, float32 ``[samples]`` at 16 kHz."""
    import numpy as np

    rng = np.random.default_rng([*plan.seed, 2])
    manner = speech.MANNERS["neutral"].between(speech.MANNERS[plan.voice], plan.intensity)
    return speech.speak(text=plan.english, voice=plan.person.voice, manner=manner, rng=rng)


def render_frames(plan: ClipPlan, wave: np.ndarray, *, only: list[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Frames ``[T, 256, 256, 3]`` and the face crops of the same frames ``[T, 112, 112, 3]``, uint8 RGB.

    ``only``: indices of the frames wanted; all of them when None.
    """
    import numpy as np

    rng = np.random.default_rng([*plan.seed, 3])
    count = max(int(len(wave) / SAMPLE_RATE * FPS), 1)
    background = faces.draw_background(rng)
    mouth = speech.mouth_opening(wave, frames=count, fps=FPS)
    t = np.arange(count) / FPS
    x0, y0, roll0 = rng.uniform(0.44, 0.56), rng.uniform(0.43, 0.48), rng.normal(0, 3)
    phase = rng.uniform(0, 2 * np.pi, 3)
    blink_at = rng.uniform(0.3, 3.5, 2)
    expression = faces.EXPRESSIONS[plan.face].scaled(plan.intensity)
    onset = np.clip(0.75 + t / 2, 0, 1) * (1 + 0.06 * np.sin(2.1 * t + phase[2]))  # grows a little, never frozen
    frames, crops = [], []
    for i in range(count) if only is None else only:
        pose = faces.Pose(
            x=x0 + 0.012 * np.sin(1.7 * t[i] + phase[0]),
            y=y0 + 0.008 * np.sin(2.3 * t[i] + phase[1]),
            roll=roll0 + 2.5 * np.sin(1.3 * t[i] + phase[2]),
            blink=float(max(np.exp(-(((t[i] - b) / 0.07) ** 2)) for b in blink_at)),
        )
        shown = expression.scaled(float(onset[i]))
        shown = faces.Expression(**{**vars(shown), "open": shown.open + 0.4 * float(mouth[i])})
        frames.append(faces.draw_frame(background, plan.person.look, shown, pose))
        crops.append(faces.crop_face(frames[-1], plan.person.look, pose))
    return np.stack(frames), np.stack(crops)


def write_video(path: Path, frames: np.ndarray, wave: np.ndarray) -> None:
    """H.264 and AAC in an mp4, atomically. frames: uint8 ``[T, H, W, 3]`` RGB at FPS; wave: float32 at 16 kHz."""
    import av
    import numpy as np

    with atomic_path(path) as temporary, av.open(str(temporary), "w") as box:
        picture = box.add_stream("libx264", rate=FPS)
        picture.height, picture.width = frames.shape[1:3]
        picture.pix_fmt = "yuv420p"
        picture.options = {"preset": "ultrafast", "crf": "21"}
        picture.thread_count = 1  # two processes make clips at a time
        sound = box.add_stream("aac", rate=SAMPLE_RATE)
        sound.layout = "mono"
        for image in frames:
            box.mux(picture.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        box.mux(picture.encode())
        audio = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        audio.sample_rate = SAMPLE_RATE
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE, frame_size=sound.frame_size)
        for piece in [*resampler.resample(audio), *resampler.resample(None)]:
            box.mux(sound.encode(piece))
        box.mux(sound.encode())


def make_clip(plan: ClipPlan, *, video: Path, audio: Path, face: Path) -> None:
    """Write the files of one clip; nothing when all are there. Each file is whole or absent, the video comes last."""
    import numpy as np
    import soundfile

    if video.is_file() and audio.is_file() and face.is_file():
        return
    wave = render_speech(plan)
    with atomic_path(audio) as temporary:
        soundfile.write(temporary, wave, SAMPLE_RATE, subtype="PCM_16")
    frames, crops = render_frames(plan, wave)
    keep = np.linspace(0, len(crops) - 1, N_CROPS).round().astype(int)
    with atomic_path(face) as temporary:
        np.save(temporary, crops[keep])
    write_video(video, frames, wave)
