"""The figures of docs/methods on second-order methods: `python docs/minimization_plots.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from plots import BLUE, DOTTED, GREEN, RED, write

import gradkit as gk
from gradkit.report.palette import optimizer_looks
from gradkit.report.svg import INK

METHODS = optimizer_looks(["nonlinear_cg", "lbfgs", "bfgs", "trust_region"])


def _rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def second_order() -> Figure:
    """Left: gradient norms against work. Right: steps near a saddle."""
    figure = Figure(figsize=(8.2, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    with jax.enable_x64(True):
        x0 = jnp.where(jnp.arange(10) % 2 == 0, -0.8, 0.6)
        for method, look in METHODS.items():
            found = gk.minimize(_rosenbrock, x0, method=method, tol=1e-9, history=300)
            work, norm = np.asarray(found.history.work), np.asarray(found.history.gradient_norm)
            style = {**look.points, "markersize": 4, "markevery": 8}
            left.semilogy(work, norm, label=f"gk.{method}", linewidth=1, **style)
    left.set(xlabel="work [gradients]", ylabel="largest gradient entry [loss/param]")
    left.set_title("Rosenbrock's valley in ten dimensions:\nthe end is faster than linear")
    left.legend()

    def saddle(x, _):
        return 5 * x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4

    grid = np.linspace(-1, 1, 25), np.linspace(-0.4, 1.8, 25)
    height = [[float(saddle((a, b), None)) for a in grid[0]] for b in grid[1]]
    right.contour(*grid, height, levels=5, colors=INK, linewidths=0.3, alpha=0.5)
    paths = {
        "newton": gk.newton(0.5),
        "saddle_free": gk.saddle_free(0.5),
        "sgd": gk.sgd(0.1),
    }
    looks = optimizer_looks([*paths])
    for name, tx in paths.items():
        path = np.asarray(_path(tx, saddle, jnp.array([0.8, 0.15]), 20))
        style = {**looks[name].points, "markersize": 4, "linewidth": 1}
        right.plot(*path.T, label=f"gk.{name}", **style)
    right.plot(0, 0, marker="x", color=INK, linestyle=DOTTED)
    right.set(xlabel="first parameter", ylabel="second parameter", xlim=(-1, 1), ylim=(-0.4, 1.8))
    right.set_title("Newton's method is drawn to the saddle\nat the cross, the others leave it")
    right.legend(loc="upper left")
    return figure


def _path(tx, loss, x, steps):
    state, path = tx.init(x), [x]

    @jax.jit
    def step(x, state):
        point = gk.observe(loss, x, None, gk.hessian)
        updates, state = tx.update(point.grad, state, x, **point.extras)
        return optax.apply_updates(x, updates), state

    for _ in range(steps):
        x, state = step(x, state)
        path.append(x)
    return path


def minimization() -> Figure:
    """Left: work against the condition number. Right: float32 with an offset."""
    figure = Figure(figsize=(8.2, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    conditions = 10.0 ** np.arange(0, 5)
    with jax.enable_x64(True):
        start = jnp.asarray(np.random.default_rng(0).normal(size=100))
        for method, look in METHODS.items():

            def solve(condition, method=method):
                values = jnp.logspace(0, 1, 100, base=condition)
                found = gk.minimize(_bowl, start, method=method, args=values, max_steps=3000)
                return found.gradient_equivalents, found.converged

            work, converged = jax.lax.map(solve, jnp.asarray(conditions))
            assert converged.all(), method
            style = {**look.points, "markersize": 5, "linewidth": 1}
            left.loglog(conditions, work, label=f"gk.{method}", **style)
    left.set(xlabel="condition number", ylabel="work to converge [gradients]")
    left.set_title("A bowl in 100 dimensions: what\ncondition costs each method")
    left.legend()

    x0 = jnp.array([-1.2, 1.0])
    for search, (color, marker) in {
        "backtracking": (RED, "^"),
        "more_thuente": (GREEN, "s"),
        "hager_zhang": (BLUE, "o"),
    }.items():
        tx = gk.chain(gk.scale_by_lbfgs(), gk.line_search(search))
        found = gk.minimize(_offset, x0, method=tx, tol=1e-6, history=60)
        steps = int(found.steps) + 1
        norm = np.asarray(found.history.gradient_norm)[:steps]
        style = {"color": color, "marker": marker, "markersize": 3, "markevery": 4, "linewidth": 1}
        name = gk.Status(int(found.status)).name
        right.semilogy(np.arange(steps), norm, label=f"{search}: {name}", **style)
    right.set(xlabel="step", ylabel="largest gradient entry [loss/param]")
    right.set_title(
        "A loss of 10⁴ in float32: slopes go on\nwhere differences of losses are rounding"
    )
    right.legend()
    return figure


def _bowl(x, values):
    return jnp.sum(values * (x - 1) ** 2) / 2


def _offset(x):
    return _rosenbrock(x) + 1e4


if __name__ == "__main__":
    write(second_order, minimization)
