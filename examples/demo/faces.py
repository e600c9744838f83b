"""Drawn talking faces: an identity, an expression, a moving mouth, a background.

Everything that makes an identity (shape, skin, hair, eyes, glasses, clothes) is drawn apart from the expression. The
face box is known from the drawing, so crops need no detector.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SIZE = 256  # pixels, width and height of a frame
CROP = 112  # pixels, width and height of a face crop, as OpenFace writes them
_SHIFT = 4  # cv2's fixed-point bits
_EYES = -0.045  # height of the eyes in head coordinates, see _Painter
SKINS = ((255, 224, 196), (241, 194, 150), (224, 172, 125), (198, 134, 92), (150, 98, 66), (118, 80, 56))
HAIRS = ((30, 24, 20), (70, 45, 25), (120, 75, 35), (200, 160, 90), (150, 60, 30), (150, 150, 155))
HAIR_STYLES = ("short", "long", "bun", "bald")


@dataclass(frozen=True)
class Expression:
    """What a face does beyond resting; every number is 0 at rest.

    brow_in, brow_out: how far the brow's inner and outer end rise (-1 to 1); brow_gap: how far the brows move apart;
    lid: how far the eyes open (-1 to 1); curve: mouth corners up (1) or down (-1); open: jaw (0 to 1); width: of the
    mouth (-1 to 1); crooked: one mouth corner against the other; gaze: eyes down (1).
    """

    brow_in: float = 0.0
    brow_out: float = 0.0
    brow_gap: float = 0.0
    lid: float = 0.0
    curve: float = 0.0
    open: float = 0.0
    width: float = 0.0
    crooked: float = 0.0
    gaze: float = 0.0

    def scaled(self, factor: float) -> Expression:
        """The same expression, weaker or stronger."""
        return Expression(**{name: value * factor for name, value in vars(self).items()})


EXPRESSIONS = {
    "happy": Expression(brow_in=0.15, brow_out=0.25, lid=-0.35, curve=1.0, open=0.22, width=0.6),
    "sad": Expression(brow_in=0.75, brow_out=-0.55, lid=-0.4, curve=-0.75, width=-0.2, gaze=0.8),
    "angry": Expression(brow_in=-1.0, brow_out=0.55, brow_gap=-0.6, lid=-0.15, curve=-0.45, width=-0.1),
    "surprise": Expression(brow_in=1.0, brow_out=1.0, lid=0.95, open=0.7, width=-0.55),
    "worried": Expression(brow_in=0.9, brow_out=-0.2, brow_gap=-0.35, lid=0.45, curve=-0.3, width=0.25, crooked=1.0),
    "neutral": Expression(),
}


@dataclass(frozen=True)
class Identity:
    """How one drawn person looks. Lengths are parts of the frame's width."""

    skin: tuple[int, int, int]  # RGB
    hair: tuple[int, int, int]
    hair_style: str
    iris: tuple[int, int, int]
    shirt: tuple[int, int, int]
    head_w: float
    head_h: float
    eye_gap: float
    eye_size: float
    brow_thick: float
    nose: float
    mouth_w: float
    mouth_y: float
    lips: tuple[int, int, int]
    glasses: bool
    beard: bool


