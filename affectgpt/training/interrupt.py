"""Ctrl-C and SIGTERM (a cluster's pre-emption): finish the step, save, leave."""

from __future__ import annotations

import signal
from types import FrameType

from affectgpt.core.runtime import logger


class Interrupted(Exception):  # noqa: N818 - not an error: what was asked for was done
    """Training was stopped from outside, and saved. ``status`` is the exit status a shell expects."""

    def __init__(self, message: str, *, signum: int) -> None:
        super().__init__(message)
        self.status = 128 + signum


class Interrupt:
    """While the block lasts, the first SIGINT or SIGTERM is noted in ``asked``; a second SIGINT ends the process.

    Outside the main thread (where Python delivers no signals) it notes nothing.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, object] = {}

    @property
    def asked(self) -> bool:
        """Whether the process was asked to stop."""
        return self.signum != 0

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        logger.warning("%s: saving after this step", signal.Signals(signum).name)

    def __enter__(self) -> Interrupt:
        for signum in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[signum] = signal.signal(signum, self._note)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
