"""Imports flow one way, and importing gradkit stays light: both read off the sources."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import gradkit as gk

ROOT = Path(gk.__file__).parent

# Which rooms a room may import besides itself; every module belongs to one.
MAY_IMPORT = {
    "files": set(),
    "processes": set(),
    "shardings": set(),
    "validation": set(),
    "values": set(),
    "tree": {"shardings"},
    "operators": {"tree", "shardings", "validation"},
    "states": {"tree"},
    "searches": set(),
    "core": {"operators", "tree", "validation"},
    "krylov": {"operators", "tree", "files", "processes"},
    "curvature": {"core", "operators", "tree", "shardings", "validation"},
    "transforms": {
        *("core", "searches", "states", "operators", "tree", "shardings", "validation", "values"),
    },
    "spectra": {"krylov", "operators", "tree", "shardings", "validation"},
    "optimizers": {
        *("transforms", "searches", "krylov", "core", "states", "operators", "tree", "shardings"),
    },
    "minimization": {
        *("optimizers", "transforms", "spectra", "curvature", "krylov"),
        *("core", "states", "operators", "tree", "validation"),
    },
    "runner": {
        *("minimization", "optimizers", "transforms", "spectra", "curvature", "krylov"),
        *("core", "states", "operators", "tree", "files", "processes"),
    },
    "report": {"runner"},
}
# The command line is the door of the whole house: it alone may call the roof.
EXCEPTIONS = {("runner.cli", "report")}

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if path.name != "__init__.py"
)


def imported(module: str) -> set[str]:
    """The modules of gradkit that a module imports, wherever in its text; lazy names resolved."""
    tree = ast.parse(ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradkit"):
            inner = (node.module or "").removeprefix("gradkit").lstrip(".")
            for alias in node.names:
                name = f"{inner}.{alias.name}".lstrip(".")
                found.add(name if name in MODULES or name in MAY_IMPORT else inner)
        if isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("gradkit.")
                for alias in node.names
                if alias.name.startswith("gradkit.")
            }
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            public = gk._INDEX.get(node.attr) if node.value.id == "gk" else None
            found |= {public.removeprefix("gradkit.")} if public else set()
    return found - {""}


@pytest.mark.parametrize("module", MODULES)
def test_imports_flow_one_way(module):
    room = module.split(".")[0]
    for target in imported(module):
        other = target.split(".")[0]
        allowed = other == room or other in MAY_IMPORT[room] or (module, other) in EXCEPTIONS
        assert allowed, f"{module} may not import {target}"


def test_the_report_reads_the_record_and_nothing_else():
    for module in MODULES:
        if module.startswith("report."):
            outside = {t for t in imported(module) if not t.startswith("report")}
            assert outside <= {"runner.record", "runner.rows", "runner.errors"}, module


def test_the_check_sees_what_it_should():
    assert "krylov.cg" in imported("optimizers.newton_cg")
    assert "report.page" in imported("runner.cli")
    assert "spectra.summary" in imported("runner.part")


def test_no_public_name_is_that_of_a_package_or_top_level_module():
    assert not set(gk.__all__) & set(MAY_IMPORT)


def test_every_public_name_is_importable_documented_and_unique():
    for name in gk.__all__:
        value = getattr(gk, name)
        assert value is getattr(importlib.import_module(gk._INDEX[name]), name)
        assert value.__doc__, name
    assert set(gk.__all__) <= set(dir(gk))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'adamm'"):
        gk.adamm  # noqa: B018


def test_only_public_jax_is_used():
    for path in ROOT.rglob("*.py"):
        assert "jax._src" not in path.read_text("utf-8"), path
        assert "optax._src" not in path.read_text("utf-8"), path


def modules_after(code: str) -> set[str]:
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {name.split(".")[0] for name in printed.split()}


@pytest.mark.slow
def test_the_library_imports_no_package_of_the_experiments():
    everything = "import gradkit as gk\nfor name in gk.__all__: getattr(gk, name)"
    heavy = {"flax", "matplotlib", "sklearn", "pydantic", "ruamel", "rich", "orbax", "scipy.stats"}
    loaded = modules_after(everything)
    assert "jax" in loaded
    assert not loaded & heavy


def test_importing_gradkit_imports_no_jax():
    assert "jax" not in modules_after("import gradkit")
