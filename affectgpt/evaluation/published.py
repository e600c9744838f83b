"""Published results to set beside ours (paper, table 2 and section 5)."""

from __future__ import annotations

from collections.abc import Mapping

MODEL = "AffectGPT, audio + video + text (paper)"
# primary metric of each data set, in percent, best of seven checkpoints for that data set
PRIMARY: Mapping[str, float] = {
    "MER2023": 78.54,
    "MER2024": 78.80,
    "MELD": 55.65,
    "IEMOCAPFour": 60.54,
    "CMUMOSI": 81.30,
    "CMUMOSEI": 80.90,
    "SIMS": 88.49,
    "SIMSv2": 86.18,
    "OVMERDPlus": 62.52,
}
MEAN_OF_NINE = 74.77
EPOCHS = range(30, 61, 5)  # the checkpoints that the published numbers are the best of


def mean_of(datasets: list[str]) -> float | None:
    """The published mean over these data sets, None where one has no published number."""
    if set(datasets) == set(PRIMARY):
        return MEAN_OF_NINE
    values = [PRIMARY.get(name) for name in datasets]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
