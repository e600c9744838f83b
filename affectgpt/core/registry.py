"""One generic registry: a decorator, found by scanning its own package on the first look-up."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TypeVar

from affectgpt.core.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry:
    """Names that users write in YAML → the code behind them.

    Adding an entry is adding a file to ``package`` that decorates something with ``@registry.register("NAME")``.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, object] = {}
        self._scanned = False

    def register(self, *names: str) -> Callable[[T], T]:
        """Decorator that enters a class or function under each of ``names``."""

        def enter(thing: T) -> T:
            for name in names:
                if self._entries.get(name, thing) is not thing:
                    raise ValueError(f"{self.kind} {name!r} is registered twice")
                self._entries[name] = thing
            return thing

        return enter

    def _scan(self) -> None:
        if not self._scanned:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__, self.package + "."):
                importlib.import_module(module.name)
            self._scanned = True

    def get(self, name: str):
        """The entry called ``name``; ConfigError with the nearest known name otherwise."""
        self._scan()
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} {name!r}.{did_you_mean(str(name), self._entries)}")
        return self._entries[name]

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._scan()
        return sorted(self._entries)
