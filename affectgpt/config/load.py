"""YAML plus ``--options`` → a frozen Config. An unknown key or a wrong value is an error that says where."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from affectgpt.config.schema import Config
from affectgpt.config.tree import Origins, read_tree
from affectgpt.core.errors import ConfigError, did_you_mean
from affectgpt.core.runtime import logger

_UNSET = {"xxx", "xxx-xxx", "", None}  # how released files write "not set"
_AT_LEAST_ONE = {
    "batch_size_train", "batch_size_eval", "batch_size", "max_epoch", "iters_per_epoch", "accum_grad_iters",
    "max_length", "num_audio_query_token", "num_video_query_token", "num_multi_query_token",
    "num_image_query_token", "log_freq", "tensor_parallel_size", "skip_epoch", "max_new_tokens", "n_frms", "image_size",
    "valid_every", "score_samples", "concurrency", "attempts", "max_tokens", "frames", "longest_side", "models",
    "hidden", "epochs", "batch",
}  # fmt: skip
_NOT_NEGATIVE = {
    "init_lr",
    "min_lr",
    "warmup_lr",
    "weight_decay",
    "warmup_steps",
    "num_workers",
    "lora_r",
    "sample_ratio",
    "top_k",
    "packing",
    "save_state_every",
    "keep_last",
    "score_every",
    "leave_out",
    "price_prompt",
    "price_reply",
    "shown",
    "min_crops",
}
AnyConfig = TypeVar("AnyConfig", bound=Config)


def load_config(path: str | Path, options: Iterable[str] = (), *, kind: type[AnyConfig] = Config) -> AnyConfig:  # type: ignore[assignment]
    """Read a configuration file and lay ``a.b=c`` items over it. ``kind``: the schema of the whole file.

    Raises ConfigError naming the file, the key, what was found and what is allowed.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = Path(path)
    origins = Origins(str(path))
    tree = read_tree(path, origins=origins, asked_by="--cfg-path")
    items = [_unquote(item) for item in options]
    for item in items:
        origins.note(item.partition("=")[0], f"--options {item!r}")
    try:
        merged = OmegaConf.merge(OmegaConf.create(tree), OmegaConf.from_dotlist(items))
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {str(error).strip()}") from error
    assert isinstance(plain, dict)
    config = _build(kind, {"name": path.stem, **plain}, "", origins)
    object.__setattr__(config, "folder", path.parent)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain containers, as it is saved beside a run and inside a checkpoint."""
    return dataclasses.asdict(config)


def _unquote(item: str) -> str:
    key, equals, value = item.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--options {item!r}: expected section.key=value, for example run.max_epoch=3")
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return f"{key.strip()}={value}"


def _build(cls: type, values: Any, where: str, source: Origins) -> Any:
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source.of(where)}: {where or 'file'} must be a section of keys; found {values!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    arguments = {}
    for key, value in values.items():
        full = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ConfigError(f"{source.of(full)}: unknown key {full!r}.{_near_key(str(key), where, known)}")
        if known[key].metadata.get("ignored"):
            logger.debug("%s: %s is accepted and ignored", source.of(full), full)
            continue
        arguments[key] = _convert(value, hints[key], full, source)
        _check_range(key, arguments[key], full, source)
    return cls(**arguments)


def _convert(value: Any, hint: Any, key: str, source: Origins) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # "X | None"
        if value in _UNSET if isinstance(value, str | None) else False:
            return None
        return _convert(value, next(a for a in args if a is not type(None)), key, source)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _build(hint, value, key, source)
    if origin is typing.Literal:
        if isinstance(value, bool) and value not in args:  # YAML reads the words on and off as True and False
            value = "on" if value else "off"
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
        if isinstance(value, bool):
            return value
        raise _wrong(source, key, value, "True or False")
    if hint in (int, float):
        return _number(value, hint, key, source)
    if hint is str:
        if isinstance(value, dict | list):
            raise _wrong(source, key, value, "a word")
        return "" if value is None else str(value)
    return value


def _number(value: Any, kind: type, key: str, source: Origins) -> Any:
    allowed = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _wrong(source, key, value, allowed)
    try:
        number = float(value)  # YAML reads 1e-5 as a string
    except ValueError:
        raise _wrong(source, key, value, allowed) from None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise _wrong(source, key, value, allowed)
    return kind(number)


def _near_key(key: str, where: str, known: Mapping[str, Any]) -> str:
    """The nearest key of this section, or the section that does have a key of this name."""
    elsewhere = [
        f"{section}.{key}"
        for section, hint in typing.get_type_hints(Config).items()
        if section != where and dataclasses.is_dataclass(hint) and key in {f.name for f in dataclasses.fields(hint)}
    ]
    known = {name: f for name, f in known.items() if where or name != "name"}
    return f" Did you mean {elsewhere[0]!r}?" if elsewhere else did_you_mean(key, known)


def _check_range(name: str, value: Any, key: str, source: Origins) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if name in _AT_LEAST_ONE and value < 1:
        raise _wrong(source, key, value, "at least 1")
    if name in _NOT_NEGATIVE and value < 0:
        raise _wrong(source, key, value, "0 or more")
    if name == "temperature" and value <= 0 and key.startswith("inference."):
        raise _wrong(source, key, value, "above 0 (inference.decoding=greedy takes the likeliest token)")
    if name == "top_p" and not 0 < value <= 1:
        raise _wrong(source, key, value, "above 0, at most 1")
    if name in ("clip_grad_norm", "lr_decay_rate") and value <= 0:
        raise _wrong(source, key, value, "more than 0")
    if name == "beta2" and not 0 <= value < 1:
        raise _wrong(source, key, value, "0 or more and less than 1")
    if name == "ratio" and not 0 < value <= 1:
        raise _wrong(source, key, value, "more than 0, at most 1")
    if name == "valid_ratio" and not 0 <= value < 1:
        raise _wrong(source, key, value, "0 or more and less than 1")
    if name in ("dropout", "wheels") and not 0 <= value < 1:
        raise _wrong(source, key, value, "0 or more and less than 1")
    if name in ("votes", "held_back") and not 0 < value <= 1:
        raise _wrong(source, key, value, "more than 0, at most 1")
    if name in ("sigmas", "requests_per_minute", "timeout", "lr") and value <= 0:
        raise _wrong(source, key, value, "more than 0")
    if name == "audio_clip_spacing" and value not in (7, 8):
        raise _wrong(source, key, value, "8 (as the released checkpoints) or 7")


def _wrong(source: Origins, key: str, value: Any, allowed: str) -> ConfigError:
    return ConfigError(f"{source.of(key)}: {key} is {value!r}; allowed: {allowed}")
