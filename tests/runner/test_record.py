"""A run folder round-trips, survives crashes half way through a write, and says what is wrong."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from gradkit.runner import record as record_module
from gradkit.runner.errors import UserError
from gradkit.runner.record import (
    append_metrics,
    gradient_equivalents,
    open_record,
    read_metrics,
    truncate_metrics,
    write_arrays,
    write_json,
    write_text,
)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "digits_adam"
    folder.mkdir(parents=True)
    write_text(folder / "config.yaml", "seed: 0\n")
    return folder


def _fill(path, steps):
    for step in steps:
        append_metrics(path, {"step": step, "loss": 1 / step})


def test_everything_written_is_read_back(run):
    env = {"gradkit": "0.1.0", "packages": {"jax": "0.10.2"}, "command": ["gradkit", "run"]}
    write_json(run / "env.json", env)
    write_json(run / "summary.json", {"status": "finished", "steps": 2})
    write_json(run / "spectrum.json", {"largest": {"values": np.float32([2.5, 1.5])}})
    write_arrays(run / "spectrum.npz", nodes=np.eye(2), weights=np.full((2, 2), 0.5))
    _fill(run / "metrics.jsonl", [1, 2])
    record = open_record(run)
    assert record.name == "digits_adam"
    assert record.config_text == "seed: 0\n"
    assert record.env == env
    assert record.metrics == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert not record.truncated
    assert record.summary == {"status": "finished", "steps": 2}
    assert record.spectrum == {"largest": {"values": [2.5, 1.5]}}
    np.testing.assert_array_equal(record.arrays["nodes"], np.eye(2))


def test_a_config_alone_is_a_record(run):
    record = open_record(run)
    assert (record.env, record.metrics, record.truncated) == ({}, [], False)
    assert (record.summary, record.spectrum, record.arrays) == (None, None, {})


def test_not_finite_becomes_null(run):
    write_json(run / "env.json", {"a": math.nan, "b": [np.float32(np.inf), np.arange(2)], "c": 1})
    assert json.loads((run / "env.json").read_text()) == {"a": None, "b": [None, [0, 1]], "c": 1}
    append_metrics(run / "metrics.jsonl", {"step": np.int64(3), "loss": np.float64("nan")})
    assert open_record(run).metrics == [{"step": 3, "loss": None}]


def test_a_write_that_fails_midway_leaves_the_old_file(run, monkeypatch):
    path = run / "env.json"
    write_json(path, {"old": True})

    def fail(*_, **__):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no space left"):
            write_json(path, {"new": True})
    with monkeypatch.context() as patch:
        patch.setattr(record_module.np, "savez_compressed", fail)
        with pytest.raises(OSError, match="no space left"):
            write_arrays(path, a=np.zeros(3))
    with pytest.raises(TypeError):
        write_json(path, {"not": object()})
    with pytest.raises(TypeError, match="array of numbers"):
        write_arrays(path, a=np.array([{}]))
    assert json.loads(path.read_text()) == {"old": True}
    assert sorted(file.name for file in run.iterdir()) == ["config.yaml", "env.json"]


def test_a_last_line_cut_short_is_dropped_with_knowledge(run):
    path = run / "metrics.jsonl"
    _fill(path, [1, 2, 3])
    whole = path.read_bytes()
    for cut in range(len(whole) - 2, whole.index(b"\n", 40) + 1, -1):
        path.write_bytes(whole[:cut])
        record = open_record(run)
        assert [line["step"] for line in record.metrics] == [1, 2]
        assert record.truncated
    path.write_bytes(whole[:-1])
    assert [line["step"] for line in open_record(run).metrics] == [1, 2, 3]


def test_a_cut_line_is_gone_after_resuming(run):
    path = run / "metrics.jsonl"
    _fill(path, [10, 20, 30])
    with path.open("ab") as file:
        file.write(b'{"step": 40, "lo')
    truncate_metrics(path, 20)
    _fill(path, [30])
    lines, truncated = read_metrics(path)
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert not truncated


def test_truncating_keeps_lines_byte_for_byte_and_is_atomic(run, monkeypatch):
    path = run / "metrics.jsonl"
    path.write_text('{"step": 1,   "loss": 1e-3}\n{"step": 2}\n')
    before = path.read_bytes()

    def fail(*_):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="killed"):
            truncate_metrics(path, 1)
    assert path.read_bytes() == before
    truncate_metrics(path, 1)
    assert path.read_bytes() == before.splitlines(keepends=True)[0]
    truncate_metrics(run / "missing.jsonl", 1)
    assert not (run / "missing.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"step": 2, "loss"', r"metrics\.jsonl:2: not JSON: .* at column"),
        ("[2]", r"metrics\.jsonl:2: expected a JSON object, got list"),
        ('{"loss": 2}', r'metrics\.jsonl:2: expected "step" to be a whole number, got null'),
        ('{"step": 2, "loss": NaN}', r"metrics\.jsonl:2: not JSON: NaN"),
    ],
)
def test_a_broken_line_in_the_middle_names_file_and_line(run, line, expected):
    (run / "metrics.jsonl").write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(UserError, match=expected):
        open_record(run)


def test_unreadable_files_are_named(run):
    (run / "env.json").write_text('{"a": 1,\n "b"}\n')
    with pytest.raises(UserError, match=r"env\.json:2: not JSON"):
        open_record(run)
    (run / "env.json").write_text("[]")
    with pytest.raises(UserError, match=r"env\.json:1: expected a JSON object, got list"):
        open_record(run)
    (run / "env.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"env\.json: not text in UTF-8"):
        open_record(run)
    (run / "env.json").unlink()
    write_json(run / "spectrum.json", {})
    (run / "spectrum.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(UserError, match=r"spectrum\.npz: not a readable"):
        open_record(run)
    write_arrays(run / "spectrum.npz", grid=np.zeros(3), density=np.zeros(4))
    with pytest.raises(UserError, match=r"spectrum\.npz: expected arrays of one shape"):
        open_record(run)


def test_a_missing_folder_names_the_nearest_runs(run):
    with pytest.raises(UserError, match=r"no such run folder.*Nearest run folders: .*digits_adam"):
        open_record(run.parent / "digit_adam")


def test_a_folder_of_runs_is_not_a_run(run):
    with pytest.raises(UserError, match=r"no config\.yaml.*Nearest run folders: .*digits_adam"):
        open_record(run.parent)
    with pytest.raises(UserError, match="is a file, not a run folder"):
        open_record(run / "config.yaml")


def test_no_runs_near(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run folders near"):
        open_record("nowhere")


def test_gradient_equivalents():
    assert gradient_equivalents({"gradients": 20, "evaluations": 6, "products": 100}) == 122
    assert gradient_equivalents({"gradients": 20}) == 20
    assert gradient_equivalents({"step": 1}) is None


def test_importing_record_stays_light():
    code = (
        "import sys, gradkit.runner.record; "
        "print([m for m in ('jax', 'optax', 'flax', 'matplotlib', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
