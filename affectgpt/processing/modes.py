"""One row per input mode (``face_or_frame``): which parts its prompt has, in which order (wire)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.registry import Registry
from affectgpt.core.types import Modality, Sample

_FRAMES = "uniformly sample raw frames from the video"
_FACES = f"{_FRAMES} and extract faces from these frames: <Video><FaceHere></Video>. "

MULTI = "The audio and video merged info is: <Multi><MultiHere></Multi>. "
AUDIO = "The audio content is as follows: <Audio><AudioHere></Audio>. "
FACE_FIRST = f"We {_FACES}"
FACE = f"Meanwhile, we {_FACES}"
FACE_ADDED = f"Additionally, we {_FACES}"
FRAME_FIRST = f"We {_FRAMES}: <Video><FrameHere></Video>. "
FRAME_FIRST_SMALL = f"we {_FRAMES}: <Video><FrameHere></Video>. "  # sic
FRAME = f"Meanwhile, we {_FRAMES}: <Video><FrameHere></Video>. "
IMAGE = "The image content is as follows: <Image><ImageHere></Image>. "
SUBTITLE = "The subtitle of this video is: <Subtitle>{subtitle}</Subtitle>. "
HUMAN = "###Human: "
_SUBTITLE = "{subtitle}"


@dataclass(frozen=True)
class Mode:
    """One input mode: the sentences before the question, and the visual side of its pre-fusion."""

    name: str
    sentences: tuple[str, ...]
    prefusion: Modality | None = None  # FACE or FRAME: what is pre-fused with the audio
    lead: str = HUMAN

    @property
    def placeholders(self) -> tuple[Modality, ...]:
        """The modalities whose placeholder stands in the prompt, in prompt order."""
        text = "".join(self.sentences)
        found = [m for m in Modality if m.placeholder in text]
        return tuple(sorted(found, key=lambda m: text.index(m.placeholder)))

    @property
    def media(self) -> tuple[Modality, ...]:
        """The media that the mode needs: those in the prompt, and both sides of the pre-fusion."""
        needed = set(self.placeholders) - {Modality.MULTI}
        if self.prefusion is not None:
            needed |= {self.prefusion, Modality.AUDIO}
        return tuple(m for m in Modality if m in needed)

    @property
    def has_subtitle(self) -> bool:
        """True if the prompt quotes the subtitle."""
        return any(_SUBTITLE in sentence for sentence in self.sentences)


_KNOWN = re.compile("|".join(re.escape(m.placeholder) for m in Modality))
_TAG = re.compile(r"<\s*/?\s*[^<>]{1,60}>|\{[^{}]*\}")


def _check_mode(what: str, mode: Mode) -> None:
    """ConfigError where a sentence holds what looks like a placeholder, but stands for no medium: it would be learnt as
    plain text, and what it should show never read. Tags in pairs (``<Pose>…</Pose>``) are text."""
    text = _KNOWN.sub("", mode.lead + "".join(mode.sentences)).replace(_SUBTITLE, "")
    for token in _TAG.findall(text):
        name = token.strip("<>/ ")
        if "here" in token.lower() or token[0] == "{" or not (f"<{name}>" in text and f"</{name}>" in text):
            raise ConfigError(
                f"{what}: its sentences hold {token}, which stands for no medium and would be plain text; allowed: "
                f"{', '.join(m.placeholder for m in Modality)} and {_SUBTITLE}"
            )


MODES = Registry("input mode (face_or_frame)", check=_check_mode)
for _row in (
    Mode("multiface_audio_face_text", (MULTI, AUDIO, FACE, SUBTITLE), Modality.FACE),
    Mode("multiframe_audio_frame_text", (MULTI, AUDIO, FRAME, SUBTITLE), Modality.FRAME),
    Mode("multiface_audio_face_frame_text", (MULTI, AUDIO, FACE, FRAME, SUBTITLE), Modality.FACE),
    Mode("multiface_text", (MULTI, SUBTITLE), Modality.FACE),
    Mode("faceframe", (AUDIO, FRAME, FACE_ADDED, SUBTITLE)),
    Mode("face", (AUDIO, FACE, SUBTITLE)),
    Mode("frame", (AUDIO, FRAME, SUBTITLE)),
    Mode("audioonly", (AUDIO,)),
    Mode("faceonly", (FACE_FIRST,)),
    Mode("frameonly", (FRAME_FIRST,)),
    Mode("textonly", (SUBTITLE,)),
    Mode("image", (IMAGE,)),
    Mode("audio_text", (AUDIO, SUBTITLE), lead=""),
    Mode("face_text", (FACE_FIRST, SUBTITLE), lead=""),
    Mode("frame_text", (FRAME_FIRST_SMALL, SUBTITLE), lead=""),
):
    MODES.register(_row.name)(_row)


def get_mode(name: str) -> Mode:
    """The row of an input mode; ConfigError with the nearest name otherwise."""
    return MODES.get(name)


def check_image(mode: str, sample: Sample) -> None:
    """Raise DataError where a mode has a place for an image and the sample has none: the reader would take a frame of
    its video, which only the published mode ``image`` means."""
    if mode != "image" and Modality.IMAGE in get_mode(mode).media and sample.image is None:
        raise DataError(
            f"{sample.dataset}: sample {sample.name!r}: input mode {mode} shows an image, and no image file of it is "
            "known; name their folder with folders.image of its block (only the mode 'image' takes a frame of a video)"
        )
