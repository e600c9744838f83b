"""What stored features depend on: the key that a feature store is of, and where it is kept."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from affectgpt.config.schema import Config, ProcessorSpec
from affectgpt.core.crops import AS_PUBLISHED, Crops
from affectgpt.core.errors import DataError
from affectgpt.core.provenance import REVISIONS, file_hash
from affectgpt.core.types import Modality, Sample
from affectgpt.media.video import video_reader

Key = dict[str, Any]
CROPS = "crops"  # in a key: how the faces are stored
_RESIZED_BY = {Modality.FACE: ("cv2",), Modality.IMAGE: ("PIL",)}
WEIGHTS = "weights_sha256"  # in a key
_ALL = (".safetensors", ".bin", ".pth", ".pt", ".json")
_folders: dict[str, Path] = {}  # hash of what is read of a folder → that folder


def feature_key(
    config: Config,
    modality: Modality,
    *,
    device_type: str,
    processor: ProcessorSpec | None = None,
    crops: Crops = AS_PUBLISHED,
    samples: Iterable[Sample] = (),
) -> Key:
    """Everything that an encoder's output depends on: encoder, weights, preprocessing, versions, arithmetic.

    ``processor``: number and size of frames, those of training where not given; ``crops``: how the faces are stored;
    ``samples``: whose images may be frames of videos. Raises CheckpointError when the encoder's folder is missing.
    """
    import numpy as np
    import torch

    from affectgpt.encoders.base import encoder_class, encoder_folder

    is_audio = modality is Modality.AUDIO
    encoder = config.model.acoustic_encoder if is_audio else config.model.visual_encoder
    key = f"{'acoustic' if is_audio else 'visual'}_encoder"
    folder = encoder_folder(config, key)
    spec = processor or config.model.vis_processor.train
    preprocessing: Key = (
        {"audio_clip_spacing": config.model.audio_clip_spacing}
        if is_audio
        else {"n_frames": spec.n_frms, "image_size": spec.image_size}
    )
    is_frame = modality is Modality.IMAGE and any(sample.image is None for sample in samples)
    if modality is Modality.FRAME or is_frame:
        preprocessing["video_reader"] = video_reader()
    if modality is Modality.FACE:
        preprocessing["face_channels"] = config.model.face_channels
    revision = REVISIONS.get(encoder)
    return {
        "encoder": encoder,
        **({} if revision is None else {"encoder_revision": revision}),
        WEIGHTS: weights_hash(folder, files=[folder] if folder.is_file() else encoder_class(config, key).files(folder)),
        "modality": modality.value,
        "preprocessing": preprocessing,
        **({CROPS: {"channels": crops.channels, "framing": crops.framing}} if modality is Modality.FACE else {}),
        "compute_dtype": "float32" if device_type == "cpu" else config.model.encoder_dtype,
        "versions": {
            "torch": torch.__version__.split("+")[0],
            "transformers": importlib.metadata.version("transformers"),
            "numpy": np.__version__,
            **{module: importlib.import_module(module).__version__ for module in _RESIZED_BY.get(modality, ())},
        },
    }


def crops_of(samples: Sequence[Sample], modality: Modality = Modality.FACE) -> Crops:
    """How the face crops of one data set's samples are stored."""
    return samples[0].crops if samples and modality is Modality.FACE else AS_PUBLISHED


def without_crops(key: Key) -> Key:
    """A key without how the crops are stored: features of one encoder are alike, however the faces were stored."""
    return {name: value for name, value in key.items() if name != CROPS}


def weights_hash(folder: Path, *, files: Sequence[Path]) -> str:
    """SHA-256 over those files of a model folder that are read, by name and content; of each file once per process."""
    digest = _digest(files)
    if folder.is_dir():
        _folders[digest] = folder
    return digest


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + bytes.fromhex(file_hash(path)))
    return digest.hexdigest()


def _is_of_whole_folder(found: Any, wanted: Any) -> bool:
    """Whether a stored hash is of the folder that ``wanted`` is of: earlier versions hashed copies in other formats,
    too. Those files are read for this alone."""
    folder = _folders.get(wanted)
    if folder is None or not isinstance(found, str):
        return False
    return found == _digest(sorted(path for path in folder.iterdir() if path.suffix in _ALL))


def store_folder(root: Path | str, *, dataset: str, split: str, modality: Modality, encoder: str) -> Path:
    """Where the features of one data set, split, medium and encoder are."""
    return Path(root) / dataset.lower() / split / f"{modality.value}-{encoder}"


def differing(found: Mapping[str, Any], expected: Mapping[str, Any], where: str = "") -> str | None:
    """The first entry in which two keys differ, in words; None when they are equal."""
    for name in dict.fromkeys([*expected, *found]):
        a, b = found.get(name), expected.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            inner = differing(a, b, f"{where}{name}.")
            if inner is not None:
                return inner
        elif a != b and not (name == WEIGHTS and _is_of_whole_folder(a, b)):
            return f"{where}{name} is {a!r}, this run has {b!r}"
    return None


def features_policy(config: Config, dataset: str) -> str:
    """``features`` as a data set's block says, or as all blocks of the configuration do; ``auto`` where they differ."""
    for key, spec in config.datasets.items():
        if key.lower() == dataset.lower():
            return spec.features
    policies = {spec.features for spec in config.datasets.values()}
    return policies.pop() if len(policies) == 1 else "auto"


def device_type(config: Config) -> str:
    """``cpu`` or ``cuda``: where the configuration's encoders compute."""
    import torch

    if config.run.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.run.device.split(":")[0]


def refuse_unknown_order(folder: Path, found: Key) -> None:
    """Stores of earlier versions took face crops as they lay, and do not say which channel order that was."""
    if CROPS not in found:
        raise DataError(
            f"{folder}: these features of faces were stored by an earlier version and do not say which channel order "
            "the crops had; remove the folder and run affectgpt extract_features"
        )
