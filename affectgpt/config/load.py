"""YAML plus ``--options`` → a frozen Config. An unknown key or a wrong value is an error that says where."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar, overload

from affectgpt.config.paths import recipe_file
from affectgpt.config.schema import Config
from affectgpt.config.tree import UNSET, Origins, lay_options, read_tree
from affectgpt.core.errors import ConfigError, did_you_mean, shortened
from affectgpt.core.names import check_name
from affectgpt.core.registry import import_files
from affectgpt.core.runtime import logger

_SECTION = re.compile(r"(model|datasets|run|grpo|inference|paths|captioning)\.[\w.]+=")  # how another KEY=VALUE begins
_DECIMAL = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_DIGITS = 400  # characters of a number
_LARGEST = 2**63 - 1
AnyConfig = TypeVar("AnyConfig", bound=Config)


@overload
def load_config(path: str | Path, options: Iterable[str] = ()) -> Config: ...
@overload
def load_config(path: str | Path, options: Iterable[str] = (), *, kind: type[AnyConfig]) -> AnyConfig: ...
def load_config(path: str | Path, options: Iterable[str] = (), *, kind: type[Any] = Config) -> Any:
    """Read a configuration file and lay options over it: ``a.b=c`` items, or pairs of items ``a.b``, ``c``.

    ``kind``: the schema of the whole file.

    The files of ``imports:`` are imported: this is the only place that does it, so that no configuration inside a
    checkpoint or an export ever runs code.

    Raises ConfigError naming the file, the key, what was found and what is allowed.
    """
    path = recipe_file(path)
    origins = Origins(str(path))
    tree = read_tree(path, origins=origins, asked_by="--cfg-path")
    items = list(_items(options))
    for item in items:
        origins.note(item.partition("=")[0], f"--options {shortened(item, 200)}")
    plain = lay_options(tree, items, path)
    config = dataclasses.replace(_build(kind, {"name": path.stem, **plain}, "", origins), origins=origins)
    # runs, results and stored features have folders of these names
    check_name(config.name, source=origins.of("name"), what="name", suffix="_YYYYMMDDHHM_999", error=ConfigError)
    for key in config.datasets:
        check_name(key, source=origins.of(f"datasets.{key}"), what="data set name", suffix="results-description-")
    _check_listed(tree.get("datasets") or {}, plain.get("datasets") or {}, items, path)
    unused, used = config.inference.vis_processor.train, config.inference_frames
    if (unused.n_frms, unused.image_size) != (used.n_frms, used.image_size):
        logger.warning(
            "%s: inference.vis_processor (%d frames, %d pixels) is not used: inference takes %d frames, as "
            "model.vis_processor says, of %d pixels",
            origins.of("inference.vis_processor.train"), unused.n_frms, unused.image_size, used.n_frms, used.image_size,
        )  # fmt: skip
    import_files(config.imports)
    return config


def default_config(name: str, options: Iterable[str] = ()) -> Config:
    """The defaults under a name, with options laid over them; without a file ``run.device`` is the GPU if there is one.

    Raises ConfigError as ``load_config`` does.
    """
    origins = Origins(name)
    items = list(_items(options))
    for item in items:
        origins.note(item.partition("=")[0], f"--options {shortened(item, 200)}")
    return dataclasses.replace(
        _build(Config, {"name": name, **lay_options({"run": {"device": "auto"}}, items, Path(name))}, "", origins),
        origins=origins,
    )


def saved_config(values: Mapping[str, Any] | None, *, source: str | Path) -> Config:
    """The configuration that a checkpoint or an export holds; its ``imports`` are never followed.

    Sections and keys that this version does not know are left out; absent ones have their defaults. Raises ConfigError
    naming ``source`` and the key of a value that is not allowed.
    """
    kinds = {f.name: f.default_factory for f in dataclasses.fields(Config) if f.name in ("model", "inference", "paths")}
    known = {
        section: {k: v for k, v in found.items() if k in {f.name for f in dataclasses.fields(kind)}}  # type: ignore[arg-type]
        for section, kind in kinds.items()
        if isinstance(found := (values or {}).get(section), Mapping)
    }
    blocks = (values or {}).get("datasets")
    if isinstance(blocks, Mapping):  # of the data sets only the input mode counts
        known["datasets"] = {
            str(name): {"face_or_frame": block["face_or_frame"]}
            for name, block in blocks.items()
            if isinstance(block, Mapping) and isinstance(block.get("face_or_frame"), str)
        }
    origins = Origins(str(source))
    return dataclasses.replace(_build(Config, {"name": "saved", **known}, "", origins), origins=origins)


def _items(options: Iterable[str]) -> Iterator[str]:
    """``a.b=c`` of every option; of one without ``=`` the value is the option after it. Quotes around values go."""
    rest = iter(options)
    for option in rest:
        key, equals, value = option.partition("=")
        following = value if equals else next(rest, None)
        if not key.strip() or following is None or (not equals and _SECTION.match(following)):
            raise ConfigError(
                f"--options {option!r}: expected section.key=value or section.key value, for example run.max_epoch=3"
            )
        value = following.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        yield f"{key.strip()}={value}"


def _check_listed(listed: Any, merged: Any, items: list[str], path: Path) -> None:
    """An option changes a data set that the file lists; a new block would train on one more set than was thought."""
    if not isinstance(listed, Mapping) or not isinstance(merged, Mapping):
        return  # what is no section is refused below
    for name in merged:
        if name not in listed:
            key = f"datasets.{name}"
            written = (i for i in items if i.startswith((f"{key}.", f"{key}=", "datasets=", "datasets[")))
            item = next(written, key)
            raise ConfigError(
                f"--options {item!r}: {name} is not listed under datasets: of {path}.{did_you_mean(name, listed)} "
                f"To train on it or answer it, give its block in a file of yours (extends: {path.name})"
            )


def _build(cls: type, values: Any, where: str, source: Origins) -> Any:
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source.of(where)}: {where or 'file'} must be a section of keys; found {values!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls) if not f.metadata.get("internal")}
    arguments = {}
    for key, value in values.items():
        full = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ConfigError(f"{source.of(full)}: unknown key {full!r}.{_near_key(str(key), where, known)}")
        if known[key].metadata.get("ignored"):
            logger.debug("%s: %s is accepted and ignored", source.of(full), full)
            continue
        arguments[key] = _convert(value, hints[key], full, source)
        limits = known[key].metadata.get("limits")
        if limits is not None and arguments[key] is not None and arguments[key] not in limits:
            raise _wrong(source, full, value, str(limits))
    return cls(**arguments)


def _convert(value: Any, hint: Any, key: str, source: Origins) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # "X | None"
        if value in UNSET if isinstance(value, str | None) else False:
            return None
        return _convert(value, next(a for a in args if a is not type(None)), key, source)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _build(hint, value, key, source)
    if origin is typing.Literal:
        if value not in args:  # the words on and off may also be written as another truth value; a number as a text
            word = "on" if _truth(value) is True else "off" if _truth(value) is False else value
            value = {str(arg): arg for arg in args}.get(str(word), value)
        if value not in args:
            raise _wrong(source, key, value, "one of " + ", ".join(map(str, args)))
        return value
    if origin is dict:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise _wrong(source, key, value, "a section of keys")
        return {str(k): _convert(v, args[1], f"{key}.{k}", source) for k, v in value.items()}
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if items is None:
            return ()
        if not isinstance(items, list | tuple):
            raise _wrong(source, key, value, "a list")
        return tuple(_convert(v, args[0], f"{key}[{i}]", source) for i, v in enumerate(items))
    if hint is bool:
        truth = _truth(value)
        if truth is None:
            raise _wrong(source, key, value, "True or False")
        return truth
    if hint in (int, float):
        return _number(value, hint, key, source)
    if hint is str:
        if isinstance(value, dict | list):
            raise _wrong(source, key, value, "a word")
        return "" if value is None else str(value)
    return value


def _truth(value: Any) -> bool | None:
    """The truth value that YAML 1.1 reads in a text; None for any other value."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in (value.lower(), value.capitalize(), value.upper()):
        return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(value.lower())
    return None


