"""One clip from a raw video: what is taken from it, what is asked, and what bad input leads to."""

from __future__ import annotations

import ctypes
import json
import struct
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from affectgpt.cli import sample as command
from affectgpt.core.errors import ConfigError, DataError, printable
from affectgpt.inference.predictor import RELEASED, GivenClip, Predictor
from affectgpt.inference.reply import NOTES, ODD_DESCRIPTION, SEVERAL, TURNED
from affectgpt.processing.questions import render_question

ROOT = Path(__file__).resolve().parents[2]
FRAMES = "multiframe_audio_frame_text"
FACES = "multiface_audio_face_text"


def draw(n: int, *, face: bool) -> list[np.ndarray]:
    """Frames uint8 [256, 256, 3]: a drawn face, or only what is behind it."""
    from examples.demo.faces import EXPRESSIONS, Pose, draw_background, draw_frame, draw_identity

    random = np.random.default_rng(1)
    who, background = draw_identity(random), draw_background(random)
    if not face:
        return [background] * n
    return [draw_frame(background, who, EXPRESSIONS["happy"], Pose(x=0.5, y=0.45, roll=i / 4)) for i in range(n)]


def write_video(path: Path, frames: list[np.ndarray], *, sound: bool = True, times: list[int] | None = None) -> Path:
    """An mp4 at 10 frames/s, or with frames at ``times`` (hundredths of a second)."""
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuv420p"
        if times is not None:
            video.time_base = video.codec_context.time_base = Fraction(1, 100)
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 100)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            seconds = len(frames) / 10 if times is None else times[-1] / 100
            wave = (8000 * np.sin(np.arange(int(16000 * seconds)) / 10)).astype(np.int16)
            for at in range(0, len(wave), 1024):
                block = av.AudioFrame.from_ndarray(wave[None, at : at + 1024], format="s16", layout="mono")
                block.rate, block.pts, block.time_base = 16000, at, Fraction(1, 16000)
                container.mux(audio.encode(block))
            container.mux(audio.encode())
    return path


def turn_by_header(source: Path, target: Path) -> Path:
    """The same mp4 with a display matrix that turns it by 180 degrees."""
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", -65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


@pytest.fixture(scope="module")
def predictors(world):
    return {mode: Predictor.from_config(world.yaml, mode=mode) for mode in (FACES, FRAMES)}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_video(folder / "face.mp4", draw(20, face=True))
    write_video(folder / "no_face.mp4", draw(20, face=False))
    return folder


def test_a_video_alone_is_enough(predictors, clips):
    reply = predictors[FACES](clips / "face.mp4")
    assert reply.answer and reply.question == render_question("ovlabel") and reply.subtitle == ""
    assert reply.description != reply.answer
    assert reply.describe().question == render_question("description")
    assert predictors[FACES](clips / "face.mp4").answer == reply.answer
    assert set(reply.as_dict()) == {"video", "subtitle", "question", "answer", "labels", "notes", "description"}


def test_the_parts_of_a_clip_given_apart_are_what_is_taken_from_the_video(predictors, clips, tmp_path):
    from affectgpt.preprocess.clip import extract_audio
    from affectgpt.preprocess.faces import face_crops

    video = clips / "face.mp4"
    extract_audio(video, tmp_path / "face.wav")
    np.save(tmp_path / "face.npy", face_crops(video)[..., ::-1])  # as published arrays are: blue first
    whole = predictors[FACES](video, subtitle="Well.")
    apart = predictors[FACES](video, subtitle="Well.", audio=tmp_path / "face.wav", face=tmp_path / "face.npy")
    assert apart.answer == whole.answer
    np.save(tmp_path / "face.npy", 255 - face_crops(video)[..., ::-1])
    assert predictors[FACES](video, subtitle="Well.", face=tmp_path / "face.npy").answer != whole.answer


def test_media_are_read_once_for_two_questions(predictors, clips, monkeypatch):
    reply = predictors[FRAMES](clips / "no_face.mp4")
    monkeypatch.setattr(predictors[FRAMES].session, "features", None)  # what reads media again would call it
    assert reply.description == reply.describe().answer


