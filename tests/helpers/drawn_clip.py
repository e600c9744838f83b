"""A raw video clip as a user has it: a drawn person (or an empty wall) for a second, with a tone."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def picture(*, seed: int = 1, face: bool = True) -> np.ndarray:
    """A person, or a wall alone: uint8 ``[256, 256, 3]``."""
    from examples.demo.faces import EXPRESSIONS, Pose, draw_background, draw_frame, draw_identity

    rng = np.random.default_rng(seed)
    wall = draw_background(rng)
    return draw_frame(wall, draw_identity(rng), EXPRESSIONS["happy"], Pose(x=0.5, y=0.45, roll=0.0)) if face else wall


def write_clip(path: Path, *, seed: int = 1, face: bool = True, sound: bool = True, people: int = 1) -> Path:
    """256 by 256 pixels for each of ``people`` side by side, five frames, 44.1 kHz stereo."""
    import av

    image = np.concatenate([picture(seed=seed + i, face=face) for i in range(people)], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=5)
        video.height, video.width = image.shape[:2]
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=44100, layout="stereo") if sound else None
        for _ in range(5):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        if audio is not None:
            wave = (9000 * np.sin(np.arange(44100) / 20)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(np.repeat(wave, 2)[None], format="s16", layout="stereo")
            frame.rate = 44100
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path
