"""Configuration files as plain trees: ``extends`` resolved, and every key's file and line kept for error messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from affectgpt.config.paths import RECIPES, recipe_file, recipe_folders
from affectgpt.core.errors import ConfigError, did_you_mean
from affectgpt.core.runtime import logger

EXTENDS = "extends"
IMPORTS = "imports"
# Loaders recurse, and copy what is referenced: a file is looked at before it is loaded. Ours have 2 KB and 4 levels.
_MAX_LENGTH = 256 << 10  # characters
_MAX_LEVELS = 32
_MAX_VALUES = 20_000  # aliases unfolded
_MAX_TEXT = 1_000  # characters of a value that holds ${…}, and of what it refers to
_REFERENCE = re.compile(r"\$\{([^${}]*)\}")
_REPLACED = ("datasets",)  # a file that names its own data sets does not train on its base's as well


class Origins:
    """Where each dotted key was set last: ``file:line`` or the ``--options`` item."""

    def __init__(self, default: str) -> None:
        self.default = default
        self._places: dict[str, str] = {}
        self._written: dict[str, str] = {}

    def note(self, key: str, place: str, *, written: str | None = None) -> None:
        """Remember where ``key`` was set, and what stands there without quotes (None: a section, a list, quoted)."""
        self._places[key] = place
        self._written.pop(key, None)
        if written is not None:
            self._written[key] = written

    def written(self, key: str) -> str | None:
        """The value of a key as it stands in the file or option, where that is a single one without quotes."""
        return self._written.get(key)

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
        folders = {path.parent, *recipe_folders()} if len(path.parts) == 1 else {path.parent}
        others = {
            p.name if p.parent == path.parent else f"{RECIPES}/{p.name}" for d in folders for p in d.glob("*.yaml")
        }
        raise ConfigError(f"{asked_by} {path}: no such file.{did_you_mean(path.name, others)}")
    if path.resolve() in above:
        raise ConfigError(f"{asked_by} {path}: the files extend one another in a circle")
    try:
        if path.stat().st_size > 4 * _MAX_LENGTH:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes; a configuration has some kilobytes")
        text = path.read_text(encoding="utf-8")
        check_yaml(text, str(path))
        tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        places = list(_lines(yaml.compose(text, Loader=yaml.SafeLoader)))
        lines = {key: line for key, line, _ in places}
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError, OSError) as error:
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
            recipe_file(base, folder=path.parent),
            origins=origins,
            asked_by=f"{path}:{lines[EXTENDS]}: {EXTENDS}",
            above=(*above, path.resolve()),
        )
        imports = [*below.pop(IMPORTS, []), *imports]
        run, inference = tree.get("run"), below.get("inference")
        if isinstance(run, dict) and "max_epoch" in run and isinstance(inference, dict):
            # Which epoch answers was chosen for the base's number of epochs.
            for key in {"test_epoch", "test_epochs", "skip_epoch"} & inference.keys():
                value = inference.pop(key)
                logger.info(
                    "%s: inference.%s=%s of %s does not count here, where run.max_epoch is another; set it here",
                    path, key, value, base,
                )  # fmt: skip
        tree = _lay_over(below, tree)
    for key, line, written in places:
        origins.note(key, f"{path}:{line}", written=written)
    return {**tree, IMPORTS: imports} if imports else tree


def lay_options(tree: dict[str, Any], items: Iterable[str], path: Path, *, origins: Origins) -> dict[str, Any]:
    """A file's tree with ``a.b=c`` items over it, and every ``${…}`` replaced by what it refers to.

    ``origins`` gets the place of each. Raises ConfigError naming the file or the item.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    items = list(items)
    for item in items:
        key, _, value = item.partition("=")
        shown = f"--options {item[:80]!r}"
        if len(re.split(r"[.\[]", key)) > _MAX_LEVELS:
            raise ConfigError(f"{shown}: more than {_MAX_LEVELS} levels of keys")
        try:
            check_yaml(value, shown)
            yaml.safe_load(value)
            node = yaml.compose(value, Loader=yaml.SafeLoader)
            if (text := plain_text(node)) is not None and text != value.strip():
                raise ConfigError(f"{shown}: would be read as {text!r}, without what follows; leave the # out")
            origins.note(key, f"--options {item!r}", written=text)
            for name, _, written in _lines(node, key):
                origins.note(name, f"--options {item!r}", written=written)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"{shown}: {str(error).strip()}") from error
    try:
        _check_references(tree, path)
        merged = OmegaConf.merge(OmegaConf.create(tree), OmegaConf.from_dotlist(items))
        _check_references(OmegaConf.to_container(merged, resolve=False), path)
        plain: Any = OmegaConf.to_container(merged, resolve=True)
    except TypeError as error:  # a list over a section, or a section over a list
        raise ConfigError(
            f"{path}: one of --options {', '.join(item[:80] for item in items)} gives a list where the file has a "
            f"section of keys, or a section where it has a list ({error})"
        ) from error
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"{path}: {str(error).strip()}") from error
    assert isinstance(plain, dict)
    return plain


