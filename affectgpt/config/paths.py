"""The only file that knows where data, weights and results live."""

from __future__ import annotations

import itertools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from affectgpt.core.errors import CheckpointError, ConfigError
from affectgpt.core.names import check_name
from affectgpt.core.runtime import logger

if TYPE_CHECKING:
    from affectgpt.config.schema import Config


def recipe_file(given: str | Path, *, folder: Path = Path()) -> Path:
    """The configuration file that is called ``given`` in ``folder``; where there is none and the name is that of a
    recipe, ``train_configs/NAME.yaml`` or ``NAME.yaml`` alone, that of train_configs/ there or in the package.

    So that every command with a shipped recipe works in any folder, also without a clone. Any other path that is not
    there comes back as it is.
    """
    path = folder / given
    if path.exists() or Path(given).parent not in (RECIPES, Path()):
        return path
    beside = folder / RECIPES / path.name
    return next((file for file in (beside, *(root / path.name for root in _recipe_folders())) if file.is_file()), path)


def _recipe_folders() -> tuple[Path, ...]:
    package = Path(__file__).resolve().parents[1]
    return package / RECIPES, package.parent / RECIPES


def shipped_recipes() -> list[str]:
    """File names of the recipes in train_configs/ here and in the package; each can be given as it is."""
    return sorted({file.name for folder in (RECIPES, *_recipe_folders()) for file in folder.glob("*.yaml")})


class Weights(NamedTuple):
    """Default folder of a model's weights, and where to get them."""

    folder: str  # under paths.models_root; or a file, where the weights are published as one .pth
    source: str = ""  # a web address


RECIPES = Path("train_configs")
_EPOCHS = re.compile(r"(\d{1,12})\s*-\s*(\d{1,12})")
_SHOWN = 10  # epochs that an error lists
_CHECKPOINT = re.compile(r"checkpoint_(\d+)_loss_(-?\d+\.\d+|nan|inf)\.pth$")


def model_hint(config: Config, name: str, weights: Weights | None) -> str:
    """Tell what to do when the folder of an encoder or LLM is missing or incomplete: where it was looked for, what to
    set, and where it may be got."""
    if name in config.paths.folders:
        place = Path(config.paths.folders[name])
        hint = f"It is set by paths.folders.{name}. {_looked(config, place, key=f'paths.folders.{name}', root=place)}"
        if place.name.startswith("demo-"):
            hint += "The demo's tiny models are made by `make demo`."
        return hint.strip()
    if weights is None:
        return f"Set paths.folders.{name}."
    root = Path(config.paths.models_root)
    place = root / weights.folder
    looked = _looked(config, place, key="paths.models_root", root=root)
    get = (
        f"Download it from {weights.source} {'as' if place.suffix else 'into'} {place}, or set"
        if weights.source
        else "Set"
    )
    return (
        f"{get} paths.models_root=FOLDER to where the models are (paths.folders.{name} for this one alone). {looked}"
    ).strip()


def _looked(config: Config, place: Path, *, key: str, root: Path) -> str:
    """Return where a relative path leads to, and the setting with which it leads to what is beside the
    configuration."""
    if place.is_absolute():
        return ""
    told = f"Looked for {place.absolute()}: relative paths start at the working folder"
    if config.folder is not None:
        here = config.folder.resolve()
        told += f", and the configuration is in {here}"
        for base in (here, here.parent):
            if (base / place).exists() and base != Path.cwd():
                return f"{told}. It is there as {base / place}: set {key}={base / root}, or run in {base}. "
    return f"{told}. "


def default_folder(config: Config, name: str, weights: Weights | None) -> Path | None:
    """Return the folder in which the weights of ``name`` are expected, there or not; None if nothing says it."""
    if name in config.paths.folders:
        return Path(config.paths.folders[name])
    return None if weights is None else Path(config.paths.models_root) / weights.folder


def model_folder(config: Config, name: str, *, key: str, weights: Weights | None) -> Path:
    """The folder of an encoder's or LLM's weights, or their file where they are published as one .pth.

    ``key`` is the configuration key that named it, ``weights`` what its class or row says. Raises CheckpointError
    saying what to download when it is missing.
    """
    folder = default_folder(config, name, weights)
    hint = model_hint(config, name, weights)
    if folder is None:
        raise CheckpointError(f"{key}: {name}: nothing says where its weights are. {hint}")
    if folder.suffix == ".pth":
        if not folder.is_file():
            raise CheckpointError(f"{key}: {name}: no file {folder}. {hint}")
        return folder
    if not folder.is_dir():
        raise CheckpointError(f"{key}: {name}: no model folder {folder}. {hint}")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{key}: {name}: {folder} is incomplete, it has no config.json. {hint}")
    return folder


