"""What is shown while a run lasts: a bar on a terminal, log lines above it, curves at the end."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import math
import os
import pty
import re
import struct
import sys
import termios

import pytest
import torch

from affectgpt.config.schema import RunConfig
from affectgpt.core.runtime import logger, setup_logging
from affectgpt.training.progress import Progress, draw_training
from affectgpt.training.run_state import Position
from affectgpt.training.step import Step

CPU = torch.device("cpu")
RUN = RunConfig(max_epoch=2, iters_per_epoch=3, log_freq=2)


def go(folder) -> None:
    """An epoch of three steps, with a log line in the middle."""
    with Progress(folder, run=RUN, start=Position(), device=CPU) as progress:
        progress.epoch(1, 0)
        for number in (1, 2, 3):
            step = Step(loss=4 / number, grad_norm=1.0, samples=3, tokens=400, stop=False)
            progress.step(Position(step=number), step, lr=1e-5)
            if number == 2:
                logger.info("something happened")


@pytest.fixture
def shown(monkeypatch, tmp_path) -> list[str]:
    """The lines of an epoch on a terminal, carriage returns as line ends."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # rows, columns
    with os.fdopen(slave, "w", buffering=1) as screen, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", screen)
        patch.setattr(logger, "handlers", [])
        setup_logging()
        go(tmp_path)
        screen.flush()
    written = b""
    with contextlib.suppress(OSError):  # EIO: all is read, and the other end is closed
        while part := os.read(master, 100_000):
            written += part
    os.close(master)
    return written.decode().replace("\r", "\n").split("\n")


def test_the_bar_shows_loss_rate_speed_memory_and_time_left(shown):
    last = [line for line in shown if line.startswith("epoch 1/2")][-1]
    assert "100%" in last and "3/3" in last
    expected = r"loss 1\.333, lr 1\.0e-05, \d+:\d\d left, \d+\.\d samples/s, \d+ tokens/s, \d+\.\d GB"
    assert re.search(expected, last), last


def test_a_log_line_has_a_line_of_its_own_above_the_bar(shown):
    [at] = [number for number, line in enumerate(shown) if "something happened" in line]
    assert shown[at].endswith("I something happened") and "epoch" not in shown[at]
    assert any(line.startswith("epoch 1/2") for line in shown[at:])


def test_no_bar_without_a_terminal(tmp_path, monkeypatch):
    quiet = io.StringIO()
    monkeypatch.setattr(sys, "stderr", quiet)
    go(tmp_path)
    assert "epoch" not in quiet.getvalue()


def test_the_log_has_every_second_step_and_the_last(tmp_path):
    go(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [(line["step"], line["loss"], line["lr"]) for line in lines] == [(2, 2.0, 1e-5), (3, 1.333333, 1e-5)]
    assert all(line["samples_per_s"] > 0 and line["tokens_per_s"] > 0 and line["memory_gb"] > 0 for line in lines)


def test_a_step_that_overflowed_is_null_and_a_gap_in_the_curve(tmp_path):
    with Progress(tmp_path, run=RUN, start=Position(), device=CPU) as progress:
        progress.epoch(1, 0)
        for number, loss in ((2, math.nan), (3, 1.0)):
            step = Step(loss=loss, grad_norm=math.inf, samples=3, tokens=400, stop=False)
            progress.step(Position(step=number), step, lr=1e-5)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [(line["loss"], line["grad_norm"]) for line in lines] == [(None, None), (1.0, None)]
    assert draw_training(tmp_path) is not None


def test_curves_are_drawn_from_the_log(tmp_path):
    from PIL import Image

    assert not (tmp_path / "training.png").exists()
    go(tmp_path)
    with Image.open(draw_training(tmp_path)) as picture:
        assert picture.size == (960, 960)
        assert len(picture.convert("RGB").getcolors(maxcolors=10**6)) > 10