def draw_identity(rng: np.random.Generator) -> Identity:
    """A person, from a generator that knows nothing of emotions."""

    def shade(colour: tuple[int, int, int]) -> tuple[int, int, int]:
        red, green, blue = (int(min(255, max(0, c + rng.normal(0, 8)))) for c in colour)
        return red, green, blue

    skin = shade(SKINS[int(rng.integers(len(SKINS)))])
    red, green, blue = (int(0.35 * c + 0.65 * lip) for c, lip in zip(skin, (175, 45, 55), strict=True))
    return Identity(
        skin=skin,
        hair=shade(HAIRS[int(rng.integers(len(HAIRS)))]),
        hair_style=HAIR_STYLES[int(rng.integers(len(HAIR_STYLES)))],
        iris=((60, 90, 150), (80, 60, 30), (70, 110, 70), (50, 40, 35))[int(rng.integers(4))],
        shirt=_vivid(rng),
        head_w=rng.uniform(0.21, 0.25),
        head_h=rng.uniform(0.28, 0.32),
        eye_gap=rng.uniform(0.088, 0.108),
        eye_size=rng.uniform(0.036, 0.044),
        brow_thick=rng.uniform(0.012, 0.022),
        nose=rng.uniform(0.03, 0.05),
        mouth_w=rng.uniform(0.075, 0.095),
        mouth_y=rng.uniform(0.145, 0.165),
        lips=(red, green, blue),
        glasses=bool(rng.random() < 0.25),
        beard=bool(rng.random() < 0.2),
    )


def _vivid(rng: np.random.Generator, value: float | None = None) -> tuple[int, int, int]:
    r, g, b = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.25, 0.75), value or rng.uniform(0.45, 0.9))
    return int(r * 255), int(g * 255), int(b * 255)


def draw_background(rng: np.random.Generator) -> np.ndarray:
    """A background, uint8 ``[SIZE, SIZE, 3]`` RGB: a shaded wall, and sometimes a picture or a window on it."""
    import cv2
    import numpy as np

    n = SIZE
    top, bottom = np.array(_vivid(rng), float), np.array(_vivid(rng), float)
    ramp = np.linspace(0, 1, n)[:, None, None]
    image = np.repeat(top * (1 - ramp) + bottom * ramp, n, axis=1).astype(np.uint8)
    for _ in range(int(rng.integers(0, 4))):
        x, y = (int(v) for v in rng.uniform(-0.1, 0.9, 2) * n)
        w, h = (int(v) for v in rng.uniform(0.1, 0.35, 2) * n)
        cv2.rectangle(image, (x, y), (x + w, y + h), _vivid(rng), -1)
        cv2.rectangle(image, (x, y), (x + w, y + h), (60, 50, 45), 2)
    return image


@dataclass(frozen=True)
class Pose:
    """Where the head is in one frame: centre as parts of the frame, roll in degrees, and whether the eyes are shut."""

    x: float
    y: float
    roll: float
    blink: float = 0.0


def draw_frame(background: np.ndarray, who: Identity, expression: Expression, pose: Pose) -> np.ndarray:
    """One frame, uint8 ``[SIZE, SIZE, 3]`` RGB."""
    canvas = background.copy()
    _Painter(canvas, who, expression, pose).paint()
    return canvas


# Where eyes, nose and mouth corners are in a 112 × 112 crop: the usual template of aligned face sets.
_TEMPLATE = ((38.3, 51.7), (73.5, 51.5), (56.0, 71.7), (41.5, 92.4), (70.7, 92.2))


def crop_face(frame: np.ndarray, who: Identity, pose: Pose, *, zoom: float = 1.0) -> np.ndarray:
    """The face, uint8 ``[CROP, CROP, 3]``: turned, scaled and shifted so that its parts meet the usual template.

    The parts are where the drawing puts them at rest, whatever the expression. ``zoom`` above 1 takes in less.
    """
    import cv2
    import numpy as np

    eye, mouth = who.eye_gap, 0.9 * who.mouth_w
    tip = 0.065 + who.nose / 2
    parts = np.array([(-eye, _EYES), (eye, _EYES), (0, tip), (-mouth, who.mouth_y), (mouth, who.mouth_y)])
    wanted = np.array(_TEMPLATE)
    centred = parts - parts.mean(axis=0)
    pixels = zoom * (centred * (wanted - wanted.mean(axis=0))).sum() / (centred**2).sum()  # of the crop per frame width
    angle = np.deg2rad(pose.roll)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # crop pixel c → head coordinates (c - middle) / pixels + parts' mean → frame
    linear = turn * SIZE / pixels
    middle = turn @ parts.mean(axis=0) * SIZE + np.array([pose.x, pose.y]) * SIZE
    matrix = np.column_stack([linear, middle - linear @ wanted.mean(axis=0)])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(frame, matrix, (CROP, CROP), flags=flags, borderMode=cv2.BORDER_REPLICATE)