def qformer_config(config: Config) -> dict[str, Any]:
    """config.json of BERT under models/, from which the published code takes the Q-Former's numbers; {} without it."""
    path = Path(config.paths.folders.get("bert-base-uncased", Path(config.paths.models_root) / "bert-base-uncased"))
    if not (path / "config.json").is_file():
        return {}
    try:
        return json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}/config.json: no JSON ({error}); remove it to use BERT-base's numbers") from error


def beside_answers(target: Path, ending: str) -> Path:
    """A file that belongs to a result file: ``X.npz`` → ``X-answers{ending}``.

    The dash matters: published scoring takes every ``checkpoint_*`` without one for a result (wire).
    """
    return target.with_name(f"{target.stem}-answers{ending}")


def answers_record(target: Path) -> Path:
    """Path of the record of a result file: what made it, and which clips could not be read: ``X-answers.meta.json``."""
    return beside_answers(target, ".meta.json")


@dataclass(frozen=True)
class CheckpointFile:
    """A training checkpoint on disk; ``epoch`` and ``loss`` come from its name (wire)."""

    path: Path
    epoch: int
    loss: float

    @property
    def run(self) -> str:
        """Name of the folder that holds it, also where the path ends in ``..`` or names no folder."""
        return run_name(self.path)


def run_name(checkpoint: Path) -> str:
    """Name of a checkpoint's folder, which its results have too (wire). ConfigError where no folder can have it."""
    folder = Path(os.path.abspath(checkpoint)).parent  # noqa: PTH100 - takes ``..`` out, links stay
    return check_name(folder.name, source=checkpoint, what="folder name", suffix="", error=ConfigError)


def checkpoint_name(epoch: int, loss: float) -> str:
    """File name of an epoch's checkpoint (wire)."""
    return f"checkpoint_{epoch:06d}_loss_{loss:.3f}.pth"


def list_checkpoints(folder: str | Path) -> list[CheckpointFile]:
    """The checkpoints of one run, by epoch. Raises CheckpointError when two files claim one epoch."""
    found: dict[int, CheckpointFile] = {}
    for path in sorted(Path(folder).glob("checkpoint_*.pth")):
        match = _CHECKPOINT.fullmatch(path.name)
        if match is None:
            continue
        file = CheckpointFile(path, int(match[1]), float(match[2]))
        if file.epoch in found:
            raise CheckpointError(
                f"{folder}: two checkpoints for epoch {file.epoch}: {found[file.epoch].path.name} and {path.name}. "
                "Move one away, or name one with inference.ckpt_name."
            )
        found[file.epoch] = file
    return [found[epoch] for epoch in sorted(found)]


def runs_folder(config: Config) -> Path:
    """Folder of the runs of a configuration: ``<output_root>/<name>``, or ``run.output_dir``."""
    return Path(config.run.output_dir or Path(config.paths.output_root) / config.name)


def find_run(config: Config) -> Path:
    """The training run of a configuration: ``output/<name>/<name>*`` with most checkpoints (the newest of equals)."""
    root = runs_folder(config)
    runs = [d for d in root.glob(f"{config.name}*") if d.is_dir()]
    counted = sorted(((len(list(d.glob("checkpoint_*"))), d.name, d) for d in runs), reverse=True)
    if not counted or counted[0][0] == 0:
        there = sorted(p.name for p in root.parent.glob("*") if p.is_dir() and not p.name.startswith("results"))
        raise CheckpointError(
            f"no checkpoint found: looked for {root}/{config.name}*/checkpoint_*.pth; "
            f"{root.parent} holds {', '.join(there) or 'no run'}. "
            f"Train first, put a released checkpoint into {root}/ (docs/install.md says where they are), or set "
            "inference.ckpt_root=FOLDER or inference.ckpt_name=FOLDER below it or FILE."
        )
    return counted[0][2]


