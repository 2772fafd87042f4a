"""Each file that docs/experiments.md shows is one that trains."""

from __future__ import annotations

import re
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


@pytest.mark.flow
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".yaml")])
def test_a_config_of_the_page_trains(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file, text in FILES.items():
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
    }
