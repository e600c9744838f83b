"""The feature store: outputs of frozen encoders, computed once, read from memory maps.

``ROOT/<data set>/<split>/<modality>-<encoder>/`` holds ``key.json`` (what the features depend on) and, per writing
process, ``shard-NNNN.bin`` (records of one shape and dtype) with ``shard-NNNN.jsonl``, a journal: name → number of its
``record``, ``flags``, ``crc32``, and of which file it was computed (``bytes``, ``mtime``, ``parts``); or ``failed``:
why it has no record. Both files only grow: a killed writer loses at most the record it was writing.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from affectgpt.config.schema import Config, ProcessorSpec
from affectgpt.core.crops import AS_PUBLISHED, Crops
from affectgpt.core.errors import DataError
from affectgpt.core.files import locked, parse_json, write_json
from affectgpt.core.journal import Journal
from affectgpt.core.provenance import REVISIONS, file_hash
from affectgpt.core.runtime import logger
from affectgpt.core.types import Modality, Sample
from affectgpt.media.audio import wave_flags
from affectgpt.media.reader import Source, content_checksum, media_file
from affectgpt.media.video import video_reader
from affectgpt.processing.modes import get_mode

if TYPE_CHECKING:
    import numpy as np
    import torch


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
    """Return whether a stored hash is of the folder that ``wanted`` is of: earlier versions hashed copies in other
    formats, too. Those files are read for this alone."""
    folder = _folders.get(wanted)
    if folder is None or not isinstance(found, str):
        return False
    return found == _digest(sorted(path for path in folder.iterdir() if path.suffix in _ALL))


def store_folder(root: Path | str, *, dataset: str, split: str, modality: Modality, encoder: str) -> Path:
    """Folder of the features of one data set, split, medium and encoder."""
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


_INDEX = "features"  # key of the journal: what the features depend on is in key.json
LOST = None  # an entry whose record is not there any more: its sample is encoded again


def indices(folder: Path) -> list[Path]:
    """The indices of a folder's shards."""
    return sorted(folder.glob("shard-*.jsonl"))


def read_index(path: Path) -> dict[str, dict[str, Any]]:
    """Name → entry of a shard's index, in this or the earlier form; what a kill left of the last line is not one.

    Raises DataError naming the file.
    """
    try:
        is_journal = Journal.peek_key(path) is not None
        found = Journal.read(path, key=_INDEX, strict=True) if is_journal else _earlier_index(path)
        for name, entry in found.items():
            if entry is not LOST:
                _check_entry(name, entry)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); remove the shard and compute it again") from error
    return {name: entry for name, entry in found.items() if entry is not LOST}


def _check_entry(name: Any, entry: Any) -> None:
    if "failed" in entry:
        is_whole = isinstance(entry["failed"], str)
    else:
        is_whole = isinstance(entry["flags"], list) and isinstance(entry["record"], int) and entry["record"] >= 0
    numbers = isinstance(entry.get("bytes"), int | None) and isinstance(entry.get("crc32"), int | None)
    if not (is_whole and numbers and isinstance(name, str)):
        raise ValueError(f"the entry of {name!r}")


def _earlier_index(path: Path) -> dict[str, dict[str, Any]]:
    """An index as earlier versions wrote it, an object per line; its records are in the order of its lines."""
    entries: dict[str, dict[str, Any]] = {}
    record = 0
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            entry = parse_json(line)
            name = entry.pop("name")
            if "failed" not in entry:
                entry["record"] = record
                record += 1
            _check_entry(name, entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"line {number}") from None
        if "failed" not in entry or name not in entries:  # as it was read: a record counts more than a failure
            entries[name] = entry
    return entries


def open_index(path: Path) -> Journal:
    """A shard's journal, to be added to; an index of an earlier version becomes one.

    Raises DataError naming a damaged file, AffectGPTError when another process writes it.
    """
    if path.exists():
        entries = read_index(path)  # a journal that is opened drops what follows a damaged line
        if Journal.peek_key(path) is None:
            with locked(path, wait=False) as is_alone:
                if is_alone:  # else the journal says that another process writes
                    Journal.write(path, key=_INDEX, entries=entries)
    return Journal(path, key=_INDEX)


