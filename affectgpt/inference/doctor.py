"""Why scores are lower than published: two result files compared sample by sample, and the stages of a probe clip.

Every machine makes the probe clip alike. Stages are in the order in which a sample passes them; the first whose
fingerprint differs from that of a machine that works is where to look.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affectgpt.config.schema import Config
from affectgpt.core.errors import AffectGPTError, CheckpointError, DataError
from affectgpt.core.provenance import device_name, file_hash
from affectgpt.core.types import Modality, Sample
from affectgpt.encoders.llm import configured_llm, load_tokenizer, placeholder_ids, stop_sequences, weights_folder
from affectgpt.evaluation.labels import read_labels
from affectgpt.evaluation.results import read_answers, read_meta
from affectgpt.inference.engines.base import autocast, autocast_dtype
from affectgpt.inference.session import EMPTY, REPEATING, GenerationSession, answer_flags
from affectgpt.media.video import video_reader
from affectgpt.modeling.checkpoint import face_channels_unknown, input_differences, read_checkpoint
from affectgpt.processing.modes import get_mode
from affectgpt.processing.questions import render_question

# Mean agreement of two neighbouring released checkpoints on MER2023, CMU-MOSI and SIMS, sampled as published; of
# answers to different clips.
USUAL, CHANCE = (0.15, 0.22), 0.04


@dataclass(frozen=True)
class Side:
    """One file's answers in numbers."""

    answers: int
    mean_characters: float
    mean_labels: float
    without_labels: float  # share of answers off the template of a label answer
    empty: int
    repeating: int
    settings: dict[str, Any]  # of sampling, where a meta file says so


@dataclass(frozen=True)
class Agreement:
    """``overlap``: mean over common samples of |both| / |either| of the label sets; ``least``: the furthest apart."""

    ours: Side
    theirs: Side
    common: int
    only_ours: list[str]
    only_theirs: list[str]
    same_text: float
    overlap: float
    least: list[tuple[str, str, str]]


def compare_answers(ours: Path, theirs: Path, *, show: int = 10) -> Agreement:
    """Compare two result files. Raises DataError when they have no sample in common."""
    mine, other = read_answers(ours), read_answers(theirs)
    common = [name for name in mine if name in other]
    if not common:
        raise DataError(f"{ours} and {theirs} have no sample in common: results of different data sets?")
    overlaps = {name: label_overlap(mine[name], other[name]) for name in common}
    furthest = sorted(common, key=lambda name: (overlaps[name], -abs(len(mine[name]) - len(other[name])), name))
    return Agreement(
        ours=_side(mine, ours),
        theirs=_side(other, theirs),
        common=len(common),
        only_ours=[name for name in mine if name not in other],
        only_theirs=[name for name in other if name not in mine],
        same_text=sum(mine[name] == other[name] for name in common) / len(common),
        overlap=sum(overlaps.values()) / len(common),
        least=[(name, mine[name], other[name]) for name in furthest[:show] if overlaps[name] < 1],
    )


def label_overlap(first: str, second: str) -> float:
    """|both| / |either| of the labels of two answers; two answers without labels agree only when they are equal."""
    a, b = (set(map(str.lower, read_labels(text) or ())) for text in (first, second))
    return len(a & b) / len(a | b) if a | b else float(first == second)


def _side(answers: Mapping[str, str], path: Path) -> Side:
    labels = [read_labels(text) or [] for text in answers.values()]
    flags = [answer_flags(text, stopped=True) for text in answers.values()]
    meta = read_meta(path)
    n = max(1, len(answers))
    return Side(
        answers=len(answers),
        mean_characters=sum(map(len, answers.values())) / n,
        mean_labels=sum(map(len, labels)) / n,
        without_labels=sum(not found for found in labels) / n,
        empty=sum(EMPTY in odd for odd in flags),
        repeating=sum(REPEATING in odd for odd in flags),
        settings={key: meta[key] for key in ("decoding", "question", "mode", "seed") if key in meta},
    )


def verdict(result: Agreement) -> str:
    """Return what the numbers say, in a sentence."""
    if result.overlap >= USUAL[0]:
        return f"as near as released checkpoints are to each other ({USUAL[0]} to {USUAL[1]}) or nearer"
    if result.ours.without_labels > 0.1 >= result.theirs.without_labels:
        return "many of these answers have no labels in the learnt form: another question, or the weights are wrong"
    if result.overlap <= 2 * CHANCE:
        return (
            f"hardly more than answers to different clips ({CHANCE}): the media or the weights do not reach the model; "
            "compare fingerprints with a machine that works"
        )
    return f"lower than between released checkpoints ({USUAL[0]} to {USUAL[1]})"


SUBTITLE = "I did not think that you would come, but here you are."
# Largest deviation, as a part of the values' own size, by the dtype of the weights (measured between batch sizes,
# thread counts and library versions it stays well below).
TOLERANCES = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}
_PROBES = 16  # projections per tensor


@dataclass(frozen=True)
class Deviation:
    """A stage that differs from a recorded one: by how much, or in what."""

    stage: str
    what: str


