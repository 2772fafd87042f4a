"""Every experiment has commands that the command line takes, and pages of what it found."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from pathlib import Path

import pytest

from gradkit.runner import listing, sweep
from gradkit.runner.config import load

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.parent.name for path in (ROOT / "experiments").glob("*/experiment.py"))


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("run", ROOT / "experiments" / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_an_experiment_have_good_configs(name, run):
    for command in run.loaded(name).COMMANDS:
        program, verb, file, *words = shlex.split(command)
        assert program == "gradkit"
        values = [word for word in words if "=" in word]
        if verb == "sweep":
            assert sweep.plan(file, values, None)
        else:
            assert verb == "run"
            assert load(file, values)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_an_experiment_is_what_its_result_says(name, run):
    folder = ROOT / "experiments" / name
    result = json.loads((folder / "result.json").read_text("utf-8"))
    assert (folder / "README.md").read_text("utf-8") == run.page(name, run.loaded(name), result)
    assert (folder / "plot.svg").read_text("utf-8").startswith("<?xml")


def test_the_table_has_every_result(run):
    assert (ROOT / "experiments" / "RESULTS.md").read_text("utf-8") == run.results()


def test_the_list_of_experiments(run):
    text = listing.experiments()
    assert all(f"  {name:24}{run.claim_of(run.loaded(name))}" in text for name in NAMES)


def test_an_unknown_experiment(run, capsys):
    assert run.main(["xro"]) == 2
    assert "no experiment 'xro'; there are line_fit, " in capsys.readouterr().err
