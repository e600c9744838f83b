"""Lists of clips, sound alone, bytes and open files, and whose face is looked at."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from drawn_clip import picture, write_clip

from affectgpt.cli import sample as command
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.inference.predictor import NOTES, SEVERAL, Predictor, Reply, Unanswered

FRAMES, FACES, SOUND = "multiframe_audio_frame_text", "multiface_audio_face_text", "audio_text"
GREEDY = ["inference.decoding=greedy"]  # what is drawn depends on the name, and bytes have none
SUBTITLES = ("I know.", "You said that you would come, and now look at this mess here.", "", "No! Never.", "Well?")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"clip{i}.mp4", seed=i, sound=i != 3) for i in range(5)]


@pytest.fixture(scope="module")
def wav(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "said.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(30_000), 16_000, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def frames(world) -> Predictor:
    return Predictor.from_config(world.yaml, mode=FRAMES, options=GREEDY)


@pytest.fixture(scope="module")
def sound(world) -> Predictor:
    return Predictor.from_config(world.yaml, mode=SOUND, options=GREEDY)


@pytest.fixture
def nothing_left(tmp_path, monkeypatch):
    """Temporary files go to ``tmp_path``; afterwards none of them is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not [*folder.glob("affectgpt-*")]


def saying(reply: Reply | Unanswered) -> dict:
    return reply.as_dict() | {"description": None if reply.error else reply.description}


@pytest.mark.parametrize("decoding", ["greedy", "sampling"])
def test_a_list_gets_the_answers_of_single_calls_in_its_order(world, clips, decoding, monkeypatch):
    options = [f"inference.decoding={decoding}", "inference.batch_size=2", "inference.max_new_tokens=8"]
    predictor = Predictor.from_config(world.yaml, mode=FRAMES, options=options)
    alone = [saying(predictor(clip, subtitle=text)) for clip, text in zip(clips, SUBTITLES, strict=True)]
    assert len({reply["answer"] for reply in alone}) == len(clips)
    sizes, generate = [], predictor.session.engine.generate

    def noted(batch, *, seeds):
        sizes.append(len(seeds))
        return generate(batch, seeds=seeds)

    monkeypatch.setattr(predictor.session.engine, "generate", noted)
    replies = predictor(clips, subtitle=list(SUBTITLES))
    assert sizes == [2, 2, 1]
    assert [reply.error for reply in replies] == [None] * 5
    assert [saying(reply) for reply in replies] == alone
    assert sizes == [2, 2, 1] * 2  # described together, too, and once
    assert predictor([]) == []


def test_threads_may_ask_about_lists_at_the_same_time(frames, clips):
    from concurrent.futures import ThreadPoolExecutor

    alone = [frames(clip).answer for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(frames, clips[turn:] + clips[:turn]) for turn in range(4)]
        for turn, replies in enumerate(asked):
            assert [reply.answer for reply in replies.result(timeout=120)] == alone[turn:] + alone[:turn]