def test_sound_that_overflows_is_an_error_that_names_the_sample(predictors, clips, tmp_path, world, capsys):
    """Such a file made the LLM answer ``!!!!…``."""
    import soundfile

    wave = np.zeros(40_000, np.float32)
    wave[12_345] = 3e38
    soundfile.write(tmp_path / "face.wav", wave, 16000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"sample 'face', audio: .*face\.wav: the sound holds samples of 3e\+38"):
        predictors[FACES](clips / "face.mp4", audio=tmp_path / "face.wav")
    arguments = ["--video_path", str(clips / "face.mp4"), "--audio_path", str(tmp_path / "face.wav"), "--zeroshot"]
    assert command.run_cli(command.main, [*arguments, "--cfg-path", str(world.yaml)]) == 1
    assert "sample 'face', audio:" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("acoustic_encoder", "the encoder's output for its audio"),
        ("visual_encoder", "the encoder's output for its frame"),
        ("audio", "the embedding of its audio that goes to the LLM"),
        ("multi", "the embedding of its multi that goes to the LLM"),
    ],
)
def test_numbers_that_no_llm_can_read_are_errors_that_name_the_sample(part, words, value, predictors, clips):
    """Damaged weights, or float16 that overflows: what a part of the model gives is looked at before it is used."""
    import torch

    predictor = predictors[FRAMES]
    broken = getattr(predictor.session.model, part).register_forward_hook(
        lambda _module, _inputs, output: torch.full_like(output, value)
    )
    try:
        with pytest.raises(DataError, match=f"sample 'no_face': {words} holds NaN, infinite or absurd values"):
            predictor(clips / "no_face.mp4")
    finally:
        broken.remove()
    assert predictor(clips / "no_face.mp4").answer


def save_gif(path: Path, frames: list[np.ndarray]) -> Path:
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    return path


