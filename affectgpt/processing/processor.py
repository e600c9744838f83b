"""A sample, a question and an answer → an example; an answer's token ids → its text (wire)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from transformers import BatchFeature, ProcessorMixin

from affectgpt.config.schema import Config
from affectgpt.core.auto_module import AUTO_MODULE, write_auto_module
from affectgpt.core.crops import PUBLISHED
from affectgpt.core.errors import DataError
from affectgpt.core.types import IMAGE_SIZE, N_FRAMES, Batch, Modality, Sample
from affectgpt.encoders.base import (
    ACOUSTIC_ENCODERS,
    ENCODERS,
    VISUAL_ENCODERS,
    encoder_class,
    read_preprocessor,
)
from affectgpt.encoders.llm import (
    allowed_llm,
    folder_generation_config,
    load_tokenizer,
    loading,
    placeholder_ids,
    stop_sequences,
)
from affectgpt.media.guard import Decoder
from affectgpt.media.reader import MediaReader
from affectgpt.processing.collate import collate
from affectgpt.processing.modes import check_image, get_mode
from affectgpt.processing.prompt import (
    CHAT_MEDIA,
    END_OF_ANSWER,
    GENERATION_LENGTH,
    MAX_NEW_TOKENS,
    SHORTENED,
    encode_generation,
    encode_training,
    render_prompt,
    text_and_media,
)
from affectgpt.processing.prompt import chat_template as make_chat_template

if TYPE_CHECKING:
    import numpy as np
    import torch


def end_ids(tokenizer: Any, folder_generation_config: Any) -> list[int]:
    """The ids that end an answer: the tokenizer's eos, and any eos of the model folder's generation_config."""
    also = folder_generation_config.eos_token_id
    also = also if isinstance(also, list) else [also]
    return [tokenizer.eos_token_id, *(i for i in also if i not in (None, tokenizer.eos_token_id))]


def cut_at_stop(
    ids: Sequence[int], *, sequences: Sequence[Sequence[int]], eos_ids: Sequence[int]
) -> tuple[list[int], bool]:
    """New ids up to and with the first stop (an eos or a stop sequence), and whether there is one."""
    ends = {(eos,) for eos in eos_ids} | {tuple(sequence) for sequence in sequences}
    lengths = {len(end) for end in ends}
    for end in range(1, len(ids) + 1):
        if any(length <= end and tuple(ids[end - length : end]) in ends for length in lengths):
            return list(ids[:end]), True
    return list(ids), False


def clean_answer(text: str, *, bos: str, eos_tokens: Sequence[str]) -> str:
    """The answer in a raw generation, special tokens not skipped.

    What stands between the first and a second bos, if there is one; what follows any eos is dropped; cut at the last
    ``###``; what follows ``Assistant:`` is kept; stripped.
    """
    if bos in text:
        text = text.split(bos)[1]
    for eos in eos_tokens:
        text = text.split(eos, 1)[0]
    if "###" in text:
        text = text[: text.rindex("###")]
    return text.split("Assistant:")[-1].strip()


DEFAULT_MODE = "multiface_audio_face_text"
# Encoder outputs of a sample's medium, and what was odd about the medium.
FeatureOf = Callable[[Sample], "tuple[torch.Tensor, tuple[str, ...]]"]


@dataclass(slots=True)
class Example:
    """One processed sample, before it is collated.

    ``media``: face, frame uint8 ``[8, 3, 224, 224]``, audio float32 ``[8, 32000]``, image uint8 ``[3, 224, 224]``;
    ``features``: encoder outputs in their place. ``labels`` is None for generation.
    """

    name: str
    dataset: str
    mode: str
    prompt: str
    input_ids: list[int]
    labels: list[int] | None = None
    media: dict[Modality, torch.Tensor] = field(default_factory=dict)
    features: dict[Modality, torch.Tensor] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


class AffectGPTProcessor(ProcessorMixin):
    """The processor between samples and the model: tokenizer, transforms, input modes, and the decoding of answers.

    >>> processor = AffectGPTProcessor.from_config(config)
    >>> batch = processor.collate([processor(sample, question="How does she feel?")])
    >>> processor.decode(new_ids)

    ``visual`` and ``acoustic`` name an encoder and hold the content of its preprocessor_config.json, from which the
    transforms are made; ``transforms`` hands in others. ``n_tokens``: placeholder tokens by modality; ``eos_ids``: the
    ids that end an answer. All is small: no weights are read.
    """

    attributes = ("tokenizer",)
    tokenizer_class = "AutoTokenizer"

    # transformers takes what it saved as positional parameters, so that these are not keyword-only.
    def __init__(
        self,
        tokenizer: Any,
        visual: Mapping[str, Any] | None = None,
        acoustic: Mapping[str, Any] | None = None,
        n_tokens: Mapping[str, int] | None = None,
        eos_ids: Sequence[int] = (),
        mode: str = DEFAULT_MODE,
        n_frames: int = N_FRAMES,
        image_size: int = IMAGE_SIZE,
        audio_clip_spacing: int = 8,
        face_channels: str = PUBLISHED,
        max_length: int = 1024,
        max_new_tokens: int = MAX_NEW_TOKENS,
        chat_template: str | None = None,
        *,
        transforms: Mapping[Modality, Callable[[np.ndarray], torch.Tensor]] | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template)
        self.visual, self.acoustic = dict(visual or {}), dict(acoustic or {})
        self.n_tokens = {Modality(name): int(count) for name, count in (n_tokens or {}).items()}
        self.eos_ids = list(eos_ids) or [tokenizer.eos_token_id]
        self.mode = mode
        self.n_frames, self.image_size = n_frames, image_size
        self.audio_clip_spacing, self.face_channels = audio_clip_spacing, face_channels
        self.max_length, self.max_new_tokens = max_length, max_new_tokens
        self.transforms = self._transforms() if transforms is None else dict(transforms)
        self.media = MediaReader(
            self.transforms,
            n_frames=n_frames,
            image_size=image_size,
            audio_clip_spacing=audio_clip_spacing,
            face_channels=face_channels,
            decoder=decoder,
        )

    @classmethod
    def from_config(
        cls, config: Config, *, mode: str | None = None, training: bool = False, augment: bool = False
    ) -> AffectGPTProcessor:
        """The processor of a configuration's models. Reads small files only.

        ``training``: pictures of training's size instead of inference's; ``augment`` matters to EVA-CLIP alone, which
        sees augmented frames in training. Raises ConfigError and CheckpointError naming key and folder.
        """
        model, row = config.model, allowed_llm(config)
        specs = {}
        for key in ENCODERS:
            with loading(config, key) as folder:
                there = (folder / "preprocessor_config.json").is_file()
                specs[key] = {
                    "encoder": getattr(model, key),
                    "preprocessor": read_preprocessor(folder) if there else {},
                }
        reader = media_reader(config, training=training, augment=augment)
        with loading(config, "llama_model") as folder:
            tokenizer = load_tokenizer(folder, row, trust_remote_code=model.trust_remote_code)
            eos_ids = end_ids(tokenizer, folder_generation_config(folder, trust_remote_code=model.trust_remote_code))
        return cls(
            tokenizer,
            visual=specs["visual_encoder"],
            acoustic=specs["acoustic_encoder"],
            n_tokens={
                Modality.FACE: model.num_video_query_token,
                Modality.FRAME: model.num_video_query_token,
                Modality.AUDIO: model.num_audio_query_token,
                Modality.MULTI: model.num_multi_query_token,
                Modality.IMAGE: model.num_image_query_token,
            },
            eos_ids=eos_ids,
            mode=get_mode(mode or DEFAULT_MODE).name,
            n_frames=reader.n_frames,
            image_size=reader.image_size,
            audio_clip_spacing=reader.audio_clip_spacing,
            face_channels=reader.face_channels,
            max_length=model.max_length,
            max_new_tokens=config.inference.max_new_tokens,
            transforms=reader.transforms,
        )

    def __call__(
        self,
        sample: Sample | None = None,
        *,
        question: str = "",
        answer: str | None = None,
        mode: str | None = None,
        features: Mapping[Modality, FeatureOf] | None = None,
        text: str | Sequence[str] | None = None,
        face: Any = None,
        video: Any = None,
        audio: Any = None,
        image: Any = None,
        **_: Any,
    ) -> Any:
        """One sample → Example: to be continued, or with the ``answer`` to be learnt.

        ``features`` gives encoder outputs in place of media. Raises DataError naming data set, sample, medium, file.

        Or, as processors of transformers are called, ``text`` (a prompt as ``apply_chat_template`` makes it,
        placeholders once each; or several) with its media (one, or a list of as many: files, or arrays as
        ``MediaReader.value`` takes them) → a BatchFeature for ``model.generate(**inputs)``, padded on the left. The
        sound is the video's where no ``audio`` is given.
        """
        if sample is not None:
            return self.fill(self.text(sample, question=question, answer=answer, mode=mode), sample, features=features)
        if text is None:
            raise ValueError("give a sample with a question, or text")
        prompts = [text] if isinstance(text, str) else list(text)
        media = {"face": face, "frame": video, "audio": audio, "image": image}
        each = [
            {name: values[i] if isinstance(values, list | tuple) else values for name, values in media.items()}
            for i in range(len(prompts))
        ]
        batch = self.collate(
            [self._prompted(p, m, number=i) for i, (p, m) in enumerate(zip(prompts, each, strict=True))]
        )
        return BatchFeature({key: value for key, value in batch.items() if key not in ("names", "prefusion", "layout")})

    def _prompted(self, prompt: str, media: Mapping[str, Any], *, number: int) -> Example:
        name = f"text {number}"
        ids = encode_generation(
            prompt, tokenizer=self.tokenizer, n_tokens=self.n_tokens, sample=name, max_new_tokens=self.max_new_tokens
        )
        example = Example(name=name, dataset="", mode=self.mode, prompt=prompt, input_ids=ids)
        for modality in get_mode(self.mode).media:
            value = media.get(modality.value)
            if value is None and modality is Modality.AUDIO and isinstance(media.get("frame"), str | os.PathLike):
                value = media["frame"]
            if value is None:
                hint = ""
                if modality is Modality.FACE:
                    hint = ": crops [N, H, W, 3], or use affectgpt.Predictor, which finds the face in the video"
                argument = "video" if modality is Modality.FRAME else modality.value
                raise DataError(f"{name}: mode {self.mode} needs {modality.value}; give {argument}={hint}")
            example.media[modality] = self.media.value(modality, value)
        return example

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        **_: Any,
    ) -> Any:
        """A chat (or several) → its prompt, or with ``tokenize`` what ``model.generate`` takes.

        Parts of the last user message: ``{"type": "text", "text": the question}``, ``{"type": "subtitle", "subtitle":
        what is said}``, and media as ``{"type": "video", "video": file or array}`` and alike (``face``, ``audio``,
        ``image``). Text of others cannot open a turn or stand for media (``quote_text``).
        """
        one = bool(conversation) and isinstance(conversation[0], Mapping)
        chats = [conversation] if one else list(conversation)
        template = chat_template or self.chat_template or make_chat_template(self.mode)
        prompts, media = [], []
        for chat in chats:
            said, parts = text_and_media(chat)
            prompts.append(self.tokenizer.apply_chat_template(said, chat_template=template, tokenize=False))
            media.append(parts)
        if not tokenize:
            return prompts[0] if one else prompts
        given: dict[str, Any] = {name: [parts.get(name) for parts in media] for name in CHAT_MEDIA}
        inputs = self(text=prompts, **given)
        return inputs if return_dict else inputs["input_ids"]

    def post_process_multimodal_output(  # type: ignore[override]
        self, generated_outputs: Any, **options: Any
    ) -> list[str]:
        """Token ids of whole generations → texts, without the mark that ends an answer; for transformers' pipelines."""
        texts = self.tokenizer.batch_decode(
            generated_outputs, skip_special_tokens=options.get("skip_special_tokens", True)
        )
        return [text.removesuffix(END_OF_ANSWER) for text in texts]

    def text(self, sample: Sample, *, question: str, answer: str | None = None, mode: str | None = None) -> Example:
        """A sample without its media. Tokenizers are not for several threads at once; all else here may be."""
        mode = mode or self.mode
        name = f"{sample.dataset}/{sample.name}"
        prompt = render_prompt(mode, subtitle=sample.subtitle, question=question, sample=name)
        shared: dict[str, Any] = {"tokenizer": self.tokenizer, "n_tokens": self.n_tokens, "sample": name}
        labels = None
        flags: tuple[str, ...] = ()
        if answer is None:
            options = {"max_length": GENERATION_LENGTH, "max_new_tokens": self.max_new_tokens, **shared}
            try:
                input_ids = encode_generation(prompt, **options)
            except DataError:
                # Too long to keep all media: the end of the subtitle goes (published: the beginning of the prompt).
                low, high = 0, len(sample.subtitle)
                while low < high:
                    middle = (low + high + 1) // 2
                    try:
                        shorter = render_prompt(mode, subtitle=sample.subtitle[:middle], question=question, sample=name)
                        encode_generation(shorter, **options)
                        low = middle
                    except DataError:
                        high = middle - 1
                prompt = render_prompt(mode, subtitle=sample.subtitle[:low], question=question, sample=name)
                input_ids, flags = encode_generation(prompt, **options), (SHORTENED,)
        else:
            input_ids, labels = encode_training(prompt, answer, max_length=self.max_length, **shared)
        return Example(
            name=sample.name, dataset=sample.dataset, mode=mode, prompt=prompt, input_ids=input_ids, labels=labels,
            flags=flags,
        )  # fmt: skip

    def fill(
        self, example: Example, sample: Sample, *, features: Mapping[Modality, FeatureOf] | None = None
    ) -> Example:
        """Add the media that the mode needs to a sample's text, or their features, and what is odd about them."""
        check_image(example.mode, sample)
        for modality in get_mode(example.mode).media:
            if features and modality in features:
                example.features[modality], flags = features[modality](sample)
            else:
                example.media[modality], flags = self.media(sample, modality)
            example.flags += tuple(flag for flag in flags if flag not in example.flags)
        return example

    def collate(self, examples: Sequence[Example], **options: int) -> Batch:
        """Examples of one mode → a padded batch: right for training, left for generation (``options``: its)."""
        return collate(
            examples, pad_token_id=self.tokenizer.pad_token_id, placeholder_ids=self.placeholder_ids, **options
        )

    @cached_property
    def stop_sequences(self) -> list[tuple[int, ...]]:
        """Token sequences that end an answer besides ``eos_ids``."""
        return stop_sequences(self.tokenizer)

    @cached_property
    def placeholder_ids(self) -> dict[Modality, int]:
        """Modality → id of its placeholder token."""
        return placeholder_ids(self.tokenizer)

    def cut(self, token_ids: Sequence[int]) -> tuple[list[int], bool]:
        """New token ids of one row up to and with the first stop, and whether there is one."""
        return cut_at_stop(token_ids, sequences=self.stop_sequences, eos_ids=self.eos_ids)

    def decode(self, token_ids: Any, **options: Any) -> str:
        """New token ids of one row → its answer, cut at the first stop and cleaned as published.

        With options they are handed to the tokenizer, whose text is returned as it is.
        """
        if options:
            return self.tokenizer.decode(token_ids, **options)
        ids, _ = self.cut([int(i) for i in token_ids])
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        if getattr(self.tokenizer, "clean_up_tokenization_spaces", False):
            # Llama 3's folder asks for it, and transformers 5 no longer does it.
            text = re.sub(r" (?=[.?!,])| (?=n't\b|'(?:m|s|ve|re)\b)", "", text).replace(" ' ", "'")
        eos_tokens = self.tokenizer.convert_ids_to_tokens(self.eos_ids)
        return clean_answer(text, bos=self.tokenizer.bos_token, eos_tokens=eos_tokens)

    def to_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Return the content of processor_config.json: the parameters that are neither the tokenizer nor made from
        others."""
        return {
            "processor_class": type(self).__name__,
            "auto_map": {"AutoProcessor": f"{AUTO_MODULE}.{type(self).__name__}"},
            "visual": self.visual,
            "acoustic": self.acoustic,
            "n_tokens": {modality.value: count for modality, count in self.n_tokens.items()},
            "eos_ids": self.eos_ids,
            "mode": self.mode,
            "n_frames": self.n_frames,
            "image_size": self.image_size,
            "audio_clip_spacing": self.audio_clip_spacing,
            "face_channels": self.face_channels,
            "max_length": self.max_length,
            "max_new_tokens": self.max_new_tokens,
        }

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], **options: Any
    ) -> Any:
        """Like ``ProcessorMixin.save_pretrained``, with the module that AutoProcessor imports this class from."""
        saved = super().save_pretrained(save_directory, **options)
        write_auto_module(save_directory)
        return saved

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Do nothing: the folder's module imports this package, whose code is not copied into it."""

    def _transforms(self) -> dict[Modality, Callable[[np.ndarray], torch.Tensor]]:
        made = []
        for registry, spec in ((VISUAL_ENCODERS, self.visual), (ACOUSTIC_ENCODERS, self.acoustic)):
            if not spec:
                return {}
            made.append(registry.get(spec["encoder"]).transform_of(spec["preprocessor"]))
        return _by_modality(*made)


def media_reader(config: Config, *, training: bool = False, augment: bool = False) -> MediaReader:
    """The reader of a configuration's media: its encoders' transforms, and training's or inference's sizes.

    No LLM is needed for it. Raises ConfigError and CheckpointError naming key and folder.
    """
    transforms = {}
    for key in ENCODERS:
        kind = encoder_class(config, key)
        with loading(config, key) as folder:
            transforms[key] = kind.transform_of(folder, training=augment)
    frames = config.model.vis_processor.train if training else config.inference_frames
    return MediaReader(
        _by_modality(transforms["visual_encoder"], transforms["acoustic_encoder"]),
        n_frames=frames.n_frms,
        image_size=frames.image_size,
        audio_clip_spacing=config.model.audio_clip_spacing,
        face_channels=config.model.face_channels,
    )


def _by_modality(visual: Any, acoustic: Any) -> dict[Modality, Any]:
    return {Modality.FACE: visual, Modality.FRAME: visual, Modality.IMAGE: visual, Modality.AUDIO: acoustic}
