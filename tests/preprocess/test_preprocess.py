"""From raw clips to a data set's files: sound, subtitles, the command and its restart."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from drawn_clip import write_clip

from affectgpt.cli.preprocess import main
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.media.video import read_faces
from affectgpt.preprocess.clip import extract_audio, find_videos, write_sheet
from affectgpt.preprocess.subtitles import read_subtitle_file


def test_sound_is_16_khz_mono(tmp_path):
    wav = extract_audio(write_clip(tmp_path / "a.mp4"), tmp_path / "out" / "a.wav")
    info = soundfile.info(wav)
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16") and 0.9 < info.duration < 1.2
    level = np.abs(soundfile.read(wav)[0]).max()
    assert level == pytest.approx(9000 / 32768, rel=0.1)  # as loud as it was
    assert extract_audio(write_clip(tmp_path / "b.mp4", sound=False), tmp_path / "b.wav") is None
    assert not (tmp_path / "b.wav").exists()


SRT = """1
00:00:00,000 --> 00:00:01,500
<i>I don&#39;t know!</i>
I, I,

2
00:00:02,000 --> 00:00:03,000
{\\an8}no.
"""
VTT = """WEBVTT

NOTE 00:01 --> not a cue
hidden

STYLE
::cue {}

intro
00:01.000 --> 00:02.000 align:start
<v Ann>Hello
"""


def test_subtitle_files(tmp_path):
    (tmp_path / "a.srt").write_text(SRT, encoding="utf-8-sig")
    (tmp_path / "a.vtt").write_text(VTT)
    assert read_subtitle_file(tmp_path / "a.srt") == "I don't know! I, I, no."
    assert read_subtitle_file(tmp_path / "a.vtt") == "Hello"
    (tmp_path / "b.srt").write_text("nothing said")
    with pytest.raises(DataError, match=r"b\.srt: holds no subtitle cue"):
        read_subtitle_file(tmp_path / "b.srt")
    (tmp_path / "b.srt").write_bytes("你好".encode("gbk"))
    with pytest.raises(DataError, match=r"b\.srt: not UTF-8"):
        read_subtitle_file(tmp_path / "b.srt")


SPOKEN = {  # cue → what is said in it
    "signs.srt": ("<i>I <3 you</i>, 2 > 1 and x<y, ok", "I <3 you, 2 > 1 and x<y, ok"),
    "signs.vtt": ("<i>I <3 you</i>, 2 > 1 and x<y, ok", "I <3 you, 2 > 1 and x<y, ok"),
    "unknown.srt": ("<laughs> a <b and c> d, if x<b> then <You>", "<laughs> a <b and c> d, if x then <You>"),
    "known.srt": (
        '<B><u>Oh</u></B> <font color="#ff0000" face=Arial>no</font>, <s>not</s> {\\an8}{\\i1}here{\\i0} {so}<br/>now',
        "Oh no, not here {so} now",
    ),
    "known.vtt": (
        "<v.loud Ann Lee>Oh</v> <c.yellow.bg_blue>no</c>, <00:00:00.500>not <lang en-GB>here</lang> "
        "<ruby>now<rt>!</rt></ruby><01:00.250>",
        "Oh no, not here now!",
    ),
    "entities.vtt": (
        "&lt;i&gt; &amp;amp; 1&nbsp;&#60;&#x200e; 2, R&D &copy AT&T;",
        "<i> &amp; 1\xa0<\u200e 2, R&D &copy AT&T;",
    ),
    "entities.srt": ("Tom &amp; Ann &lt;3", "Tom & Ann <3"),
    "settings.vtt": ("up", "up"),
    "places.srt": ("down", "down"),
}  # fmt: skip


def test_only_tags_and_settings_of_the_formats_are_left_out(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    clip = write_clip(tmp_path / "clip.mp4")
    for file, (cue, _) in SPOKEN.items():
        name, _, suffix = file.rpartition(".")
        (videos / f"{name}_{suffix}.mp4").symlink_to(clip)
        vtt = f"WEBVTT - a\n\nSTYLE\n::cue {{}}\n\n1\n00:01.000 --> 00:02.000 line:0 position:20%\n{cue}\n"
        srt = f"1\n00:00:01,000 --> 00:00:02,000 X1:117 X2:619 Y1:042 Y2:428\n{cue}\n"
        (videos / f"{name}_{suffix}.{suffix}").write_text(vtt if suffix == "vtt" else srt, encoding="utf-8")
    assert main(["--video-dir", str(videos), "--out", str(out), "--frames", "1", "--workers", "1"]) == 0
    rows = dict(csv.reader((out / "subtitle.csv").open(newline="", encoding="utf-8")))
    assert rows == {"name": "english"} | {file.replace(".", "_"): text for file, (_, text) in SPOKEN.items()}


def test_whose_face_is_taken_can_be_said(tmp_path, log_lines):
    """One person, in the middle of the picture."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    write_clip(videos / "a.mp4")
    arguments = ["--video-dir", str(videos), "--out", str(out), "--frames", "2"]
    assert main([*arguments, "--person", "left"]) == 1
    assert "a.mp4: nobody on the left" in (out / "failed.csv").read_text()
    assert not (out / "openface_face" / "a.npy").exists()
    assert main([*arguments, "--person", "middle"]) == 0
    assert json.loads((out / "openface_face" / "crops.json").read_text())["person"] == "middle"
    assert main(arguments) == 0
    assert any("holds crops made with --person middle; this run keeps to it" in line for line in log_lines)
    with pytest.raises(ConfigError, match="made with --person middle, this run has --person 0"):
        main([*arguments, "--person", "0"])
    with pytest.raises(ConfigError, match="person 'nobody': expected left, middle, right"):
        main([*arguments, "--person", "nobody"])


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_a_sheet_shows_colours_as_they_are(channels, tmp_path):
    from PIL import Image

    crops = np.zeros((11, 10, 12, 3), np.uint8)
    crops[..., 0 if channels == "rgb" else 2] = 200
    write_sheet(crops, tmp_path / "sheet.png", channels=channels)
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))  # RGB
    assert picture.shape == (20, 96, 3) and picture[5, 5].tolist() == [200, 0, 0]
    assert picture[15, 90].tolist() == [255, 255, 255]


