"""Configuration files as plain trees: ``extends`` resolved, and every key's file and line kept for error messages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from affectgpt.core.errors import ConfigError, did_you_mean

EXTENDS = "extends"
IMPORTS = "imports"
_REPLACED = ("datasets",)  # a file that names its own data sets does not train on its base's as well


class Origins:
    """Where each dotted key was set last: ``file:line`` or the ``--options`` item."""

    def __init__(self, default: str) -> None:
        self.default = default
        self._places: dict[str, str] = {}

    def note(self, key: str, place: str) -> None:
        """Remember where ``key`` was set."""
        self._places[key] = place

    def of(self, key: str) -> str:
        """The place of a key, or of the nearest section around it."""
        while key and key not in self._places:
            key = key.rpartition(".")[0]
        return self._places.get(key, self.default)


def read_tree(path: Path, *, origins: Origins, asked_by: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's sections, laid over those of the file that it ``extends`` (a path beside it).

    Sections are merged key by key, except ``datasets``, which replaces its base's, and ``imports``, which adds to its
    base's; an imported file is looked for beside the file that names it. Raises ConfigError naming file and line.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"{asked_by} {path}: no such file.{did_you_mean(path.name, others)}")
    if path.resolve() in above:
        raise ConfigError(f"{asked_by} {path}: the files extend one another in a circle")
    try:
        text = path.read_text(encoding="utf-8")
        tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        lines = dict(_lines(yaml.compose(text, Loader=yaml.SafeLoader)))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: {str(error).strip()}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected the sections model, datasets, run, inference; found {type(tree).__name__}")
    if "name" in tree:
        raise ConfigError(f"{path}:{lines['name']}: unknown key 'name'; a configuration is named by its file")
    imports = tree.pop(IMPORTS, None) or []
    imports = [imports] if isinstance(imports, str) else imports
    if not isinstance(imports, list) or not all(isinstance(item, str) for item in imports):
        raise ConfigError(f"{path}:{lines[IMPORTS]}: imports is {imports!r}; allowed: a list of Python files")
    imports = [str(path.parent / item) for item in imports]
    base = tree.pop(EXTENDS, None)
    if base is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{path}:{lines[EXTENDS]}: extends is {base!r}; allowed: the path of a YAML file")
        below = read_tree(
            path.parent / base,
            origins=origins,
            asked_by=f"{path}:{lines[EXTENDS]}: {EXTENDS}",
            above=(*above, path.resolve()),
        )
        imports = [*below.pop(IMPORTS, []), *imports]
        tree = _lay_over(below, tree)
    for key, line in lines.items():
        origins.note(key, f"{path}:{line}")
    return {**tree, IMPORTS: imports} if imports else tree


def _lay_over(base: dict[str, Any], top: dict[str, Any], where: str = "") -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and (where or key not in _REPLACED):
            value = _lay_over(old, value, where=f"{where}.{key}")
        merged[key] = value
    return merged


def _lines(node: Any, where: str = "") -> Iterator[tuple[str, int]]:
    """``(dotted key, line from 1)`` of every key below a composed YAML node."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            full = f"{where}.{key.value}" if where else str(key.value)
            yield full, key.start_mark.line + 1
            yield from _lines(value, full)
