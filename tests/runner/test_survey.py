"""The spectra of a sweep are those of each of its runs, and share what is compiled."""

import logging
import shutil
from pathlib import Path

import jax
import pytest

import gradkit as gk
from gradkit.runner import record, setting, spectrum, survey
from gradkit.runner.cli import main

pytestmark = pytest.mark.flow

CONFIG = """\
data: {source: blobs.npz}
model: {hidden: [3], activation: tanh}
optimizer: {name: sgd, learning_rate: 0.1}
batch_size: 8
epochs: 1
checkpoint_every: 9
spectrum: {top: 2, bottom: 1}
"""
NAMES = ["learning_rate=0.1", "learning_rate=0.2"]
LOOK = ("--no-density", "--checkpoint", "all")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, blobs):
    """A sweep of two runs with a run beside it that diverges before its first checkpoint."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        shutil.copy(blobs, "blobs.npz")
        Path("tiny.yaml").write_text(CONFIG)
        rates = "optimizer.learning_rate=0.1,0.2"
        assert main(["sweep", "tiny.yaml", rates, "--out", "sweep"]) == 0
        wild = ("optimizer.learning_rate=1e30", "model.activation=relu", "--out", "wild")
        assert main(["run", "tiny.yaml", *wild]) == 1
    return place


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_sweep_has_the_spectra_of_its_runs(here, capsys, monkeypatch):
    assert main(["spectrum", f"sweep/{NAMES[1]}", *LOOK]) == 0
    alone = record.open_record(f"sweep/{NAMES[1]}").spectra
    shutil.rmtree(f"sweep/{NAMES[1]}/spectra")
    Path(f"sweep/{NAMES[1]}/spectrum.json").unlink()
    capsys.readouterr()
    assert main(["spectrum", "sweep", *LOOK]) == 0
    out, err = capsys.readouterr()
    assert [line.partition(";")[0] for line in err.splitlines() if " of 2: " in line] == [
        f"{number} of 2: {name}" for number, name in enumerate(NAMES, start=1)
    ]
    assert f"2 of 2: {NAMES[1]}; about " in err
    rows = [line.split()[:2] for line in out.splitlines()]
    assert rows == [["run", "step"], *([f"sweep/{n}", str(s)] for n in NAMES for s in (0, 9))]
    for mine, its in zip(record.open_record(f"sweep/{NAMES[1]}").spectra, alone, strict=True):
        assert mine.values | {"seconds": 0} == its.values | {"seconds": 0}
    monkeypatch.setattr(gk, "spectrum", None, raising=False)  # what is there is not computed again
    assert main(["spectrum", "sweep", *LOOK]) == 0


@pytest.mark.slow
def test_runs_of_one_task_share_what_is_compiled(here, caplog):
    runs = [record.open_record(f"sweep/{name}") for name in NAMES]
    options, programs = spectrum.Options(density=False), []

    def told(_):
        programs.append(sum("Compiling jit" in text for text in caplog.messages))
        caplog.clear()

    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        survey.survey(runs, options, told)
    told("the end")
    _, first, *others = programs
    assert others == [1]  # the check of the operator, whose product is to be traced anew
    assert first > 3


def test_tasks_that_differ_are_not_taken_for_one(here):
    tasks = {}
    made = [
        setting.reopen(record.open_record(run), tasks).task
        for run in (f"sweep/{NAMES[0]}", f"sweep/{NAMES[1]}", "wild")
    ]
    assert made[0] is made[1]
    assert made[0] is not made[2]


@pytest.mark.slow
def test_a_run_that_left_nothing_to_look_at_is_left_out(here, capsys):
    assert main(["spectrum", "wild", f"sweep/{NAMES[0]}", "--no-density"]) == 1
    out, err = capsys.readouterr()
    assert "left out: wild: diverged before its first checkpoint" in err
    assert [line.split()[0] for line in out.splitlines()[1:]] == [f"sweep/{NAMES[0]}"]


def test_where_no_run_can_be_looked_at_it_is_a_mistake(here, capsys):
    shutil.copytree("wild", "other")
    assert main(["spectrum", "wild", "other"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "gradkit: other: diverged before its first checkpoint" in err


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(here, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(spectrum, "compute", stop)
    assert main(["spectrum", "sweep"]) == 130
    assert "interrupted; the same command goes on from there" in capsys.readouterr().err
