"""A sample's media → what encoders take: the one place where readers and transforms meet."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from affectgpt.core.crops import AS_PUBLISHED, PUBLISHED, Crops, file_crops, in_order
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.runtime import logger
from affectgpt.core.seeds import seeded
from affectgpt.core.types import CLIP_SAMPLES, IMAGE_SIZE, N_FRAMES, SOUND_SUFFIXES, Modality, Sample
from affectgpt.media.audio import NO_AUDIO_TRACK, cut_clips, read_wave, wave_flags
from affectgpt.media.guard import Decoder
from affectgpt.media.video import read_faces, read_image, sample_faces

if TYPE_CHECKING:
    import numpy as np
    import torch

_BLOCK = 4096  # bytes


def media_file(sample: Sample, modality: Modality) -> Path | None:
    """The file that one medium of a sample is read from; sound comes from the video where there is no sound file, an
    image where there is no image file."""
    if modality is Modality.AUDIO:
        has_wav = sample.audio is not None and (sample.video is None or sample.audio.is_file())
        return sample.audio if has_wav else sample.video
    if modality is Modality.IMAGE:
        return sample.image or sample.video
    return {Modality.FACE: sample.face, Modality.FRAME: sample.video}.get(modality)


class Source(NamedTuple):
    """The file that a feature was computed from: its bytes, its time (ns), a checksum of parts of its content."""

    bytes: int
    mtime: int | None = None
    parts: int | None = None


def media_source(sample: Sample, modality: Modality) -> Source | None:
    """The file that a sample's medium is read from; None where it is not there."""
    path = media_file(sample, modality)
    try:
        if path is None:
            return None
        status = path.stat()
        return Source(status.st_size, status.st_mtime_ns, content_checksum(path, status.st_size))
    except OSError:
        return None


