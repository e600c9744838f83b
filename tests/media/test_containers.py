"""Videos as people have them: cut without encoding, turned, with covers, oddly named, with hostile headers."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import threading
import time
import unicodedata

import av
import numpy as np
import pytest
import soundfile

from affectgpt.core.errors import AffectGPTError, DataError
from affectgpt.datasets.label_files import Folder
from affectgpt.media.audio import read_audio, read_track, read_wave
from affectgpt.media.guard import Decoder
from affectgpt.media.video import probe_video, read_frames, uniform_indices

N, SIDE = 88, 64


def picture(number: int) -> np.ndarray:
    """A frame that tells its number: a grey level, beside a pattern without any symmetry."""
    image = np.full((SIDE, SIDE, 3), 20 + 2 * number, np.uint8)
    image[:16, :24] = (250, 20, 20)
    image[-16:, :16] = (20, 20, 250)
    return image


def write(path, count=N, codec="libx264", gop=12, container=None):
    with av.open(str(path), "w", format=container) as box:
        stream = box.add_stream(codec, rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            box.mux(stream.encode(frame))
        box.mux(stream.encode())
    return path


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames these are, by the grey in their middle."""
    grey = frames[:, frames.shape[1] // 2, frames.shape[2] * 3 // 4].mean(axis=1)
    return [round((float(level) - 20) / 2) for level in grey]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clips") / "clip.mp4")


def test_frames_of_a_clip_cut_without_encoding_are_those_that_are_shown(clip, tmp_path):
    """As ``ffmpeg -ss 1.32 -i clip.mp4 -c copy cut.mp4``: packets from a key frame on, an edit list hides the first."""
    first = 33
    with av.open(str(clip)) as source, av.open(str(tmp_path / "cut.mp4"), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        shift = int(first / 25 / stream.time_base)
        for packet in source.demux(stream):
            if packet.pts is None or packet.pts < int(24 / 25 / stream.time_base):
                continue
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = copy
            target.mux(packet)
    with av.open(str(tmp_path / "cut.mp4")) as box:
        hidden = sum(packet.is_discard for packet in box.demux(video=0))
    assert hidden > 0
    expected = [first + i for i in uniform_indices(N - first)]
    found = numbers(read_frames(tmp_path / "cut.mp4"))
    assert all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True)), (found, expected)
    assert numbers(Decoder().frames(tmp_path / "cut.mp4")) == found


def test_two_programme_streams_in_one_file_are_one_clip(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.mpg", count=40, codec="mpeg1video", container="mpeg")
    joined = tmp_path / "ab.mpg"
    joined.write_bytes((tmp_path / "a.mpg").read_bytes() + (tmp_path / "b.mpg").read_bytes())
    found = numbers(read_frames(joined))
    shown = [*range(40), *range(40)]
    expected = [shown[i] for i in uniform_indices(80)]
    assert all(abs(a - b) <= 2 for a, b in zip(found, expected, strict=True)), (found, expected)


MATRICES = {  # (a, b, c, d) of the display matrix → the stored picture as it is shown
    (1, 0, 0, 1): lambda x: x,
    (-1, 0, 0, -1): lambda x: x[:, ::-1, ::-1],
    (0, 1, -1, 0): lambda x: np.rot90(x, -1, (1, 2)),
    (0, -1, 1, 0): lambda x: np.rot90(x, 1, (1, 2)),
    (-1, 0, 0, 1): lambda x: x[:, :, ::-1],
    (1, 0, 0, -1): lambda x: x[:, ::-1],
    (0, 1, 1, 0): lambda x: x.transpose(0, 2, 1, 3),
    (0, -1, -1, 0): lambda x: np.rot90(x, 2, (1, 2)).transpose(0, 2, 1, 3),
}


@pytest.mark.parametrize(("matrix", "shown"), MATRICES.items(), ids=map(str, MATRICES))
def test_all_eight_orientations_are_shown_upright(clip, tmp_path, matrix, shown):
    data = bytearray(clip.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    expected = shown(read_frames(clip, reader="pyav"))
    for reader in (None, "pyav"):
        found = read_frames(turned, reader=reader)
        assert np.abs(found.astype(int) - expected).mean() < 3, reader


def test_a_cover_picture_is_not_the_clip(clip, tmp_path):
    covered = tmp_path / "covered.mkv"
    with av.open(str(clip)) as source, av.open(str(covered), "w") as target:
        cover = target.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 320, 16, "yuvj420p"
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        target.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((16, 320, 3), np.uint8), format="rgb24")))
        target.mux(cover.encode())
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    info = probe_video(covered)
    assert (info.width, info.height) == (SIDE, SIDE)
    assert np.array_equal(read_frames(covered), read_frames(clip, reader="pyav"))


def test_av1_is_decoded(tmp_path):
    if "libsvtav1" not in av.codecs_available and "libaom-av1" not in av.codecs_available:
        pytest.skip("this FFmpeg encodes no AV1")
    codec = "libsvtav1" if "libsvtav1" in av.codecs_available else "libaom-av1"
    path = write(tmp_path / "a.mp4", count=16, codec=codec)
    assert numbers(read_frames(path))[::7] == pytest.approx([0, 14], abs=2)


@pytest.mark.parametrize("name", ["13:19:57.mp4", "pipe:0.mp4", "file:x.mp4", "concat:a.mp4"])
def test_names_with_colons_are_files(clip, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, name)
    assert np.array_equal(read_frames(name), read_frames(clip)) and probe_video(name).width == SIDE
    with pytest.raises(DataError, match="no such file"):
        read_frames("pipe:1.mp4")


