"""One row per input mode (``face_or_frame``): which parts its prompt has, in which order (wire)."""

from __future__ import annotations

from dataclasses import dataclass

from affectgpt.core.registry import Registry
from affectgpt.core.types import Modality

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
        """Whether the prompt quotes the subtitle."""
        return any(_SUBTITLE in sentence for sentence in self.sentences)


MODES = Registry("input mode (face_or_frame)")
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