def test_a_broken_clip_of_a_list_has_its_error_in_its_place(frames, clips, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(clips[0].read_bytes()[:2000])
    given = [clips[0], tmp_path / "broken.mp4", clips[1], tmp_path / "gone.mp4", clips[2]]
    replies = frames(given, subtitle=["", "", "I am so glad. " * 2000, None, "x"])
    assert [type(reply) for reply in replies] == [Reply, Unanswered, Reply, Unanswered, Reply]
    assert any("subtitle" in note for note in replies[2].notes)  # whose end was left out
    for reply, words in zip(replies[1:4:2], ("broken.mp4", "gone.mp4: no such file"), strict=True):
        assert isinstance(reply.error, DataError) and words in str(reply.error)
        for name in ("answer", "labels", "notes", "description"):
            with pytest.raises(DataError, match=words):
                getattr(reply, name)
        assert words in reply.as_dict()["error"]
    assert replies[0].answer == frames(clips[0], subtitle="").answer
    assert replies[4].description == frames(clips[2], subtitle="x").description
    with pytest.raises(DataError, match=r"broken\.mp4"):
        frames(tmp_path / "broken.mp4")


def test_a_clip_that_the_model_cannot_read_costs_its_batch_nothing(world, clips, monkeypatch):
    """Numbers that no LLM can read show when a whole batch is in the model."""
    predictor = Predictor.from_config(world.yaml, mode=FRAMES, options=["inference.batch_size=4"])
    alone = [predictor(clip).answer for clip in clips]
    generate = predictor.session.engine.generate

    def spoilt(batch, *, seeds):
        if "clip2" in batch.names:
            raise DataError("sample 'clip2': absurd values")
        return generate(batch, seeds=seeds)

    monkeypatch.setattr(predictor.session.engine, "generate", spoilt)
    replies = predictor(clips)
    assert [isinstance(reply, Unanswered) for reply in replies] == [False, False, True, False, False]
    assert str(replies[2].error) == "sample 'clip2': absurd values"
    assert [reply.answer for reply in replies if isinstance(reply, Reply)] == [*alone[:2], *alone[3:]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"subtitle": ["x"]}, "found video 2, subtitle 1"),
        ({"subtitle": "x"}, "subtitle: belongs to one clip"),
        ({"audio": "a.wav"}, "audio: belongs to one clip"),
        ({"person": "left"}, f"input mode {FRAMES} takes no face"),
        ({"person": ["up", "left"]}, "expected left, middle, right"),
    ],
)
def test_lists_that_do_not_fit_are_refused_before_anything_is_read(frames, arguments, words):
    with pytest.raises(ConfigError, match=words):
        frames(["gone.mp4", "gone.mp4"], **arguments)


def test_sound_alone_may_come_first_where_no_picture_is_needed(sound, frames, clips, wav):
    expected = sound(audio=wav, subtitle="Well.")
    assert sound(wav, subtitle="Well.").answer == expected.answer
    assert sound(str(wav), subtitle="Well.").description == expected.description
    assert [reply.answer for reply in sound([wav, wav], subtitle=["Well.", "Well."])] == [expected.answer] * 2
    assert sound(clips[0], subtitle="").answer != sound(wav, subtitle="").answer
    assert NOTES["no_audio_track"] in sound(clips[3]).notes
    with pytest.raises(DataError, match=r"said\.wav"):
        frames(wav)


class Trickle(io.RawIOBase):
    """A pipe: a few bytes at a time, and no end that is known."""

    def __init__(self, data: bytes) -> None:
        self.data, self.taken = data, 0

    def read(self, _size: int = -1) -> bytes:
        self.taken += 100
        return self.data[self.taken - 100 : self.taken]


def test_bytes_and_open_files_are_what_their_paths_are(frames, sound, clips, wav, nothing_left):
    expected = frames(clips[1], subtitle="Well.").answer
    data = clips[1].read_bytes()
    for given in (data, bytearray(data), memoryview(data), io.BytesIO(data), Trickle(data)):
        assert frames(given, subtitle="Well.").answer == expected
    with clips[1].open("rb") as file:
        reply = frames(file, subtitle="Well.")
    assert reply.answer == expected and reply.video == str(clips[1])
    assert frames(data).video == "<bytes>"
    assert (
        frames(clips[1], audio=wav.read_bytes(), subtitle="").answer == frames(clips[1], audio=wav, subtitle="").answer
    )
    heard = sound(audio=wav, subtitle="").answer
    assert [sound(given, subtitle="").answer for given in (wav.read_bytes(), wav)] == [heard] * 2
    both = frames([data, clips[1]], subtitle=["Well.", "Well."])
    assert [reply.answer for reply in both] == [expected] * 2


def test_media_are_gone_before_the_description_is_asked(frames, clips, nothing_left):
    reply = frames(clips[1].read_bytes())
    assert not [*nothing_left.glob("affectgpt-*")]
    assert reply.description == frames(clips[1]).description


def test_faces_of_an_open_file_are_found(world, clips, nothing_left):
    predictor = Predictor.from_config(world.yaml, mode=FACES, options=GREEDY)
    assert predictor(clips[1].read_bytes()).answer == predictor(clips[1]).answer


