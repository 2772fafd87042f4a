"""A sweep makes a run of each combination once, and its table is the truth of the folders."""

import json
import re
import shutil
import types
from pathlib import Path

import numpy as np
import pytest

from gradkit.runner import compare, record, sweep
from gradkit.runner.cli import main
from gradkit.runner.config import dump
from gradkit.runner.errors import UserError

CONFIG = """\
data: {source: blobs.npz}
model: {hidden: [3], activation: tanh}
optimizer: {name: adam, learning_rate: 0.01}
batch_size: 8
epochs: 2
log_every: 3
evaluate_every: 9
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, blobs):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(CONFIG)
    shutil.copy(blobs, "blobs.npz")


def folders(*words, out=None):
    return [str(point.folder) for point in sweep.plan("tiny.yaml", words, out)]


def test_a_point_for_each_combination_in_order():
    found = folders("optimizer.learning_rate=1e-3,0.1", "seed=0:2")
    assert found == [
        f"sweeps/tiny/learning_rate={rate},seed={seed}"
        for rate in ("0.001", "0.1")
        for seed in (0, 1)
    ]
    assert folders("seed=0:2", "optimizer.learning_rate=1e-3,0.1") == found
    points = sweep.plan("tiny.yaml", ["optimizer.learning_rate=1e-3,0.1", "seed=0:2"], None)
    rates = [(p.config.optimizer[0].arguments["learning_rate"], p.config.seed) for p in points]
    assert rates == [(0.001, 0), (0.001, 1), (0.1, 0), (0.1, 1)]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["seed=3"], ["run"]),
        ([], ["run"]),
        (["seed=3", "epochs=1,2"], ["epochs=1", "epochs=2"]),
        (["model.hidden=[3],[4, 5]"], ["hidden=3", "hidden=4_5"]),
        (["optimizer=adam,sgd"], ["optimizer=adam", "optimizer=sgd"]),
        (
            ["spectrum.steps=5,6", "spectrum.tol=1e-3,1e-4"],
            [f"steps={s},tol={t}" for s in (5, 6) for t in ("0.001", "0.0001")],
        ),
        (
            ["optimizer={name: adam, eps: 1e-3},{name: adam, eps: 1e-4}"],
            ["optimizer=name_adam_eps_0.001", "optimizer=name_adam_eps_0.0001"],
        ),
    ],
)
def test_folders_are_named_by_what_changes(words, names):
    assert folders(*words, out=Path("s")) == [f"s/{name}" for name in names]


def test_a_key_that_another_ends_in_keeps_its_name():
    assert folders("name=a,b", "optimizer.name=adam,sgd")[:2] == [
        "sweeps/a/name=a,optimizer.name=adam",
        "sweeps/a/name=a,optimizer.name=sgd",
    ]


def test_keys_of_one_end_are_told_apart():
    Path("tiny.yaml").write_text(
        CONFIG.replace(
            "{name: adam, learning_rate: 0.01}",
            "\n  - {name: clip, max_delta: 1.0}\n  - {name: adam, learning_rate: 0.01}",
        )
    )
    found = folders("optimizer.0.max_delta=1,2", "optimizer.1.eps=0.1,0.2", "spectrum.tol=0.1,0.2")
    assert found[0] == "sweeps/tiny/max_delta=1,eps=0.1,tol=0.1"


def pretend(folder, config, **summary):
    folder.mkdir(parents=True)
    record.write_text(folder / record.CONFIG, dump(config))
    if summary:
        record.write_json(folder / record.SUMMARY, summary)


def test_started_again_it_does_what_is_left():
    points = sweep.plan("tiny.yaml", ["seed=0:4"], None)
    pretend(points[0].folder, points[0].config, status="finished")
    pretend(points[1].folder, points[1].config)
    points[2].folder.mkdir()
    (points[2].folder / record.ENV).write_text("{}")  # killed between its first two files
    done, told = [], []
    sweep.run(
        points,
        told.append,
        begin=lambda config, folder: done.append(("begin", config.seed, folder.exists())),
        resume=lambda run: done.append(("resume", run.name)),
    )
    assert done == [("resume", "seed=1"), ("begin", 2, True), ("begin", 3, False)]
    assert told == [
        "1 of 4: seed=0: finished before",
        "2 of 4: seed=1: going on",
        "3 of 4: seed=2",
        "4 of 4: seed=3",
    ]


@pytest.mark.parametrize("at_once", [False, True])
def test_what_is_left_is_told_by_what_runs_took(at_once, monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(sweep, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    points = sweep.plan("tiny.yaml", ["epochs=1,2,3", "seed=0:3"], None)
    told = []

    def begin(config, folder):
        clock.now += 10 if config.seed == 0 else 2  # the first of its epochs is compiled

    def together(configs, folders):
        clock.now += 50

    words = {"together": together} if at_once else {}
    sweep.run(points, told.append, begin=begin, resume=told.append, **words)
    left = [re.search(r"\(some (.*) left\)|$", line)[1] for line in told]
    if at_once:
        assert left == [None, "2 min", "50 s"]
        return
    # after the first all others seem to take 10 s, then 10 s or 2 s
    assert left == [None, *("80 s", "30 s", "28 s", "18 s", "16 s", "14 s", "4 s", "2 s")]


def test_a_folder_of_another_config_stops_it_before_it_begins():
    points = sweep.plan("tiny.yaml", ["seed=0:2"], None)
    pretend(points[1].folder, points[0].config)
    done = []
    with pytest.raises(UserError, match="seed=1: was begun with another config; name another"):
        sweep.run(points, done.append, begin=lambda *_: done.append(1), resume=done.append)
    assert done == []


@pytest.mark.slow
@pytest.mark.flow
def test_from_the_command_line_to_the_table(capsys):
    words = ["sweep", "tiny.yaml", "optimizer.learning_rate=0.01,1e38", "seed=0:2"]
    assert main(words) == 0
    shown, told = capsys.readouterr()
    assert len([line for line in told.splitlines() if "train" in line or " of 4: " in line]) == 4
    assert main(words) == 0
    again = capsys.readouterr()
    assert again.out == shown
    assert again.err.count("before") == 4
    rows = [line.split() for line in shown.splitlines()]
    assert rows[0][:3] == ["learning_rate", "runs", "train_loss"]
    assert rows[1][:2] == ["0.01", "2"]
    assert rows[1][-2:] == ["←", "lowest"]
    assert rows[2][:4] == ["1e+38", "0,", "2", "diverged"]
    page = Path("sweeps/tiny/report.html")
    assert shown.splitlines()[-1] == str(page)
    assert "2 of 4 runs diverged" in page.read_text()
    losses = [
        json.loads(Path(f"sweeps/tiny/learning_rate=0.01,seed={seed}/summary.json").read_text())
        for seed in (0, 1)
    ]
    mean = np.mean([summary["test_loss"] for summary in losses])
    assert main(["compare", "sweeps/tiny", "--json", "--target", "train_loss=0.9"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [len(row["runs"]) for row in found] == [2, 2]
    assert found[0]["figures"]["test_loss"]["value"] == pytest.approx(mean)
    one = ["compare", "sweeps/tiny/learning_rate=0.01,seed=0"]
    assert main(one) == 0
    assert f"{losses[0]['test_loss']:.4g}" in capsys.readouterr().out
    assert compare.Target.of("train_loss=0.9").value == 0.9