def check_yaml(text: str, where: str) -> None:
    """ConfigError for YAML that is too long, too deep, or unfolds (by aliases) to too much; nothing is built here.

    Raises yaml.YAMLError where the text is no YAML.
    """
    import yaml

    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"{where}: {len(text)} characters; a configuration has at most {_MAX_LENGTH}")
    anchors: dict[str, tuple[int, int]] = {}  # values and levels of what a finished anchor stands for
    around: list[list[Any]] = []  # the same of the sections that are not finished, and their anchors
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        begins = isinstance(event, yaml.CollectionStartEvent)
        values, levels, anchor = 1, 0, None
        if begins:
            around.append([1, 0, event.anchor])
        elif isinstance(event, yaml.CollectionEndEvent):
            values, levels, anchor = around.pop()
            levels += 1
        elif isinstance(event, yaml.ScalarEvent):
            anchor = event.anchor
            references = event.value.count("${")
            if references and (len(event.value) > _MAX_TEXT or references != len(_REFERENCE.findall(event.value))):
                raise ConfigError(
                    f"{where}, line {event.start_mark.line + 1}: expected ${{section.key}} in a value of at most "
                    f"{_MAX_TEXT} characters, not within one another; found {event.value[:80]!r}"
                )
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in [name for _, _, name in around]:
                raise ConfigError(f"{where}, line {event.start_mark.line + 1}: *{event.anchor} is within itself")
            values, levels = anchors.get(event.anchor, (1, 0))
        else:
            continue
        if around and not begins:
            around[-1][0] += values
            around[-1][1] = max(around[-1][1], levels)
        if anchor is not None:
            anchors[anchor] = values, levels
        if len(around) + levels > _MAX_LEVELS:
            raise ConfigError(f"{where}, line {event.start_mark.line + 1}: more than {_MAX_LEVELS} levels")
        if around and around[-1][0] > _MAX_VALUES:
            raise ConfigError(
                f"{where}, line {event.start_mark.line + 1}: more than {_MAX_VALUES} values, aliases unfolded"
            )


def _check_references(tree: Any, path: Path) -> None:
    """ConfigError unless every ``${key}`` is one plain value: what is made of chains of them grows without end."""

    def values(node: Any, where: str) -> Iterator[tuple[str, str]]:
        children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
        for key, value in children:
            full = f"{where}.{key}" if where else str(key)
            yield from values(value, full)
            if isinstance(value, str) and "${" in value:
                yield full, value

    for key, value in values(tree, ""):
        for name in _REFERENCE.findall(value):
            if name.startswith("oc.env:"):
                continue
            found: Any = tree
            for part in name.split("."):
                if isinstance(found, list):
                    found = dict(enumerate(found)).get(int(part) if part.isdecimal() else -1)
                else:
                    found = found.get(part) if isinstance(found, Mapping) else None
            plain = not isinstance(found, Mapping | list) and "${" not in str(found) and len(str(found)) <= _MAX_TEXT
            if not plain or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
                raise ConfigError(
                    f"{path}: {key} is {value[:80]!r}; ${{{name}}} must name a section.key with a single value of "
                    f"at most {_MAX_TEXT} characters that holds no other ${{…}}"
                )


def _lay_over(base: dict[str, Any], top: dict[str, Any], where: str = "") -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and (where or key not in _REPLACED):
            value = _lay_over(old, value, where=f"{where}.{key}")
        merged[key] = value
    return merged


def _lines(node: Any, where: str = "") -> Iterator[tuple[str, int, str | None]]:
    """``(dotted key, line from 1, text of a value without quotes)`` of every key below a composed YAML node."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            full = f"{where}.{key.value}" if where else str(key.value)
            yield full, key.start_mark.line + 1, plain_text(value)
            yield from _lines(value, full)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield f"{where}[{number}]", value.start_mark.line + 1, plain_text(value)
            yield from _lines(value, f"{where}[{number}]")


def plain_text(node: Any) -> str | None:
    """The text of a YAML node that is a single value without quotes; None for any other."""
    import yaml

    return node.value if isinstance(node, yaml.ScalarNode) and node.style is None else None
