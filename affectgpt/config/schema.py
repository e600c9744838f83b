"""Every key of a configuration file: its type, its default and what it means.

Keys and values of the released YAMLs are a wire format (users own files with them). Keys marked *ours* are additions.
Keys marked *ignored* are accepted because released files have them, and change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

FUSION = Literal["attention", "mean", "qformer"]
IGNORED = {"ignored": True}


@dataclass(frozen=True)
class ProcessorSpec:
    """One media processor of the released files; only the sizes are read."""

    name: str = "alpro_video_train"
    n_frms: int = 8  # frames per clip
    image_size: int = 224  # pixels


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
    multi_fusion_type: Literal["attention", "qformer"] = "attention"  # pre-fusion of audio and face
    video_fusion_type: FUSION = "qformer"  # face and frame branch
    audio_fusion_type: FUSION = "qformer"
    image_fusion_type: Literal["token", "mean"] = "token"
    ckpt: str = ""  # checkpoints loaded one over the other, in this order, non-strictly
    ckpt_2: str = ""
    ckpt_3: str = ""
    llama_model: str = "Qwen25"
    acoustic_encoder: str = "HUBERT_LARGE"
    visual_encoder: str = "CLIP_VIT_LARGE"
    num_audio_query_token: int = 1  # tokens a branch gives the LLM
    num_video_query_token: int = 1
    num_multi_query_token: int = 1
    num_image_query_token: int = 1
    max_length: int = 1024  # tokens, of prompt and of answer each
    lora_r: int = 16  # rank of LoRA; 0: none
    vis_processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    text_processor: Any = field(default=None, metadata=IGNORED)
    img_processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    audio_clip_spacing: int = (
        8  # ours: 8 as the released checkpoints were made, 7 as later library releases space clips
    )
    trust_remote_code: bool = False  # ours: run the model code that an LLM folder brings (Baichuan2 needs it)
    encoder_dtype: Literal["float32", "float16", "bfloat16"] = "float16"  # ours: frozen encoders (float32 on a CPU)
    llm_dtype: Literal["float32", "float16", "bfloat16"] = "float16"  # ours: LLM weights (float32 on a CPU)


@dataclass(frozen=True)
class DatasetConfig:
    """One training data set; its key in ``datasets:`` is its name in lower case."""

    data_type: Literal["video", "audio", "image"] = "video"
    face_or_frame: str = "multiface_audio_face_text"  # input mode: which parts the prompt has
    label_type: str = "hybird"  # a row of prompts/questions, or hybird: one of the set's types, drawn per sample
    ratio: float = 1.0  # keep this fraction, drawn by the seed
    sample_ratio: float | None = None  # weight of this set when several are mixed; uniform when absent
    features: Literal["auto", "off", "require"] = "auto"  # ours: read stored encoder outputs where they fit
    path: str | None = None  # ours: label file of a set that the table lacks (see data/own), under paths.dataset_root
    test_path: str | None = None  # ours: the same of clips to answer (inference's --dataset); default: those of path
    columns: dict[str, str] = field(default_factory=dict)  # ours: what a column holds → its heading in that file
    folders: dict[str, str] = field(default_factory=dict)  # ours: video, audio, face, image → folder of the files


@dataclass(frozen=True)
class RunConfig:
    """Training."""

    task: str = field(default="video_text_pretrain", metadata=IGNORED)
    lr_sched: str = "linear_warmup_cosine_lr"  # see training/optim
    init_lr: float = 1e-5
    min_lr: float = 1e-5
    warmup_lr: float = 1e-6
    warmup_steps: int = 5000
    lr_decay_rate: float = 1.0  # linear_warmup_step_lr: factor per epoch
    weight_decay: float = 0.05
    beta2: float = 0.999
    max_epoch: int = 60
    iters_per_epoch: int = 5000
    batch_size_train: int = 3  # per GPU
    batch_size_eval: int = 3
    seed: int = 42  # plus the rank
    num_workers: int = 4  # loader processes
    amp: bool = True  # autocast fp16 with gradient scaling on a GPU
    accum_grad_iters: int = 1
    log_freq: int = 50  # steps between two log lines
    resume_ckpt_path: str | None = None
    evaluate: bool = False  # train nothing; print the losses of valid_splits and the scores of score_datasets
    train_splits: tuple[str, ...] = ("train",)
    valid_splits: tuple[str, ...] = ()  # splits whose loss is measured: valid (see valid_ratio), or one of a data set
    on_error: Literal["raise", "skip"] = "raise"  # ours: a sample that cannot be read ends the run, or is left out
    # Ours: speed. None of these changes what is learnt, beyond rounding.
    amp_dtype: Literal["float16", "bfloat16"] = "float16"  # bfloat16 where the GPU has it: Qwen2.5 overflows float16
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"  # the LLM's attention kernel
    gradient_checkpointing: bool = False  # recompute the LLM's activations in backward: less memory, a third slower
    compile: bool = False  # torch.compile of the LLM
    fused_adamw: bool = False
    packing: int = 0  # put samples side by side in rows of up to this many tokens instead of padding them; 0: off
    parallel: Literal["ddp", "fsdp2"] = "ddp"  # several GPUs: copies of the model, or shards of one (fsdp2)
    clip_grad_norm: float | None = None  # longest gradient; null: no clipping, as published
    # Ours: what is kept, watched and measured.
    save_state_every: int = 500  # steps between two last.state, from which a stopped run goes on; 0: only when stopped
    keep_last: int = 0  # checkpoints of so many last epochs stay, and that of epoch 0; 0: all
    tensorboard: bool = False  # needs the extra [track]
    valid_ratio: float = 0.0  # this fraction of each training split is held out; valid_splits: ["valid"] means these
    valid_every: int = 1  # epochs between two looks at valid_splits
    score_datasets: tuple[str, ...] = ()  # data sets of MER-UniBench whose direct scores are taken during training
    score_every: int = 0  # epochs between two scorings; 0: never
    score_samples: int = 100  # of each data set
    device: str = "cuda"  # cuda, cuda:N, cpu, auto (ours: the GPU if there is one)
    world_size: int = field(default=1, metadata=IGNORED)
    dist_url: str = field(default="env://", metadata=IGNORED)
    distributed: bool = True


@dataclass(frozen=True)
class InferenceConfig:
    """Which checkpoint answers, how, and where the answers go."""

    task: Any = field(default=None, metadata=IGNORED)
    vis_processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    text_processor: Any = field(default=None, metadata=IGNORED)
    img_processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    face_or_frame: Any = field(default=None, metadata=IGNORED)
    base_root: str = "output/results"  # results go to {base_root}-{data set}/{checkpoint folder}/{checkpoint}.npz
    ckpt_root: str | None = None  # a folder of checkpoints; else the search of config/paths
    ckpt_name: str | None = None  # one checkpoint file
    test_epoch: int | None = None
    test_epochs: str | None = None  # "A-B"
    skip_epoch: int = 1  # of A-B, those divisible by this
    gpu: int = 0
    engine: Literal["transformers", "vllm"] = "transformers"  # ours: what decodes
    decoding: Literal["sampling", "greedy"] = "sampling"  # ours: the published way samples
    temperature: float = 1.0  # ours: of sampling
    top_p: float = 0.9  # ours: of sampling
    top_k: int | None = None  # ours: of sampling; not set: as the LLM's folder says (20 for Qwen2.5), 0: all tokens
    max_new_tokens: int = 1200  # ours
    batch_size: int | None = None  # ours: clips generated together; not set: as many as memory allows
    tensor_parallel_size: int = 1  # ours: GPUs that share one model (vllm)
    on_error: Literal["raise", "skip"] = "raise"  # ours: as run.on_error
    seed: int = 42  # ours: sampling depends on this, the data set, the sample, the question and the checkpoint alone


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

    folder: ClassVar[Path | None] = None  # where the file is; set on an instance that was read from one, for messages
    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    run: RunConfig = field(default_factory=RunConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
