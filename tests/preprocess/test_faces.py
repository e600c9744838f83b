"""Faces are found, kept to one person, and aligned."""

from __future__ import annotations

import numpy as np
import pytest

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.preprocess.faces import CROP_SIZE, Face, FaceDetector, align, face_crops, similarity, tight_crop
from examples.demo.faces import EXPRESSIONS, Pose, draw_background, draw_frame, draw_identity

LANDMARKS = np.array([[38.29, 51.70], [73.53, 51.50], [56.03, 71.74], [41.55, 92.37], [70.73, 92.20]])


def drawn(seed: int, emotion: str = "neutral") -> np.ndarray:
    rng = np.random.default_rng(seed)
    return draw_frame(draw_background(rng), draw_identity(rng), EXPRESSIONS[emotion], Pose(x=0.5, y=0.45, roll=0.0))


def write(path, images, rate=5):
    """A clip of uint8 frames, without sound."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def detector():
    return FaceDetector()


def test_drawn_faces_are_found_where_they_are(detector):
    found = 0
    for seed in range(6):
        image = drawn(seed, "happy")
        faces = detector(image)
        if not faces:
            continue
        found += 1
        left_eye, right_eye, nose, left_mouth, right_mouth = faces[0].landmarks
        assert left_eye[0] < nose[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
        assert left_eye[1] < nose[1] < left_mouth[1]
        left, _, right, _ = faces[0].box
        assert 0.2 < (right - left) / 256 < 0.9 and left < 128 < right and faces[0].confidence > 0.7
    assert found >= 4  # drawn faces are not what it was trained on


def test_a_face_moves_with_its_image(detector):
    image = drawn(1)
    wide = np.full((256, 512, 3), 90, np.uint8)
    wide[:, 200:456] = image
    shift = detector(wide)[0].landmarks - detector(image)[0].landmarks
    np.testing.assert_allclose(shift, np.tile([200.0, 0.0], (5, 1)), atol=12)


def test_two_faces_in_one_image(detector):
    both = np.concatenate([drawn(1), drawn(1)[:, ::-1]], axis=1)
    centres = sorted(face.box[[0, 2]].mean() for face in detector(both) if face.confidence > 0.8)
    assert len(centres) == 2 and centres[0] < 256 < centres[1]


@pytest.mark.parametrize("image", [np.zeros((40, 60, 3), np.uint8), np.full((200, 100, 3), 255, np.uint8)])
def test_no_face(detector, image):
    assert detector(image) == []


def test_alignment_undoes_turn_scale_and_shift():
    angle, scale, shift = 0.4, 1.7, np.array([30.0, -12.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = LANDMARKS @ turn.T + shift
    matrix = similarity(moved, LANDMARKS)
    np.testing.assert_allclose(moved @ matrix[:, :2].T + matrix[:, 2], LANDMARKS, atol=1e-9)
    mirrored = LANDMARKS * [-1, 1]
    assert np.linalg.det(similarity(mirrored, LANDMARKS)[:, :2]) > 0  # never a mirror image


def test_landmarks_lie_on_the_template_after_alignment():
    image = np.zeros((300, 300, 3), np.uint8)
    landmarks = LANDMARKS * 2 + 20
    for x, y in landmarks.round().astype(int):
        image[y - 2 : y + 3, x - 2 : x + 3] = 255
    crop = align(image, landmarks, size=112)
    assert crop.shape == (112, 112, 3)
    assert all(crop[y, x, 0] > 150 for x, y in LANDMARKS.round().astype(int))


class _Scripted:
    """Stands in for the detector: faces by the frame's number, which its green channel tells."""

    def __init__(self, script):
        self.script = script

    def __call__(self, image):
        number = round(float(image[..., 1].mean()) / 12)
        return [
            Face(np.array([x, y, x + side, y + side], float), LANDMARKS / 112 * side + [x, y], confidence)
            for x, y, side, confidence in self.script.get(number, [])
        ]


