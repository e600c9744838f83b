"""uint8 frames → what a vision tower takes: equal to the bit to the image processors of transformers (SPEC 2.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affectgpt.core.errors import CheckpointError
from affectgpt.encoders.base import read_preprocessor

_BICUBIC = 3  # PIL's number, which preprocessor_config.json uses
_CROP_AREA = (0.5, 1.0)  # of the frame, where training crops at random
_CROP_RATIO = (3 / 4, 4 / 3)  # width to height
_CROP_TRIES = 10


class PixelTransform:
    """uint8 RGB ``[T, H, W, 3]`` → float32 ``[T, 3, h, w]``: resize, centre crop, ``(x / 255 − mean) / std``.

    ``resize``: (height, width), or one number for the shorter edge; resizing is PIL's, on uint8. Rescaling and
    normalising is a table of the 256 values per channel, computed as the processors do (rescale in float64, normalise
    in float32).
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        resize: int | tuple[int, int] | None = None,
        resample: int = _BICUBIC,
        crop: tuple[int, int] | None = None,
        rescale_factor: float = 1 / 255,
    ) -> None:
        levels = (np.arange(256, dtype=np.float64) * rescale_factor).astype(np.float32)[:, None]
        self.table = (levels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)  # [256, 3]
        self.resize, self.resample, self.crop = resize, resample, crop

    def __call__(self, frames: np.ndarray) -> torch.Tensor:
        frames = self._crop(self._resize(frames))  # uint8 [T, h, w, 3]
        out = np.empty((frames.shape[0], 3, *frames.shape[1:3]), np.float32)
        for channel in range(3):
            np.take(self.table[:, channel], frames[..., channel], out=out[:, channel])
        return torch.from_numpy(out)  # [T, 3, h, w]

    def _resize(self, frames: np.ndarray) -> np.ndarray:
        height, width = frames.shape[1:3]
        size = self.resize
        if isinstance(size, int):  # the shorter edge; the longer one is truncated to int, as transformers does
            size = (int(size * height / width), size) if width <= height else (size, int(size * width / height))
        if size is None or size == (height, width):
            return frames
        from PIL import Image

        return np.stack([np.asarray(Image.fromarray(f).resize(size[::-1], resample=self.resample)) for f in frames])

    def _crop(self, frames: np.ndarray) -> np.ndarray:
        if self.crop is None:
            return frames
        (height, width), (h, w) = frames.shape[1:3], self.crop
        if h > height or w > width:
            raise ValueError(f"frames of {height}x{width} pixels are smaller than the centre crop {h}x{w}")
        top, left = (height - h) // 2, (width - w) // 2
        return frames[:, top : top + h, left : left + w]


class RandomCrop:
    """Training's augmentation for EVA-CLIP: one random crop for all frames, resized back (bicubic), then ``transform``.

    Half to all of the area, width to height 3/4 to 4/3. Draws from torch's generator, which the loader seeds in each
    worker.
    """

    def __init__(self, transform: PixelTransform) -> None:
        self.transform = transform

    def __call__(self, frames: np.ndarray) -> torch.Tensor:
        height, width = frames.shape[1:3]
        top, left, h, w = self._draw(height, width)
        cut = torch.from_numpy(np.ascontiguousarray(frames[:, top : top + h, left : left + w])).movedim(-1, 1).float()
        resized = torch.nn.functional.interpolate(cut, size=(height, width), mode="bicubic", align_corners=False)
        pixels = resized.round_().clamp_(0, 255).to(torch.uint8).movedim(1, -1)  # [T, H, W, 3]
        return self.transform(pixels.numpy())

    @staticmethod
    def _draw(height: int, width: int) -> tuple[int, int, int, int]:
        low, high = (math.log(r) for r in _CROP_RATIO)
        for _ in range(_CROP_TRIES):
            area_draw, ratio_draw, top_draw, left_draw = torch.rand(4).tolist()
            area = height * width * (_CROP_AREA[0] + (_CROP_AREA[1] - _CROP_AREA[0]) * area_draw)
            ratio = math.exp(low + (high - low) * ratio_draw)
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                return int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1)), h, w
        return 0, 0, height, width


def read_pixel_transform(folder: str | Path) -> PixelTransform:
    """The transform that a folder's preprocessor_config.json describes. Raises CheckpointError naming what is odd."""
    spec = read_preprocessor(folder)
    try:
        resize = _size(spec["size"]) if spec.get("do_resize", True) and spec.get("size") else None
        crop = None
        if spec.get("do_center_crop", False):
            crop = _size(spec["crop_size"])
            crop = (crop, crop) if isinstance(crop, int) else crop
        return PixelTransform(
            mean=spec["image_mean"],
            std=spec["image_std"],
            resize=resize,
            resample=int(spec.get("resample", _BICUBIC)),
            crop=crop,
            rescale_factor=float(spec.get("rescale_factor", 1 / 255)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/preprocessor_config.json: missing or odd key: {error}") from error


def _size(value: Any) -> int | tuple[int, int]:
    """224, ``{"shortest_edge": 224}`` → 224; ``{"height": h, "width": w}`` → (h, w)."""
    if isinstance(value, Mapping):
        return int(value["shortest_edge"]) if "shortest_edge" in value else (int(value["height"]), int(value["width"]))
    return int(value)
