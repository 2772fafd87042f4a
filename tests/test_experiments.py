"""Every experiment has commands that the command line takes, and pages of what it found."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from gradkit.runner import listing, sweep
from gradkit.runner.config import load
from gradkit.runner.data import installed

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.parent.name for path in (ROOT / "experiments").glob("*/experiment.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def found(name):
    return json.loads((ROOT / "experiments" / name / "result.json").read_text("utf-8"))


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
def test_the_commands_of_an_experiment_are_good_ones(name, run, monkeypatch):
    monkeypatch.setattr(installed, "missing", lambda name: "")  # as where the results are from
    commands = found(name)["commands"]
    out = run.RUNS / name
    assert commands[0] == next(iter(run.loaded(name).commands(out)))
    for command in commands:
        program, verb, file, *words = shlex.split(command)
        assert program == "gradkit"
        assert verb in ("sweep", "run", "spectrum", "compare", "report")
        values = [word for word in words if "=" in word]
        if verb == "sweep":
            assert sweep.plan(file, values, None)
        elif verb == "run":
            assert load(file, values)
        else:
            assert Path(file).is_relative_to(out)


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_whole(name, run):
    module = run.loaded(name)
    assert run.claim_of(module)
    assert (module.__doc__ or "").partition("\n")[0].endswith("."), "the claim: one line"
    assert module.REFERENCE
    assert module.MINUTES > 0
    for function in (module.commands, module.judge, module.draw):
        assert [*inspect.signature(function).parameters] == ["out"]
    assert inspect.isgeneratorfunction(module.commands)
    result = found(name)
    assert set(result) == {*run.Finding._fields, "seconds", "commands", "machine"}
    assert result["measured"]
    assert result["words"].endswith(".")


def test_those_without_a_name_take_less_than_40_minutes_and_10_each(run, monkeypatch):
    taken = {}
    monkeypatch.setattr(run, "performed", lambda name, m: taken.update({name: m.MINUTES}))
    monkeypatch.setattr(run, "write_results", lambda: None)
    assert run.main([]) == 0
    assert max(taken.values()) <= 10
    assert sum(taken.values()) < 40
    assert {n for n in NAMES if run.loaded(n).MINUTES <= 10} == set(taken)
    assert run.main(["text_race"]) == 0
    assert "text_race" in taken


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_config_says_what_it_asks_costs_and_expects(file):
    lines = itertools.takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
    header = "\n".join(line.removeprefix("#").strip() for line in lines)
    question, *others = re.split(r"^(?:Cost|Expected|Command): +", header, flags=re.MULTILINE)
    assert question.strip().endswith("?")
    assert re.findall(r"^(Cost|Expected|Command):", header, re.MULTILINE) == [
        *("Cost", "Expected", "Command")
    ]
    command = others[-1].partition("     (")[0]  # what it needs
    program, verb, config, *words = shlex.split(command)
    assert (program, config) == ("gradkit", f"configs/{file.name}")
    if verb == "sweep":
        assert sweep.plan(config, words, None)
    else:
        assert verb == "run"
        assert load(config, words)


def test_a_command_that_has_ended_is_not_run_again(run, tmp_path, monkeypatch):
    module = SimpleNamespace(
        __doc__="A claim.",
        REFERENCE="none",
        commands=lambda out: iter(("gradkit list", "gradkit list adam")),
        judge=lambda out: ("a figure", True, "words"),
        draw=lambda out: Figure(),
    )
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs")
    (tmp_path / "claim").mkdir()
    (tmp_path / "runs" / "claim").mkdir(parents=True)
    (tmp_path / "runs" / "claim" / "ended.json").write_text('{"gradkit list": 12.0}')
    ran = []

    monkeypatch.setattr(run.cli, "main", lambda words: ran.append(words) or 0)
    assert run.performed("claim", module) == 0
    assert ran == [["list", "adam"]]
    result = json.loads((tmp_path / "claim" / "result.json").read_text("utf-8"))
    assert result["seconds"] == pytest.approx(12, abs=1)
    assert "gradkit list\ngradkit list adam" in (tmp_path / "claim" / "README.md").read_text(
        "utf-8"
    )


def test_a_run_that_was_interrupted_goes_on(run, tmp_path):
    words = ["run", "config.yaml", "--out", str(tmp_path / "one")]
    assert run.to_go_on(words) == words
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.yaml").touch()
    assert run.to_go_on(words) == ["run", "--resume", str(tmp_path / "one")]
    sweep = ["sweep", *words[1:]]
    assert run.to_go_on(sweep) == sweep  # goes on by itself
    assert run.to_go_on(["list"]) == ["list"]


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_an_experiment_is_what_its_result_says(name, run):
    folder = ROOT / "experiments" / name
    result = found(name)
    assert (folder / "README.md").read_text("utf-8") == run.page(name, run.loaded(name), result)
    assert (folder / "plot.svg").read_text("utf-8").startswith("<?xml")


def test_the_table_has_every_result(run):
    assert (ROOT / "experiments" / "RESULTS.md").read_text("utf-8") == run.results()


def test_the_list_of_experiments(run):
    text = listing.experiments()
    assert all(f"  {name:26}{run.claim_of(run.loaded(name))}" in text for name in NAMES)


def test_an_unknown_experiment(run, capsys):
    assert run.main(["xro"]) == 2
    assert f"no experiment 'xro'; there are {', '.join(NAMES)}" in capsys.readouterr().err
