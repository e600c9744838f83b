"""CLIP's vision tower with its projection, and the pixels that every vision tower takes.

uint8 frames → pixels, equal to the bit to the image processors of transformers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from affectgpt.config.paths import Weights
from affectgpt.core.errors import CheckpointError
from affectgpt.encoders.base import (
    CPU,
    VISUAL_ENCODERS,
    FrozenEncoder,
    Transform,
    files_read,
    load_pretrained,
    read_config,
    read_preprocessor,
)

_BICUBIC = 3  # PIL's number, which preprocessor_config.json uses
_CROP_AREA = (0.5, 1.0)  # of the frame, where training crops at random
_CROP_RATIO = (3 / 4, 4 / 3)  # width to height
_CROP_TRIES = 10


class PixelTransform:
    """uint8 RGB ``[T, H, W, 3]`` → uint8 ``[T, 3, h, w]``: resize and centre crop, in the loader's workers.

    ``resize``: (height, width), or one number for the shorter edge; resizing is PIL's, on uint8. What follows,
    ``PixelNormalizer``, is arithmetic on each value, done by the encoder on its device: a quarter of the bytes travel.
    """

    def __init__(
        self,
        *,
        resize: int | tuple[int, int] | None = None,
        resample: int = _BICUBIC,
        crop: tuple[int, int] | None = None,
    ) -> None:
        self.resize, self.resample, self.crop = resize, resample, crop

    def __call__(self, frames: np.ndarray) -> torch.Tensor:
        frames = self._crop(self._resize(frames))  # uint8 [T, h, w, 3]
        return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))  # [T, 3, h, w]

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

    def __init__(self, transform: Transform) -> None:
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


class PixelNormalizer:
    """uint8 ``[…, 3, h, w]`` → float32 of the same shape, ``(x · scale − mean) / std``, on the pixels' device.

    Equal to the bit to the image processors of transformers: rescaled in float64, normalised in float32. Floating-point
    pixels are taken as normalised already.
    """

    def __init__(self, *, mean: Sequence[float], std: Sequence[float], scale: float = 1 / 255) -> None:
        self.scale = scale
        self.mean, self.std = ([float(x) for x in values] for values in (mean, std))
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError(f"image_mean and image_std need three numbers each; found {self.mean} and {self.std}")
        self._on_device: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}  # copied once: a copy waits

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.is_floating_point():
            return pixels
        if pixels.device not in self._on_device:
            mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (self.mean, self.std))
            self._on_device[pixels.device] = mean.to(pixels.device), std.to(pixels.device)
        mean, std = self._on_device[pixels.device]
        return pixels.double().mul_(self.scale).float().sub_(mean).div_(std)


def read_pixel_transform(source: str | Path | Mapping[str, Any]) -> PixelTransform:
    """The transform that a folder's preprocessor_config.json (or its content) describes.

    Raises CheckpointError naming what is missing or wrong.
    """
    with _odd_keys(source) as spec:
        resize = _size(spec["size"]) if spec.get("do_resize", True) and spec.get("size") else None
        crop = None
        if spec.get("do_center_crop", False):
            size = _size(spec["crop_size"])
            crop = (size, size) if isinstance(size, int) else size
        return PixelTransform(resize=resize, resample=int(spec.get("resample", _BICUBIC)), crop=crop)


def read_pixel_normalizer(source: str | Path | Mapping[str, Any]) -> PixelNormalizer:
    """Return what follows that transform, of the same file. Raises CheckpointError naming what is missing or wrong."""
    with _odd_keys(source) as spec:
        scale = float(spec.get("rescale_factor", 1 / 255))
        return PixelNormalizer(mean=spec["image_mean"], std=spec["image_std"], scale=scale)


class PixelEncoder(FrozenEncoder):
    """A visual encoder that takes RGB pixels: uint8 as ``transform_of`` makes them, or normalised float ones."""

    kind = "visual"
    normalizer: PixelNormalizer | None = None

    def use_preprocessor(self, source: str | Path | Mapping[str, Any]) -> None:
        self.normalizer = read_pixel_normalizer(source)

    @staticmethod
    def transform_of(source: str | Path | Mapping[str, Any], *, training: bool = False) -> Transform:
        read_pixel_normalizer(source)  # what the encoder will need is found to be wrong here, before weights are loaded
        return read_pixel_transform(source)

    def pixels(self, pixels: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
        """uint8 or normalised ``[B, T, 3, h, w]`` → normalised ``[B·T, 3, h, w]`` of ``dtype``."""
        if self.normalizer is not None:
            pixels = self.normalizer(pixels)
        elif not pixels.is_floating_point():
            raise CheckpointError(
                f"{type(self).__name__} was made without a preprocessor_config.json: it cannot normalise uint8 pixels"
            )
        return pixels.flatten(0, 1).to(dtype)


@contextmanager
def _odd_keys(source: str | Path | Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    spec = read_preprocessor(source)
    try:
        yield spec
    except (KeyError, TypeError, ValueError) as error:
        where = "preprocessor_config.json" if isinstance(source, Mapping) else f"{source}/preprocessor_config.json"
        raise CheckpointError(f"{where}: missing or odd key: {error}") from error


def _size(value: Any) -> int | tuple[int, int]:
    """224, ``{"shortest_edge": 224}`` → 224; ``{"height": h, "width": w}`` → (h, w)."""
    if isinstance(value, Mapping):
        return int(value["shortest_edge"]) if "shortest_edge" in value else (int(value["height"]), int(value["width"]))
    return int(value)


@VISUAL_ENCODERS.register("CLIP_VIT_LARGE")
class ClipEncoder(PixelEncoder):
    """Projected image embedding of each frame, not normalised to unit length."""

    weights = Weights("clip-vit-large-patch14", "https://huggingface.co/openai/clip-vit-large-patch14")
    architecture: ClassVar = {
        "model_type": "clip",
        "projection_dim": 768,
        "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                          "num_attention_heads": 16, "patch_size": 14, "image_size": 224},
    }  # fmt: skip

    vision_model: Any
    visual_projection: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        self.visual_projection = model.visual_projection
        self.width = model.config.projection_dim
        self.freeze()

    @classmethod
    def from_folder(cls, folder: str | Path, *, dtype: torch.dtype, device: torch.device = CPU) -> ClipEncoder:
        from transformers import CLIPVisionModelWithProjection

        config = _of_tower(read_config(folder))  # the text tower is not read
        encoder = cls(load_pretrained(CLIPVisionModelWithProjection, folder, dtype=dtype, device=device, config=config))
        encoder.use_preprocessor(folder)
        return encoder

    @classmethod
    def files(cls, folder: str | Path) -> list[Path]:
        return files_read(folder)

    @classmethod
    def from_config(cls, config: Any) -> ClipEncoder:
        from transformers import CLIPVisionModelWithProjection

        return cls(CLIPVisionModelWithProjection(_of_tower(config)))

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 or normalised ``[B, T, 3, H, W]`` → Z_v ``[B, T, width]``."""
        B, T = pixels.shape[:2]
        pixels = self.pixels(pixels, dtype=self.visual_projection.weight.dtype)  # [B·T, 3, H, W]
        pooled = self.vision_model(pixel_values=pixels).pooler_output  # [B·T, hidden]
        return self.visual_projection(pooled).unflatten(0, (B, T))  # [B, T, width]


def _of_tower(config: Any) -> Any:
    """The vision tower's configuration, with the width of the projection, which CLIP keeps beside both towers."""
    tower = copy.deepcopy(config.vision_config)
    tower.projection_dim = config.projection_dim
    return tower
