"""The Hessian spectrum of a trained run, over its full training set."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradkit as gk
from gradkit.runner import checkpoint, record, train
from gradkit.runner.config import load
from gradkit.runner.errors import UserError
from gradkit.runner.progress import Progress
from gradkit.spectra.extremes import Eigenpairs

GRID = 2000  # points at which the density is kept


def compute(folder: Path) -> dict[str, Any]:
    """Computes the spectrum at a run's last checkpoint, writes it to the folder and returns it.

    Raises:
        UserError: not a run folder, no checkpoint yet, or a damaged one.
    """
    record.open_record(folder)
    setting = train.prepare(load(folder / record.CONFIG))
    saved = checkpoint.steps(folder / "checkpoints")
    if not saved:
        raise UserError(
            f"{folder}: has no checkpoint yet; finish it by gradkit run --resume {folder}"
        )
    like = setting.task.params, setting.tx.init(setting.task.params)
    (params, _), meta = checkpoint.restore(folder / "checkpoints", saved[-1], like)
    _refuse_non_finite(folder, saved[-1], params)

    options = setting.config.spectrum
    A = gk.hessian(setting.task.problem, params, jax.device_put(setting.task.dataset.train))
    started = time.perf_counter()
    most = 20 * (options.top + options.bottom) + 100 + options.probes * options.steps
    products = 0
    with Progress("spectrum", most, "product") as progress:

        def watch(_state):
            nonlocal products
            products += 1
            progress.update(products)

        found = gk.spectrum(
            A,
            key=jax.random.key(setting.config.seed),
            top=options.top,
            bottom=options.bottom,
            probes=options.probes,
            steps=options.steps,
            tol=options.tol,
            drive=functools.partial(gk.on_host, watch=watch),
        )
    low, high = found.density.support
    width = found.density.width
    grid = jnp.linspace(low - 5 * width, high + 5 * width, GRID)
    curve, spread = found.density.curve(grid), found.density.spread(grid)
    result = {
        "step": meta["step"],
        "operator": "hessian",
        "data": "train",
        "examples": len(setting.task.dataset.x_train),
        "parameters": A.dimension,
        "tol": options.tol,
        "largest": _pairs(found.largest, descending=True),
        "smallest": _pairs(found.smallest, descending=False),
        "condition": {
            "value": float(found.condition.value),
            "lower": float(found.condition.lower),
            "upper": float(found.condition.upper),
            "basis": found.condition.basis,
        },
        "density": {
            "probes": options.probes,
            "steps": options.steps,
            "width": float(width),
            "w1_bound": float(found.density.w1_bound),
            "integral": float(jnp.trapezoid(curve, grid)),
        },
        "products": int(found.products),
        "seconds": round(time.perf_counter() - started, 3),
    }
    arrays = {
        "nodes": found.density.nodes,
        "weights": found.density.weights,
        "grid": grid,
        "density": curve,
        "spread": spread,
    }
    record.write_arrays(folder / record.ARRAYS, **arrays)
    record.write_json(folder / record.SPECTRUM, result)
    return result


def table(result: dict[str, Any]) -> str:
    """Returns the eigenvalues of a result with their residuals, for a terminal."""
    lines = [f"{'':10}{'eigenvalue':>14}{'residual':>12}  converged"]
    for name in ("largest", "smallest"):
        pairs = result[name]
        for row in zip(pairs["values"], pairs["residuals"], pairs["converged"], strict=True):
            value, residual, converged = row
            flag = "yes" if converged else "no"
            lines.append(f"{name:10}{value:>14.6g}{residual:>12.1e}  {flag}")
    condition = result["condition"]
    lines.append(
        f"condition number in [{condition['lower']:.4g}, {condition['upper']:.4g}]: "
        f"{condition['basis']}"
    )
    density = result["density"]
    lines.append(
        f"density: {density['probes']} probes of {density['steps']} steps, Wasserstein-1 error at "
        f"most {density['w1_bound']:.3g} with probability 0.95"
    )
    return "\n".join(lines)


def _pairs(pairs: Eigenpairs, *, descending: bool) -> dict[str, Any]:
    order = slice(None, None, -1 if descending else 1)
    return {
        "values": np.asarray(pairs.values)[order].tolist(),
        "residuals": np.asarray(pairs.residuals)[order].tolist(),
        "converged": np.asarray(pairs.converged)[order].tolist(),
    }


def _refuse_non_finite(folder: Path, step: int, params: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        bad = int(jnp.sum(~jnp.isfinite(leaf)))
        if bad:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise UserError(
                f"{folder}: checkpoint {step} holds {bad} numbers that are not finite, in {name}: "
                "the run diverged, and there is no spectrum there. Lower the learning rate."
            )
