"""The only file that knows where data, weights and results live."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectgpt.config.schema import Config
from affectgpt.core.errors import CheckpointError, ConfigError, did_you_mean

# Encoder or LLM name → folder under models/ and where its weights come from.
MODEL_FOLDERS = {
    "CLIP_VIT_LARGE": ("clip-vit-large-patch14", "https://huggingface.co/openai/clip-vit-large-patch14"),
    "DINO2_LARGE": ("dinov2-large", "https://huggingface.co/facebook/dinov2-large"),
    "SigLIP_SO": ("siglip-so400m-patch14-384", "https://huggingface.co/google/siglip-so400m-patch14-384"),
    "HUBERT_LARGE": ("chinese-hubert-large", "https://huggingface.co/TencentGameMate/chinese-hubert-large"),
    "WAVLM_LARGE": ("wavlm-large", "https://huggingface.co/microsoft/wavlm-large"),
    "DATA2VEC_BASE": ("data2vec-audio-base-960h", "https://huggingface.co/facebook/data2vec-audio-base-960h"),
    "IMAGEBIND": ("imagebind_huge.pth", "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth"),
    "EVA_CLIP_G": ("blip2-flan-t5-xxl", "https://huggingface.co/Salesforce/blip2-flan-t5-xxl"),
    "EVA_CLIP_G_NO_QFORMER": ("blip2-flan-t5-xxl", "https://huggingface.co/Salesforce/blip2-flan-t5-xxl"),
    "Qwen25": ("Qwen2.5-7B-Instruct", "https://huggingface.co/Qwen/Qwen2.5-7B-Instruct"),
    "Qwen2": ("Qwen2-7B-Instruct", "https://huggingface.co/Qwen/Qwen2-7B-Instruct"),
    "Vicuna": ("vicuna-7b-v1.5", "https://huggingface.co/lmsys/vicuna-7b-v1.5"),
    "LLaMA2": ("Llama-2-7b-chat-hf", "https://huggingface.co/meta-llama/Llama-2-7b-chat-hf"),
    "LLaMA3": ("Meta-Llama-3-8B-Instruct", "https://huggingface.co/meta-llama/Meta-Llama-3-8B-Instruct"),
    "Baichuan2": ("Baichuan2-7B-Chat", "https://huggingface.co/baichuan-inc/Baichuan2-7B-Chat"),
}
_CHECKPOINT = re.compile(r"checkpoint_(\d+)_loss_(-?\d+\.\d+|nan|inf)\.pth$")


def model_hint(config: Config, name: str) -> str:
    """What to do when the folder of an encoder or LLM is missing or incomplete: where it was looked for, what to set,
    and where it may be got."""
    if name in config.paths.folders:
        place = Path(config.paths.folders[name])
        hint = f"It is set by paths.folders.{name}. {_looked(config, place, key=f'paths.folders.{name}', root=place)}"
        if place.name.startswith("demo-"):
            hint += "The demo's tiny models are made by `make demo`."
        return hint.strip()
    folder, url = MODEL_FOLDERS[name]
    root = Path(config.paths.models_root)
    looked = _looked(config, root / folder, key="paths.models_root", root=root)
    return (
        f"Download it from {url} {'as' if Path(folder).suffix else 'into'} {root / folder}, or set "
        f"paths.models_root=FOLDER to where the models are (paths.folders.{name} for this one alone). {looked}"
    ).strip()


def _looked(config: Config, place: Path, *, key: str, root: Path) -> str:
    """Where a relative path leads to, and the setting with which it leads to what is beside the configuration."""
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


def model_folder(config: Config, name: str, *, key: str) -> Path:
    """The folder of an encoder's or LLM's weights, or their file where they are published as one .pth.

    ``key`` is the configuration key that named it. Raises CheckpointError saying what to download when it is missing.
    """
    if name in config.paths.folders:
        folder = Path(config.paths.folders[name])
    elif name in MODEL_FOLDERS:
        folder = Path(config.paths.models_root) / MODEL_FOLDERS[name][0]
    else:
        raise ConfigError(f"{key}: unknown model {name!r}.{did_you_mean(name, MODEL_FOLDERS)}")
    hint = model_hint(config, name)
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


@dataclass(frozen=True)
class CheckpointFile:
    """A training checkpoint on disk; ``epoch`` and ``loss`` come from its name (wire)."""

    path: Path
    epoch: int
    loss: float

    @property
    def run(self) -> str:
        """Name of the folder it lies in."""
        return self.path.parent.name


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


def find_run(config: Config) -> Path:
    """The training run of a configuration: ``output/<name>/<name>*`` with most checkpoints (the newest of equals)."""
    root = Path(config.paths.output_root) / config.name
    runs = [d for d in root.glob(f"{config.name}*") if d.is_dir()]
    counted = sorted(((len(list(d.glob("checkpoint_*"))), d.name, d) for d in runs), reverse=True)
    if not counted or counted[0][0] == 0:
        there = sorted(p.name for p in root.parent.glob("*") if p.is_dir() and not p.name.startswith("results"))
        raise CheckpointError(
            f"no checkpoint found: looked for {root}/{config.name}*/checkpoint_*.pth; "
            f"{root.parent} holds {', '.join(there) or 'no folder'}. "
            "Train first, or set inference.ckpt_root=FOLDER or inference.ckpt_name=FILE."
        )
    return counted[0][2]


def select_checkpoints(config: Config) -> list[CheckpointFile]:
    """The checkpoints that inference runs, as the ``inference`` section asks (SPEC 2.4).

    ``ckpt_name`` names one; else those of ``ckpt_root`` or of the run found, by ``test_epoch``, or ``test_epochs`` with
    ``skip_epoch``, or the last, which must be past epoch 10. Raises CheckpointError saying what was looked for and what
    is there.
    """
    inference = config.inference
    root = Path(inference.ckpt_root) if inference.ckpt_root else None
    if inference.ckpt_name:
        path = Path(inference.ckpt_name)
        if root is not None and not path.is_file():
            path = root / path.name
        elif not path.is_file() and path.parent == Path():
            path = find_run(config) / path.name
        if not path.is_file():
            raise CheckpointError(f"inference.ckpt_name: no file {path}")
        match = _CHECKPOINT.fullmatch(path.name)
        return [CheckpointFile(path, int(match[1]) if match else -1, float(match[2]) if match else float("nan"))]
    if root is not None and not root.is_dir():
        raise CheckpointError(f"inference.ckpt_root: no folder {root}")
    folder = root or find_run(config)
    files = list_checkpoints(folder)
    epochs = [f.epoch for f in files]
    if not files:
        raise CheckpointError(f"{folder}: no checkpoint_*_loss_*.pth in it")
    if inference.test_epoch is not None:
        wanted = [f for f in files if f.epoch == inference.test_epoch]
        asked = f"inference.test_epoch={inference.test_epoch}"
    elif inference.test_epochs:
        try:
            first, last = (int(part) for part in inference.test_epochs.split("-"))
        except ValueError:
            raise ConfigError(f"inference.test_epochs is {inference.test_epochs!r}; expected A-B, e.g. 30-60") from None
        wanted = [f for f in files if first <= f.epoch <= last and f.epoch % inference.skip_epoch == 0]
        asked = f"inference.test_epochs={inference.test_epochs} skip_epoch={inference.skip_epoch}"
    else:
        wanted = [f for f in files[-1:] if f.epoch > 10]
        asked = "the last one, which must be past epoch 10 (name an earlier one with inference.test_epoch)"
    if not wanted:
        raise CheckpointError(f"{folder}: no checkpoint for {asked}; epochs there: {', '.join(map(str, epochs))}")
    return wanted
