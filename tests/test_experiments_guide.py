"""Each file that docs/experiments.md shows is one that trains."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from gradkit.runner import record
from gradkit.runner.cli import main
from gradkit.runner.schema import Config

PAGE = (Path(__file__).parents[1] / "docs" / "experiments.md").read_text("utf-8")
FILES = {
    name: text
    for text, name in re.findall(r"^```\w+\n(# (\S+)\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
}


@pytest.mark.slow
@pytest.mark.flow
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".yaml")])
def test_a_config_of_the_page_trains(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file, text in FILES.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text, "utf-8")
    assert main(["run", name, "epochs=2", "log_every=1"]) == 0
    lines = record.open_record(tmp_path / "runs" / name.removesuffix(".yaml")).metrics
    assert lines[-1]["loss"] < 1.5 * lines[0]["loss"]


def test_every_key_of_a_run_is_explained():
    for name in Config.model_fields:
        if name not in ("name", "seed", "model", "spectrum"):
            assert f"`{name}`" in PAGE or f"\n{name}:" in PAGE, name


def test_the_page_has_its_files():
    assert set(FILES) == {
        *("spirals.yaml", "deep.yaml", "net.py", "net.yaml", "valley.yaml", "chain.yaml"),
        *("images.yaml", "characters.yaml", "bumps.yaml", "bounded.yaml"),
        "experiments/valley/experiment.py",
    }


@pytest.mark.slow
@pytest.mark.flow
def test_the_experiment_of_the_page_runs_and_agrees(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file, text in FILES.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text, "utf-8")
    source = Path(__file__).parents[1] / "experiments" / "run.py"
    spec = importlib.util.spec_from_file_location("run", source)
    run = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run", run)
    spec.loader.exec_module(run)
    monkeypatch.setattr(run, "HERE", tmp_path / "experiments")
    assert run.main(["valley"]) == 0
    folder = tmp_path / "experiments" / "valley"
    result = json.loads((folder / "result.json").read_text("utf-8"))
    assert result["agrees"]
    assert "| yes |" in (folder / "README.md").read_text("utf-8")
    assert "L-BFGS is through" in (tmp_path / "experiments" / "RESULTS.md").read_text("utf-8")
    assert (folder / "plot.svg").read_text("utf-8").startswith("<?xml")
