"""Loggers are told of every line; one that fails costs the run nothing."""

import json

import pytest

from gradkit.runner import loggers, record, train
from gradkit.runner.config import Config
from gradkit.runner.errors import UserError

LOGGERS = """
import json

class Lines:
    def __init__(self, folder):
        self.file = open(folder / "own.jsonl", "a")
    def log(self, line):
        self.file.write(json.dumps(line) + "\\n")
    def close(self):
        self.file.close()

class Fails(Lines):
    def log(self, line):
        if line["step"] > 2:
            raise RuntimeError("no connection\\nat all")

def nothing(folder):
    return None
"""
SMALL = {"optimizer": {"name": "adam"}, "data": {"source": "wine"}, "epochs": 2, "log_every": 1}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(LOGGERS)


def run(folder, *names):
    train.begin(Config(**SMALL, log_to=names), folder, [])
    return record.read_metrics(folder / record.METRICS)[0]


@pytest.mark.slow
def test_a_logger_of_the_users_has_every_line(tmp_path):
    lines = run(tmp_path / "run", "own.py:Lines")
    told = (tmp_path / "run" / "own.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in told] == lines


def test_a_logger_that_fails_is_left_out_and_told_of_once(tmp_path, capsys):
    lines = run(tmp_path / "run", "own.py:Fails", "own.py:Lines")
    assert len(lines) == 4
    told = [line for line in capsys.readouterr().err.splitlines() if "log_to" in line]
    assert told == ["log_to: own.py:Fails fails and is left out: RuntimeError: no connection"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own.py:Line", "log_to: own.py has no Line; did you mean Lines?"),
        ("own.py:nothing", "expected what has log(line) and close(), got None"),
        ("own.py:json", "log_to: own.py:json fails: TypeError: 'module' object is not callable"),
    ],
)
def test_mistakes_in_a_logger(tmp_path, name, words):
    with pytest.raises(UserError) as error:
        run(tmp_path / "run", name)
    assert words in str(error.value)


def test_what_is_no_logger_is_a_problem_of_the_config():
    with pytest.raises(ValueError, match=r"expected tensorboard, or path/to/file\.py:name of a lo"):
        Config(**SMALL, log_to=["tensorbord"])


def test_tensorboard_has_the_figures(tmp_path):
    pytest.importorskip("tensorboardX")
    run(tmp_path / "run", "tensorboard")
    assert len(list((tmp_path / "run" / "tensorboard").glob("events.*"))) == 1
    assert isinstance(loggers.TensorBoard(tmp_path / "other"), loggers.Logger)
