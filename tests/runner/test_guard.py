"""A run is never lost: one process at a time, signals that wait for a step, disks that are full."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from gradkit.runner import checkpoint, guard, record, setting, signals
from gradkit.runner.errors import UserError

CONFIG = """\
model: {hidden: [3], activation: tanh}
optimizer: {name: adam, learning_rate: 0.01}
epochs: 40
log_every: 10
evaluate_every: 500
checkpoint_every: 100
"""
COMMAND = [sys.executable, "-m", "gradkit.runner.cli"]


STEPS = 40 * (1437 // 64)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What `final` says of a run that nobody has disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(CONFIG)
    command = [*COMMAND, "run", folder / "tiny.yaml", "--out", folder / "run"]
    subprocess.run(command, capture_output=True, check=True)
    return final(folder / "run")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(CONFIG)


def gradkit(*arguments, limit=None):
    """A command's exit status and its one message, with files limited to some bytes."""
    program = [*COMMAND, *arguments]
    if limit is not None:
        blocks = f"ulimit -f {limit // 1024}; exec " + '"$@"'
        program = ["bash", "-c", blocks, "bash", *program]
    done = subprocess.run(program, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if not line.startswith("train ")]
    assert all(line.startswith("gradkit: ") for line in said), done.stderr
    return done.returncode, "\n".join(said)


def started(*arguments, after=0):
    """A command under way, with a checkpoint of the folder `run` beyond the step `after`."""
    process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        if any(step > after for step in checkpoint.steps(Path("run/checkpoints"))):
            return process
        time.sleep(0.02)
    raise AssertionError(process.communicate()[1])


def final(run):
    """The last step, the bits of parameters and state there, and the metrics but for time."""
    state, step, _ = setting.state_at(setting.reopen(record.open_record(run)), Path(run))
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in line.items() if k != "time"} for line in lines]
    return step, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)], timeless


def test_a_folder_is_for_one_process(tmp_path):
    with guard.alone(tmp_path):
        with pytest.raises(UserError, match="another process is training in it"):
            guard.alone(tmp_path).__enter__()
        entering = (
            "import pathlib; from gradkit.runner import guard\n"
            f"guard.alone(pathlib.Path({str(tmp_path)!r})).__enter__()"
        )
        other = subprocess.run([sys.executable, "-c", entering], capture_output=True, text=True)
        assert "another process is training in it" in other.stderr
    with guard.alone(tmp_path):
        assert (tmp_path / guard.LOCK).exists()


def test_a_lock_ends_with_its_process(tmp_path):
    program = (
        "import pathlib, time; from gradkit.runner import guard\n"
        f"with guard.alone(pathlib.Path({str(tmp_path)!r})):\n"
        "    print('in', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "in\n"
    with pytest.raises(UserError):
        guard.alone(tmp_path).__enter__()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with guard.alone(tmp_path):
        assert holder.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.flow
def test_sigterm_saves_and_says_how_to_go_on_unless_somebody_else_does(whole):
    process = started("run", "tiny.yaml", "--out", "run")
    process.send_signal(signal.SIGTERM)
    message = process.communicate()[1].splitlines()[-1]
    assert process.returncode == 128 + signal.SIGTERM
    assert message == "gradkit: interrupted; go on by gradkit run --resume run"
    stopped = checkpoint.steps(Path("run/checkpoints"))[-1]
    assert stopped < STEPS
    with guard.alone(Path("run")):
        status, message = gradkit("run", "--resume", "run")
        assert (status, "another process is training in it" in message) == (2, True)
    assert checkpoint.steps(Path("run/checkpoints"))[-1] == stopped
    assert gradkit("run", "--resume", "run")[0] == 0
    assert final("run") == whole
    assert whole[0] == STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "file"), [(2 * 1024, "checkpoints"), (12 * 1024, "metrics.jsonl")]
)
def test_a_full_disk_is_named_and_what_was_saved_goes_on(whole, limit, file):
    status, message = gradkit("run", "tiny.yaml", "--out", "run", limit=limit)
    assert status == 2
    assert message.startswith(f"gradkit: run/{file}")
    assert message.endswith("File too large; go on by gradkit run --resume run")
    assert not list(Path("run").rglob("*.tmp"))
    assert gradkit("run", "--resume", "run")[0] == 0
    assert final("run") == whole


