"""The speaker's face through a clip: detected, kept to one person, aligned by eyes, nose and mouth.

Stands in for OpenFace's aligned crops: uint8 ``[n, 112, 112, 3]``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.core.errors import DataError
from affectgpt.data.guard import Decoder
from affectgpt.preprocess.detect import Face, FaceDetector

if TYPE_CHECKING:
    import numpy as np

CROP_SIZE = 112  # pixels
DEFAULT_FRAMES = 32
_LONGEST_SIDE = 1280  # larger frames are scaled down before detection
# Where the landmarks of a frontal face lie in a 112x112 crop (the usual template of aligned face sets).
_TEMPLATE = ((38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20))
_SAME_PERSON = 0.25  # intersection over union of boxes in frames that follow each other
_CHUNK = 16  # frames decoded at once


@dataclass
class _Track:
    """One person: faces by frame number."""

    faces: dict[int, Face] = field(default_factory=dict)

    @property
    def weight(self) -> float:
        """How much of the clip's picture this person is: the sum over frames of confidence times box side."""
        return sum(f.confidence * float((f.box[2:] - f.box[:2]).mean()) for f in self.faces.values())


def face_crops(
    video: Path | str,
    *,
    n_frames: int = DEFAULT_FRAMES,
    size: int = CROP_SIZE,
    detector: FaceDetector | None = None,
    decoder: Decoder | None = None,
) -> np.ndarray:
    """Aligned crops of the most prominent person in ``n_frames`` uniformly spaced frames (0: in every frame).

    Returns uint8 ``[n, size, size, 3]`` RGB in time order, n at most the number of frames looked at: frames in which
    that person is not found give no crop. Raises DataError naming the clip when it cannot be decoded or has no face.
    """
    import numpy as np

    detector = detector or FaceDetector()
    tracks: list[_Track] = []
    crops: dict[tuple[int, int], np.ndarray] = {}
    looked_at = 0
    for number, image in _frames(video, n_frames, decoder or Decoder()):
        looked_at += 1
        for track, face in _assign(tracks, detector(image), number):
            crops[id(track), number] = align(image, face.landmarks, size=size)
    if not tracks:
        raise DataError(f"{video}: no face found in {looked_at} frames")
    best = max(tracks, key=lambda track: track.weight)
    return np.stack([crops[id(best), number] for number in sorted(best.faces)])


def align(image: np.ndarray, landmarks: np.ndarray, *, size: int = CROP_SIZE) -> np.ndarray:
    """Turn, scale and shift uint8 ``[H, W, 3]`` so that ``landmarks [5, 2]`` meet the template: ``[size, size, 3]``."""
    import cv2
    import numpy as np

    matrix = similarity(landmarks, np.array(_TEMPLATE) * size / CROP_SIZE)
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The turn, scale and shift ``[2, 3]`` that takes points ``[n, 2]`` nearest to others (Umeyama 1991)."""
    import numpy as np

    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    centred = source - source_mean
    u, strengths, vt = np.linalg.svd((target - target_mean).T @ centred / len(source))
    mirror = np.array([1.0, np.sign(np.linalg.det(u @ vt)) or 1.0])  # a turn, never a mirror image
    turn = (u * mirror) @ vt
    scale = (strengths * mirror).sum() / max(centred.var(axis=0).sum(), 1e-12)
    return np.concatenate([scale * turn, (target_mean - scale * turn @ source_mean)[:, None]], axis=1)


def _frames(video: Path | str, n_frames: int, decoder: Decoder):
    """Frame number and uint8 ``[H, W, 3]`` of the frames to look at, a chunk decoded at a time."""
    at = 0
    while True:
        images, total = decoder.native_frames(
            video, n_frames=n_frames, start=at, count=_CHUNK, longest_side=_LONGEST_SIDE
        )
        yield from enumerate(images, start=at)
        at += len(images)
        if at >= total or not len(images):
            return


def _assign(tracks: list[_Track], faces: list[Face], number: int) -> list[tuple[_Track, Face]]:
    """Add each face to the track whose latest box it covers best, or to a new one."""
    pairs = sorted(
        (
            (_overlap(track.faces[max(track.faces)].box, face.box), t, f)
            for t, track in enumerate(tracks)
            for f, face in enumerate(faces)
        ),
        reverse=True,
    )
    taken_tracks: set[int] = set()
    owner: dict[int, _Track] = {}
    for overlap, t, f in pairs:
        if overlap >= _SAME_PERSON and t not in taken_tracks and f not in owner:
            taken_tracks.add(t)
            owner[f] = tracks[t]
    result = []
    for f, face in enumerate(faces):
        track = owner.get(f)
        if track is None:
            track = _Track()
            tracks.append(track)
        track.faces[number] = face
        result.append((track, face))
    return result


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes ``[4]``."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return float(both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both))
