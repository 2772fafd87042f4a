"""docs/optax.md: every name on it exists, no name is left out, and its examples run."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path

import optax
import pytest
from optax import contrib

import gradkit as gk

FOLDER = Path(__file__).parents[1] / "docs"
PAGE = (FOLDER / "optax.md").read_text("utf-8")
WORDS = re.sub(r"^```.*?^```", "", PAGE, flags=re.M | re.S)
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
CODE = re.findall(r"`([^`]+)`", WORDS)
ROWS = [line for line in WORDS.splitlines() if line.startswith("| `optax.")]


def names(library, texts):
    """The dotted names of a library in some pieces of code."""
    return {name for text in texts for name in re.findall(rf"\b{library}\.([\w.]*\w)", text)}


def in_rows(library, rows=ROWS):
    return names(library, [code for row in rows for code in re.findall(r"`([^`]+)`", row)])


def factories(module):
    """The functions of a module of optax that say that they return a transformation."""
    transformations = (optax.GradientTransformation, optax.GradientTransformationExtraArgs)
    for name, function in vars(module).items():
        if not name.startswith("_") and inspect.isfunction(function):
            made = inspect.signature(function).return_annotation
            if made in transformations:
                yield name


@pytest.mark.parametrize("library", [optax, gk], ids=["optax", "gk"])
def test_every_name_exists(library):
    found = names("optax" if library is optax else "gk", CODE)
    assert len(found) > 50
    for name in sorted(found):
        attribute = library
        for part in name.split("."):
            assert hasattr(attribute, part), name
            attribute = getattr(attribute, part)


def test_a_row_says_what_to_write_and_what_differs():
    assert len(ROWS) > 50
    for row in ROWS:
        cells = row.strip("|").split(" | ")
        assert len(cells) in (2, 3), row
        assert all(cell.strip() for cell in cells), row


def test_every_transformation_of_optax_is_in_a_table():
    public = set(factories(optax))
    assert {"adam", "chain", "masked", "scale", "trace"} <= public
    assert sorted(public - in_rows("optax")) == []


def test_every_name_that_both_libraries_have_is_in_a_table():
    shared = set(gk.__all__) & {name for name in dir(optax) if not name.startswith("_")}
    assert len(shared) > 25
    assert sorted(shared - in_rows("optax")) == []
    shared = {f"contrib.{name}" for name in set(gk.__all__) & set(factories(contrib))}
    assert sorted(shared - in_rows("optax")) == []


def test_what_has_the_same_name_takes_the_same_arguments():
    """In the same order, with the same defaults; each exception is told in its row."""
    section = WORDS.partition("## The same name\n")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| `optax.")]
    told = {
        ("adadelta", "weight_decay_mask"): "`weight_decay_mask`",
        ("add_noise", "seed"): "`seed`",
        ("masked", "mask_compatible_extra_args"): "[masks]",
        ("partition", "mask_compatible_extra_args"): "`mask_compatible_extra_args`",
    }
    for row in rows:
        for name in in_rows("optax", [row.split(" | ")[0]]) & set(gk.__all__) - {"chain"}:
            theirs = inspect.signature(getattr(optax, name)).parameters
            ours = inspect.signature(getattr(gk, name)).parameters
            kept = [key for key in theirs if key in ours]
            assert list(ours)[: len(kept)] == kept or name == "adadelta", name
            for key in theirs.keys() - ours.keys():
                assert told[name, key] in row, (name, key)
            for key in kept:
                default, own = theirs[key].default, ours[key].default
                free = inspect.Parameter.empty
                assert own == default or default in (None, free) or key == "linesearch", (name, key)


@pytest.mark.flow
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[number], "utf-8")
    assert "gk" in runpy.run_path(str(script))
    assert "assert" in EXAMPLES[number]


def test_links_lead_to_headings_and_files():
    def anchors(text):
        headings = re.findall(r"^##+ (.*)$", re.sub(r"(?s)```.*?```", "", text), re.M)
        return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}

    targets = re.findall(r"\]\(([^)\s]+)\)", WORDS)
    assert len(targets) > 10
    for target in targets:
        file, _, anchor = target.partition("#")
        text = (FOLDER / file).read_text("utf-8") if file else PAGE
        assert anchor in anchors(text), target


def test_the_other_pages_lead_here():
    for page in (FOLDER / "interop.md", FOLDER.parent / "README.md"):
        assert "optax.md)" in page.read_text("utf-8")
