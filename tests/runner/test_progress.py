"""How far a task has come is said briefly, at an honest rate, on terminals and in pipes."""

import os
import pty
import re
import select
import types

import pytest

from gradkit.runner import progress as module
from gradkit.runner.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told to go on."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def lines(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_plain_line_has_count_rate_loss_and_remaining_time(clock, capsys):
    with Progress("train", 100, "step") as progress:
        progress.update(1, loss=2.5)
        clock.now += 4.0
        progress.update(41, loss=0.123456789)
        assert lines(capsys) == ["train 41/100 steps  10 steps/s  loss 0.1235  remaining 6 s"]


def test_plain_lines_come_every_two_seconds_and_at_the_end(clock, capsys):
    with Progress("train", 600, "step") as progress:
        for step in range(1, 601):
            clock.now += 0.01
            progress.update(step)
    counts = [line.split()[1] for line in lines(capsys)]
    assert counts == ["201/600", "401/600", "600/600"]  # the first two seconds begin at step 1


def test_an_instant_task_is_one_line(clock, capsys):
    with Progress("train", 3, "step") as progress:
        for step in (1, 2, 3):
            progress.update(step)
    assert lines(capsys) == ["train 3/3 steps"]


def test_one_of_many_tells_of_what_takes_long_and_not_of_its_end(clock, capsys):
    with Progress("train", 3, "step", brief=True) as progress:
        progress.update(1)
        progress.update(3)
    assert lines(capsys) == []
    with Progress("train", 90, "step", brief=True) as progress:
        progress.update(1)
        clock.now += 3
        progress.update(31)
        progress.update(90)
    assert lines(capsys) == ["train 31/90 steps  10 steps/s  remaining 6 s"]


def test_nothing_done_is_nothing_said(clock, capsys):
    with Progress("train", 3, "step", done=3):
        clock.now += 60
    assert lines(capsys) == []


def test_the_rate_leaves_out_what_came_before_the_first_update(clock, capsys):
    with Progress("train", 1000, "step") as progress:
        clock.now += 60  # compiling
        progress.update(1)
        clock.now += 1
        progress.update(101)
    assert lines(capsys) == ["train 101/1000 steps  100 steps/s  remaining 9 s"]


def test_the_rate_leaves_out_what_an_earlier_process_did(clock, capsys):
    with Progress("train", 1000, "step", done=900) as progress:
        progress.update(901)
        clock.now += 10
        progress.update(906)
    assert lines(capsys) == ["train 906/1000 steps  0.5 steps/s  remaining 188 s"]


def test_an_error_passes_through_after_a_last_line(clock, capsys):
    def interrupted():
        with Progress("train", 9, "step") as progress:
            progress.update(2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert lines(capsys) == ["train 2/9 steps"]


@pytest.mark.parametrize("updates", [0, 1, 30])
def test_on_a_terminal_a_live_line_is_drawn(monkeypatch, updates):
    terminal, end = pty.openpty()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    with os.fdopen(end, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stderr)
        with Progress("train", 30, "step") as progress:
            for step in range(1, updates + 1):
                progress.update(step, loss=0.25)
        drawn = b""
        while select.select([terminal], [], [], 0.1)[0]:
            drawn += os.read(terminal, 100_000)
    os.close(terminal)
    drawn = drawn.decode()
    words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    assert "train" in words
    assert f"{updates}/30 steps" in words
    assert ("loss 0.25" in words) == (updates > 0)
    assert ("remaining 0 s" in words) == (updates == 30)
    assert "\x1b[" in drawn  # redrawn in place
