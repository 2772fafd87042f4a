"""The Hessian spectrum of a trained run, over its full training set."""

from __future__ import annotations

import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradkit as gk
from gradkit.krylov.drivers import Step, Until
from gradkit.runner import checkpoint, record, train
from gradkit.runner.errors import UserError
from gradkit.runner.progress import Progress
from gradkit.spectra.density import Density
from gradkit.spectra.extremes import Eigenpairs, Search

GRID = 2000  # points at which the density is kept


def compute(run: record.Record) -> dict[str, Any]:
    """Computes the spectrum at a run's last checkpoint, writes it to the folder and returns it.

    Raises:
        UserError: there is no checkpoint or a damaged one, or the data or the config have changed.
    """
    if not checkpoint.steps(run.path / train.CHECKPOINTS):
        raise UserError(f"{run.path}: {_why_no_checkpoint(run)}")
    setting = train.reopen(run)
    (params, _), step, _ = train.last_state(setting, run.path)
    data = setting.task.dataset
    A = gk.hessian(setting.task.problem, params, jax.device_put(data.train))
    options = setting.config.spectrum
    started = time.perf_counter()
    found = gk.spectrum(
        A,
        key=jax.random.key(setting.config.seed),
        top=options.top,
        bottom=options.bottom,
        probes=options.probes,
        steps=options.steps,
        tol=options.tol,
        drive=_watched,
    )
    arrays = _sampled(found.density)
    result = {
        "step": step,
        "operator": "hessian",
        "data": "train",
        "examples": len(data.x_train),
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
            "width": float(found.density.width),
            "w1_bound": float(found.density.w1_bound),
            "integral": float(np.trapezoid(arrays["density"], arrays["grid"])),
        },
        "products": int(found.products),
        "seconds": round(time.perf_counter() - started, 3),
    }
    record.write_arrays(run.path / record.ARRAYS, **arrays)
    record.write_json(run.path / record.SPECTRUM, result)
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


def _why_no_checkpoint(run: record.Record) -> str:
    if run.summary is not None and run.summary.get("status") == "diverged":
        return (
            "diverged before its first checkpoint: there are no parameters to look at. Run it "
            "again with a lower optimizer.learning_rate or checkpoint_every."
        )
    return f"has no checkpoint yet; finish it by gradkit run --resume {run.path}"


def _watched(step: Step, A: gk.Operator, state: Any, *, until: Until) -> Any:
    """`gk.on_host` with a progress line: for a search for eigenpairs one for each size of basis."""
    if isinstance(state, Search):
        krylov = state.krylov
        title, most, done = "eigenpairs, at most", krylov.alpha.size, int(krylov.step)
    else:
        title, most, done = "density", state.alphas.size, 0
    count = itertools.count(done + 1)
    with Progress(title, most, "product", done=done) as progress:
        return gk.on_host(step, A, state, until=until, watch=lambda _: progress.update(next(count)))


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
