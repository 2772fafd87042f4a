"""The pages of docs/methods: their code runs, their links lead somewhere, no name is left out."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import gradkit as gk

FOLDER = Path(__file__).parents[1] / "docs" / "methods"
PAGES = {path.stem: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.md"))}
METHODS = PAGES.keys() - {"README"}
EXAMPLES = {
    f"{page}-{number}": code
    for page, text in PAGES.items()
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    )
}
WORDS = {page: re.sub(r"^```.*?^```", "", text, flags=re.M | re.S) for page, text in PAGES.items()}


def test_there_is_a_page_for_each_family():
    first_order = {"momentum", "adaptive", "clipping", "decay", "schedules", "composition"}
    second_order = {"second_order", "minimization"}
    assert first_order | second_order | {"curvature", "spectra"} == METHODS
    assert {name.partition("-")[0] for name in EXAMPLES} == METHODS


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[name], "utf-8")
    assert "gk" in runpy.run_path(str(script))


def test_every_transformation_is_on_a_page_and_in_the_index():
    rooms = ("gradkit.transforms.", "gradkit.optimizers.")
    public = {name for name, module in gk._INDEX.items() if module.startswith(rooms)}
    assert len(public) > 50
    for where in (METHODS, {"README"}):
        text = "\n".join(PAGES[page] for page in where)
        assert sorted(public - set(re.findall(r"\bgk\.(\w+)", text))) == []


def test_every_name_on_a_page_is_public():
    for page, text in PAGES.items():
        assert set(re.findall(r"\bgk\.(\w+)", text)) <= set(gk.__all__), page


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", WORDS[page])
    local = {target.partition("#")[0] for target in targets if "://" not in target} - {""}
    assert local
    assert sorted(target for target in local if not (FOLDER / target).exists()) == []


@pytest.mark.parametrize("page", sorted(METHODS))
def test_a_page_has_one_figure_with_words_for_it(page):
    assert re.findall(r"!\[[^\]]{40,}\]\(([^)]*)\)", WORDS[page]) == [f"{page}.svg"]
    assert (FOLDER / f"{page}.svg").stat().st_size < 60_000