def test_folders_without_clips(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_videos(tmp_path / "gone")
    with pytest.raises(DataError, match=r"no video in it \([^)]*\)$"):
        find_videos(tmp_path)
    write_clip(tmp_path / "evening" / "a.mp4")
    with pytest.raises(DataError, match=r"no video in it \(.*\) \(folders below are not looked into\)"):
        find_videos(tmp_path)


def test_failures_of_one_folder_stay_when_another_goes_into_the_same_place(tmp_path):
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "out"
    for folder, names in ((one, "ab"), (two, "cd")):
        folder.mkdir()
        for name in names:
            (folder / f"{name}.mp4").write_bytes(b"no video")

    def failed(folder: Path) -> list[list[str]]:
        main(["--video-dir", str(folder), "--out", str(out), "--frames", "1", "--workers", "1"])
        with (out / "failed.csv").open(newline="", encoding="utf-8") as handle:
            return sorted({(row["sample"], row["folder"]) for row in csv.DictReader(handle)})

    first, second = [("a", str(one)), ("b", str(one))], [("c", str(two)), ("d", str(two))]
    assert failed(one) == first
    assert failed(two) == [*first, *second]
    write_clip(one / "a.mp4")  # mended
    (one / "b.mp4").unlink()
    assert failed(one) == second
    for suffix in ("mp4", "avi"):
        (tmp_path / f"a.{suffix}").touch()
    with pytest.raises(DataError, match=r"a\.mp4 and a\.avi have one name"):
        find_videos(tmp_path)


def test_command_and_restart(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    write_clip(videos / "said.mp4")
    (videos / "said.srt").write_text(SRT)
    write_clip(videos / "silent.mp4", seed=2, sound=False)
    write_clip(videos / "wall.mp4", face=False)
    (videos / "broken.mp4").write_bytes(b"no video")
    arguments = ["--video-dir", str(videos), "--out", str(out), "--sheet", "--frames", "4"]
    assert main(arguments) == 1
    assert {p.name for p in (out / "openface_face").iterdir()} == {"crops.json", "said.npy", "silent.npy"}
    assert {p.name for p in (out / "sheets").iterdir()} == {"said.png", "silent.png"}
    assert {p.name for p in (out / "audio").iterdir()} == {"said.wav", "wall.wav"}
    assert read_faces(out / "openface_face" / "said.npy").shape == (8, 224, 224, 3)
    rows = {row[0]: row[1] for row in csv.reader((out / "failed.csv").open(newline="", encoding="utf-8"))}
    assert set(rows) == {"sample", "broken", "wall"} and "no face found in 4 frames" in rows["wall"]
    lines = (out / "subtitle.csv").read_text().splitlines()
    assert lines == ["name,english", 'said,"I don\'t know! I, I, no."', "silent,"]  # no row where something failed
    stamp = (out / "openface_face" / "said.npy").stat().st_mtime_ns
    (out / "audio" / "said.wav").unlink()
    (videos / "silent.vtt").write_text(VTT)
    (videos / "broken.mp4").unlink()
    (videos / "wall.mp4").unlink()
    assert main(arguments) == 0  # makes what is missing, keeps what is there
    assert "silent,Hello" in (out / "subtitle.csv").read_text().splitlines()  # an empty cell is filled
    assert (out / "audio" / "said.wav").exists() and not (out / "failed.csv").exists()
    assert (out / "openface_face" / "said.npy").stat().st_mtime_ns == stamp


def test_crops_of_other_settings_are_not_mixed(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    write_clip(videos / "a.mp4")
    arguments = ["--video-dir", str(videos), "--out", str(out), "--frames", "2"]
    assert main(arguments) == 0
    with pytest.raises(ConfigError, match="made with --channels bgr, this run has --channels rgb"):
        main([*arguments, "--channels", "rgb"])
    bgr = np.load(out / "openface_face" / "a.npy")
    (out / "openface_face" / "a.npy").unlink()
    assert main([*arguments, "--channels", "rgb"]) == 0
    np.testing.assert_array_equal(np.load(out / "openface_face" / "a.npy"), bgr[..., ::-1])


def test_crops_are_stored_as_published_and_the_folder_says_so(tmp_path):
    from affectgpt.core.crops import folder_crops
    from affectgpt.preprocess.faces import face_crops

    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    clip = write_clip(videos / "a.mp4")
    arguments = ["--video-dir", str(videos), "--out", str(out), "--frames", "2"]
    assert main(arguments) == 0
    faces = out / "openface_face"
    assert json.loads((faces / "crops.json").read_text()) == {"channels": "bgr", "framing": "loose", "frames": 2}
    np.testing.assert_array_equal(np.load(faces / "a.npy"), face_crops(clip, n_frames=2)[..., ::-1])
    with pytest.raises(ConfigError, match="made with --face-framing loose, this run has --face-framing tight"):
        main([*arguments, "--face-framing", "tight"])
    # crops of an earlier version, RGB by the record beside the folder: kept to, and noted in the folder
    (faces / "crops.json").unlink()
    (out / "preprocess.json").write_text('{"frames": 2, "channels": "rgb"}')
    write_clip(videos / "b.mp4", seed=2)
    with pytest.raises(ConfigError, match="made with --channels rgb, this run has --channels bgr"):
        main([*arguments, "--channels", "bgr"])
    assert main(arguments) == 0
    np.testing.assert_array_equal(np.load(faces / "b.npy"), face_crops(videos / "b.mp4", n_frames=2))
    assert folder_crops(faces).channels == "rgb" and not (out / "preprocess.json").exists()
    # crops that nothing is known of count as published
    (faces / "crops.json").unlink()
    with pytest.raises(ConfigError, match=r"without a record .* count as bgr; this run has --channels rgb"):
        main([*arguments, "--channels", "rgb"])
    (faces / "crops.json").write_text('{"channels": "bgr", "framing": "openface"}')
    with pytest.raises(ConfigError, match="made with --face-framing openface, this run has --face-framing loose"):
        main(arguments)


@pytest.mark.parametrize("channels", ["bgr", "rgb"])
def test_sheets_of_the_command_show_true_colours(channels, tmp_path):
    from PIL import Image

    from affectgpt.preprocess.faces import face_crops

    (tmp_path / "videos").mkdir()
    clip = write_clip(tmp_path / "videos" / "a.mp4")
    arguments = ["--video-dir", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), "--frames", "1"]
    assert main([*arguments, "--sheet", "--channels", channels]) == 0
    sheet = np.asarray(Image.open(tmp_path / "out" / "sheets" / "a.png"))  # RGB
    np.testing.assert_array_equal(sheet[:112, :112], face_crops(clip, n_frames=1)[0])


def test_workers_end_with_a_killed_parent(tmp_path):
    """Else they would wait for work for ever, each with a detector in memory."""
    import signal
    import subprocess
    import sys
    import time

    code = (
        "import concurrent.futures as f, multiprocessing as m, os, pathlib, signal\n"
        "from affectgpt.preprocess.clip import ClipFolders, start_worker\n"
        "if __name__ == '__main__':\n"
        "    options = dict(n_frames=1, sheet=False, channels='rgb', time_limit=9)\n"
        "    made = (ClipFolders(pathlib.Path()), options)\n"
        "    pool = f.ProcessPoolExecutor(1, m.get_context('spawn'), start_worker, made)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "parent.py").write_text(code)
    run = subprocess.run([sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True, timeout=60)
    assert run.returncode == -signal.SIGKILL
    worker = int(run.stdout)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = (Path("/proc") / str(worker) / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":  # ended; nobody has asked for its status yet
            return
        time.sleep(0.05)
    pytest.fail(f"worker {worker} outlived its parent")


@pytest.mark.parametrize(
    ("name", "text", "spoken"),
    [
        (
            "a.srt", "1\n00:00:00,000 --> 00:00:01,000\nHello.\n2\n00:00:01,000 --> 00:00:02,000\n7 days.\n",
            "Hello. 7 days.",
        ),
        ("a.SRT", "1\n00:00:00,000 --> 00:00:01,000\nHello.\n\n", "Hello."),
        ("a.srt", "", ""),
        ("a.srt", "\n\n", ""),
        ("a.vtt", "WEBVTT\n", ""),
        ("a.vtt", "WEBVTT\n\nNOTE nothing is said\n", ""),
        (
            "a.vtt",
            "WEBVTT\n\n00:01.000 --> 00:02.000\nhello world\n\n00:02.000 --> 00:03.000\nhello world\nhow are you\n\n"
            "00:03.000 --> 00:03.010\nhow are you\n\n00:03.010 --> 00:04.000\nhow are you\nfine\n",
            "hello world how are you fine",
        ),
        ("a.srt", "1\n00:00:00,000 --> 00:00:01,000\nNo.\n\n2\n00:00:01,000 --> 00:00:02,000\nNo.\n", "No. No."),
    ],
)  # fmt: skip
def test_subtitles_beside_a_clip(tmp_path, name, text, spoken):
    from affectgpt.preprocess.subtitles import beside

    (tmp_path / name).write_text(text)
    assert beside(tmp_path / "a.mp4") == spoken
