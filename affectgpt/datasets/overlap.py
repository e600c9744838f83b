"""Clips that are trained on and tested on: found by name, and by the content of their files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from affectgpt.core.errors import DataError
from affectgpt.core.provenance import file_hash
from affectgpt.core.runtime import logger
from affectgpt.core.types import Sample
from affectgpt.datasets.label_files import load_labels, place_samples
from affectgpt.datasets.table import MER_UNIBENCH, get_row

_MEDIA = ("video", "audio")
_SHOWN = 20  # names in an error


def benchmark_clips(
    dataset_root: Path, names: Sequence[str] = MER_UNIBENCH
) -> tuple[dict[str, list[Sample]], list[str]]:
    """Data set → the clips of its test split, of those that are under ``dataset_root``; and those that are not."""
    found: dict[str, list[Sample]] = {}
    absent = []
    for name in names:
        row = get_row(name)
        try:
            labels = load_labels(row, split="test", dataset_root=dataset_root)
        except DataError:
            absent.append(row.name)
            continue
        found[row.name] = place_samples(row, labels, subtitles={}, dataset_root=dataset_root)
    return found, absent


def shared_clips(samples: Iterable[Sample], tested: Mapping[str, Iterable[Sample]]) -> dict[str, str]:
    """Name → why it is a tested clip too, of those samples that are.

    A clip is the same where its name is, or where its video or its sound has the same bytes. Files are read only where
    their sizes agree.
    """
    names: dict[str, str] = {}
    by_size: dict[tuple[str, int], list[tuple[Path, str]]] = {}
    for dataset, clips in tested.items():
        for clip in clips:
            names.setdefault(clip.name, f"{dataset} tests on a clip of this name")
            for medium, path, size in _files(clip):
                by_size.setdefault((medium, size), []).append((path, f"{dataset}/{clip.name}"))
    shared: dict[str, str] = {}
    for sample in samples:
        if sample.name in names:
            shared[sample.name] = names[sample.name]
            continue
        for medium, path, size in _files(sample):
            same = [other for there, other in by_size.get((medium, size), []) if file_hash(path) == file_hash(there)]
            if same:
                shared[sample.name] = f"its {medium} is that of {same[0]}"
                break
    return shared


def refuse_test_clips(samples: Mapping[str, Sequence[Sample]], dataset_root: Path) -> None:
    """Raises DataError naming the clips of ``samples`` (by data set) that MER-UniBench tests on.

    A policy that was rewarded on them has seen the answers. Data sets of MER-UniBench that are not there cannot be
    compared with: a warning names them.
    """
    tested, absent = benchmark_clips(dataset_root)
    if absent:
        logger.warning(
            "not checked for clips that are trained and tested on, as their test splits are not in %s: %s",
            dataset_root, ", ".join(absent),
        )  # fmt: skip
    wrong = [
        f"{dataset}/{name} ({why})"
        for dataset, clips in samples.items()
        for name, why in shared_clips(clips, tested).items()
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise DataError(
            f"{len(wrong)} clips that would be trained on are in test splits of MER-UniBench: "
            f"{', '.join(wrong[:_SHOWN])}{more}. Take them out of the label file that training reads"
        )


def _files(sample: Sample) -> Iterable[tuple[str, Path, int]]:
    """Medium, file and bytes of the files of a sample that there are."""
    for medium in _MEDIA:
        path: Path | None = getattr(sample, medium)
        if path is not None:
            try:
                yield medium, path, path.stat().st_size
            except OSError:
                continue
