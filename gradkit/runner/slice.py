"""The loss on the plane through the parameters that two eigenvectors of its Hessian span."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import jax
import numpy as np

from gradkit.processes import first
from gradkit.runner.progress import Progress
from gradkit.runner.subject import Subject
from gradkit.spectra.extremes import Eigenpairs
from gradkit.tree import norm, wide

PyTree = Any

POINTS = 33  # along each axis; odd, so that the parameters themselves are one
RISE = 4  # how far the loss is to rise along both axes, in its own size
_TRIES = 12


def loss_slice(
    subject: Subject, largest: Eigenpairs, *, gradient: PyTree, micro_batch: int | None = None
) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
    """Returns the loss at params + a v₁ + b v₂, v₁ and v₂ the eigenvectors of the two largest λ.

    Both axes are lengths in the space of the parameters and reach as far as each other, so that
    angles, gradients and curvatures on the plane are those of the loss itself. They reach to where
    the loss has clearly risen: by `RISE` times its size along either, or as far as it is finite.

    Cost: `POINTS`² evaluations of the loss and a few dozen to find the range; three trees of
    memory. One program for one point, called from the host: XLA on CPU slows convolutions down
    inside of loops.

    Args:
        subject: the loss, its parameters and its batch.
        largest: the largest eigenpairs of its Hessian, ascending.
        gradient: of the loss at the parameters.
        micro_batch: most examples in memory at a time; None for all.

    Returns:
        What `spectrum.json` says of it, None where there is no slice: fewer than two eigenvalues,
        or a loss that is not finite nearby. And its arrays: `a` and `b`, and `loss` at [a, b].
    """
    if len(largest.values) < 2:
        return None, {}
    plane = tuple(jax.tree.map(lambda v, i=i: v[i], largest.vectors) for i in (-1, -2))
    values = [float(largest.values[i]) for i in (-1, -2)]
    loss = partial(_loss_at, subject, plane, micro_batch)
    reach = _reach(loss, values, float(norm(gradient)))
    for _ in range(_TRIES):
        axis = reach * np.linspace(-1, 1, POINTS)
        grid = _evaluated(loss, axis)
        if grid is not None:
            about = {"eigenvalues": values, "points": POINTS, "reach": reach}
            return about, {"a": axis, "b": axis, "loss": grid}
        reach /= 2
    return None, {}


def _reach(loss: Any, values: list[float], slope: float) -> float:
    """Where the loss has risen enough on both sides of both axes, as a power of two."""
    here, curvature = loss(0.0, 0.0), max(values[1], 1e-3 * abs(values[0]))
    if curvature <= 0:
        curvature = 1.0
    rise = RISE * max(abs(here), slope**2 / curvature) or 1.0
    reach = 2.0 ** np.ceil(np.log2(np.sqrt(2 * rise / curvature)))
    for _ in range(_TRIES // 4):  # where the loss is flatter than its curvature says
        ends = [loss(*end) for end in ((reach, 0), (-reach, 0), (0, reach), (0, -reach))]
        if not all(end < here + rise / 2 for end in ends):
            break
        reach *= 2
    return float(reach)


def _evaluated(loss: Any, axis: np.ndarray) -> np.ndarray | None:
    """The loss on the grid, from its corners inward; None as soon as it is not finite."""
    points = list(itertools.product(range(len(axis)), repeat=2))
    points.sort(key=lambda point: -abs(axis[point[0]]) - abs(axis[point[1]]))
    grid = np.zeros((len(axis), len(axis)))
    title = "slice of the loss"
    with Progress(title, len(points), "evaluation", mute=not first()) as progress:
        for count, (i, j) in enumerate(points, start=1):
            grid[i, j] = loss(axis[i], axis[j])
            if not np.isfinite(grid[i, j]):
                return None
            progress.update(count)
    return grid


def _loss_at(
    subject: Subject, plane: tuple[PyTree, ...], micro_batch: int | None, a: float, b: float
) -> float:
    params = _moved(subject.params, *plane, a, b)
    return sum(
        share * float(_value(subject.problem, params, part))
        for share, part in subject.parts(micro_batch)
    )


@jax.jit
def _moved(params: PyTree, v: PyTree, w: PyTree, a: float, b: float) -> PyTree:
    return jax.tree.map(
        lambda p, v, w: (wide(p) + a * wide(v) + b * wide(w)).astype(p.dtype), params, v, w
    )


@jax.jit
def _value(problem: Any, params: PyTree, batch: PyTree) -> jax.Array:
    return problem.value(params, batch)
