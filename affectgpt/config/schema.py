"""Every key of a configuration file: its type, its default and what it means.

Keys and values of the released YAMLs are a wire format (users own files with them). Keys marked *ours* are additions.
Keys marked *ignored* are accepted because released files have them, and change nothing. Names that a registry decides
(encoders, fusion types, input modes, …) are plain words here; they are checked when the thing is built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from affectgpt.config.grpo import GRPOConfig
from affectgpt.config.limits import (
    COUNT,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    WARM,
    WARM_UP,
    limited,
)
from affectgpt.core.errors import ConfigError
from affectgpt.core.types import IMAGE_SIZE

IGNORED = {"ignored": True}
INTERNAL = {"internal": True}  # no key of a file


@dataclass(frozen=True)
class ProcessorSpec:
    """One media processor of the released files; only the sizes are read."""

    name: str = "alpro_video_train"
    n_frms: int = limited(8, COUNT)  # frames per clip
    image_size: int = limited(224, COUNT)  # pixels


@dataclass(frozen=True)
class ProcessorConfig:
    """The split level of a processor block (released files have ``train`` only)."""

    train: ProcessorSpec = field(default_factory=ProcessorSpec)


@dataclass(frozen=True)
class ModelConfig:
    """The model: which parts, and how they are joined."""

    arch: Literal["affectgpt"] = "affectgpt"
    model_type: str = field(default="pretrain_vicuna", metadata=IGNORED)
    frozen_video_proj: bool = False  # freeze affectgpt_proj
    frozen_video_Qformer: bool = False  # noqa: N815 - freeze the video Q-Former and its query tokens
    frozen_audio_Qformer: bool = False  # noqa: N815 - the same for audio
    frozen_audio_proj: bool = False  # freeze audio_llama_proj
    frozen_multi_Qformer: bool = False  # noqa: N815 - freeze the pre-fusion Q-Former
    frozen_multi_llama_proj: bool = False  # freeze multi_llama_proj
    frozen_llm: bool = False  # freeze the LoRA weights
    multi_fusion_type: str = "attention"  # pre-fusion of audio and face: attention, qformer
    video_fusion_type: str = "qformer"  # face and frame branch: attention, mean, qformer
    audio_fusion_type: str = "qformer"  # the same
    image_fusion_type: str = "token"  # token, mean
    ckpt: str = ""  # checkpoints loaded one over the other, in this order, non-strictly
    ckpt_2: str = ""
    ckpt_3: str = ""
    llama_model: str = "Qwen25"
    acoustic_encoder: str = "HUBERT_LARGE"
    visual_encoder: str = "CLIP_VIT_LARGE"
    num_audio_query_token: int = limited(1, COUNT)  # tokens a branch gives the LLM
    num_video_query_token: int = limited(1, COUNT)
    num_multi_query_token: int = limited(1, COUNT)
    num_image_query_token: int = limited(1, COUNT)
    max_length: int = limited(1024, COUNT)  # tokens, of prompt and of answer each
    lora_r: int = limited(16, NOT_NEGATIVE)  # rank of LoRA; 0: none
    vis_processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    text_processor: Any = field(default=None, metadata=IGNORED)
    txt_processor: Any = field(default=None, metadata=IGNORED)
    img_processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    audio_clip_spacing: Literal[8, 7] = 8  # ours: 8 as the released checkpoints were made, 7 as later releases
    face_channels: Literal["bgr", "rgb"] = "bgr"  # ours: channel order of the face crops that the visual encoder gets
    # (bgr: as the released checkpoints; frames are always RGB)
    trust_remote_code: bool = False  # ours: run the model code that an LLM folder brings (Baichuan2 needs it)
    encoder_dtype: Literal["float32", "float16", "bfloat16"] = "float16"  # ours: frozen encoders (float32 on a CPU)
    llm_dtype: Literal["float32", "float16", "bfloat16"] = "float16"  # ours: LLM weights (float32 on a CPU)


@dataclass(frozen=True)
class DatasetConfig:
    """One training data set; its key in ``datasets:`` is its name in lower case."""

    data_type: Literal["video", "audio", "image"] = "video"
    # Input mode: which parts the prompt has. Image mode on a set of videos: one frame of each, drawn by its name.
    face_or_frame: str = "multiface_audio_face_text"
    label_type: str = "hybird"  # a row of processing/questions, or hybird: one of the set's types, drawn per sample
    # Keep int(samples * ratio) of the samples, at least one, drawn by the seed.
    ratio: float = limited(1.0, SHARE)
    sample_ratio: float | None = limited(None, NOT_NEGATIVE)  # weight where several sets are mixed; absent: uniform
    face_channels: Literal["bgr", "rgb"] | None = None  # ours: how its face crops are stored, where their folder has no
    # crops.json that says so; not set: bgr, as published
    features: Literal["auto", "off", "require"] = "auto"  # ours: read stored encoder outputs where they fit
    # ours: a set that the table lacks (see datasets/custom); relative paths in it start at paths.dataset_root
    path: str | None = None  # its label file
    test_path: str | None = None  # the same of clips to answer (inference's --dataset); default: those of path
    task: str | None = None  # how their answers are scored: a metric of evaluation/metrics (basic, fine-grained, …)
    columns: dict[str, str] = field(default_factory=dict)  # ours: what a column holds → its heading in that file
    folders: dict[str, str] = field(default_factory=dict)  # ours: video, audio, face, image → folder of the files


@dataclass(frozen=True)
class RunConfig:
    """Training."""

    task: str = field(default="video_text_pretrain", metadata=IGNORED)
    objective: str = "sft"  # ours: what a step minimises (training/objectives)
    lr_sched: str = "linear_warmup_cosine_lr"  # see training/optim
    init_lr: float = limited(1e-5, NOT_NEGATIVE)
    min_lr: float = limited(1e-5, NOT_NEGATIVE)
    warmup_lr: float = limited(-1.0, WARM_UP)  # where the warm-up starts, 0 or more; -1: at init_lr
    warmup_steps: int = limited(0, NOT_NEGATIVE)
    lr_decay_rate: float = limited(1.0, POSITIVE)  # linear_warmup_step_lr: factor per epoch
    weight_decay: float = limited(0.05, NOT_NEGATIVE)
    beta2: float = limited(0.999, FRACTION)
    max_epoch: int = limited(60, COUNT)
    iters_per_epoch: int = limited(10000, COUNT)  # optimizer steps, each of accum_grad_iters batches
    batch_size_train: int = limited(3, COUNT)  # per GPU
    batch_size_eval: int = limited(3, COUNT)
    guard: Literal["on", "off"] = "on"  # ours: reinforcement learning stops when answers grow and precision falls
    seed: int = limited(42, SEED)  # plus the rank
    num_workers: int = limited(4, NOT_NEGATIVE)  # loader processes
    amp: bool = True  # autocast fp16 with gradient scaling on a GPU (published: False where a file leaves it out)
    accum_grad_iters: int = limited(1, COUNT)
    log_freq: int = limited(50, COUNT)  # steps between two log lines
    resume_ckpt_path: str | None = None
    evaluate: bool = False  # train nothing; print the losses of valid_splits and the scores of score_datasets
    output_dir: str | None = None  # folder of the runs: <output_dir>/<job>; not set: <paths.output_root>/<name>
    train_splits: tuple[str, ...] = ("train",)
    valid_splits: tuple[str, ...] = ()  # splits whose loss is measured: valid (see valid_ratio), or one of a data set
    on_error: Literal["raise", "skip"] = "raise"  # ours: a sample that cannot be read ends the run, or is left out
    # Ours: speed. None of these changes what is learnt, beyond rounding.
    amp_dtype: Literal["float16", "bfloat16"] = "float16"  # bfloat16 where the GPU has it: Qwen2.5 overflows float16
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"  # the LLM's attention kernel
    gradient_checkpointing: bool = False  # recompute the LLM's activations in backward: less memory, a third slower
    compile: bool = False  # torch.compile of the LLM
    fused_adamw: bool = False
    # Put samples side by side in rows of up to this many tokens instead of padding them; 0: off.
    packing: int = limited(0, NOT_NEGATIVE)
    # Split a batch into parts of up to this many tokens, which are computed one after the other; 0: do not. Memory
    # then goes by tokens, whatever the lengths of the samples.
    batch_tokens: int = limited(0, NOT_NEGATIVE)
    parallel: Literal["ddp", "fsdp2"] = "ddp"  # several GPUs: copies of the model, or shards of one (fsdp2)
    clip_grad_norm: float | None = limited(None, POSITIVE)  # longest gradient; null: no clipping, as published
    # Ours: what is kept, watched and measured.
    # Steps between two last.state, from which a stopped run resumes; 0: only when stopped.
    save_state_every: int = limited(500, NOT_NEGATIVE)
    keep_last: int = limited(0, NOT_NEGATIVE)  # checkpoints of so many last epochs stay, and that of epoch 0; 0: all
    tensorboard: bool = False  # needs the extra [track]
    # This fraction of each training split is held out; valid_splits: ["valid"] means these.
    valid_ratio: float = limited(0.0, FRACTION)
    valid_every: int = limited(1, COUNT)  # epochs between two looks at valid_splits
    score_datasets: tuple[str, ...] = ()  # data sets (of your own too) whose direct scores are taken during training
    score_every: int = limited(0, NOT_NEGATIVE)  # epochs between two scorings; 0: never
    score_samples: int = limited(100, COUNT)  # of each data set
    device: str = "cuda"  # cuda, cuda:N, cpu, auto (ours: the GPU if there is one)
    runner: Any = field(default=None, metadata=IGNORED)
    test_splits: Any = field(default=None, metadata=IGNORED)
    world_size: int = field(default=1, metadata=IGNORED)
    dist_url: str = field(default="env://", metadata=IGNORED)
    distributed: bool = True


@dataclass(frozen=True)
class InferenceConfig:
    """Which checkpoint answers, how, and where the answers go."""

    task: Any = field(default=None, metadata=IGNORED)
    vis_processor: ProcessorConfig = field(default_factory=ProcessorConfig)  # not used: see Config.inference_frames
    text_processor: Any = field(default=None, metadata=IGNORED)
    img_processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    face_or_frame: Any = field(default=None, metadata=IGNORED)
    # Results go to {base_root}-{data set}/{checkpoint folder}/{checkpoint}.npz; not set: <paths.output_root>/results
    base_root: str | None = None
    ckpt_root: str | None = None  # a folder of checkpoints; counts before ckpt_name
    ckpt_name: str | None = None  # a run's folder below output/<name>/, or one checkpoint file; neither: the search
    test_epoch: int | None = None  # of the folder
    test_epochs: str | None = None  # "A-B": all of them must be there
    skip_epoch: int = limited(1, COUNT)  # of A-B, those divisible by this
    gpu: int = limited(0, NOT_NEGATIVE)
    engine: str = "transformers"  # ours: what decodes: transformers, vllm
    decoding: Literal["sampling", "greedy"] = "sampling"  # ours: the published way samples
    temperature: float = limited(1.0, WARM)  # ours: of sampling
    top_p: float = limited(0.9, SHARE)  # ours: of sampling
    # Ours: of sampling; not set: as the LLM's folder says (20 for Qwen2.5), 50 where it names none; 0: all tokens
    top_k: int | None = limited(None, NOT_NEGATIVE)
    max_new_tokens: int = limited(1200, COUNT)  # ours
    batch_size: int | None = limited(None, COUNT)  # ours: clips generated together; not set: as many as memory allows
    tensor_parallel_size: int = limited(1, COUNT)  # ours: GPUs that share one model (vllm)
    on_error: Literal["raise", "skip"] = "raise"  # ours: as run.on_error
    # Ours: answers of each sample, drawn apart; above 1 they go to a run of their own, RUN_samples (see consensus)
    samples: int = limited(1, COUNT)
    seed: int = limited(42, SEED)  # ours: sampling depends on it, data set, sample, question and checkpoint alone


@dataclass(frozen=True)
class PathsConfig:
    """Ours: where data, weights and results live, relative to the working folder."""

    dataset_root: str = "../dataset"
    models_root: str = "models"
    output_root: str = "output"
    features_root: str = "output/features"  # encoder outputs computed once (affectgpt extract_features)
    folders: dict[str, str] = field(default_factory=dict)  # encoder or LLM name → folder, instead of the default


@dataclass(frozen=True)
class Config:
    """A whole configuration file. ``name`` is the file's stem; it names the output folder."""

    name: str
    imports: tuple[str, ...] = ()  # ours: your own Python files, whose registered classes and rows can be named below
    model: ModelConfig = field(default_factory=ModelConfig)
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    run: RunConfig = field(default_factory=RunConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)  # ours: of run.objective grpo
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    origins: Any = field(default=None, repr=False, compare=False, metadata=INTERNAL)  # of config.tree, for messages

    @property
    def inference_frames(self) -> ProcessorSpec:
        """Frames per clip and their pixels at inference: as many as in training, always 224 x 224 (as published)."""
        return replace(self.model.vis_processor.train, image_size=IMAGE_SIZE)

    @property
    def results_root(self) -> str:
        """Start of the names of the results' folders."""
        return self.inference.base_root or f"{self.paths.output_root}/results"

    @property
    def folder(self) -> Path | None:
        """Path of the file, for messages; None for a configuration that was not read from a file."""
        return Path(self.origins.default).parent if self.origins is not None else None

    def where(self, key: str) -> str:
        """``file:line: key`` of a dotted key as it was given, or the key alone."""
        return f"{self.origins.of(key)}: {key}" if self.origins is not None else key

    @contextmanager
    def naming(self, key: str) -> Iterator[None]:
        """Put a key's place before the message of a ConfigError: for names that a registry checks."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError(f"{self.where(key)}: {error}") from None


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain containers, as it is saved beside a run and inside a checkpoint."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name != "origins"}
