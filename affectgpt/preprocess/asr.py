"""Speech to text of a sound file or video: a Whisper model folder hears it, in either of the two usual formats.

Folders as Hugging Face has them run in transformers. Folders for faster-whisper (CTranslate2's format, several times
faster on a CPU) need the extra ``asr``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.core.errors import ConfigError, did_you_mean
from affectgpt.core.runtime import logger, pick_device
from affectgpt.core.types import SAMPLE_RATE, SOUND_SUFFIXES
from affectgpt.media.audio import read_wave
from affectgpt.media.guard import Decoder

if TYPE_CHECKING:
    import numpy as np
    import torch

_WINDOW = 30 * SAMPLE_RATE  # samples that Whisper looks at at once
_MULTILINGUAL = 51_865  # tokens; the English-only models have one less
_SILENCE = 1e-3  # full scale is 1; Whisper invents words for silence


class Transcriber:
    """Speech to text by a Whisper folder; ``language`` (``zh``, ``en`` …) where it is known, else it is heard.

    Raises ConfigError when the folder cannot be loaded.
    """

    def __init__(self, folder: Path | str, *, device: str = "auto", language: str | None = None) -> None:
        folder, language = Path(folder), language.lower() if language else None
        if not folder.is_dir():
            near = did_you_mean(folder.name, [p.name for p in folder.parent.glob("*") if p.is_dir()])
            raise ConfigError(
                f"--asr {folder}: no such folder.{near} Download a Whisper model there (for example whisper-large-v3, "
                "or one for faster-whisper), or leave --asr out"
            )
        load = _faster_whisper if (folder / "model.bin").is_file() else _transformers
        if load is _transformers and _model_type(folder) != "whisper":
            raise ConfigError(
                f"--asr {folder}: no Whisper folder: neither a config.json of model_type whisper (as Hugging Face has "
                "them) nor a model.bin (as faster-whisper has them)"
            )
        try:
            self._hear, languages = load(folder, pick_device(device), language)
        except ConfigError:
            raise
        except Exception as error:  # transformers and CTranslate2 raise RuntimeError, OSError, ValueError …
            raise ConfigError(f"--asr {folder}: cannot be loaded ({type(error).__name__}: {error})") from error
        if languages == {"en"} and language in (None, "en"):
            logger.warning("--asr %s: knows English only", folder)
        elif languages == {"en"}:
            raise ConfigError(f"--asr {folder}: knows English only, the language asked for is {language}")
        elif language is not None and language not in languages:
            raise ConfigError(
                f"--asr-language {language}: not a language of {folder}.{did_you_mean(language, languages)}"
            )
        self._decoder = Decoder()

    def __call__(self, media: Path | str) -> str:
        """The text of a sound file or of a video's sound; the empty string where nothing is said.

        Raises DataError naming the file when it cannot be read.
        """
        media = Path(media)
        wave = read_wave(media) if media.suffix.lower() in SOUND_SUFFIXES else self._decoder.track(media)
        if wave is None or abs(wave).max() < _SILENCE:
            return ""
        return " ".join(self._hear(wave).split())


_Hear = Callable[["np.ndarray"], str]  # mono float32 [n] at 16 kHz → text


def _model_type(folder: Path) -> str | None:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None


def _transformers(folder: Path, device: torch.device, language: str | None) -> tuple[_Hear, set[str]]:
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor
    from transformers.utils import logging as hf_logging

    dtype = torch.float16 if device.type == "cuda" else torch.float32
    processor = WhisperProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    model: Any = WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if bars:
        hf_logging.enable_progress_bar()
    model = model.to(device, dtype).eval()
    model.generation_config.forced_decoder_ids = None  # of old folders; language and task say the same
    multilingual = model.config.vocab_size >= _MULTILINGUAL
    options = {"language": language, "task": "transcribe"} if multilingual and language else {}

    def hear(wave: np.ndarray) -> str:
        is_long = len(wave) > _WINDOW
        layout = {"truncation": False, "padding": "longest"} if is_long else {}
        inputs = processor(
            wave, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True, **layout
        ).to(device, dtype)
        ids = model.generate(**inputs, return_timestamps=is_long, **options)
        return processor.batch_decode(ids, skip_special_tokens=True)[0]

    return hear, _languages(model.generation_config) if multilingual else {"en"}


def _languages(generation_config: Any) -> set[str]:
    """Codes and names of the languages that can be asked for; none where the folder's generation_config.json is old."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    codes = [token.strip("<|>") for token in getattr(generation_config, "lang_to_id", None) or ()]
    return {*codes, *(LANGUAGES[code] for code in codes if code in LANGUAGES)}


def _faster_whisper(folder: Path, device: torch.device, language: str | None) -> tuple[_Hear, set[str]]:
    try:
        import ctranslate2
        from faster_whisper import WhisperModel
    except ImportError:
        raise ConfigError(
            f"--asr {folder}: a folder of this format needs faster-whisper: pip install 'affectgpt[asr]' (a Whisper "
            "folder in Hugging Face's format needs nothing more)"
        ) from None
    ctranslate2.set_log_level(logging.ERROR)  # float16 weights computed in float32 on a CPU are no news
    model = WhisperModel(
        str(folder), device=device.type, device_index=device.index or 0, compute_type="default", local_files_only=True
    )

    def hear(wave: np.ndarray) -> str:
        ctranslate2.set_random_seed(0)  # what it is unsure of is sampled: the same again for the same clip
        segments, _ = model.transcribe(wave, language=language, beam_size=5, vad_filter=False)
        return " ".join(segment.text for segment in segments)

    return hear, set(model.supported_languages)
