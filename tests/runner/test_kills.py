"""A handful of the kills of benchmarks/kills.py: each run ends as if nobody had disturbed it."""

import shutil
import signal
from pathlib import Path

import kills
import pytest

from gradkit.runner import guard
from gradkit.runner.cli import main

pytestmark = pytest.mark.flow

KILLED = [  # by what, and when in the life of a process
    (signal.SIGKILL, 0.55),
    (signal.SIGTERM, 0.65),
    (signal.SIGKILL, 0.8),
    (signal.SIGINT, 0.9),
]


@pytest.mark.slow
@pytest.mark.usefixtures("default_interrupts")
def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Path("network.yaml")
    config.write_text(kills.CONFIGS["network"].replace("epochs: 40", "epochs: 12"))
    whole, length = kills.whole_run(config, tmp_path, runs=1)
    run = tmp_path / "run"
    for number, share in KILLED:
        kills.killed(kills.arguments(config, run), run, number, after=share * length)
    assert kills.killed(kills.arguments(config, run), run, signal.SIGKILL, after=600) is None
    assert kills.differences(whole, kills.remains(run)) == []
    assert whole["metrics at step 160"]
    (best,) = [name for name in whole if name.startswith("best/")]
    shutil.rmtree(run / "best")
    assert kills.differences(whole, kills.remains(run)) == [best, "files"]


TINY = "optimizer: sgd\nmodel: {hidden: []}\nepochs: 1\nbatch_size: 700\n"


@pytest.mark.slow
def test_a_folder_that_has_no_config_yet_is_begun_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    left = Path("run")
    left.mkdir()
    assert guard.unbegun(left)
    for name in (".lock", "env.json", ".config.yaml.12-ab.tmp"):
        (left / name).write_text("{}")
    assert main(["run", "--resume", "run"]) == 2
    message = capsys.readouterr().err
    assert message == (
        "gradkit: run: no run has begun in it: it has no config.yaml. Begin one by "
        "gradkit run CONFIG --out run\n"
    )
    assert main(["run", "tiny.yaml", "--out", "run"]) == 0
    assert not list(left.glob(".*.tmp"))
    assert not guard.unbegun(left)


@pytest.mark.slow
def test_a_run_that_ended_without_its_report_gets_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    assert main(["run", "tiny.yaml", "--out", "run"]) == 0
    said = capsys.readouterr().out
    Path("run/report.html").unlink()
    Path("run/plots/.loss.svg.12-ab.tmp").write_text("half")
    assert main(["run", "--resume", "run"]) == 0
    assert capsys.readouterr().out == said
    assert Path("run/report.html").exists()
    assert not list(Path("run").rglob("*.tmp"))