def test_a_gif_is_a_video_without_sound(predictors, tmp_path):
    """decord cannot count its frames."""
    reply = predictors[FACES](save_gif(tmp_path / "a.gif", draw(12, face=True)))
    assert reply.answer and reply.notes[0] == NOTES["no_audio_track"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.m4a", "no video track"),
        ("a.webp", "its pictures cannot be read (format webp_pipe); convert it to mp4"),
        ("a.png", "a picture (png), expected a video"),
        ("broken.gif", "its sound track cannot be decoded"),
    ],
)
def test_what_is_no_video_is_told_without_a_decoders_internals(name, words, clips, world, tmp_path, capsys):
    import av

    path = tmp_path / name
    if name == "a.m4a":
        with av.open(str(path), "w", format="mp4") as container:
            audio = container.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), format="s16", layout="mono")
            frame.rate = 16000
            container.mux([*audio.encode(frame), *audio.encode()])
    elif name == "broken.gif":
        path.write_bytes(b"GIF89a" + b"\0" * 90)
    else:
        save_gif(path, draw(3 if name == "a.webp" else 1, face=True))
    arguments = ["--video_path", str(path), "--zeroshot", "--outside_face_or_frame", FRAMES]
    assert command.run_cli(command.main, [*arguments, "--cfg-path", str(world.yaml)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{path}: {words}" in line and "/src/" not in line and "decord" not in line.lower(), line


SRT = "1\n00:00:00,000 --> 00:00:01,000\n<i>I am</i> so\n\n2\n00:00:01,000 --> 00:00:02,000\nglad &amp; calm\n"
VTT = (
    "WEBVTT\n\nNOTE no\n\n00:00.000 --> 00:01.000 align:start\n<v Ann>I am so\n\n"
    "x\n00:01.000 --> 00:02.000\nglad &amp; calm\n"
)


@pytest.mark.parametrize(("suffix", "text"), [(".srt", SRT), (".vtt", VTT), (".srt", SRT.replace("\n", "\r\n"))])
def test_a_subtitle_file_beside_the_video_is_read(predictors, clips, tmp_path, suffix, text):
    video = tmp_path / "no_face.mp4"
    video.write_bytes((clips / "no_face.mp4").read_bytes())
    video.with_suffix(suffix).write_bytes(text.encode("utf-8-sig"))
    reply = predictors[FRAMES](video)
    assert reply.subtitle == "I am so glad & calm"
    assert reply.answer == predictors[FRAMES](clips / "no_face.mp4", subtitle="I am so glad & calm").answer
    assert predictors[FRAMES](video, subtitle="").subtitle == ""  # given, and empty


def test_speech_recognition_is_the_last_resort(predictors, clips, monkeypatch, tmp_path):
    heard = []
    predictor = predictors[FRAMES]
    monkeypatch.setattr(predictor.reader, "recognise", lambda media: heard.append(media) or "I am glad.")
    assert predictor(clips / "no_face.mp4").subtitle == "I am glad."
    assert predictor(clips / "no_face.mp4", subtitle="No.").subtitle == "No."
    silent = write_video(tmp_path / "silent.mp4", draw(10, face=False), sound=False)
    assert predictor(silent).subtitle == ""
    assert heard == [clips / "no_face.mp4"]


@pytest.mark.parametrize("name", ["short", "silent", "changing rate", "turned by header"])
def test_odd_videos_are_answered(predictors, clips, tmp_path, name):
    path = tmp_path / "odd.mp4"
    if name == "short":
        write_video(path, draw(2, face=True))  # 0.2 s
    elif name == "silent":
        write_video(path, draw(10, face=True), sound=False)
    elif name == "changing rate":
        write_video(path, draw(12, face=True), times=[0, 3, 4, 20, 21, 60, 61, 62, 90, 120, 160, 200])
    else:
        turn_by_header(write_video(tmp_path / "a.mp4", [np.rot90(f, 2) for f in draw(10, face=True)]), path)
        pytest.importorskip("decord", reason="only decord turns frames as the header says")
    reply = predictors[FACES](path)
    assert reply.answer
    assert ("the video has no audio track; the model heard silence" in reply.notes) == (name == "silent")


@pytest.mark.slow
def test_a_video_of_two_hours_is_answered(predictors, tmp_path):
    frames = draw(60, face=True)
    seconds = range(2 * 3600)
    path = write_video(tmp_path / "long.mp4", [frames[i % 60] for i in seconds], times=[100 * i for i in seconds])
    for predict in predictors.values():
        assert predict(path).answer


def test_a_video_without_a_face_is_named(predictors, clips):
    with pytest.raises(DataError, match=r"no_face\.mp4: no face found in 20 frames; give its face crops"):
        predictors[FACES](clips / "no_face.mp4")


class BrightTop:
    """A detector that sees a face where the picture's upper half is the brighter one, surest when much brighter."""

    def __call__(self, image):
        from affectgpt.preprocess.detect import Face

        half = len(image) // 2
        top, bottom = image[:half].mean(), image[half:].mean()
        if top < bottom + 30:
            return []
        landmarks = np.array([[20.0, 20], [40, 20], [30, 30], [22, 40], [38, 40]])
        return [Face(box=np.array([10.0, 10, 50, 50]), landmarks=landmarks, confidence=0.99)]


def test_a_video_on_its_side_is_recognised(predictors, tmp_path, monkeypatch):
    monkeypatch.setattr(predictors[FACES].reader, "_detector", BrightTop())
    image = np.zeros((128, 128, 3), np.uint8)
    image[:, 64:] = 200  # right half: a quarter turn brings it up
    with pytest.raises(DataError, match=r"side\.mp4: no face .* turned by 90 degrees"):
        predictors[FACES](write_video(tmp_path / "side.mp4", [image] * 10))


def test_a_video_upside_down_gets_a_note(predictors, tmp_path, monkeypatch):
    monkeypatch.setattr(predictors[FACES].reader, "_detector", BrightTop())
    upright, down = np.zeros((2, 128, 128, 3), np.uint8)
    upright[:64], down[64:] = 200, 200
    mixed = write_video(tmp_path / "mixed.mp4", [upright, *[down] * 7])
    assert NOTES[TURNED] in predictors[FACES](mixed).notes
    assert NOTES[TURNED] not in predictors[FACES](write_video(tmp_path / "up.mp4", [upright] * 8)).notes


def test_two_people_get_a_note_that_says_whom_the_answer_is_about(world, predictors, tmp_path, capsys):
    from examples.demo.faces import EXPRESSIONS, Pose, draw_background, draw_frame, draw_identity

    def person(seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        return draw_frame(draw_background(random), draw_identity(random), EXPRESSIONS["happy"], Pose(0.5, 0.45, 0.0))

    near = person(5)
    far = np.pad(person(1)[::2, ::2], ((64, 64), (64, 64), (0, 0)), constant_values=90)
    both = write_video(tmp_path / "both.mp4", [np.hstack([far, near])] * 8)
    turned = write_video(tmp_path / "turned.mp4", [np.hstack([near, far])] * 8)
    for video, side in ((both, "right"), (turned, "left")):
        reply = predictors[FACES](video)
        assert f"{SEVERAL}: on the {side}, seen in 8 of 8 frames" in reply.flags
        assert f"{NOTES[SEVERAL]} (on the {side}, seen in 8 of 8 frames)" in reply.notes
    arguments = [f"--cfg-path={world.yaml}", "--video_path", str(both)]
    assert f"note:   {NOTES[SEVERAL]} (on the right" in run(capsys, *arguments)[1]
    clip = predictors[FACES].reader.read(GivenClip(both))
    assert [person.where for person in clip.people] == [f"on the {s}, seen in 8 of 8 frames" for s in ("right", "left")]
    assert clip.crops.shape == (8, 112, 112, 3) and (clip.people[0].crop == clip.crops[4]).all()
    alone = write_video(tmp_path / "alone.mp4", [near] * 8)
    assert not any(SEVERAL in flag for flag in predictors[FACES](alone).flags)


def test_a_question_that_is_too_long_names_the_key(world, predictors, clips):
    with pytest.raises(DataError, match=r"inference\.max_new_tokens: prompt and answer share 2000 tokens") as raised:
        predictors[FRAMES](clips / "no_face.mp4", question="Is she glad? " * 2000)
    assert "no_face" in str(raised.value)


def test_a_subtitle_that_is_too_long_loses_its_end_and_says_so(world, predictors, clips):
    reply = predictors[FRAMES](clips / "no_face.mp4", subtitle="I am so glad. " * 2000)
    assert reply.answer and any("subtitle" in note for note in reply.notes)


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video_is_named(predictors, tmp_path, content):
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.mp4"):
        predictors[FRAMES](tmp_path / "bad.mp4")


@pytest.mark.parametrize("argument", ["audio", "face"])
def test_files_that_are_not_there_are_named(predictors, clips, argument):
    with pytest.raises(DataError, match=r"gone\.x: no such file"):
        predictors[FACES](clips / "face.mp4", **{argument: clips / "gone.x"})


def test_only_the_released_recipes_must_begin_in_the_text(world, predictors, clips, monkeypatch):
    reply = predictors[FRAMES](clips / "no_face.mp4")
    assert NOTES[ODD_DESCRIPTION] not in reply.describe().notes
    config = predictors[FRAMES].session.config
    object.__setattr__(config, "name", RELEASED[1])
    try:
        assert NOTES[ODD_DESCRIPTION] in predictors[FRAMES](clips / "no_face.mp4").describe().notes
    finally:
        object.__setattr__(config, "name", "tiny")


def run(capsys, *arguments: str) -> tuple[int, str]:
    status = command.main(list(arguments))
    return status, capsys.readouterr().out


def test_command_for_one_video(world, clips, capsys):
    published = ["--zeroshot", f"--video_path={clips / 'no_face.mp4'}", "--subtitle=Well.", f"--cfg-path={world.yaml}"]
    mode = ["--outside_face_or_frame", FRAMES]
    options = ["--options", "inference.test_epoch=11"]
    status, out = run(capsys, *published, *mode, "--json", "--both", *options)
    both = json.loads(out)
    assert status == 0 and both["subtitle"] == "Well."
    status, out = run(capsys, *published, *mode, *options)
    assert out.startswith(f"answer: {printable(both['answer'], lines=True)}")
    question = f"--outside_user_message={render_question('description')}"
    out = run(capsys, *published, *mode, question, *options)[1]
    assert f"answer: {printable(both['description'], lines=True)}" in out
    with pytest.raises(ConfigError, match="give one of them"):
        command.main([*published, *mode, "--both", question, *options])


def test_command_for_a_folder(world, clips, capsys):
    arguments = ["--video_path", str(clips), f"--cfg-path={world.yaml}", "--json"]
    status, out = run(capsys, *arguments)  # faces: one of the two has none
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert [Path(line["video"]).name for line in lines] == ["face.mp4", "no_face.mp4"]
    assert "answer" in lines[0] and "no face" in lines[1]["error"]
    with pytest.raises(ConfigError, match="belongs to one video; 2 are given"):
        command.main([*arguments, "--subtitle", "x"])


def test_an_empty_folder_is_named(world, tmp_path):
    with pytest.raises(DataError, match="no video in this folder"):
        command.main(["--video_path", str(tmp_path), f"--cfg-path={world.yaml}"])


def test_imports_of_a_single_answer_are_those_it_needs():
    code = "import sys, affectgpt.inference.predictor; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"matplotlib", "vllm", "gradio", "openai", "fastapi"} & set(result.stdout.split())


class Stopped(Exception):  # noqa: N818
    """What interrupts a thread."""


def answers_of(predictor: Predictor, clips: list[Path]) -> list[str]:
    """The answer about each clip, or the error's text."""
    found = []
    for clip in clips:
        try:
            found.append(predictor(clip).answer)
        except DataError as error:
            found.append(f"DataError {error}")
    return found


@pytest.mark.parametrize(
    ("mode", "count", "decoding"),
    [
        (FRAMES, 6, "sampling"),
        pytest.param(FRAMES, 20, "sampling", marks=pytest.mark.slow),
        (FACES, 3, "greedy"),
    ],
)
def test_threads_get_the_answers_that_one_gets_alone(world, tmp_path, mode, count, decoding):
    """Eight threads, one damaged clip, and one thread that is interrupted wherever it is, five times."""
    options = [f"inference.decoding={decoding}", "inference.max_new_tokens=5"]
    predictor = Predictor.from_config(world.yaml, mode=mode, options=options, recognise=lambda media: media.stem)
    clips = [
        write_video(tmp_path / f"clip{i}.mp4", [np.roll(frame, 16 * i, axis=0) for frame in draw(4, face=True)])
        for i in range(count)
    ]
    clips[1].write_bytes(clips[1].read_bytes()[:2000])
    alone = answers_of(predictor, clips)
    assert "DataError" in alone[1] and "clip1.mp4" in alone[1] and sum("DataError" in a for a in alone) == 1
    assert len(set(alone)) > count / 2  # an answer for another clip would show
    found: dict[int, list[str]] = {}
    interrupted = []

    def work(number: int) -> None:
        turned = clips[number % count :] + clips[: number % count]  # so that they differ in what they do at a time
        answers = answers_of(predictor, turned)
        found[number] = answers[count - number % count :] + answers[: count - number % count]

    def be_interrupted() -> None:
        while len(interrupted) < 5:
            try:
                answers_of(predictor, clips * 9)
            except Stopped:
                interrupted.append(True)

    victim = threading.Thread(target=be_interrupted, daemon=True)
    others = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(7)]
    for thread in (victim, *others):
        thread.start()
    deadline = time.monotonic() + 240
    while victim.is_alive() and time.monotonic() < deadline:
        victim.join(0.1)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(victim.ident or 0), ctypes.py_object(Stopped))
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in (victim, *others)), "threads hang"
    for number in range(7):
        assert found[number] == alone, number
    assert answers_of(predictor, clips) == alone  # nothing is left behind


def test_what_is_no_model_is_told():
    with pytest.raises(ConfigError, match=r"Predictor\(None\): expected a GenerationSession; Predictor\.from_config"):
        Predictor(None)


def test_the_attention_kernel_of_a_recipe_counts_for_answers(world, clips):
    predictor = Predictor.from_config(world.yaml, mode=FRAMES, options=["run.attention=eager"])
    assert predictor.session.model.get_decoder().config._attn_implementation == "eager"
    assert predictor(clips / "no_face.mp4", subtitle="x").answer
    with pytest.raises(ConfigError, match=r"run\.attention: flash_attention_2 cannot be used here"):
        Predictor.from_config(world.yaml, mode=FRAMES, options=["run.attention=flash_attention_2"])
