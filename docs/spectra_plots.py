"""The figures of docs/methods on curvature and spectra: `python docs/spectra_plots.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from plots import BLUE, DOTTED, GREEN, PINK, RED, write

import gradkit as gk
from gradkit.report.svg import INK


def curvature() -> Figure:
    """Left: the eigenvalues of four matrices. Right: how far two of them are from a third."""
    figure = Figure(figsize=(8.4, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)

    rng = np.random.default_rng(2)
    labels = np.arange(150) % 3
    x = np.eye(3)[labels][:, :2] * 2 + rng.normal(size=(150, 2)) / 2
    params = {"a": rng.normal(size=(2, 6)), "b": np.zeros(6), "c": rng.normal(size=(6, 3)) / 2}
    params, batch = jax.tree.map(jnp.asarray, (params, {"x": x, "y": labels}))

    def predict(params, batch):
        return jnp.tanh(batch["x"] @ params["a"] + params["b"]) @ params["c"]

    def criterion(z, batch):
        return optax.losses.softmax_cross_entropy_with_integer_labels(z, batch["y"]).mean()

    args = gk.Problem(predict=predict, criterion=criterion), params, batch
    key, counts = jax.random.key(0), 4 ** np.arange(6)
    sampled = [
        gk.fisher(*args, key=jax.random.fold_in(key, n), likelihood="categorical", samples=int(n))
        for n in counts
    ]
    shown = {
        "hessian": (BLUE, "o", gk.hessian(*args)),
        "gauss_newton": (RED, "x", gk.gauss_newton(*args)),
        "fisher, 1 sample": (GREEN, "+", sampled[0]),
        "empirical_fisher": (PINK, "^", gk.empirical_fisher(*args)),
    }
    for name, (color, marker, A) in shown.items():
        values = np.linalg.eigvalsh(np.asarray(A.dense(), np.float64))[::-1]
        style = {"color": color, "marker": marker, "markersize": 4, "linewidth": 0.6}
        left.plot(1 + np.arange(len(values)), values, label=f"gk.{name}", **style)
    left.axhline(0, color=INK, linewidth=0.6)
    left.set(xlabel="number", ylabel="eigenvalue [loss/param²]")
    left.set_title("Only the Hessian has\nnegative eigenvalues")
    left.legend()

    G = shown["gauss_newton"][2].dense()

    def distance(A):
        return float(jnp.linalg.norm(A.dense() - G) / jnp.linalg.norm(G))

    errors = [distance(F) for F in sampled]
    right.loglog(counts, errors, color=GREEN, marker="+", label="gk.fisher")
    right.loglog(counts, errors[0] / counts**0.5, color=INK, linewidth=0.8, linestyle=DOTTED)
    right.axhline(distance(shown["empirical_fisher"][2]), color=PINK, label="gk.empirical_fisher")
    right.set(xlabel="labels drawn for each example", ylabel="relative distance to Gauss–Newton")
    right.set_title("Labels drawn from the model lead to\nGauss–Newton, those of the data do not")
    right.legend()
    return figure


def spectra() -> Figure:
    """Left: a density with its error and the exact one. Right: three estimates of one trace."""
    figure = Figure(figsize=(8.4, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    A, exact = _hessian()

    density = gk.density(A, key=jax.random.key(1), probes=10, steps=60)
    width = 0.02
    low, high = exact[0] - 0.1, exact[-1] + 0.1
    grid = np.sort(np.concatenate([np.linspace(low, 0.2, 200), np.linspace(0.2, high, 350)]))
    curve = np.asarray(density.curve(grid, width=width))
    spread = np.asarray(density.spread(grid, width=width))
    z = (grid[:, None] - exact) / width
    truth = np.exp(-(z**2) / 2).mean(axis=1) / (width * np.sqrt(2 * np.pi))
    floor = 0.02 / (len(exact) * width)
    band = np.maximum(curve - spread, floor), np.maximum(curve + spread, floor)
    left.fill_between(grid, *band, color=BLUE, alpha=0.25, linewidth=0, label="± standard error")
    left.plot(grid, np.maximum(curve, floor), color=BLUE, label="gk.density")
    left.plot(
        grid, np.maximum(truth, floor), color=INK, linewidth=0.8, linestyle=DOTTED, label="exact"
    )
    top = gk.eigsh(A, 5, key=jax.random.key(2))
    left.plot(top.values, np.full(5, floor), "d", color=RED, clip_on=False, label="gk.eigsh")
    left.set(yscale="log", ylim=(floor, None), xlabel="eigenvalue [loss/param²]")
    left.set_ylabel("density [param²/loss]")
    left.set_title("The density lies within its error\nof the exact one")
    left.legend(fontsize=8)

    budgets = np.array([16, 24, 36, 54, 80, 120, 180])
    for method, color in (("hutchinson", PINK), ("hutch++", BLUE), ("xtrace", GREEN)):
        errors = [_error(A, exact.sum(), method, int(most)) for most in budgets]
        right.loglog(budgets, errors, color=color, marker="o", markersize=3, label=method)
    right.axhline(0.01, color=INK, linewidth=0.8, linestyle=DOTTED)
    right.set(xlabel="products", ylabel="relative error of the trace")
    right.set_xticks([20, 50, 100, 200], labels=["20", "50", "100", "200"])
    right.set_xticks([], minor=True)
    right.set_title("Where few eigenvalues dominate,\nsigns alone are the slowest")
    right.legend()
    return figure


def _error(A: gk.Operator, truth: float, method: str, most: int) -> float:
    """The root mean square over 20 seeds."""

    @jax.jit
    def values(keys):
        def one(key):
            return gk.trace(A, key=key, method=method, tol=0.0, max_products=most).value

        return jax.lax.map(one, keys)

    errors = np.asarray(values(jax.random.split(jax.random.key(3), 20))) / truth - 1
    return float(np.sqrt(np.mean(errors**2)))


def _hessian() -> tuple[gk.Operator, np.ndarray]:
    """Of a small classifier after some training, and its eigenvalues."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 4
    x = jnp.asarray(rng.normal(size=(4, 10))[labels] + rng.normal(size=(300, 10)) / 2)
    params = {"a": rng.normal(size=(10, 20)) / 3, "b": np.zeros(20), "c": rng.normal(size=(20, 4))}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)

    def loss(params, batch):
        z = jnp.tanh(x @ params["a"] + params["b"]) @ params["c"]
        return optax.losses.softmax_cross_entropy_with_integer_labels(z, labels).mean()

    tx = gk.adam(3e-3)

    def train(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, None), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(train, (params, tx.init(params)), length=60)
    A = gk.hessian(loss, params, None)
    return A, np.linalg.eigvalsh(np.asarray(A.dense(), np.float64))


if __name__ == "__main__":
    write(curvature, spectra)