def make_probe(folder: Path) -> Sample:
    """A video (losslessly coded), its sound and face crops: whole-number patterns, the same bytes everywhere."""
    import av
    import soundfile

    y, x = np.mgrid[0:120, 0:160]
    frames = [
        np.stack([(x * 3 + 7 * i) % 256, (y * 5 + 11 * i) % 256, (x * y // 16 + 5 * i) % 256], axis=-1).astype(np.uint8)
        for i in range(25)
    ]
    with av.open(str(folder / "probe.mov"), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.height, stream.width, stream.pix_fmt = 120, 160, "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    at = np.arange(56_000)
    sound = (abs(at * 37 % 4001 - 2000) + abs(at * 113 % 1601 - 800) - 1400) * (at // 4000 % 5)
    soundfile.write(folder / "probe.wav", sound.astype(np.int16), 16_000, subtype="PCM_16")
    np.save(folder / "probe.npy", np.stack(frames[::2])[:, 4:116, 24:136])
    return Sample(
        name="probe", dataset="probe", subtitle=SUBTITLE, video=folder / "probe.mov", audio=folder / "probe.wav",
        face=folder / "probe.npy",
    )  # fmt: skip


@torch.inference_mode()
def run_stages(session: GenerationSession, folder: Path, *, trained: bool = True) -> dict[str, torch.Tensor]:
    """Stage → its values for the probe clip, in the order in which they are computed.

    ``trained=False``: those that depend on no checkpoint, up to the encoders' outputs.
    """
    from affectgpt.media.audio import read_audio
    from affectgpt.media.video import read_faces, read_frames

    sample = make_probe(folder)
    assert sample.video and sample.audio and sample.face
    stages: dict[str, torch.Tensor] = {
        "decoded frames": torch.from_numpy(read_frames(sample.video)),
        "face crops": torch.from_numpy(read_faces(sample.face)),
        "sound clips": torch.from_numpy(read_audio(sample.audio, spacing=session.processor.audio_clip_spacing)[0]),
    }
    model = session.model
    example = session.processor(sample, question=render_question("ovlabel"))
    stages["prompt tokens"] = torch.tensor(example.input_ids)
    for modality, tensor in example.media.items():
        normalizer = getattr(model.visual_encoder, "normalizer", None) if tensor.dtype is torch.uint8 else None
        stages[f"encoder input, {modality}"] = tensor if normalizer is None else normalizer(tensor)
    batch = session.processor.collate([example]).to(session.device)
    llm_dtype = model.get_input_embeddings().weight.dtype
    with autocast(session.device, autocast_dtype(llm_dtype)):
        features = model.encode(**batch)
        for modality, z in features.items():
            stages[f"encoder output, {modality}"] = z[0]
        if not trained:
            return {name: tensor.detach().cpu() for name, tensor in stages.items()}
        for modality, embeds in model.connect(features, **batch).items():
            stages[f"connector output, {modality}"] = embeds[0]
        embeds = model.embed(**batch).to(model.get_input_embeddings().weight.dtype)
    stages["prompt embeddings"] = embeds[0]
    output = model(inputs_embeds=embeds, attention_mask=batch.attention_mask.long())
    stages["first scores"] = output.logits[0, -1]
    return {name: tensor.detach().cpu() for name, tensor in stages.items()}


def fingerprint(values: torch.Tensor) -> dict[str, Any]:
    """Return what is kept of a stage: for whole numbers a hash, for others projections that a small change moves a
    little."""
    if not values.is_floating_point():
        return {"shape": list(values.shape), "sha256": hashlib.sha256(values.numpy().tobytes()).hexdigest()}
    flat = values.double().flatten()
    return {
        "shape": list(values.shape),
        "norm": float(flat.norm()),
        "projections": [float(_signs(len(flat), number) @ flat) for number in range(_PROBES)],
    }


def _signs(n: int, number: int) -> torch.Tensor:
    """±1 from a hash of position and number in whole-number arithmetic: the same on every machine."""
    mixed = (np.arange(n, dtype=np.uint64) + np.uint64(number * 1_000_003 + 1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return torch.from_numpy(((mixed >> np.uint64(40)) & np.uint64(1)).astype(np.float64) * 2 - 1)


def first_deviation(
    found: Mapping[str, Mapping[str, Any]], recorded: Mapping[str, Mapping[str, Any]], *, tolerance: float
) -> Deviation | None:
    """The first stage that is not as recorded; None when all are."""
    for stage, expected in recorded.items():
        ours = found.get(stage)
        if ours is None:
            return Deviation(stage, "does not exist here: another recipe or input mode")
        if ours["shape"] != expected["shape"]:
            return Deviation(stage, f"has shape {ours['shape']}, recorded {expected['shape']}")
        if "sha256" in expected:
            if ours.get("sha256") != expected["sha256"]:
                return Deviation(stage, "is not the same to the bit")
            continue
        # a random change of relative size r moves a projection by about r times the norm
        moved = [abs(a - b) for a, b in zip(ours["projections"], expected["projections"], strict=True)]
        relative = (sum(m * m for m in moved) / len(moved)) ** 0.5 / max(expected["norm"], 1e-12)
        if not relative <= tolerance:
            return Deviation(stage, f"deviates by {relative:.2g} of its size (allowed: {tolerance:g})")
    return None


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
    """Check that the device that the configuration names is there."""
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
    """Tell what the encoders were given when a checkpoint was made, where that is not what they get now, or not
    known."""
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
