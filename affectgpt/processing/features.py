"""The feature store: outputs of frozen encoders, computed once, read from memory maps.

``ROOT/<data set>/<split>/<modality>-<encoder>/`` holds ``key.json`` (what the features depend on) and, per writing
process, ``shard-NNNN.bin`` (records of one shape and dtype) with ``shard-NNNN.jsonl``, a journal: name → number, flags
and CRC-32 of its record, or why it has none. Both only grow: a killed writer loses at most the record it was writing.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from affectgpt.config.schema import Config, ProcessorSpec
from affectgpt.core.errors import DataError
from affectgpt.core.files import write_json
from affectgpt.core.provenance import REVISIONS
from affectgpt.core.runtime import logger
from affectgpt.core.types import Modality, Sample
from affectgpt.media.audio import wave_flags
from affectgpt.media.reader import Source, content_checksum, media_file
from affectgpt.processing.feature_index import LOST, indices, open_index, read_index
from affectgpt.processing.feature_key import (
    CROPS,
    Key,
    crops_of,
    device_type,
    differing,
    feature_key,
    refuse_unknown_order,
    store_folder,
)
from affectgpt.processing.modes import get_mode

if TYPE_CHECKING:
    import numpy as np
    import torch


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