def stopped_run():
    """The folder of a run that was stopped on its way."""
    process = started("run", "tiny.yaml", "--out", "run", after=200)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    return Path("run")


def content(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def refused(*arguments):
    """The message of a command that refuses and leaves the run as it is."""
    before = content(Path("run"))
    status, message = gradkit(*arguments)
    assert status == 2
    assert content(Path("run")) == before
    return message


@pytest.mark.slow
@pytest.mark.flow
def test_metrics_that_were_damaged_are_named_and_the_way_on_works(whole):
    metrics = stopped_run() / "metrics.jsonl"
    text = metrics.read_bytes()
    lines = text.splitlines(keepends=True)
    metrics.write_bytes(text + lines[-1][:20])  # as a crash leaves it: nothing is lost
    opened = record.open_record("run")
    assert opened.truncated
    metrics.write_bytes(b"".join([*lines[:15], b"\x00\xff{garbage\n", *lines[16:]]))
    message = refused("run", "--resume", "run")
    assert message == (
        "gradkit: run/metrics.jsonl:16: not text in UTF-8. Put the file back as it was, or delete "
        "this line and all below it"
    )
    metrics.write_bytes(b"".join(lines[:15])[:-9])  # until step 140, and part of 150
    message = refused("run", "--resume", "run")
    last = checkpoint.steps(Path("run/checkpoints"))[-1]
    assert message == (
        f"gradkit: run/metrics.jsonl: cut short: it lacks lines from before the checkpoint of step "
        f"{last}. Put the file back as it was, or delete those after 000100 in run/checkpoints to "
        "go on from there."
    )
    for step in checkpoint.steps(Path("run/checkpoints"))[1:]:
        shutil.rmtree(f"run/checkpoints/{step:06d}")
    assert gradkit("run", "--resume", "run")[0] == 0
    assert final("run") == whole


@pytest.mark.slow
@pytest.mark.flow
def test_a_folder_that_cannot_be_written_is_named(whole):
    run = stopped_run()
    (run / ".lock").unlink()
    (run / ".lock").mkdir()
    assert refused("run", "--resume", "run") == (
        "gradkit: run: cannot be written: Is a directory. Give yourself the right to write there, "
        "or copy the folder to where you have it: nothing has been changed."
    )
    (run / ".lock").rmdir()
    if os.geteuid():  # to root nothing is forbidden
        run.chmod(0o500)
        assert "gradkit: run: cannot be written: Permission" in refused("run", "--resume", "run")
        run.chmod(0o700)
    last = checkpoint.steps(run / "checkpoints")[-1]
    (run / "checkpoints" / f".{last + 100 - last % 100:06d}.tmp").write_text("in the way")
    assert gradkit("run", "--resume", "run")[0] == 0  # a draft, removed
    assert final("run") == whole


@pytest.mark.slow
@pytest.mark.flow
def test_of_two_processes_begun_at_once_one_trains(whole):
    command = [*COMMAND, "run", "tiny.yaml", "--out", "run"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    message = next(s for s, process in zip(said, both, strict=True) if process.returncode)
    assert message.startswith("gradkit: run: ")
    assert "another process is training in it" in message or "exists already" in message
    assert final("run") == whole


def test_signals_that_are_handled_elsewhere_are_left_to_it():
    def theirs(*_):
        pass

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        with signals.patience() as asked:
            assert signal.getsignal(signal.SIGTERM) is theirs
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked.by is None
    finally:
        signal.signal(signal.SIGTERM, before)


def test_after_the_first_signal_the_next_is_as_usual():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with signals.patience() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked.by == signal.SIGTERM
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