@pytest.mark.parametrize(
    ("format_name", "codec"),
    [("mp4", "mpeg4"), ("mov", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4"), ("flv", "flv1"),
     ("mpeg", "mpeg1video"), ("mpegts", "mpeg2video")],
)  # fmt: skip
def test_videos_are_recognised_by_their_content(frames, nothing_left, format_name, codec):
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format_name) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(25):
            image = np.full((64, 64, 3), 10 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    assert NOTES["no_audio_track"] in frames(buffer.getvalue()).notes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "<bytes>: no bytes"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "neither a video nor a sound file of a known format"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "neither a video nor a sound file of a known format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "neither a video nor a sound file of a known format"),
        (b"\0\0\0\x18ftypmp42" + bytes(200), "<bytes>: "),
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(80), "<bytes>: "),
    ],
)
def test_bytes_that_are_no_video_are_named_and_leave_nothing(frames, nothing_left, content, words):
    with pytest.raises(DataError) as raised:
        frames(content)
    assert words in str(raised.value) and str(nothing_left) not in str(raised.value)


def test_what_is_too_large_is_refused_before_it_is_written(frames, clips, nothing_left, monkeypatch):
    data = clips[1].read_bytes()
    monkeypatch.setattr("affectgpt.media.given.LARGEST", len(data) - 1)
    endless = Trickle(data * 1000)
    for given in (data, io.BytesIO(data), endless):
        with pytest.raises(DataError, match=r"larger than .* give a path"):
            frames(given)
    assert endless.taken < len(data) + 500
    monkeypatch.setattr("affectgpt.media.given.LARGEST", len(data))
    assert frames(data).answer


@pytest.mark.parametrize("given", [3, 1.5, object(), {"a": 1}])
def test_what_is_no_medium_is_refused(frames, given):
    with pytest.raises(ConfigError, match="expected a path, the bytes of a video or sound file, or a file opened with"):
        frames(given)


def test_text_files_and_files_that_were_read_are_refused(frames, clips):
    with (
        clips[0].open(encoding="latin-1") as file,
        pytest.raises(ConfigError, match=r"clip0\.mp4: .*open .* with 'rb'"),
    ):
        frames(file)
    with clips[0].open("rb") as file:
        file.read()
        with pytest.raises(DataError, match=r"clip0\.mp4: no bytes .*seek\(0\)"):
            frames(file)


def two_people(path: Path) -> Path:
    """A large face on the right, a small one on the left."""
    from examples.demo.clips import write_video

    far = np.pad(picture(seed=1)[::2, ::2], ((64, 64), (64, 64), (0, 0)), constant_values=90)
    write_video(path, np.stack([np.hstack([far, picture(seed=5)])] * 8), np.zeros(12_800, np.float32))
    return path


def test_whose_face_the_answer_is_about_can_be_said(world, tmp_path, capsys):
    video = two_people(tmp_path / "both.mp4")
    predictor = Predictor.from_config(world.yaml, mode=FACES, keep_features=True)
    people = {who: predictor(video, person=who, subtitle="") for who in (None, 0, 1, "left", "right")}
    answers = {who: reply.answer for who, reply in people.items()}
    assert answers[None] == answers[0] == answers["right"] != answers[1] == answers["left"]
    assert f"{SEVERAL}: on the left, seen in 8 of 8 frames" in people["left"].flags
    assert [r.answer for r in predictor([video] * 2, person=["left", "right"], subtitle=["", ""])] == [
        answers["left"], answers["right"],
    ]  # fmt: skip
    with pytest.raises(
        DataError, match=r"nobody number 2; .*: 0 \(on the right, .*\), 1 \(on the left, seen in 8 of 8"
    ):
        predictor(video, person=2)
    arguments = [f"--cfg-path={world.yaml}", "--video_path", str(video), "--json", "--subtitle="]
    assert command.main([*arguments, "--person", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == answers["left"]
    with pytest.raises(ConfigError, match="person 'up': expected left, middle, right"):
        command.main([*arguments, "--person", "up"])
    np.save(tmp_path / "face.npy", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ConfigError, match="goes without face crops"):
        predictor(video, face=tmp_path / "face.npy", person="left")