def checkpoint_file(path: str | Path) -> CheckpointFile:
    """One checkpoint by its path; its epoch is -1 where its name does not say it."""
    path = Path(path)
    match = _CHECKPOINT.fullmatch(path.name)
    return CheckpointFile(path, int(match[1]) if match else -1, float(match[2]) if match else float("nan"))


def select_checkpoints(config: Config) -> list[CheckpointFile]:
    """The checkpoints that inference runs, as the ``inference`` section asks.

    Of ``ckpt_root``, else of the run ``ckpt_name`` below ``output/<name>/``, else of the run found: by ``test_epoch``,
    or ``test_epochs`` with ``skip_epoch``, or the last, which must be past epoch 10. A ``ckpt_name`` that is a file is
    that one. Raises CheckpointError saying what was looked for and what is there, and which epochs of ``test_epochs``
    are not.
    """
    inference = config.inference
    folder = _run_folder(config)
    if folder.is_file():
        return [checkpoint_file(folder)]
    files = list_checkpoints(folder)
    if not files:
        raise CheckpointError(f"{folder}: no checkpoint_*_loss_*.pth in it")
    there = f"epochs there: {', '.join(str(f.epoch) for f in files)}"
    if inference.test_epochs and inference.test_epoch is None:
        wanted = _epochs(inference.test_epochs, inference.skip_epoch)
        by_epoch = {f.epoch: f for f in files}
        missing = list(itertools.islice((epoch for epoch in wanted if epoch not in by_epoch), _SHOWN + 1))
        asked = f"inference.test_epochs={inference.test_epochs} skip_epoch={inference.skip_epoch}"
        if missing or not wanted:
            names = ", ".join(map(str, missing[:_SHOWN])) + (", …" if len(missing) > _SHOWN else "")
            what = f"no checkpoint of the epochs {names}, which {asked} names" if missing else f"{asked} names no epoch"
            raise CheckpointError(f"{folder}: {what}; {there}")
        return [by_epoch[epoch] for epoch in wanted]
    if inference.test_epoch is not None:
        chosen = [f for f in files if f.epoch == inference.test_epoch]
        place = config.where("inference.test_epoch")
        if chosen and files[-1].epoch > inference.test_epoch and "--options" not in place:
            logger.warning(
                "epoch %d answers, as %s says; %s holds later ones, up to %d",
                inference.test_epoch, place, folder, files[-1].epoch,
            )  # fmt: skip
        asked = f"inference.test_epoch={inference.test_epoch}"
    else:
        chosen = [f for f in files[-1:] if f.epoch > 10]
        asked = "inference (the last is taken, and it must be past epoch 10; name one with inference.test_epoch=N)"
    if not chosen:
        raise CheckpointError(f"{folder}: no checkpoint for {asked}; {there}")
    return chosen


def _run_folder(config: Config) -> Path:
    """The folder whose checkpoints are run, or the one file that ``inference.ckpt_name`` is."""
    inference = config.inference
    if inference.ckpt_root:
        if inference.ckpt_name:
            logger.warning("inference.ckpt_name is not used: inference.ckpt_root=%s counts", inference.ckpt_root)
        if not Path(inference.ckpt_root).is_dir():
            raise CheckpointError(f"inference.ckpt_root: no folder {inference.ckpt_root}")
        return Path(inference.ckpt_root)
    if not inference.ckpt_name:
        return find_run(config)
    file, folder = Path(inference.ckpt_name), runs_folder(config) / inference.ckpt_name
    if file.is_file() or folder.exists():
        return file if file.is_file() else folder
    if file.suffix == ".pth" and file.parent == Path():
        file = find_run(config) / file.name
        if file.is_file():
            return file
    runs = sorted(p.name for p in folder.parent.glob("*") if p.is_dir()) if folder.parent.is_dir() else []
    raise CheckpointError(
        f"inference.ckpt_name: no file {file} and no run folder {folder}; {folder.parent} holds "
        f"{', '.join(runs) or 'none'}"
    )


def _epochs(text: str, skip: int) -> range:
    """The epochs that ``test_epochs: A-B`` names: those of A to B that ``skip_epoch`` divides."""
    match = _EPOCHS.fullmatch(text.strip())
    first, last = (int(number) for number in match.groups()) if match else (1, 0)
    if first > last:
        raise ConfigError(f"inference.test_epochs is {text!r}; expected A-B, e.g. 30-60")
    return range(first + -first % skip, last + 1, skip)
