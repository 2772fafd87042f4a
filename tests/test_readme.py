"""Every Python example of the README runs, by itself, as a reader would paste it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_readme_has_its_examples():
    text = "\n".join(EXAMPLES)
    assert len(EXAMPLES) == 10
    for name in ("gk.chain", "nnx.Optimizer", "optax.chain", "gk.newton_cg", "gk.spectrum"):
        assert name in text


@pytest.mark.slow
@pytest.mark.flow
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[number], "utf-8")
    names = runpy.run_path(str(script))
    assert "gk" in names