def stored_features(
    config: Config,
    samples: Sequence[Sample],
    *,
    dataset: str,
    split: str,
    mode: str,
    policy: str,
    processor: ProcessorSpec | None = None,
) -> dict[Modality, FeatureReader]:
    """Readers for those media of a mode whose features can be used; the others are decoded and encoded.

    ``policy``: ``off`` uses none; ``auto`` uses what fits and is complete, and says why where something does not;
    ``require`` raises DataError naming folder, key or sample instead.
    """
    readers: dict[Modality, FeatureReader] = {}
    if policy == "off":
        return readers
    for modality in get_mode(mode).media:
        encoder = config.model.acoustic_encoder if modality is Modality.AUDIO else config.model.visual_encoder
        folder = store_folder(
            config.paths.features_root, dataset=dataset, split=split, modality=modality, encoder=encoder
        )
        if policy == "auto" and not (folder / "key.json").exists():  # nothing stored: no weights are hashed for it
            continue
        try:
            key = feature_key(
                config, modality, device_type=device_type(config), processor=processor, crops=crops_of(samples),
                samples=samples,
            )  # fmt: skip
            reader = FeatureReader(folder, key=key)
            missing = reader.missing(samples)
            if missing:
                raise DataError(
                    f"{folder}: no features for {len(missing)} of {len(samples)} samples, first {missing[0]!r}; "
                    "compute them: affectgpt extract_features"
                )
        except DataError as error:
            if policy == "require":
                raise
            logger.warning("stored features are not used: %s", error)
            continue
        readers[modality] = reader
    return readers


def stored_problems(
    root: Path | str, samples: Sequence[Sample], *, dataset: str, split: str
) -> Iterator[tuple[str, str]]:
    """Every sample (or "" for a whole folder) whose stored features of any encoder cannot be read, and why."""
    for path in sorted((Path(root) / dataset.lower() / split).glob("*/key.json")):
        try:
            meta = _read_meta(path.parent)
            key = meta["key"] if meta else {}
            if key.get("modality") == Modality.FACE:
                refuse_unknown_order(path.parent, key)
            reader = FeatureReader(path.parent, key=key)
        except DataError as error:
            yield "", str(error)
            continue
        for sample in samples:
            try:
                if sample in reader:
                    reader(sample)
            except DataError as error:
                yield sample.name, str(error)


class FeatureWriter:
    """Appends records to one shard, after the last whole one; ``done`` knows all shards' names.

    Raises DataError when the folder holds features of another key, shape or dtype, AffectGPTError when another process
    writes the shard.
    """

    def __init__(self, folder: Path, *, key: Key, dtype: str = "float32", rank: int = 0) -> None:
        self.folder, self.key, self.dtype = folder, key, dtype
        folder.mkdir(parents=True, exist_ok=True)
        meta = _read_meta(folder)
        self.shape: tuple[int, ...] | None = None
        if meta is not None:
            if CROPS in key:
                refuse_unknown_order(folder, meta["key"])
            difference = differing(meta["key"], key)
            if difference is None and meta["dtype"] != dtype:
                difference = f"dtype is {meta['dtype']}, this run writes {dtype}"
            if difference is not None:
                raise DataError(
                    f"{folder}: holds other features ({difference}); remove the folder to compute them again, or set "
                    "that back"
                )
            self.shape = tuple(meta["shape"])
        self._data_path = folder / f"shard-{rank:04d}.bin"
        self._data: IO[bytes] | None = None
        self._index = open_index(self._data_path.with_suffix(".jsonl"))
        try:
            self._records = self._keep_whole_records()
            found = [entry for path in indices(folder) for entry in read_index(path).items()]
        except BaseException:
            self._index.close()
            raise
        self.done = {name for name, entry in found if "failed" not in entry}
        self.failed: dict[str, str] = {}  # by this writer

    def __contains__(self, sample: Sample) -> bool:
        return sample.name in self.done

    def _keep_whole_records(self) -> int:
        """Make data and index agree after a kill: as many records as both have in full; how many these are."""
        entries = {name: e for name, e in self._index.entries.items() if e is not LOST and "record" in e}
        if self.shape is None and entries:
            raise DataError(
                f"{self.folder}: key.json, which says what its features are of, is not there; remove the folder"
            )
        size = 0 if self.shape is None else _record_size(self.shape, self.dtype)
        available = self._data_path.stat().st_size // size if size and self._data_path.exists() else 0
        for name in [name for name, entry in entries.items() if entry["record"] >= available]:
            self._index.add(name, LOST)
            del entries[name]
        records = 1 + max((entry["record"] for entry in entries.values()), default=-1)
        if self._data_path.exists():
            with self._data_path.open("r+b") as handle:
                handle.truncate(records * size)
        return records

    def write(
        self, name: str, feature: torch.Tensor, *, flags: Iterable[str] = (), source: Source | None = None
    ) -> bool:
        """Append one sample's ``[T, d]`` (or ``[T, Q, d]``) tensor; ``source``: the file it is of.

        Values that are not finite are not stored: the sample is noted as failed, and False is the answer. Raises
        DataError naming the sample when its shape is not that of the others.
        """
        import numpy as np

        with np.errstate(over="ignore"):  # looked for below
            array = feature.detach().cpu().numpy().astype(self.dtype)
        if not np.isfinite(array).all():
            reason = "the encoder's output is not finite: the file or the encoder's weights are damaged"
            if bool(feature.isfinite().all()):
                reason = f"the encoder's output is too large for {self.dtype}; store it with --dtype float32"
            logger.error("%s: sample %r: %s", self.folder, name, reason)
            self.fail(name, reason)
            return False
        if self.shape is None:
            self.shape = array.shape
            meta = {"key": self.key, "shape": list(array.shape), "dtype": self.dtype}
            write_json(self.folder / "key.json", meta)
        if array.shape != self.shape:
            raise DataError(f"{self.folder}: sample {name!r} gives {list(array.shape)}, others {list(self.shape)}")
        if self._data is None:
            self._data = self._data_path.open("ab")
        content = array.tobytes()
        self._data.write(content)
        self._data.flush()
        entry: dict[str, Any] = {"record": self._records, "flags": list(flags), "crc32": zlib.crc32(content)}
        entry |= {} if source is None else source._asdict()
        if self.key.get("modality") == Modality.AUDIO:
            entry["revision"] = REVISIONS["sound_channels"]
        self._index.add(name, entry)
        self._records += 1
        self.done.add(name)
        return True

    def fail(self, name: str, reason: str) -> None:
        """Note a sample whose medium cannot be read; reading its features gives that reason."""
        self._index.add(name, {"failed": reason})
        self.failed[name] = reason

    def close(self) -> None:
        """Close the shard's files."""
        if self._data is not None:
            self._data.close()
            self._data = None
        self._index.close()