def content_checksum(path: Path, size: int) -> int:
    """A checksum of 16 blocks of 4 KB all over a file: enough to tell a file that was made again from a copy."""
    checksum = 0
    with path.open("rb") as handle:
        for number in range(16):
            handle.seek(max(size - _BLOCK, 0) * number // 15)
            checksum = zlib.crc32(handle.read(_BLOCK), checksum)
    return checksum


_told: set[Crops] = set()


def tell_conversion(samples: Sequence[Sample], *, wanted: str) -> None:
    """Log, once for every folder, that the crops in it are converted to the ``wanted`` channel order on reading."""
    for crops in {id(sample.crops): sample.crops for sample in samples}.values():
        if crops.channels != wanted and crops.folder is not None and crops not in _told:
            _told.add(crops)
            logger.info(
                "%s: face crops are stored as %s and converted on reading, model.face_channels is %s",
                crops.folder, crops.channels, wanted,
            )  # fmt: skip


def read_sound(
    sample: Sample, decoder: Decoder, *, channels: bool = False
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """A sample's whole sound, mono at 16 kHz, float32 ``[n]``, and flags; None where its video has no sound track.
    ``channels``: see ``read_wave``.

    Raises DataError naming the file, also where the sound file is missing though the video has sound.
    """
    path = sample.audio or sample.video
    if path is None:
        raise DataError("neither a sound file nor a video is known")
    if not path.is_file() and sample.video is not None and sample.video.is_file():
        if decoder.probe(sample.video).audio_tracks:
            raise DataError(f"{path}: no such file, though {sample.video} has sound; extract it: affectgpt preprocess")
        path = sample.video
    samples = read_wave(path, channels=channels) if path.suffix.lower() in SOUND_SUFFIXES else decoder.track(path)
    return samples, (NO_AUDIO_TRACK,) if samples is None else wave_flags(path)


class MediaReader:
    """Reads one medium of a sample and applies the encoder's transform.

    Face crops are converted to ``face_channels`` where they are stored otherwise (``Sample.crops``); frames are RGB.
    Gives a tensor (face, frame ``[8, 3, 224, 224]``, audio ``[8, 32000]``, image ``[3, 224, 224]``) and flags.
    """

    def __init__(
        self,
        transforms: Mapping[Modality, Callable[[np.ndarray], torch.Tensor]],
        *,
        n_frames: int = N_FRAMES,
        image_size: int = IMAGE_SIZE,
        audio_clip_spacing: int = 8,
        face_channels: str = PUBLISHED,
        decoder: Decoder | None = None,
    ) -> None:
        self.transforms = transforms
        self.n_frames = n_frames
        self.image_size = image_size
        self.audio_clip_spacing = audio_clip_spacing
        self.face_channels = face_channels
        self.decoder = decoder or Decoder()

    def __call__(self, sample: Sample, modality: Modality) -> tuple[torch.Tensor, tuple[str, ...]]:
        """Read one medium. Raises DataError naming data set, sample, medium and file."""
        if modality not in self.transforms:
            raise ConfigError(f"no transform for {modality.value} was handed in")
        try:
            if modality is Modality.AUDIO:
                clips, flags = self._clips(sample)
                return self.transforms[modality](clips), flags
            path = media_file(sample, modality)
            if path is None:
                raise DataError(f"no {modality.value} file is known")
            if modality is Modality.IMAGE:
                return self.transforms[modality](self._image(sample, path)[None])[0], ()
            read = read_faces if modality is Modality.FACE else self.decoder.frames
            pictures = read(path, n_frames=self.n_frames, size=self.image_size)
            if modality is Modality.FACE:
                pictures = in_order(pictures, stored=sample.crops.channels, wanted=self.face_channels)
            return self.transforms[modality](pictures), ()
        except DataError as error:
            raise DataError(f"{sample.dataset}: sample {sample.name!r}, {modality.value}: {error}") from error

    def value(self, modality: Modality, value: Any) -> torch.Tensor:
        """One medium that is given as a file or as an array: face, frame uint8 RGB ``[N, H, W, 3]``, of which some are
        taken uniformly; audio float32 mono at 16 kHz ``[n]``, image uint8 RGB ``[H, W, 3]``. Raises DataError.
        """
        import numpy as np

        if isinstance(value, str | os.PathLike):
            path = Path(value)
            kinds = {Modality.FACE: "face", Modality.FRAME: "video", Modality.IMAGE: "image"}
            kind = kinds.get(modality) or ("audio" if path.suffix.lower() in SOUND_SUFFIXES else "video")
            crops = file_crops(path, claimed=None, claimed_by="") if modality is Modality.FACE else AS_PUBLISHED
            given: dict[str, Any] = {kind: path}
            return self(Sample(name=path.stem, dataset="file", crops=crops, **given), modality)[0]
        array = np.asarray(value)
        shape = {Modality.AUDIO: 1, Modality.IMAGE: 3}.get(modality, 4)
        kind_of = np.floating if modality is Modality.AUDIO else np.uint8
        if array.ndim != shape or not array.size or not np.issubdtype(array.dtype, kind_of):
            wanted = "float32 [n] at 16 kHz" if modality is Modality.AUDIO else f"uint8 RGB of {shape} dimensions"
            raise DataError(f"{modality.value}: expected {wanted}; found {array.dtype} {list(array.shape)}")
        if modality is Modality.AUDIO:
            if not np.isfinite(array).all():
                raise DataError("audio: the samples are not all finite numbers")
            return self.transforms[modality](cut_clips(array.astype(np.float32), spacing=self.audio_clip_spacing))
        try:
            pictures = sample_faces(
                array[None] if modality is Modality.IMAGE else array,
                n_frames=1 if modality is Modality.IMAGE else self.n_frames,
                size=self.image_size,
            )
        except ValueError as error:
            raise DataError(f"{modality.value}: {error}") from None
        if modality is Modality.FACE:
            pictures = in_order(pictures, stored="rgb", wanted=self.face_channels)
        made = self.transforms[modality](pictures)
        return made[0] if modality is Modality.IMAGE else made

    def _image(self, sample: Sample, path: Path) -> np.ndarray:
        """Uint8 ``[size, size, 3]``: the image file, or a frame of the video drawn by data set and name."""
        if sample.image is not None:
            return read_image(path, size=self.image_size)
        at = seeded("image", sample.dataset, sample.name).random()
        return self.decoder.frames(path, n_frames=1, size=self.image_size, at=at)[0]

    def _clips(self, sample: Sample) -> tuple[np.ndarray, tuple[str, ...]]:
        """Float32 ``[8, 32000]`` of a sound file or a video's track; zeros only where there is no sound to be read."""
        import numpy as np

        samples, flags = read_sound(sample, self.decoder, channels=True)
        if samples is None:
            return np.zeros((N_FRAMES, CLIP_SAMPLES), dtype=np.float32), flags
        return cut_clips(samples, spacing=self.audio_clip_spacing), flags
