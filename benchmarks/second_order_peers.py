"""Methods that gradkit and somax both have: the loss after equal steps, and the time of a step.

    pip install python-somax==1.0.1
    python benchmarks/second_order_peers.py

The same 784-64-64-10 network, 2,000 images of Fashion-MNIST, batches, step counts and grid of five
numbers: the rate of the methods with a diagonal, the damping of those that solve. The number is
chosen by the loss on all images at seed 0, and the losses are of seeds 1 to 5; a seed is one of the
weights and of the batches' order. Both take the same hyperparameters where both have them. Times
are of one compiled loop over all steps, begun again from the first weights.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import compile_seconds, machine, medians

import gradkit as gk
from gradkit.runner import setting
from gradkit.runner.config import Config

somax: Any = importlib.import_module("somax") if importlib.util.find_spec("somax") else None

GRID = (0.001, 0.004, 0.016, 0.064, 0.256)
SEEDS = 5
EXAMPLES = 2000
WIDTHS = (784, 64, 64, 10)


def predict(params, x):
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ last["kernel"] + last["bias"]


def cross_entropy(outputs, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))


def loss(params, batch):
    return cross_entropy(predict(params, batch["x"]), batch["y"])


PROBLEM = gk.Problem(
    predict=lambda params, batch: predict(params, batch["x"]),
    criterion=lambda outputs, batch: cross_entropy(outputs, batch["y"]),
)


def begun(key):
    keys = jax.random.split(key, len(WIDTHS) - 1)
    draw = jax.nn.initializers.he_normal()
    shapes = zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
    return [{"kernel": draw(k, (m, n)), "bias": jnp.zeros(n)} for k, m, n in shapes]


def ours(tx, observe):
    """init and step of a chain; `observe` has what the curvature needs, of a key."""

    def step(params, batch, state, key):
        point = gk.observe(PROBLEM, params, batch, key=key, **observe(key))
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return optax.apply_updates(params, updates), state

    return tx.init, step


def theirs(method):
    """init and step of a method of somax."""

    def step(params, batch, state, key):
        return method.step(params, batch, state, key)[:2]

    return method.init, step


def fisher(key):
    return {"diagonal": functools.partial(gk.fisher_diagonal, key=key, likelihood="categorical")}


def some(operator):
    return lambda key: {"curvature": operator}


def sophia_g(rate):
    given = {"learning_rate": rate, "gamma": 0.01}
    peer = somax.sophia_g(predict_fn=predict, beta1=0.96, beta2=0.99, weight_decay=0.0, **given)
    return ours(gk.sophia(b1=0.96, b2=0.99, **given), fisher), theirs(peer)


def adahessian(rate):
    peer = somax.adahessian(loss_fn=loss, learning_rate=rate, eps=1e-4, spatial_averaging=False)
    return ours(gk.adahessian(rate), some(gk.hessian)), theirs(peer)


def newton_cg(damping):
    peer = somax.newton_cg(loss_fn=loss, lam0=damping, maxiter=20)
    return ours(gk.newton_cg(damping=damping, max_steps=20), some(gk.hessian)), theirs(peer)


def gauss_newton(damping):
    peer = somax.sgn_ce(predict_fn=predict, lam_policy="trust_region", lam0=damping, maxiter=20)
    tx = gk.hessian_free(damping=damping, max_steps=20)
    return ours(tx, some(gk.gauss_newton)), theirs(peer)


METHODS = {  # of each the size of a batch, and how many steps
    "Sophia-G": (sophia_g, 100, 200),
    "AdaHessian": (adahessian, 100, 200),
    "Newton–CG": (newton_cg, 1000, 20),
    "Gauss–Newton by CG, damping by the gain ratio": (gauss_newton, 1000, 20),
}


def trained(method, size, count, data):
    """A compiled function of a seed that takes the steps, and its compile time."""
    init, step = method

    def run(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        params = begun(keys[0])

        def one(number, carry):
            params, state = carry
            key = jax.random.fold_in(keys[1], number)
            rows = jax.random.choice(key, EXAMPLES, (size,), replace=False)
            batch = jax.tree.map(lambda x: x[rows], data)
            return step(params, batch, state, jax.random.fold_in(keys[2], number))

        params, _ = jax.lax.fori_loop(0, count, one, (params, init(params)))
        return loss(params, data)

    return compile_seconds(run, 0)


def main():
    if somax is None:
        sys.exit("expected the package somax, got none: pip install python-somax==1.0.1")
    print(machine("python-somax"))
    config = {"data": {"source": "fashion_mnist", "examples": EXAMPLES}}
    config |= {"model": {"hidden": (64,)}, "optimizer": {"name": "adam"}}
    train = setting.prepare(Config.model_validate(config)).task.data.train
    data = jax.device_put({"x": train["x"].reshape(EXAMPLES, -1), "y": train["y"]})
    print("\n| method | of | number | loss, mean of 5 seeds | a step | ratio | compile |")
    print("|---|---|---|---|---|---|---|")
    for name, (pair, size, count) in METHODS.items():
        best: dict[str, tuple] = {}
        for which, owner in enumerate(("gradkit", "somax")):
            tried = []
            for number in GRID:
                run, compiling = trained(pair(number)[which], size, count, data)
                end = float(run(0))
                tried.append((np.nan_to_num(end, nan=np.inf), number, run, compiling))
            best[owner] = min(tried, key=lambda found: found[0])[1:]
        calls = {owner: functools.partial(run, 1) for owner, (_, run, _) in best.items()}
        time = medians(calls, rounds=7, calls=1)
        for owner, (number, run, compiling) in best.items():
            losses = np.array([float(run(seed)) for seed in range(1, SEEDS + 1)])
            ended = losses[np.isfinite(losses)]
            error = ended.std(ddof=1) / len(ended) ** 0.5 if len(ended) > 1 else np.nan
            lost = f", {SEEDS - len(ended)} not finite" if len(ended) < SEEDS else ""
            print(
                f"| {name} | {owner} | {number:g} | {ended.mean():.4f} ± {error:.4f}{lost} | "
                f"{1e3 * time[owner] / count:.2f} ms | {time[owner] / time['somax']:.2f} | "
                f"{compiling:.1f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
