"""Configuration files as plain trees: ``extends`` resolved, and every key's file and line kept for error messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from affectgpt.config.paths import recipe_file, shipped_recipes
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
# Which checkpoint of its runs a recipe answers with or resumes: another recipe has other epochs.
_OF_ITS_RUNS = (
    "inference.ckpt_root", "inference.ckpt_name", "inference.test_epoch", "inference.test_epochs",
    "inference.skip_epoch", "run.resume_ckpt_path",
)  # fmt: skip
UNSET = (None, "", "xxx", "xxx-xxx")  # how released files write "not set"
_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
_REPLACED = ("datasets",)  # a file that names its own data sets does not train on its base's as well


class Origins:
    """The place at which each dotted key was set last: ``file:line`` or the ``--options`` item."""

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
    base's; an imported file is looked for beside the file that names it. What names a checkpoint of the base's own runs
    is not taken over. Values are texts as they are written, or None. Raises ConfigError naming file and line.
    """
    import yaml

    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        others = sorted({*others, *shipped_recipes()})
        raise ConfigError(f"{asked_by} {path}: no such file.{did_you_mean(path.name, others)}")
    if path.resolve() in above:
        raise ConfigError(f"{asked_by} {path}: the files extend one another in a circle")
    try:
        if path.stat().st_size > 4 * _MAX_LENGTH:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes; a configuration has some kilobytes")
        text = path.read_text(encoding="utf-8")
        check_yaml(text, str(path))
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree: Any = None if node is None else _plain(node, str(path))
        lines = dict(_lines(node))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise ConfigError(f"{path}: {str(error).strip()}") from error
    if tree is None:
        tree = {}
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
        run = tree.get("run")
        other_length = isinstance(run, dict) and "max_epoch" in run
        for key in _OF_ITS_RUNS:
            section, _, name = key.partition(".")
            values = below.get(section)
            if "epoch" in name and not other_length:
                continue  # chosen among as many epochs as there are here
            if isinstance(values, dict) and values.pop(name, None) not in UNSET:
                own = tree.get(section)
                if not isinstance(own, dict) or name not in own:
                    logger.info(
                        "%s: %s of %s is not taken over: it names a checkpoint of that recipe's own runs",
                        path, key, origins.of(key),
                    )  # fmt: skip
        tree = _lay_over(below, tree)
    for key, line in lines.items():
        origins.note(key, f"{path}:{line}")
    return {**tree, IMPORTS: imports} if imports else tree


def lay_options(tree: dict[str, Any], items: Iterable[str], path: Path) -> dict[str, Any]:
    """A file's tree with ``a.b=c`` items over it, and every ``${…}`` replaced by what it refers to.

    Raises ConfigError naming the file or the item.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    items = list(items)
    values: list[tuple[str, Any]] = []
    for item in items:
        key, _, value = item.partition("=")
        shown = f"--options {item[:80]!r}"
        if len(re.split(r"[.\[]", key)) > _MAX_LEVELS:
            raise ConfigError(f"{shown}: more than {_MAX_LEVELS} levels of keys")
        values.append((key, _option_value(value, shown)))
    try:
        _check_references(tree, path)
        over = OmegaConf.create({})
        for key, given in values:
            OmegaConf.update(over, key, given)
        merged = OmegaConf.merge(OmegaConf.create(tree), over)
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
        tag = getattr(event, "tag", None)
        if tag is not None and tag not in _TAGS:
            value = f" of {event.value[:80]!r}" if isinstance(event, yaml.ScalarEvent) else ""
            raise ConfigError(f"{where}, line {event.start_mark.line + 1}: the tag {tag}{value} is not read; remove it")
        values, levels, anchor = 1, 0, None
        if begins:
            around.append([1, 0, event.anchor])
        elif isinstance(event, yaml.CollectionEndEvent):
            values, levels, anchor = around.pop()
            levels += 1
        elif isinstance(event, yaml.ScalarEvent):
            anchor = event.anchor
            _check_text(event.value, f"{where}, line {event.start_mark.line + 1}")
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


def _check_text(text: str, where: str) -> None:
    """ConfigError where the references of a value are not ``${key}`` one after the other."""
    references = text.count("${")
    if references and (len(text) > _MAX_TEXT or references != len(_REFERENCE.findall(text))):
        raise ConfigError(
            f"{where}: expected ${{section.key}} in a value of at most {_MAX_TEXT} characters, not within one another; "
            f"found {text[:80]!r}"
        )


def _plain(node: Any, where: str, key: str = "") -> Any:
    """Sections, lists and texts of a YAML node. A value stays the text that was written, or None for null.

    YAML 1.1 would read ``010`` as 8, ``1:30`` as 90, ``no`` as False and 20 nines as a float: here the type of the
    key decides what a text means. Raises ConfigError naming ``where``, line and key of a repeated key or a ``!tag``.
    """
    import yaml

    place = f"{where}:{node.start_mark.line + 1}: {key or 'file'}"
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == "tag:yaml.org,2002:null" and node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, where, f"{key}[{i}]") for i, item in enumerate(node.value)]
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise ConfigError(f"{place}: a key must be a word")
        full = f"{key}.{name.value}" if key else name.value
        if name.tag == "tag:yaml.org,2002:merge":
            bases = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if not all(isinstance(base, yaml.MappingNode) for base in bases):
                raise ConfigError(
                    f"{where}:{name.start_mark.line + 1}: {full} must be a section of keys, or a list of such"
                )
            for base in reversed(bases):
                merged.update(_plain(base, where, key))
        elif name.value in own:
            raise ConfigError(
                f"{where}:{name.start_mark.line + 1}: {full} is given twice, here as {_shown(value)}; keep one of them"
            )
        else:
            own[name.value] = _plain(value, where, full)
    return {**merged, **own}


def _shown(node: Any) -> str:
    return repr(node.value[:80]) if isinstance(node.value, str) else "a section or list"


def _option_value(text: str, shown: str) -> Any:
    """The value of an option: a flow list or section in YAML, else the text as it is written; null as None."""
    import yaml

    if text[:1] not in ("[", "{"):
        if len(text) > _MAX_LENGTH:
            raise ConfigError(f"{shown}: {len(text)} characters; a configuration has at most {_MAX_LENGTH}")
        _check_text(text, shown)
        return None if text in ("", "~", "null", "Null", "NULL") else text
    try:
        check_yaml(text, shown)
        node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
        if text[node.end_mark.index :].strip():
            raise ConfigError(
                f"{shown}: what follows the list or section would be ignored: {text[node.end_mark.index :][:80]!r}"
            )
        return _plain(node, shown)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{shown}: {str(error).strip()}") from error


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


def _lines(node: Any, where: str = "") -> Iterator[tuple[str, int]]:
    """``(dotted key, line from 1)`` of every key below a composed YAML node."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            full = f"{where}.{key.value}" if where else str(key.value)
            yield full, key.start_mark.line + 1
            yield from _lines(value, full)