def coloured(path, n=8, width=320):
    """Frames whose green tells their number; red on the left half, blue on the right."""
    frames = np.zeros((n, 160, width, 3), np.uint8)
    frames[..., 1] = (12 * np.arange(n))[:, None, None]
    frames[:, :, : width // 2, 0] = 250
    frames[:, :, width // 2 :, 2] = 250
    return write(path, list(frames))


def side_of(crops):
    return ["left" if crop[..., 0].mean() > crop[..., 2].mean() else "right" for crop in crops]


def test_the_most_prominent_person_is_kept(tmp_path):
    clip = coloured(tmp_path / "clip.mp4")
    left, right = (20, 40, 60, 0.9), (220, 20, 90, 0.9)
    script = {i: [left, right] if i % 2 else [right, left] for i in range(8)}  # in any order
    crops = face_crops(clip, detector=_Scripted(script))
    assert side_of(crops) == ["right"] * 8 and crops.shape == (8, 112, 112, 3) and crops.dtype == np.uint8


@pytest.mark.parametrize(
    ("person", "expected"),
    [(None, "right"), (0, "right"), ("0", "right"), (1, "left"), ("left", "left"), ("right", "right")],
)  # fmt: skip
def test_who_of_two_people_is_taken_can_be_said(tmp_path, person, expected):
    clip = coloured(tmp_path / "clip.mp4")
    script = {i: [(20, 40, 60, 0.9), (220, 20, 90, 0.95)] for i in range(8)}
    notes = []
    crops = face_crops(clip, detector=_Scripted(script), person=person, note=notes.append)
    assert side_of(crops) == [expected] * 8 and notes == [f"on the {expected}, seen in 8 of 8 frames"]


def test_left_and_right_are_the_outermost_and_the_middle_is_between_them(tmp_path):
    """All on the picture's right half; three, then two, then one."""
    clip = coloured(tmp_path / "clip.mp4")
    faces = [(90, 40, 40, 0.9), (160, 20, 50, 0.95), (260, 20, 60, 0.95)]
    notes = []

    def taken(person, people):
        face_crops(clip, detector=_Scripted(dict.fromkeys(range(8), people)), person=person, note=notes.append)
        return notes[-1].split(",")[0]

    three = [taken(person, faces) for person in ("left", "middle", "right")]
    assert three == ["on the left", "in the middle", "on the right"]
    assert [taken(person, faces[1:]) for person in ("left", "right")] == ["in the middle", "on the right"]


@pytest.mark.parametrize(
    ("person", "words"), [("left", "nobody on the left"), ("middle", "nobody in the middle"), (1, "nobody number 1")]
)
def test_a_person_who_is_not_there_is_an_error_that_says_who_is(tmp_path, person, words):
    script = {i: [(220, 20, 90, 0.95)] for i in range(1, 8)}
    with pytest.raises(DataError, match=rf"clip\.mp4: {words}; .*: 0 \(on the right, seen in 7 of 8 frames\)$"):
        face_crops(coloured(tmp_path / "clip.mp4"), detector=_Scripted(script), person=person)
    assert len(face_crops(tmp_path / "clip.mp4", detector=_Scripted(script), person="right")) == 7


@pytest.mark.parametrize("person", ["up", -1, "9" * 5000, True, 1.0, ""])
def test_what_names_no_person_is_refused(tmp_path, person):
    with pytest.raises(ConfigError, match="expected left, middle, right, or a number: 0 is the most prominent person"):
        face_crops(tmp_path / "not_read.mp4", person=person)


def test_a_short_appearance_does_not_take_over(tmp_path):
    clip = coloured(tmp_path / "clip.mp4")
    script = {i: [(20 + i, 40, 60, 0.9)] for i in range(8)}
    script[3] = [(200, 10, 110, 0.99)]  # one frame of somebody larger; the speaker is not seen in it
    crops = face_crops(clip, detector=_Scripted(script))
    assert side_of(crops) == ["left"] * 7


def shots(path, *seeds, each=4):
    """A clip of drawn persons in one place, a cut between them, the background another one each time."""
    return write(path, [drawn(seed, "happy") for seed in seeds for _ in range(each)])


def test_a_cut_to_another_person_in_the_same_place(detector, tmp_path):
    """Shot, counter-shot, shot: boxes cover each other, persons differ."""
    first, second = (face_crops(shots(tmp_path / f"{s}.mp4", s), detector=detector) for s in (1, 5))
    assert len(first) == len(second) == 4
    crops = face_crops(shots(tmp_path / "clip.mp4", 1, 5, 1), detector=detector)
    assert len(crops) == 8  # both shots of the first, none of the second
    difference = [np.abs(crops.astype(int) - person[0].astype(int)).mean() for person in (first, second)]
    assert difference[0] < 5 < difference[1]


def test_one_of_two_drawn_persons_in_the_picture(detector, tmp_path):
    """The nearer one is kept, though they come close and the other is sometimes the surer find."""
    near, far = drawn(1, "happy"), drawn(5, "happy")
    frames = []
    for i in range(10):
        frame = np.full((256, 560, 3), 90, np.uint8)
        frame[:, 10 + 8 * i : 266 + 8 * i] = near
        frame[60:220, 390 - 3 * i : 550 - 3 * i] = far[:: 256 // 160, :: 256 // 160][:160, :160]
        frames.append(frame)
    crops = face_crops(write(tmp_path / "clip.mp4", frames), detector=detector)
    alone = face_crops(shots(tmp_path / "alone.mp4", 1), detector=detector)
    assert len(crops) >= 8
    assert max(np.abs(crop[30:100, 30:80].astype(int) - alone[0][30:100, 30:80]).mean() for crop in crops) < 25


def test_frames_are_sampled_in_parts(tmp_path):
    clip = coloured(tmp_path / "clip.mp4", n=20)
    script = {i: [(20, 40, 60, 0.9)] for i in range(21)}
    every = face_crops(clip, detector=_Scripted(script), n_frames=0)  # more than are decoded at once
    assert len(every) == 20 and len(face_crops(clip, detector=_Scripted(script), n_frames=5)) == 5
    green = every[:, 30:80, 30:80, 1].mean(axis=(1, 2))
    np.testing.assert_allclose(green, 12 * np.arange(20), atol=8)


def test_no_face_in_a_clip_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"clip\.mp4: no face found in 8 frames"):
        face_crops(coloured(tmp_path / "clip.mp4"), detector=_Scripted({}))


@pytest.mark.parity
def test_a_real_clip(merunibench):
    crops = face_crops(merunibench / "demo" / "sample_00000000.mp4", n_frames=8)
    assert crops.shape == (8, 112, 112, 3)
    skin = crops[:, 45:95, 35:80].astype(float).mean(axis=(1, 2))  # where the template has eyes, nose and mouth
    assert (skin[:, 0] > skin[:, 2] + 10).all()  # RGB: skin is redder than blue


def test_a_tight_crop_is_filled_from_jaw_to_jaw_and_black_outside():
    """As OpenFace frames a face at scale 0.7: eyes 46 pixels apart (loose: 35), corners of the picture black."""
    image = np.full((400, 400, 3), 200, np.uint8)
    landmarks = LANDMARKS * 2 + 60
    for x, y in landmarks.round().astype(int):
        image[y - 2 : y + 3, x - 2 : x + 3] = (255, 0, 0)
    crop = tight_crop(image, landmarks)
    assert crop.shape == (CROP_SIZE, CROP_SIZE, 3)
    black = (crop == 0).all(axis=2)
    assert black[-1, :40].all() and black[-1, -40:].all() and black[90:, :10].all() and black[90:, -10:].all()
    assert not black[:60, 14:-14].any() and not black[60:105, 45:67].any()
    assert (black == black[:, ::-1]).mean() > 0.97  # the outline is that of a face seen from the front
    red = np.argwhere((crop[..., 0].astype(int) - crop[..., 1]) > 60)
    eyes = red[red[:, 0] < 40]
    assert 42 < eyes[:, 1].max() - eyes[:, 1].min() < 56
    small = tight_crop(image, landmarks, size=56)
    assert small.shape == (56, 56, 3) and abs((small == 0).all(axis=2).mean() - black.mean()) < 0.03


def test_framing_changes_the_crops_not_the_person(tmp_path):
    path = write(tmp_path / "a.mp4", [drawn(3)] * 3)
    loose, tight = (face_crops(path, n_frames=2, framing=framing) for framing in ("loose", "tight"))
    assert loose.shape == tight.shape == (2, CROP_SIZE, CROP_SIZE, 3)
    assert (loose[:, -1, :20] > 0).any() and (tight[:, -1, :20] == 0).all()