class FeatureReader:
    """Stored features by sample: ``reader(sample)`` → float32 tensor and flags. Shards are mapped, not loaded.

    Raises DataError naming folder and the key that differs. May be pickled: each process maps for itself.
    """

    def __init__(self, folder: Path, *, key: Key) -> None:
        self.folder = folder
        meta = _read_meta(folder)
        if meta is None:
            raise DataError(f"{folder}: no features; compute them: affectgpt extract_features")
        if CROPS in key:
            refuse_unknown_order(folder, meta["key"])
        difference = differing(meta["key"], key)
        if difference is not None:
            raise DataError(
                f"{folder}: stored features do not fit this run: {difference}. Remove the folder and run affectgpt "
                "extract_features, or set that back"
            )
        self.modality = next((m for m in Modality if m.value == meta["key"].get("modality")), None)
        self.shape, self.dtype = tuple(meta["shape"]), meta["dtype"]
        size = _record_size(self.shape, self.dtype)
        self._where: dict[str, tuple[int, int, int | None]] = {}  # name → shard, record, CRC-32 where it is known
        self._flags: dict[str, tuple[str, ...]] = {}
        self._failed: dict[str, str] = {}
        self._sources: dict[str, Source] = {}
        self._same: set[str] = set()  # samples whose file has another time, but the content that was encoded
        self._mixed: set[str] = set()  # sounds whose channels, if they were many, an earlier version mixed
        self._shards: list[Path] = []
        self._good: list[bytearray] = []  # per shard and record: 1 after a look at its bytes in this process
        for path in indices(folder):
            shard = len(self._shards)
            data_path = path.with_suffix(".bin")
            available = data_path.stat().st_size // size if data_path.exists() else 0
            self._shards.append(data_path)
            self._good.append(bytearray(available))
            for name, entry in read_index(path).items():
                if "failed" in entry:
                    self._failed[name] = entry["failed"]
                elif entry["record"] < available:
                    self._where[name] = (shard, entry["record"], entry.get("crc32"))
                    if entry["flags"]:
                        self._flags[name] = tuple(entry["flags"])
                    if entry.get("bytes") is not None:
                        self._sources[name] = Source(entry["bytes"], entry.get("mtime"), entry.get("parts"))
                    if self.modality is Modality.AUDIO and entry.get("revision") != REVISIONS["sound_channels"]:
                        self._mixed.add(name)
        self._maps: dict[int, np.ndarray] = {}
        unknown = sum(crc is None for _, _, crc in self._where.values())
        if unknown:
            logger.info(
                "%s: %d of %d records have no checksum (an earlier version wrote them), so damage to them may not be "
                "noticed; remove the folder and run affectgpt extract_features to have them",
                folder, unknown, len(self._where),
            )  # fmt: skip

    def __contains__(self, sample: Sample) -> bool:
        return sample.name in self._where

    @property
    def width(self) -> int:
        """The encoder's width: with it a model can be built without the encoder."""
        return self.shape[-1]

    def missing(self, samples: Iterable[Sample]) -> list[str]:
        """Names that the store knows nothing of: neither a feature nor why there is none."""
        return [s.name for s in samples if s.name not in self._where and s.name not in self._failed]

    def __call__(self, sample: Sample) -> tuple[torch.Tensor, tuple[str, ...]]:
        import numpy as np
        import torch

        if sample.name not in self._where:
            reason = self._failed.get(sample.name, "no stored feature; run affectgpt extract_features again")
            raise DataError(f"{sample.dataset}: sample {sample.name!r}: {reason}")
        self._check_source(sample)
        shard, record, _ = self._where[sample.name]
        if shard not in self._maps:
            records = (len(self._good[shard]), int(np.prod(self.shape)))
            self._maps[shard] = np.memmap(self._shards[shard], mode="r", dtype=self.dtype, shape=records)
        values = self._maps[shard][record]
        if not self._good[shard][record]:
            self._check_record(sample, values)
        return torch.from_numpy(values.astype(np.float32).reshape(self.shape)), self._flags.get(sample.name, ())

    def _check_record(self, sample: Sample, values: np.ndarray) -> None:
        """The bytes are those that were written, and numbers: looked at once per process."""
        import numpy as np

        shard, record, written = self._where[sample.name]
        found = zlib.crc32(values.data)
        wrong = None
        if written is not None and found != written:
            wrong = f"are damaged (the CRC-32 is {found:08x}, {written:08x} was written)"
        elif not np.isfinite(values).all():
            wrong = "have values that are not finite"
        if wrong is not None:
            path = self._shards[shard]
            raise DataError(
                f"{sample.dataset}: sample {sample.name!r}: its stored features (record {record} of {path}) "
                f"{wrong}. Remove {path.name} and {path.stem}.jsonl there and run affectgpt extract_features, which "
                "computes what is missing; affectgpt check_data finds all such records"
            )
        self._good[shard][record] = 1

    def _check_source(self, sample: Sample) -> None:
        """The file is the one that was encoded, or is not there any more."""
        then = self._sources.get(sample.name)
        path = None if self.modality is None else media_file(sample, self.modality)
        if path is None:
            return
        if sample.name in self._mixed and path.is_file() and wave_flags(path):
            raise DataError(
                f"{sample.dataset}: sample {sample.name!r}: {path} has more than two channels, of which the first "
                "is taken now; its stored features were computed from the mean of all; remove "
                f"{self.folder} and run affectgpt extract_features"
            )
        if then is None:
            return
        try:
            now = path.stat()
            if now.st_size != then.bytes:
                found = f"has {now.st_size} bytes, its stored features were computed from {then.bytes}"
            elif then.mtime in (None, now.st_mtime_ns) or sample.name in self._same:
                return
            elif content_checksum(path, now.st_size) == then.parts:  # a copy
                self._same.add(sample.name)
                return
            else:
                found = f"has other content than its stored features were computed from ({path})"
        except OSError:  # gone, or not to be read any more
            return
        raise DataError(
            f"{sample.dataset}: sample {sample.name!r}: its {self.modality} file {found}; remove {self.folder} and "
            "run affectgpt extract_features"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


def _read_meta(folder: Path) -> dict[str, Any] | None:
    path = folder / "key.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        return {"key": meta["key"], "shape": meta["shape"], "dtype": meta["dtype"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); remove the folder and compute the features again") from error


def _record_size(shape: tuple[int, ...], dtype: str) -> int:
    import numpy as np

    return int(np.prod(shape)) * np.dtype(dtype).itemsize
