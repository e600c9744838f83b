"""Every key of a captioning configuration: what is annotated, by which models, and what the filters keep.

The file has the sections of a training configuration besides (``model`` names the encoders whose features the
classifiers read, ``paths`` where things lie, ``run.device`` where encoders compute).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from affectgpt.config.limits import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, SEED, SHARE, limited
from affectgpt.config.schema import Config

STEPS = ("describe", "merge", "low_level", "high_level", "output")  # of a run, in their order
AUDIO_PROMPT = (
    "You will hear one person speaking. Please describe how it is said: tone, pitch, loudness, speed, pauses, "
    "laughter, sighs or sobs, and anything else in the sound that may tell what this person feels. Describe only what "
    "you hear."
)
VISUAL_PROMPT = (
    "These are frames of one video in their order. Please describe the person who can be seen: facial expression, "
    "eyes, mouth, gestures, posture, and anything else in the pictures that may tell what this person feels. Describe "
    "only what you see."
)
# Paper, appendix G, word for word; the clues follow it.
MERGE_PROMPT = (
    "Please act as an expert in the field of emotions. We provide acoustic and visual clues that may be related to the "
    "character's emotional state, along with the original subtitle of the video. Please analyze which parts can infer "
    "the emotional state and explain the reasons. During the analysis, please integrate the textual, audio, and visual "
    "clues."
)


@dataclass(frozen=True)
class InputConfig:
    """The clips to annotate. ``affectgpt preprocess`` writes this layout from raw videos."""

    root: str = "../dataset/unlabelled"  # folder that the next six are relative to
    video: str = "video"  # NAME.mp4, .avi, .mkv, .mov or .webm
    audio: str = "audio"  # NAME.wav
    face: str = "openface_face"  # NAME.npy or NAME/NAME.npy
    subtitles: str = "subtitle.csv"  # columns name and the one below; empty: none, all videos are taken
    subtitle_column: str = "english"
    chinese_column: str = ""  # of the same file; empty: it has none
    names: str = ""  # CSV with a column name: which clips; empty: those of the subtitle file


@dataclass(frozen=True)
class AskConfig:
    """The model that answers one kind of question, and how it is asked. Texts that are known already can be read from a
    file instead."""

    client: Literal["openai", "transformers", "vllm", "file", "off"] = "openai"  # off (clues only): go without
    model: str = ""  # as the server calls it; a folder for transformers and vllm (text only)
    base_url: str = ""  # of an OpenAI-compatible server: http://host:8000/v1
    key_variable: str = "OPENAI_API_KEY"  # environment variable that holds the server's key
    file: str = ""  # client: file - CSV with the columns name and the one below
    column: str = "text"
    prompt: str = ""
    concurrency: int = limited(16, COUNT)  # requests at a time
    requests_per_minute: float | None = limited(None, POSITIVE)  # null: no limit but concurrency
    timeout: float = limited(300.0, POSITIVE)  # seconds for one request
    attempts: int = limited(6, COUNT)  # per request, see textllm
    temperature: float = 0.7
    top_p: float = limited(0.8, SHARE)
    repetition_penalty: float = 1.0  # not 1: only vLLM and SGLang know it
    max_tokens: int = limited(512, COUNT)  # of the reply
    seed: int = limited(42, SEED)
    frames: int = limited(8, COUNT)  # visual clues: uniformly sampled frames of the video
    longest_side: int = limited(448, COUNT)  # pixels of such a frame
    price_prompt: float = limited(0.0, NOT_NEGATIVE)  # of a million prompt tokens, in any currency
    price_reply: float = limited(0.0, NOT_NEGATIVE)  # of a million reply tokens


@dataclass(frozen=True)
class AudioAskConfig(AskConfig):
    """The audio LLM (paper: SALMONN): acoustic clues from NAME.wav."""

    prompt: str = AUDIO_PROMPT


@dataclass(frozen=True)
class VisualAskConfig(AskConfig):
    """The video LLM (paper: Chat-UniVi): visual clues from frames."""

    prompt: str = VISUAL_PROMPT


@dataclass(frozen=True)
class MergeAskConfig(AskConfig):
    """The LLM that joins clues and subtitle into a description (paper: GPT-3.5)."""

    prompt: str = MERGE_PROMPT  # {subtitle}, {audio} and {visual} may stand in it; else they follow it
    max_tokens: int = limited(1024, COUNT)


@dataclass(frozen=True)
class ExtractorConfig:
    """The extractor of labels and polarity from descriptions (paper, appendix E); see evaluation/extract."""

    name: str = "openai"  # openai, transformers, vllm; direct: descriptions of the trained form
    model: str = "models/Qwen2.5-7B-Instruct"  # as the server calls it, or a folder
    base_url: str = ""
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = limited(16, COUNT)
    requests_per_minute: float | None = limited(None, POSITIVE)
    seed: int = limited(42, SEED)


@dataclass(frozen=True)
class SpeakerConfig:
    """Low-level filter, first half: is the visible person the one who speaks (paper: TalkNet)?"""

    source: Literal["csv", "estimate", "off"] = "estimate"
    file: str = ""  # csv: a row per clip, or per frame (then their mean counts)
    name_column: str = "name"
    score_column: str = "score"
    threshold: float = 0.0  # csv: keep from this score on (TalkNet: 0)
    estimate_threshold: float = 0.5  # estimate: keep from this correlation (0 to 1) on
    min_crops: int = limited(16, NOT_NEGATIVE)  # estimate: with fewer face crops a clip is not judged, and kept
    missing: Literal["keep", "drop"] = "keep"  # clips that have no score


@dataclass(frozen=True)
class LengthConfig:
    """Low-level filter, second half: descriptions at both ends of the length distribution are removed."""

    use: bool = True
    sigmas: float = limited(2.5, POSITIVE)  # kept: within so many standard deviations of the Gaussian's mean
    fit: Literal["moments", "robust"] = "robust"  # mean and deviation, or median and interquartile range


@dataclass(frozen=True)
class EnsembleConfig:
    """Model-based crowdsourcing: classifiers trained on human-labelled sets vote on every clip."""

    folder: str = ""  # of the trained classifiers; empty: <work>/crowd
    sets: tuple[str, ...] = ("MER2023", "MER2024", "MELD", "IEMOCAPFour", "CMUMOSI")
    models: int = limited(5, COUNT)
    leave_out: int = limited(1, NOT_NEGATIVE)  # sets that each classifier, in turn, does without
    visual: Literal["face", "frame"] = "face"  # what the visual encoder sees
    hidden: int = limited(128, COUNT)
    dropout: float = limited(0.3, FRACTION)
    epochs: int = limited(30, COUNT)
    batch: int = limited(256, COUNT)
    lr: float = limited(1e-3, POSITIVE)
    weight_decay: float = limited(1e-4, NOT_NEGATIVE)
    held_back: float = limited(0.1, SHARE)  # of every training split: picks each classifier's best epoch
    neutral_band: float = 0.1  # of a set's largest |valence|: within it a predicted valence is neutral
    seed: int = limited(42, SEED)


@dataclass(frozen=True)
class AgreementConfig:
    """High-level filter: keep a description when its labels agree with the ensemble (paper, table 4)."""

    rule: Literal["E", "S", "E+S", "off"] = "E+S"  # emotion, sentiment, or both must agree
    votes: float = limited(0.5, SHARE)  # share of the classifiers that must agree
    wheels: float = limited(0.5, FRACTION)  # the emotions must agree on more than this share of wheels
    undecided: Literal["drop", "keep"] = "drop"  # clips without a majority
    lexicon: str = ""  # folder of emotion wheels, or builtin; empty: emotion_wheel/ if it is there, else builtin


@dataclass(frozen=True)
class ReviewConfig:
    """The human-assisted part: a CSV that a person fills in."""

    count: int = 200  # clips that --review writes, the most doubtful first
    file: str = ""  # empty: <work>/review.csv


@dataclass(frozen=True)
class CaptioningConfig:
    """The pipeline, step by step."""

    work: str = ""  # where replies, tables and the report go; empty: <paths.output_root>/<file name of the YAML>
    input: InputConfig = field(default_factory=InputConfig)
    audio: AudioAskConfig = field(default_factory=AudioAskConfig)
    visual: VisualAskConfig = field(default_factory=VisualAskConfig)
    merge: MergeAskConfig = field(default_factory=MergeAskConfig)
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    speaker: SpeakerConfig = field(default_factory=SpeakerConfig)
    length: LengthConfig = field(default_factory=LengthConfig)
    crowd: EnsembleConfig = field(default_factory=EnsembleConfig)
    agreement: AgreementConfig = field(default_factory=AgreementConfig)
    review: ReviewConfig = field(default_factory=ReviewConfig)
    shown: int = limited(50, NOT_NEGATIVE)  # random clips in the report
    output: str = ""  # dataset root for training; empty: <work>/dataset


@dataclass(frozen=True)
class CaptioningFile(Config):
    """A whole captioning configuration file."""

    captioning: CaptioningConfig = field(default_factory=CaptioningConfig)
