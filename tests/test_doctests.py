"""The examples in the docstrings of the library."""

from __future__ import annotations

import doctest
import importlib

import pytest

import gradkit as gk

MODULES = sorted(set(gk._INDEX.values()))


@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_they_say(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    found = [t for m in MODULES for t in finder.find(importlib.import_module(m)) if t.examples]
    assert len(found) >= 5