def _number(value: Any, kind: type, key: str, source: Origins) -> Any:
    """The decimal number that a text says, exactly; ConfigError for every other notation and what does not fit."""
    allowed = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _wrong(source, key, value, allowed)
    if isinstance(value, int) and abs(value) > _LARGEST:  # Python refuses to print the largest of them
        raise _wrong(source, key, "too large", f"{allowed} up to {_LARGEST}")
    text = str(value).strip()
    if len(text) > _DIGITS or not _DECIMAL.fullmatch(text):
        raise _wrong(source, key, value, f"{allowed}, in plain decimal digits (no leading zeros, no underscores)")
    exact = Decimal(text)
    if kind is int:
        if abs(exact) > _LARGEST or exact != exact.to_integral_value():
            raise _wrong(source, key, value, f"{allowed} up to {_LARGEST}" if abs(exact) > _LARGEST else allowed)
        return int(exact)
    number = float(exact)
    if not math.isfinite(number) or (exact and abs(number) < sys.float_info.min):
        raise _wrong(
            source, key, value, f"0, or a number between {sys.float_info.min:.1e} and {sys.float_info.max:.1e}"
        )
    return number


def _near_key(key: str, where: str, known: Mapping[str, Any]) -> str:
    """The nearest key of this section, or the section that does have a key of this name."""
    elsewhere = [
        f"{section}.{key}"
        for section, hint in typing.get_type_hints(Config).items()
        if section != where and dataclasses.is_dataclass(hint) and key in {f.name for f in dataclasses.fields(hint)}
    ]
    known = {name: f for name, f in known.items() if where or name != "name"}
    return f" Did you mean {elsewhere[0]!r}?" if elsewhere else did_you_mean(key, known)


def _wrong(source: Origins, key: str, value: Any, allowed: str) -> ConfigError:
    found = shortened(value) if isinstance(value, str) else repr(value)
    return ConfigError(f"{source.of(key)}: {key} is {found}; allowed: {allowed}")
