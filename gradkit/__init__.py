"""gradkit: composable optimizers, second-order methods and Hessian spectra for JAX.

The public names are those of `__init__.pyi`, each imported from its module at first use, so that
`import gradkit` and the command line stay light.
"""

from __future__ import annotations

import ast as _ast
import importlib as _importlib
import pathlib as _pathlib

__version__ = "0.1.0"

_INDEX = {
    alias.name: node.module
    for node in _ast.parse(_pathlib.Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
    if isinstance(node, _ast.ImportFrom) and node.module
    for alias in node.names
}

__all__ = sorted(_INDEX)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name not in _INDEX:
        raise AttributeError(f"module 'gradkit' has no attribute {name!r}{_elsewhere(name)}")
    value = getattr(_importlib.import_module(_INDEX[name]), name)
    globals()[name] = value
    return value


def _elsewhere(name: str) -> str:
    """Where a name is that gradkit has not: in optax, or misspelled."""
    if name.startswith("_"):
        return ""
    import difflib

    import optax

    if hasattr(optax, name):
        return f"; write optax.{name}: what is optax's works with gradkit (docs/optax.md)"
    near = difflib.get_close_matches(name, __all__, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def __dir__():
    return sorted([*globals(), *__all__])
