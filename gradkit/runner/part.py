"""One part of a spectrum, from an operator to the numbers and arrays that are kept of it."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradkit as gk
from gradkit import tree
from gradkit.krylov.drivers import Drive, Step, Until
from gradkit.processes import by_first, first
from gradkit.runner.errors import UserError
from gradkit.runner.progress import Progress
from gradkit.spectra.density import Density
from gradkit.spectra.density import State as DensityState
from gradkit.spectra.extremes import Eigenpairs, Search
from gradkit.spectra.memory import Memory

PyTree = Any

GRID = 2000  # points at which the density is kept


def measure(
    A: gk.Operator,
    settings: dict[str, Any],
    place: Path,
    *,
    label: str | None = None,
    gradient: PyTree = None,
) -> tuple[dict[str, Any], dict[str, Any], Eigenpairs]:
    """Returns the numbers and the arrays to keep of the spectrum of an operator; its largest pairs.

    Args:
        A: the operator, or one of its blocks.
        settings: see `gradkit.runner.spectrum`.
        place: a folder for the state of the Krylov methods, from which a computation that was cut
            short goes on.
        label: stands before the progress.
        gradient: of the loss, if A is its Hessian: the kind of the point is told then, and which
            share of the gradient's square each of the largest eigenvectors holds.

    Raises:
        UserError: the folder holds the state of another computation.
    """
    n, resumed, started = A.dimension, by_first(place.exists), time.perf_counter()
    try:
        found = gk.spectrum(
            A,
            key=jax.random.key(settings["seed"]),
            top=min(settings["top"], n),
            bottom=min(settings["bottom"], n),
            probes=settings["probes"],
            steps=settings["steps"] or 1,
            tol=settings["tol"],
            check=False,
            memory_limit=settings["memory_limit"],
            drive=gk.resumable(place, drive=_watched(label)),
        )
    except ValueError as error:
        if str(error).startswith("memory_limit:"):
            words = str(error).replace("memory_limit", "--memory-limit")
            raise UserError(words.replace("gk.micro_batched", "--micro-batch")) from error
        if not resumed:
            raise
        raise UserError(
            f"{place}: {error}\nDelete this folder to compute the spectrum anew."
        ) from error
    curve = found.density
    arrays = {} if curve is None else jax.device_get(_sampled(curve))
    numbers = {
        "parameters": n,
        "largest": _pairs(found.largest, descending=True),
        "smallest": _pairs(found.smallest, descending=False),
        "condition": {
            "value": float(found.condition.value),
            "lower": float(found.condition.lower),
            "upper": float(found.condition.upper),
            "basis": found.condition.basis,
        },
        "negative": {name: float(x) for name, x in found.negative._asdict().items()},
        "trace": _estimate(found.trace),
        "frobenius": _estimate(found.frobenius),
        "density": None if curve is None else _about(curve, arrays, settings),
        "memory": found.memory and _memory(found.memory),
        "products": int(found.products),
        "seconds": None if resumed else round(time.perf_counter() - started, 3),
    }
    numbers["negative"]["at_least"] = int(found.negative.at_least)
    if gradient is not None:
        point = found.critical_point(gradient)
        numbers["point"] = {"kind": point.kind, "evidence": point.evidence}
        shares = np.asarray(_shares(gradient, found.largest.vectors))
        numbers["largest"]["gradient"] = shares[::-1].tolist()
    return numbers, arrays, found.largest


@jax.jit
def _shares(gradient: PyTree, vectors: PyTree) -> jax.Array:
    """The squared cosines between the gradient and unit vectors; NaN where there is none."""
    unit = tree.scaled(1 / tree.norm(gradient), gradient)
    return jax.vmap(lambda v: tree.inner(v, unit) ** 2)(vectors)


def _estimate(estimate: gk.Estimate) -> dict[str, float] | None:
    if not np.isfinite(estimate.value):  # too few probes
        return None
    return {"value": float(estimate.value), "stderr": float(estimate.stderr)}


def _memory(kept: Memory) -> dict[str, Any]:
    return {"strategy": kept.strategy, "vectors": kept.basis.size, "bytes": kept.bytes}


def _about(curve: Density, arrays: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "probes": settings["probes"],
        "steps": settings["steps"],
        "width": float(curve.width),
        "w1_bound": float(curve.w1_bound),
        "integral": float(np.trapezoid(arrays["density"], arrays["grid"])),
    }


def _watched(label: str | None) -> Drive:
    """`gk.on_host` with a progress line for each recurrence, after what is said before it."""
    prefix = "" if label is None else f"{label}: "

    def drive(step: Step, A: gk.Operator, state: Any, *, until: Until, watch=None) -> Any:
        title, most, done = _extent(state)
        count = itertools.count(done + 1)
        words = prefix + title, most, "product"
        with Progress(*words, done=done, mute=not first()) as progress:

            def watched(state: Any) -> None:
                progress.update(next(count))
                if watch is not None:
                    watch(state)

            return gk.on_host(step, A, state, until=until, watch=watched)

    return drive


def _extent(state: Any) -> tuple[str, int, int]:
    """What a recurrence computes, how many products it takes at most, and how many it has taken."""
    if isinstance(state, Search):
        return "eigenpairs, at most", int(state.most), int(state.products)
    if isinstance(state, DensityState):
        rows = state.alphas.shape[1]
        return "density", state.alphas.size, int(state.done) * rows + int(state.probe.step)
    return "residuals", state.pairs.values.size, int(state.i)


@jax.jit
def _sampled(density: Density) -> dict[str, jax.Array]:
    """Arrays to keep of a density: its nodes and weights, and its curve with its spread."""
    (low, high), width = density.support, density.width
    grid = jnp.linspace(low - 5 * width, high + 5 * width, GRID)
    curve, spread = density.curve(grid), density.spread(grid)
    arrays = {"nodes": density.nodes, "weights": density.weights}
    return arrays | {"grid": grid, "density": curve, "spread": spread}


def _pairs(pairs: Eigenpairs, *, descending: bool) -> dict[str, Any]:
    order = slice(None, None, -1 if descending else 1)
    return {
        "values": np.asarray(pairs.values)[order].tolist(),
        "residuals": np.asarray(pairs.residuals)[order].tolist(),
        "converged": np.asarray(pairs.converged)[order].tolist(),
    }