def test_sound_that_becomes_surround_within_a_track(tmp_path):
    """A transport stream whose AAC goes from stereo to 5.1, as recordings of television do."""
    parts = []
    for layout, tone in (("stereo", 440), ("5.1", 440)):
        path = tmp_path / f"{layout}.aac"
        with av.open(str(path), "w", format="adts") as box:
            stream = box.add_stream("aac", rate=48_000)
            stream.layout = layout
            count = stream.layout.nb_channels
            wave = 0.4 * np.sin(2 * np.pi * tone * np.arange(48_000) / 48_000).astype(np.float32)
            for at in range(0, 48_000 - 1024, 1024):
                frame = av.AudioFrame.from_ndarray(np.stack([wave[at : at + 1024]] * count), "fltp", layout=layout)
                frame.sample_rate, frame.pts = 48_000, at
                box.mux(stream.encode(frame))
            box.mux(stream.encode())
        parts.append(path.read_bytes())
    joined = tmp_path / "joined.aac"
    joined.write_bytes(b"".join(parts))
    samples = read_track(joined)
    assert 1.8 * 16_000 < len(samples) < 2.2 * 16_000
    halves = [float(np.abs(half).mean()) for half in np.array_split(samples, 2)]
    assert min(halves) > 0.02


def test_of_several_channels_the_mean_of_all_is_removed_and_the_first_is_taken(tmp_path):
    rng = np.random.default_rng(0)
    wave = rng.normal(0.1, 0.05, (32_000, 4)).astype(np.float32) + np.array([0.0, 0.1, 0.2, 0.3], np.float32)
    soundfile.write(tmp_path / "four.wav", wave, 16_000, subtype="FLOAT")
    clips, flags = read_audio(tmp_path / "four.wav")
    assert flags == ("first_channel_of_several",)
    assert np.allclose(clips[0], wave[:, 0] - wave.mean(), atol=1e-6)
    assert np.array_equal(read_wave(tmp_path / "four.wav"), wave[:, 0])


def test_too_many_channels_are_refused(tmp_path):
    soundfile.write(tmp_path / "many.wav", np.zeros((100, 513), np.int16), 16_000)
    with pytest.raises(DataError, match=r"many\.wav: the sound has 513 channels"):
        read_wave(tmp_path / "many.wav")


def test_media_are_found_whatever_the_case_and_the_form_of_their_names(tmp_path):
    for file in ("IMG_1.MP4", "._IMG_1.MP4", unicodedata.normalize("NFD", "Zoë.mp4"), "b.Mov"):
        (tmp_path / file).touch()
    folder = Folder(tmp_path, suffixes=(".mp4", ".mov"))
    assert folder.find("IMG_1").name == "IMG_1.MP4" and folder.find("b").name == "b.Mov"
    assert folder.find(unicodedata.normalize("NFC", "Zoë")).is_file()
    assert folder.find("IMG_2").name == "IMG_2.mp4" and not any(file.startswith("._") for file in folder.files)


def constant_samples(path, count: int) -> None:
    """An mp4 whose header claims ``count`` samples of one size, in a file of 1.5 KB."""

    def box(kind: bytes, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return struct.pack(">I", 8 + len(body)) + kind + body

    full = b"\0" * 4
    matrix = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    entry = box(b"mp4v", b"\0" * 6, struct.pack(">H", 1), b"\0" * 16, struct.pack(">HH", 64, 64), b"\0" * 50)
    table = box(
        b"stbl",
        box(b"stsd", full, struct.pack(">I", 1), entry),
        box(b"stts", full, struct.pack(">III", 1, count, 1)),
        box(b"stsc", full, struct.pack(">IIII", 1, 1, count, 1)),
        box(b"stsz", full, struct.pack(">II", 1, count)),
        box(b"stco", full, struct.pack(">II", 1, 48)),
    )
    media = box(
        b"mdia",
        box(b"mdhd", full, b"\0" * 8, struct.pack(">II", 25, count), b"\x55\xc4\0\0"),
        box(b"hdlr", full, b"\0" * 4, b"vide", b"\0" * 13),
        box(b"minf", box(b"vmhd", full, b"\0" * 8), table),
    )
    track = box(
        b"trak",
        box(b"tkhd", b"\0\0\0\7", b"\0" * 8, struct.pack(">III", 1, 0, count), b"\0" * 16, matrix, b"\0" * 8),
        media,
    )
    header = box(b"mvhd", full, b"\0" * 8, struct.pack(">II", 25, count), b"\0\1\0\0", b"\0" * 12, matrix, b"\0" * 28)
    path.write_bytes(box(b"ftyp", b"isom\0\0\2\0isom") + box(b"moov", header, track) + box(b"mdat", b"\0" * 900))


def test_a_header_that_claims_millions_of_samples_takes_no_memory(tmp_path):
    constant_samples(tmp_path / "huge.mp4", 1 << 26)
    decoder = Decoder()
    with pytest.raises(DataError, match=r"huge\.mp4"):
        decoder.frames(tmp_path / "huge.mp4")
    assert 3 << 29 <= decoder.memory <= 3 << 30


def test_a_decoding_process_that_is_killed_is_not_the_file_s_fault(clip):
    decoder = Decoder(time_limit=30)
    decoder.probe(clip)
    helper = decoder._idle[0]
    os.kill(helper.pid, signal.SIGSTOP)

    def kill() -> None:
        time.sleep(0.2)
        os.kill(helper.pid, signal.SIGKILL)

    threading.Thread(target=kill).start()
    with pytest.raises(AffectGPTError, match=r"killed from outside .*SIGKILL.*resume") as caught:
        decoder.frames(clip)
    assert not isinstance(caught.value, DataError) and "damaged" not in str(caught.value)
