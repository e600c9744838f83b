"""Low-level filter, second half: descriptions at both ends of the length distribution (paper, section 2.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from affectgpt.config.captioning import LengthConfig

_UNIT = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\s\u3400-\u9fff\uf900-\ufaff]+")


def length(text: str) -> int:
    """Words of a text; a Chinese character counts as one."""
    return len(_UNIT.findall(text))


@dataclass(frozen=True)
class LengthFit:
    """The Gaussian through the lengths, and what is between the cuts is kept."""

    mean: float
    std: float
    low: float
    high: float

    def reason(self, words: int) -> str | None:
        """Why a length is cut; None when it is kept."""
        if words < self.low:
            return f"too short: {words} words, cut below {self.low:.1f}"
        if words > self.high:
            return f"too long: {words} words, cut above {self.high:.1f}"
        return None


def fit_lengths(lengths: Sequence[int], spec: LengthConfig) -> LengthFit:
    """Fit a Gaussian: by moments, or by median and interquartile range, which the ends themselves do not move."""
    values = np.asarray(lengths, dtype=float)
    if spec.fit == "robust":
        low, mean, high = np.percentile(values, [25, 50, 75])
        std = (high - low) / 1.349  # the interquartile range of a Gaussian
    else:
        mean, std = values.mean(), values.std()
    std = max(float(std), 0.5)  # lengths are whole numbers: equal ones are not cut for the first that differs by one
    return LengthFit(float(mean), std, float(mean) - spec.sigmas * std, float(mean) + spec.sigmas * std)


def cut_lengths(descriptions: Mapping[str, str], spec: LengthConfig) -> tuple[dict[str, str], LengthFit | None]:
    """Name → reason of the descriptions that are cut, and the fit (None when the filter is off or has nothing)."""
    if not spec.use or not descriptions:
        return {}, None
    lengths = {name: length(text) for name, text in descriptions.items()}
    fit = fit_lengths(list(lengths.values()), spec)
    reasons = {name: fit.reason(words) for name, words in lengths.items()}
    return {name: reason for name, reason in reasons.items() if reason}, fit
