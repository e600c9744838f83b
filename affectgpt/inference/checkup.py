"""Checks of an installation, without running the model: versions, weights, tokenizer, decoder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from affectgpt.config.schema import Config
from affectgpt.core.errors import AffectGPTError, CheckpointError
from affectgpt.core.provenance import device_name, file_hash
from affectgpt.core.types import Modality
from affectgpt.encoders.llm import configured_llm, load_tokenizer, placeholder_ids, stop_sequences, weights_folder
from affectgpt.media.video import video_reader
from affectgpt.modeling.checkpoint import face_channels_unknown, input_differences, read_checkpoint
from affectgpt.processing.modes import get_mode

OK, WARN, FAIL = "ok", "warn", "FAIL"
# The ranges of pyproject.toml that answers depend on.
TESTED = {"torch": ">=2.8", "transformers": ">=4.52.1,<5.21", "peft": ">=0.18", "av": ">=13", "numpy": ">=1.24"}
# What the published weights are, by the name in a configuration.
EXPECTED = {
    "CLIP_VIT_LARGE": {"projection_dim": 768},
    "HUBERT_LARGE": {"hidden_size": 1024, "num_hidden_layers": 24},
    "Qwen25": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
}
# Ids in Qwen2.5's vocabulary, as the released models have them.
QWEN25_IDS = {
    "bos <|im_start|>": 151644, "eos <|im_end|>": 151645, "###": 14374, "<ImageHere>": 151665, "<AudioHere>": 151666,
    "<FrameHere>": 151667, "<FaceHere>": 151668, "<MultiHere>": 151669,
}  # fmt: skip
_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    status: str
    title: str
    detail: str


def check_installation(config: Config, *, hashes: bool = True) -> Iterator[Finding]:
    """Findings one after the other; hashing 15 GB of weights takes a minute."""
    yield from check_versions()
    yield check_device(config)
    reader = video_reader()
    yield Finding(
        OK if reader.startswith("decord 0.6") else WARN,
        "video decoder",
        reader if reader.startswith("decord 0.6") else f"{reader}; the published pixels are those of decord 0.6",
    )
    for key in ("visual_encoder", "acoustic_encoder", "llama_model"):
        yield from check_folder(config, key, hashes=hashes)
    yield from check_tokenizer(config)


def check_device(config: Config) -> Finding:
    """Whether the device that the configuration names is there."""
    from affectgpt.inference.session import inference_device

    try:
        return Finding(OK, "device", device_name(inference_device(config)))
    except AffectGPTError as error:
        return Finding(FAIL, "device", str(error))


def check_versions() -> Iterator[Finding]:
    """Installed packages against the tested ranges."""
    from packaging.specifiers import SpecifierSet

    for package, allowed in TESTED.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            yield Finding(FAIL, package, f"not installed; tested: {allowed}")
            continue
        fits = SpecifierSet(allowed).contains(found.split("+")[0], prereleases=True)
        yield Finding(OK if fits else WARN, package, found if fits else f"{found} is outside the tested {allowed}")


def check_folder(config: Config, key: str, *, hashes: bool) -> Iterator[Finding]:
    """The folder that ``model.<key>`` names: there, of the published shape, its weights' hashes."""
    name = getattr(config.model, key)
    try:
        folder = weights_folder(config, key)
    except AffectGPTError as error:
        yield Finding(FAIL, name, str(error))
        return
    if folder.is_file():  # published as one file
        yield Finding(OK, name, f"{folder}, sha256 {file_hash(folder)}" if hashes else str(folder))
        return
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    wrong = {k: settings.get(k) for k, v in EXPECTED.get(name, {}).items() if settings.get(k) != v}
    if wrong:
        published = {k: EXPECTED[name][k] for k in wrong}
        yield Finding(WARN, name, f"{folder}: not the published weights: {wrong}, published {published}")
    else:
        yield Finding(OK, name, str(folder))
    weights = sorted(p for p in folder.iterdir() if p.suffix in _WEIGHTS)
    if not weights:
        yield Finding(FAIL, name, f"{folder}: no weight file ({', '.join(_WEIGHTS)})")
    for path in weights if hashes else []:
        yield Finding(OK, f"{name} {path.name}", f"sha256 {file_hash(path)}")


def check_tokenizer(config: Config) -> Iterator[Finding]:
    """Ids of the tokens that stops and placeholders depend on."""
    name = config.model.llama_model
    try:
        folder = weights_folder(config, "llama_model")
    except AffectGPTError:
        yield Finding(FAIL, "tokenizer", f"is in the folder of {name}: see above")
        return
    try:
        tokenizer = load_tokenizer(folder, configured_llm(config))
    except AffectGPTError as error:
        yield Finding(FAIL, "tokenizer", str(error))
        return
    ids = token_ids(tokenizer)
    wrong = {token: found for token, found in ids.items() if name == "Qwen25" and QWEN25_IDS.get(token, found) != found}
    if wrong:
        published = {token: QWEN25_IDS[token] for token in wrong}
        yield Finding(WARN, "tokenizer", f"not Qwen2.5's vocabulary: {wrong}, published {published}")
    else:
        yield Finding(OK, "tokenizer", ", ".join(f"{token} {found}" for token, found in ids.items()))


def token_ids(tokenizer: Any) -> dict[str, int]:
    """Token → id of what the wire format names."""
    return {
        f"bos {tokenizer.bos_token}": tokenizer.bos_token_id,
        f"eos {tokenizer.eos_token}": tokenizer.eos_token_id,
        "###": stop_sequences(tokenizer)[0][0],
        **{modality.placeholder: found for modality, found in placeholder_ids(tokenizer).items()},
    }


def check_inputs(path: Path, config: Config, *, mode: str) -> Iterator[Finding]:
    """What the encoders were given when a checkpoint was made, where that is not what they get now, or not known."""
    saved = read_checkpoint(path).get("config")
    for difference in input_differences(saved, vars(config.model)):
        yield Finding(WARN, "checkpoint's inputs", f"{path} {difference}")
    if Modality.FACE not in get_mode(mode).media:
        return
    channels = config.model.face_channels
    if face_channels_unknown(saved) and channels == "bgr":
        yield Finding(
            WARN, "face channels",
            f"{path} was made, or begun, by an earlier version of this project, which gave face crops to the encoder "
            "as they were stored: RGB where `affectgpt preprocess` or the demo had made them, BGR where they are those "
            "of the published data sets. The encoder gets BGR now; for a checkpoint trained on RGB crops: --options "
            "model.face_channels=rgb",
        )  # fmt: skip
    else:
        yield Finding(OK, "face channels", f"the visual encoder gets {channels.upper()} crops (model.face_channels)")


def check_checkpoint(load: Callable[[Path], Any], path: Path) -> Finding:
    """Load a checkpoint and say what fitted."""
    try:
        return Finding(OK, "checkpoint", f"{path}: {load(path)}; sha256 {file_hash(path)}")
    except CheckpointError as error:
        return Finding(FAIL, "checkpoint", str(error))