class _Painter:
    """Draws one head in head coordinates (x right, y down, parts of the frame's width, 0 = centre of the head)."""

    def __init__(self, canvas: np.ndarray, who: Identity, expression: Expression, pose: Pose) -> None:
        import numpy as np

        self.canvas, self.who, self.ex, self.pose = canvas, who, expression, pose
        self.n = canvas.shape[0]
        angle = np.deg2rad(pose.roll)
        self.turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def _at(self, x: float, y: float) -> tuple[int, int]:
        px, py = self.turn @ (x, y)
        return round((self.pose.x + px) * self.n * 2**_SHIFT), round((self.pose.y + py) * self.n * 2**_SHIFT)

    def _ellipse(
        self, x: float, y: float, rx: float, ry: float, colour: Any, start: float = 0, end: float = 360
    ) -> None:
        import cv2

        axes = (round(rx * self.n * 2**_SHIFT), max(round(ry * self.n * 2**_SHIFT), 1))
        cv2.ellipse(self.canvas, self._at(x, y), axes, self.pose.roll, start, end, colour, -1, cv2.LINE_AA, _SHIFT)

    def _polygon(self, points: Any, colour: Any) -> None:
        import cv2
        import numpy as np

        cv2.fillPoly(self.canvas, [np.array([self._at(*p) for p in points])], colour, cv2.LINE_AA, _SHIFT)

    def _stroke(self, points: Any, colour: Any, thick: float) -> None:
        import cv2
        import numpy as np

        line = np.array([self._at(*p) for p in points])
        cv2.polylines(self.canvas, [line], False, colour, max(1, round(thick * self.n)), cv2.LINE_AA, _SHIFT)

    def paint(self) -> None:
        self._body_and_hair()
        self._head()
        for side in (-1, 1):
            self._eye(side)
            self._brow(side)
        self._mouth()

    def _darker(self, factor: float) -> tuple[int, int, int]:
        red, green, blue = (int(c * factor) for c in self.who.skin)
        return red, green, blue

    def _body_and_hair(self) -> None:
        w = self.who
        if w.hair_style == "long":
            self._ellipse(0, 0.05, w.head_w * 1.25, w.head_h * 1.2, w.hair)
        self._ellipse(0, w.head_h + 0.33, 0.36, 0.28, w.shirt)
        self._polygon(
            [(-0.07, 0.15), (0.07, 0.15), (0.08, w.head_h + 0.1), (-0.08, w.head_h + 0.1)], self._darker(0.85)
        )
        if w.hair_style == "bun":
            self._ellipse(0, -w.head_h * 1.05, 0.08, 0.08, w.hair)
        if w.hair_style != "bald":
            self._ellipse(0, -0.03, w.head_w * 1.08, w.head_h * 1.06, w.hair)

    def _head(self) -> None:
        w = self.who
        for side in (-1, 1):
            self._ellipse(side * w.head_w, 0.01, 0.03, 0.05, self._darker(0.9))
        self._ellipse(0, 0.01, w.head_w, w.head_h, w.skin)
        if w.hair_style != "bald":  # fringe
            self._ellipse(0, -w.head_h * 0.62, w.head_w * 0.93, w.head_h * 0.42, w.hair, 180, 360)
        if w.beard:
            self._ellipse(0, w.mouth_y + 0.03, w.head_w * 0.72, w.head_h * 0.42, w.hair, 0, 180)
        self._stroke(
            [(-0.004, -0.02), (-0.02, 0.06 + w.nose / 2), (0.014, 0.065 + w.nose / 2)], self._darker(0.7), 0.008
        )

    def _eye(self, side: int) -> None:
        w, ex = self.who, self.ex
        x, y = side * w.eye_gap, _EYES
        openness = max(0.06, (0.62 + 0.5 * ex.lid) * (1 - self.pose.blink))
        height = w.eye_size * openness
        self._ellipse(x, y, w.eye_size * 1.1, height, (250, 250, 250))
        iris = min(w.eye_size * 0.55, height)
        if height > w.eye_size * 0.15:
            self._ellipse(x, y + ex.gaze * height * 0.35, w.eye_size * 0.5, iris, w.iris)
            self._ellipse(x, y + ex.gaze * height * 0.35, w.eye_size * 0.24, iris * 0.5, (15, 12, 12))
        lid = [(x + w.eye_size * 1.15 * u, y - height * (1 - u * u)) for u in (-1, -0.6, -0.2, 0.2, 0.6, 1)]
        self._stroke(lid, self._darker(0.45), 0.008)
        if w.glasses:
            ring = [(x + 0.062 * c, y + 0.055 * s) for c, s in _CIRCLE]
            self._stroke(ring, (40, 40, 45), 0.008)
            self._stroke([(0, y - 0.005), (x - side * 0.062, y - 0.005)], (40, 40, 45), 0.008)

    def _brow(self, side: int) -> None:
        w, ex = self.who, self.ex
        inner_x = side * (w.eye_gap - w.eye_size * 1.1 + 0.02 * ex.brow_gap)
        outer_x = side * (w.eye_gap + w.eye_size * 1.2)
        inner_y, outer_y = -0.108 - 0.036 * ex.brow_in, -0.108 - 0.036 * ex.brow_out
        arch = min(inner_y, outer_y) * 0.5 + (inner_y + outer_y) * 0.25 - 0.006
        colour = tuple(int(c * 0.6) for c in w.hair)
        self._stroke([(inner_x, inner_y), ((inner_x + outer_x) / 2, arch), (outer_x, outer_y)], colour, w.brow_thick)

    def _mouth(self) -> None:
        import numpy as np

        w, ex = self.who, self.ex
        half = w.mouth_w * (1 + 0.35 * ex.width)
        u = np.linspace(-1, 1, 13)
        corner = -0.042 * ex.curve * u**2 + 0.021 * ex.curve + 0.012 * ex.crooked * np.sin(2.6 * u)
        gap = 0.085 * max(ex.open, 0.0) * np.sqrt(np.maximum(0, 1 - u**2))
        upper = [(half * a, w.mouth_y + c - g * 0.3) for a, c, g in zip(u, corner, gap, strict=True)]
        lower = [(half * a, w.mouth_y + c + g * 0.7) for a, c, g in zip(u, corner, gap, strict=True)]
        self._polygon(upper + lower[::-1], (70, 20, 25))
        if ex.open > 0.12:  # teeth
            teeth = [(p[0] * 0.85, p[1] + 0.012) for p in upper[2:-2]]
            self._polygon(upper[2:-2] + teeth[::-1], (245, 245, 240))
        self._stroke(upper, w.lips, 0.014)
        self._stroke(lower, w.lips, 0.017)
        if ex.curve > 0.3:  # cheeks
            for side in (-1, 1):
                x = side * (half + 0.018)
                self._stroke([(x, w.mouth_y - 0.05), (x + side * 0.012, w.mouth_y - 0.02)], self._darker(0.75), 0.006)


_CIRCLE = [
    (1.0, 0.0), (0.87, 0.5), (0.5, 0.87), (0.0, 1.0), (-0.5, 0.87), (-0.87, 0.5), (-1.0, 0.0),
    (-0.87, -0.5), (-0.5, -0.87), (0.0, -1.0), (0.5, -0.87), (0.87, -0.5), (1.0, 0.0),
]  # fmt: skip
