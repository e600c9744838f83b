"""A decoder that crashes, hangs or dies costs one file, not the process."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest

from affectgpt.core.errors import DataError
from affectgpt.media.guard import Decoder
from affectgpt.media.video import read_frames


@pytest.fixture
def decoder():
    decoder = Decoder(time_limit=30)
    yield decoder
    decoder.close()


def test_same_result_as_in_process(decoder, make, tmp_path):
    path = make.video(tmp_path / "clip.mp4")
    np.testing.assert_array_equal(decoder.frames(path), read_frames(path))
    assert decoder.frames(path, n_frames=4, size=32).shape == (4, 32, 32, 3)
    assert decoder.frames(path).flags.writeable  # transforms hand it to torch
    assert decoder.probe(path).audio_tracks == 1
    assert decoder.track(path) is not None
    assert decoder.track(make.video(tmp_path / "silent.mp4", sound=False)) is None


def test_errors_come_through(decoder, tmp_path):
    with pytest.raises(DataError, match=r"clip\.mp4: no such file"):
        decoder.frames(tmp_path / "clip.mp4")


def test_a_killed_helper_is_an_error_that_names_the_file(decoder, make, tmp_path):
    path = make.video(tmp_path / "clip.mp4")
    decoder.probe(path)
    os.kill(decoder._idle[0].pid, signal.SIGSTOP)  # the request is sent, no answer comes
    os.kill(decoder._idle[0].pid, signal.SIGSEGV)
    os.kill(decoder._idle[0].pid, signal.SIGCONT)
    with pytest.raises(DataError, match=r"clip\.mp4: the decoder crashed on it \(SIGSEGV\)"):
        decoder.frames(path)
    assert decoder.frames(path).shape == (8, 224, 224, 3)  # the next file gets a fresh helper


def test_a_hanging_helper_is_stopped(make, tmp_path):
    path = make.video(tmp_path / "clip.mp4")
    decoder = Decoder(time_limit=1)
    decoder.time_limit = 30
    decoder.probe(path)
    decoder.time_limit = 0.3
    pid = decoder._idle[0].pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DataError, match=r"clip\.mp4: decoding took more than 0\.3\d* s"):
        decoder.frames(path)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    decoder.close()


def test_pickling_leaves_the_helper_behind(decoder, make, tmp_path):
    decoder.probe(make.video(tmp_path / "clip.mp4"))
    other = pickle.loads(pickle.dumps(decoder))
    assert other.time_limit == 30 and other._idle == []


def _probe_in_child(decoder, path, queue):
    queue.put((decoder.probe(path).frames, decoder._idle[0].pid))


def test_a_forked_process_starts_its_own_helper(decoder, make, tmp_path):
    path = make.video(tmp_path / "clip.mp4")
    decoder.probe(path)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_probe_in_child, args=(decoder, path, queue))
    child.start()
    frames, pid = queue.get()
    child.join()
    assert frames == 20 and pid != decoder._idle[0].pid
    assert decoder.probe(path).frames == 20  # the parent's helper lives on
