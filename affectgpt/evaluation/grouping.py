"""From labels to groups: the mapping G of the paper (equation 8), and its simpler stages.

A label set becomes one integer, a bit per group, all wheels side by side: union is ``|``, intersection ``&``, size
``bit_count()``. Each distinct label is mapped once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from affectgpt.core.errors import ConfigError, did_you_mean
from affectgpt.evaluation.labels import parse_item
from affectgpt.evaluation.lexicon import Lexicon, clean

GROUPINGS = {
    "wheel": "emotion wheels, inner ring (the paper's metrics)",
    "wheel-level2": "emotion wheels, middle ring",
    "l1": "word forms only, no wheel (F_l1)",
    "l2": "word forms and synonyms, no wheel (F_l2)",
}


def check_grouping(name: str) -> None:
    """ConfigError with the nearest name when there is no grouping of this name."""
    if name not in GROUPINGS:
        raise ConfigError(f"unknown grouping {name!r}.{did_you_mean(name, GROUPINGS)}")


@functools.lru_cache(maxsize=16)
def grouping_of(lexicon: Lexicon, name: str = "wheel") -> Grouping:
    """The grouping of a lexicon that is called ``name`` (see GROUPINGS), built at first use and kept."""
    return Grouping(lexicon, name)


class Grouping:
    """Maps labels to groups, in one or more views (one per wheel; a single one without wheels).

    ``l1``: a label's group is the first, in alphabetical order, of its base forms. ``l2``: the first of that form's
    wheel words. ``wheel``, ``wheel-level2``: the first of the wheel words of all its base forms that the wheel knows,
    at that ring. A label without a group is dropped.
    """

    def __init__(self, lexicon: Lexicon, name: str = "wheel") -> None:
        check_grouping(name)
        self.lexicon, self.name = lexicon, name
        level = {"wheel": 1, "wheel-level2": 2}.get(name)
        self._wheel_groups = [wheel.groups(level) for wheel in lexicon.wheels] if level else None
        self.views = tuple(wheel.name for wheel in lexicon.wheels) if level else (name,)
        self._bits: list[dict[str, int]] = [{} for _ in self.views]  # per view: group → bit within that view
        self._width = (
            max(len(set(groups.values())) for groups in self._wheel_groups)
            if self._wheel_groups
            else self._vocabulary_size()
        )
        self._bytes = (self._width * len(self.views) + 7) // 8
        self._of_bases: dict[frozenset[str], tuple[str | None, ...]] = {}  # many forms have the same base words
        self._of_label: dict[str, int] = {}
        self._of_item: dict[str, tuple[tuple[str, ...], int]] = {}

    def _vocabulary_size(self) -> int:
        source = self.lexicon.forms if self.name == "l1" else self.lexicon.synonyms
        return len(frozenset().union(*source.values()))

    def groups(self, label: str) -> tuple[str | None, ...]:
        """The group of one label in each view; None where it has none."""
        bases = self.lexicon.forms.get(clean(label))
        if not bases:
            return (None,) * len(self.views)
        found = self._of_bases.get(bases)
        if found is None:
            found = self._of_bases[bases] = self._groups(label, min(bases))
        return found

    def _groups(self, label: str, base: str) -> tuple[str | None, ...]:
        if self._wheel_groups is None:
            return (base if self.name == "l1" else min(self.lexicon.synonyms.get(base, ()), default=None),)
        words = self.lexicon.wheel_words(label)
        return tuple(next((groups[word] for word in words if word in groups), None) for groups in self._wheel_groups)

    def label_mask(self, label: str) -> int:
        """The bits of one label, all views side by side; 0 for a label that no view knows."""
        mask = self._of_label.get(label)
        if mask is None:
            mask = 0
            for view, group in enumerate(self.groups(label)):
                if group is not None:
                    bits = self._bits[view]
                    mask |= 1 << (view * self._width + bits.setdefault(group, len(bits)))
            self._of_label[label] = mask
        return mask

    def mask(self, labels: Iterable[str]) -> int:
        """The bits of a label set (order, case and repetition of labels do not matter)."""
        mask = 0
        for label in labels:
            mask |= self.label_mask(label)
        return mask

    def item(self, item: str) -> tuple[tuple[str, ...], int]:
        """Labels and bits of an extracted item such as ``[happy, calm]``; each distinct item is parsed once."""
        known = self._of_item.get(item)
        if known is None:
            labels = tuple([clean(label) for label in parse_item(item)])
            known = self._of_item[item] = labels, self.mask(labels)
        return known

    def count(self, labels: Iterable[str]) -> int:
        """How many known groups labels name: those that share their group in every view are one."""
        return len({self.label_mask(label) for label in labels} - {0})

    def sets(self, masks: Iterable[int]) -> GroupSets:
        """N masks as arrays."""
        masks = list(masks)
        packed = b"".join([mask.to_bytes(self._bytes, "little") for mask in masks])
        flat = np.unpackbits(np.frombuffer(packed, np.uint8).reshape(len(masks), -1), axis=1, bitorder="little")
        seen = max(map(len, self._bits))  # groups that no label has had so far are no column
        views = flat[:, : self._width * len(self.views)].reshape(len(masks), len(self.views), self._width)
        return GroupSets(views[:, :, :seen].astype(np.float32))

    def sizes(self, mask: int) -> tuple[int, ...]:
        """How many groups a mask holds, per view."""
        low = (1 << self._width) - 1
        return tuple([(mask >> (view * self._width) & low).bit_count() for view in range(len(self.views))])

    def members(self, mask: int) -> tuple[frozenset[str], ...]:
        """The groups that a mask holds, per view (for reports)."""
        low = (1 << self._width) - 1
        return tuple(
            frozenset(group for group, bit in bits.items() if (mask >> (view * self._width) & low) >> bit & 1)
            for view, bits in enumerate(self._bits)
        )


class GroupSets:
    """Sets as arrays: ``members`` ``[..., V, W]`` of 0 and 1, for V views of W groups; ``sizes`` ``[..., V]``."""

    def __init__(self, members: np.ndarray, sizes: np.ndarray | None = None) -> None:
        self.members = members
        self.sizes = members.sum(axis=-1, dtype=np.float64) if sizes is None else sizes

    def __getitem__(self, index: Any) -> GroupSets:
        """Some of the sets, or with None among the indices a dimension more to broadcast over."""
        return GroupSets(self.members[index], self.sizes[index])

    def __len__(self) -> int:
        return len(self.members)

    def shared(self, other: GroupSets) -> np.ndarray:
        """How many groups two sets have in common, ``[..., V]``; leading dimensions broadcast."""
        width = min(self.members.shape[-1], other.members.shape[-1])
        found = np.einsum("...w,...w->...", self.members[..., :width], other.members[..., :width])
        return found.astype(np.float64)
