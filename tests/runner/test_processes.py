"""Several processes that train one run, or compute one spectrum, on loopback."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from gradkit.processes import by_first, first, of_all, several
from gradkit.runner import checkpoint, peers, record, setting
from gradkit.runner.errors import UserError

CONFIG = """
data: {{source: {blobs}}}
model: {{hidden: [], activation: tanh}}
optimizer: {{name: adam, learning_rate: 0.01}}
batch_size: 9  # not to be split evenly
epochs: 60
checkpoint_every: 80
evaluate_every: 40
"""
STEPS = 480  # 72 training examples


@pytest.fixture
def config(tmp_path, blobs):
    path = tmp_path / "blobs.yaml"
    path.write_text(CONFIG.format(blobs=blobs))
    return str(path)


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def started(*words, count=2):
    """The processes of a command, one device each."""
    address = f"localhost:{free_port()}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONFAULTHANDLER": "0"}
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "gradkit.runner.cli", *map(str, words)),
                *("--coordinator", address, "--processes", str(count), "--id", str(number)),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def ended(processes, timeout=180):
    """Exit status and output of each."""
    outputs = [process.communicate(timeout=timeout) for process in processes]
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


def alone(*words):
    command = [sys.executable, "-m", "gradkit.runner.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def last_state(folder):
    step = checkpoint.steps(folder / "checkpoints")[-1]
    state, _, _ = setting.state_at(setting.reopen(record.open_record(folder)), folder, step)
    return step, jax.tree.map(np.asarray, state)


def wait_for(path: Path, processes, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, path
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.05)


def child_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])


@pytest.mark.slow
def test_two_processes_end_as_one_and_go_on_as_if_never_killed(config, tmp_path):
    for words in ended(started("run", config, "--out", tmp_path / "two")):
        assert words[0] == 0, words[2]
    step, expected = last_state(tmp_path / "two")
    assert step == STEPS

    killed = started("run", config, "--out", tmp_path / "killed")
    wait_for(tmp_path / "killed" / "checkpoints" / "000160", killed)
    for process in killed:
        process.kill()  # its child ends with it
    ended(killed)
    assert not (tmp_path / "killed" / "summary.json").exists()
    (first_status, out, _), (status, silent, _) = ended(
        started("run", "--resume", tmp_path / "killed")
    )
    assert (first_status, status, silent) == (0, 0, "")
    assert out.startswith("test accuracy")
    step, state = last_state(tmp_path / "killed")
    assert step == STEPS
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)
    metrics, _ = record.read_metrics(tmp_path / "killed" / "metrics.jsonl")
    steps = [line["step"] for line in metrics]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS

    alone("run", config, "--out", tmp_path / "one")
    _, one = last_state(tmp_path / "one")
    for x, y in zip(jax.tree.leaves(one.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * np.max(np.abs(y)))
    figures = [
        json.loads((tmp_path / name / "summary.json").read_text())["test_loss"]
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(*figures, rtol=1e-4)
    environments = [
        json.loads((tmp_path / name / "env.json").read_text()) for name in ("one", "two")
    ]
    assert [about.get("processes") for about in environments] == [None, 2]

    for status, _, error in ended(started("spectrum", tmp_path / "two")):
        assert status == 0, error
    alone("spectrum", tmp_path / "one")
    spectra = [
        json.loads((tmp_path / name / "spectrum.json").read_text()) for name in ("one", "two")
    ]
    largest = [found["largest"]["values"] for found in spectra]
    np.testing.assert_allclose(*largest, rtol=1e-3)
    assert spectra[1]["examples"] == 72
    assert (tmp_path / "two" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGTERM, [143, 143]), (signal.SIGKILL, [2, -9])]
)
def test_what_ends_one_process_ends_all_and_can_be_resumed(config, tmp_path, number, expected):
    run = tmp_path / "run"
    processes = started("run", config, "--out", run, "epochs=100000")
    wait_for(run / "checkpoints" / "000160", processes)
    processes[1].send_signal(number)
    (status, _, error), (other, _, _) = ended(processes, timeout=peers.HEARTBEAT + 30)
    assert [status, other] == expected, error
    why = "interrupted" if number == signal.SIGTERM else "another process"
    assert error.splitlines()[-1].startswith(f"gradkit: {why}")
    assert "--resume" in error.splitlines()[-1]
    assert last_state(run)[0] >= 160


@pytest.mark.slow
def test_a_process_that_is_silent_counts_as_dead(config, tmp_path):
    run = tmp_path / "run"
    processes = started("run", config, "--out", run, "epochs=100000")
    wait_for(run / "checkpoints" / "000080", processes)
    os.kill(child_of(processes[1]), signal.SIGSTOP)
    try:
        status, _, error = ended(processes[:1], timeout=2 * peers.HEARTBEAT + 30)[0]
    finally:
        os.kill(child_of(processes[1]), signal.SIGKILL)
        ended(processes[1:])
    assert status == 2
    assert f"not heard of for {peers.HEARTBEAT} s" in error.splitlines()[-1]
    assert last_state(run)[0] >= 80


@pytest.mark.slow
def test_what_the_first_refuses_all_refuse(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    for status, _, error in ended(started("run", config, "--out", tmp_path / "run")):
        assert status == 2
        assert "exists already and is not overwritten" in error.splitlines()[-1]
        assert "Traceback" not in error


@pytest.mark.slow
def test_one_process_trains_on_all_its_devices(config, tmp_path):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    command = [sys.executable, "-m", "gradkit.runner.cli", "run", config, "epochs=20"]
    for name, more in (("eight", ["--processes", "1"]), ("one", [])):
        subprocess.run(
            [*command, *more, "--out", tmp_path / name],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            check=True,
        )
    (_, eight), (_, one) = last_state(tmp_path / "eight"), last_state(tmp_path / "one")
    for x, y in zip(jax.tree.leaves(eight.params), jax.tree.leaves(one.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * np.max(np.abs(y)))


def options(**given):
    return argparse.Namespace(**{"coordinator": None, "processes": None, "id": None, **given})


def test_options_come_before_the_environment(monkeypatch):
    assert peers.asked_for(options()) == peers.Peers(None, None, 0)
    for name, value in zip(peers.VARIABLES.values(), ("host:1", "3", "2"), strict=True):
        monkeypatch.setenv(name, value)
    assert peers.asked_for(options()) == peers.Peers("host:1", 3, 2)
    assert peers.asked_for(options(id="1")) == peers.Peers("host:1", 3, 1)
    assert peers.asked_for(options(processes="4")).count == 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"id": "0"}, "--id is of one of several processes: say how many by --processes N"),
        ({"coordinator": "here:1"}, "--coordinator is of one of several processes"),
        ({"processes": "2", "id": "0"}, "--processes 2: expected --coordinator HOST:PORT as well"),
        ({"processes": "2", "coordinator": "here:1"}, "expected --id, 0 to 1, as well"),
        ({"processes": "two"}, "--processes: expected a whole number >= 1, got 'two'"),
        ({"processes": "0"}, "--processes: expected a whole number >= 1, got '0'"),
        ({"processes": "2", "id": "2", "coordinator": "here:1"}, "--id: expected 0 to 1"),
        ({"processes": "2", "id": "0", "coordinator": "here"}, "expected HOST:PORT"),
        ({"processes": "2", "id": "0", "coordinator": "here:99999"}, "expected HOST:PORT"),
    ],
)
def test_what_does_not_say_which_processes_there_are_is_refused(given, expected):
    with pytest.raises(UserError, match=expected.replace(".", r"\.").replace("+", r"\+")):
        peers.asked_for(options(**given))


def test_one_process_is_the_first_and_asks_nobody():
    assert first()
    assert not several()
    assert by_first(lambda: 3) == 3
    np.testing.assert_array_equal(of_all(1, 2), [[1, 2]])
    with pytest.raises(UserError, match="told"):
        by_first(lambda: (_ for _ in ()).throw(UserError("told")))
