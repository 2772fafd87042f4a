"""Loggers are told of every line, and what TensorBoard reads is what was logged."""

import math
import struct
import sys
from pathlib import Path

import pytest

from gradkit.runner.errors import UserError
from gradkit.runner.loggers import Logger, TensorBoard


def events(folder):
    """The events of all logs in a folder: records of a length, its checksum, bytes and theirs."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(Path(folder).iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(folder):
    return {
        (event.step, value.tag): value.simple_value
        for event in events(folder)
        for value in event.summary.value
    }


def test_scalars_can_be_read_back(tmp_path):
    pytest.importorskip("tensorboardX")
    log = TensorBoard(tmp_path / "log")
    assert isinstance(log, Logger)
    log.log({"step": 10, "loss": 0.5, "train_loss": 0.25, "test_mean_error": 3, "kind": "text"})
    log.log({"step": 20, "loss": None, "good": True, "learning_rate": math.inf})
    log.close()
    found = scalars(tmp_path / "log")
    assert math.isnan(found.pop((20, "loss")))
    assert found == {
        (10, "loss"): 0.5,
        (10, "train/loss"): 0.25,
        (10, "test/mean_error"): 3.0,
        (20, "learning_rate"): math.inf,
    }


def test_a_run_that_goes_on_hides_what_it_does_again(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import SessionLog

    for resumed_at in (0, 20):
        log = TensorBoard(tmp_path / str(resumed_at), resumed_at=resumed_at)
        log.log({"step": resumed_at + 1, "loss": 1.0})
        log.close()
    begun = [
        (event.step, event.session_log.status)
        for event in events(tmp_path / "20")
        if event.HasField("session_log")
    ]
    assert begun == [(21, SessionLog.START)]
    assert not any(event.HasField("session_log") for event in events(tmp_path / "0"))


def test_a_missing_package_is_told_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"pip install 'gradkit\[tensorboard\]'"):
        TensorBoard(tmp_path)
    assert list(tmp_path.iterdir()) == []
