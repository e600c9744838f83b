"""The range of numbers that a key of a configuration takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Limits:
    """The range of numbers that a key takes."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False  # the number must be above ``low``
    open_high: bool = False
    also: float | None = None  # a value outside that is taken too
    advice: str = ""

    def __contains__(self, value: float) -> bool:
        if value == self.also:
            return True
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.low == 0 and self.open_low:
            low = "more than 0"
        else:
            low = "0 or more" if self.low == 0 else f"at least {self.low:g}"
        parts = [low] if self.low > -math.inf else []
        if self.high < math.inf:
            parts.append(f"less than {self.high:g}" if self.open_high else f"at most {self.high:g}")
        text = (" and " if self.open_high else ", ").join(parts) + (
            f", or {self.also:g}" if self.also is not None else ""
        )
        return text + (f" ({self.advice})" if self.advice else "")


COUNT = Limits(low=1)
NOT_NEGATIVE = Limits(low=0)
POSITIVE = Limits(low=0, open_low=True)
SEED = Limits(low=0, high=2**32 - 2**16, advice="of 32 bits; ranks and samples add to it")
SHARE = Limits(low=0, high=1, open_low=True)  # 1 is all
FRACTION = Limits(low=0, high=1, open_high=True)  # 0 is none
WARM_UP = Limits(low=0, also=-1, advice="starts at init_lr")
WARM = Limits(low=0, open_low=True, advice="inference.decoding=greedy takes the likeliest token")


def limited(default: Any, limits: Limits) -> Any:
    """A field of a number with the limits that its value must keep."""
    return field(default=default, metadata={"limits": limits})
