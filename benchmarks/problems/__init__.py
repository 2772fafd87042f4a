"""Classical test problems of optimization: unconstrained functions and nonlinear regressions."""

from __future__ import annotations

from . import andrei, chains, mgh, small, structured
from .nist import Regression, regressions, residuals
from .problem import Unconstrained

__all__ = ["Regression", "Unconstrained", "regressions", "residuals", "unconstrained"]


def unconstrained() -> list[Unconstrained]:
    """All unconstrained problems, with distinct names."""
    sets = (mgh, small, andrei, chains, structured)
    return [problem for each in sets for problem in each.problems()]
