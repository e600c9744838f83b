"""Registries: the names that users write in YAML → the code behind them, in this package or in a user's own file."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from affectgpt.core.errors import AffectGPTError, ConfigError, did_you_mean

T = TypeVar("T")


class Registry:
    """Names that users write in YAML → classes, functions or rows of data.

    Adding an entry is ``@registry.register("NAME")`` on a class or function, or ``registry.register("NAME")(row)``: in
    a file of ``package``, which is imported on the first look-up, or in a file that ``imports:`` of a configuration
    names. Names are compared as they are written, or in any case with ``any_case``. ``check(what, entry)`` raises for
    an entry that lacks something, whenever one is looked up; ``what`` is its ``described``. ``words``: what may stand
    in place of a name without being an entry; an error for an unknown name lists them too.
    """

    def __init__(
        self,
        kind: str,
        package: str | None = None,
        *,
        any_case: bool = False,
        check: Callable[[str, Any], None] | None = None,
        words: Sequence[str] = (),
    ) -> None:
        self.kind = kind
        self.words = tuple(words)
        self.package = package
        self.any_case = any_case
        self._check = check
        self._entries: dict[str, Any] = {}
        self._places: dict[str, str] = {}  # FILE:LINE that registered it
        self._scanned = package is None
        self._sought: set[str] = set()  # names whose modules are imported

    def _key(self, name: str) -> str:
        return name.strip().lower() if self.any_case else name

    def register(self, *names: str) -> Callable[[T], T]:
        """Decorator that enters a class, function or row under each of ``names``.

        Raises ConfigError naming both places for a name in use.
        """
        caller = sys._getframe(1)
        place = f"{caller.f_code.co_filename}:{caller.f_lineno}"

        def enter(thing: T) -> T:
            for name in names:
                key = self._key(name)
                if self._entries.setdefault(key, thing) is not thing:
                    raise ConfigError(
                        f"{self.kind} {name!r} is registered twice, in {self._places[key]} and in {place}; give yours "
                        "another name"
                    )
                self._places.setdefault(key, place)
            return thing

        return enter

    def _scan(self, name: str = "") -> None:
        """Import the modules of the package; of a ``name`` at first those that mention it, which mostly is one."""
        if self._scanned or self._key(name) in self._sought:
            return
        package = importlib.import_module(str(self.package))
        modules = list(pkgutil.iter_modules(package.__path__, f"{self.package}."))
        if name:
            for module in modules:
                source = Path(package.__path__[0], f"{module.name.rpartition('.')[2]}.py")
                if source.is_file() and f'"{name}"' in source.read_text(encoding="utf-8"):
                    importlib.import_module(module.name)
            if self._key(name) in self._entries:
                self._sought.add(self._key(name))  # a user's file may have registered it before, so it was looked for
                return
        for module in modules:
            importlib.import_module(module.name)
        self._scanned = True

    def get(self, name: str) -> Any:
        """The entry called ``name``; ConfigError with the nearest known name otherwise."""
        self._scan(name)
        try:
            entry = self._entries[self._key(name)]
        except KeyError:
            hint = did_you_mean(str(name), [*self._entries, *self.words])
            if "Did you mean" not in hint:
                hint += " One of your own needs its file: imports: [FILE.py], or --imports FILE.py."
            raise ConfigError(f"unknown {self.kind} {name!r}.{hint}") from None
        if self._check is not None:
            self._check(self.described(name), entry)
        return entry

    def described(self, name: str) -> str:
        """A registered name for a message: its kind, and the file and line that registered it."""
        return f"{self.kind} {name!r} ({self._places[self._key(name)]})"

    def __getitem__(self, name: str) -> Any:
        return self.get(name)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._scan()
        return sorted(self._entries)

    def values(self) -> list[Any]:
        """All entries, in the order in which they were registered."""
        return [entry for _, entry in self.items()]

    def items(self) -> list[tuple[str, Any]]:
        """Name and entry of each, in the order in which they were registered."""
        self._scan()
        return list(self._entries.items())

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        self._scan(name)
        return self._key(name) in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self.items()])

    def __len__(self) -> int:
        return len(self.items())


def import_files(files: Iterable[str | Path]) -> None:
    """Import a user's Python files, each once, so that what they register can be named in a configuration.

    A file is imported under its stem, with its folder on ``sys.path``: its classes can then be pickled to the processes
    of a data loader. Raises ConfigError naming the file when it is missing, does not import, or has the name of another
    module.
    """
    for file in files:
        path = Path(file).resolve()
        if path.suffix != ".py" or not path.is_file():
            raise ConfigError(f"imports: {file}: no such Python file (looked for {path})")
        if not path.stem.isidentifier():
            raise ConfigError(f"imports: {file}: {path.stem!r} is not a module name; use letters, digits and _")
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        try:
            module = importlib.import_module(path.stem)
        except AffectGPTError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise ConfigError(f"imports: {path} does not import: {type(error).__name__}: {error}") from error
        found = getattr(module, "__file__", None)
        if found is None or Path(found).resolve() != path:
            raise ConfigError(f"imports: {path}: another module is called {path.stem!r} ({found}); rename the file")
