"""One training step against optax, one Hessian-vector product against `jvp(grad)`.

Floors: a dense layer's gradient is 3 matrix products, a Hessian-vector product 8 from scratch and 6
linearized. The first layer, whose input is data and has neither tangent nor derivative, takes 2, 3
and 2.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import optax
from measure import compile_seconds, machine, medians

import gradkit as gk

NETWORKS: dict[str, tuple[tuple[int, ...], int]] = {
    "64-32-10, 1,437 examples": ((64, 32, 10), 1437),
    "784-512-512-10, 512 examples": ((784, 512, 512, 10), 512),
}


def network(widths, examples):
    keys = jax.random.split(jax.random.key(0), 2 * len(widths))
    params = [
        {"w": jax.random.normal(key, (m, n)) / jnp.sqrt(m), "b": jnp.zeros(n)}
        for key, (m, n) in zip(keys, itertools.pairwise(widths), strict=False)
    ]
    batch = {
        "x": jax.random.normal(keys[-1], (examples, widths[0])),
        "y": jax.random.randint(keys[-2], (examples,), 0, widths[-1]),
    }
    return params, batch


def loss(params, batch):
    h = batch["x"]
    for layer in params[:-1]:
        h = jnp.tanh(h @ layer["w"] + layer["b"])
    scores = h @ params[-1]["w"] + params[-1]["b"]
    labels = batch["y"]
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(scores, labels))


def matrix_work(widths):
    """Multiplications of a gradient, and of a product from scratch and linearized."""
    first, *rest = [m * n for m, n in itertools.pairwise(widths)]
    inner = sum(rest)
    return 2 * first + 3 * inner, 3 * first + 8 * inner, 2 * first + 6 * inner


def training_step(tx, params, batch):
    def step(params, state, batch):
        grads = jax.grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    compiled, seconds = compile_seconds(step, params, state, batch)
    return (lambda: compiled(params, state, batch)), seconds


def plain_product(params, v, batch):
    return jax.jvp(lambda theta: jax.grad(loss)(theta, batch), (params,), (v,))[1]


def steps(params, batch):
    members = {
        "adam": (gk.adam(1e-3), optax.adam(1e-3)),
        "clip + adamw": (
            gk.chain(gk.clip_by_global_norm(1.0), gk.adamw(1e-3)),
            optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
        ),
    }
    for name, (ours, theirs) in members.items():
        mine, compile_ours = training_step(ours, params, batch)
        other, compile_theirs = training_step(theirs, params, batch)
        time = medians({"gradkit": mine, "optax": other}, rounds=40, calls=5)
        ratio = time["gradkit"] / time["optax"]
        yield (
            f"| step, {name} | {1e3 * time['gradkit']:.3f} ms | optax | {ratio:.2f} | "
            f"{compile_ours:.2f} s against {compile_theirs:.2f} s |"
        )


def products(widths, params, batch):
    v = jax.tree.map(jnp.ones_like, params)
    gradient, _ = compile_seconds(jax.grad(loss), params, batch)
    plain, plain_compile = compile_seconds(plain_product, params, v, batch)
    apply = jax.jit(lambda A, v: A @ v)
    linearized = gk.hessian(loss, params, batch)
    recomputed = gk.hessian(loss, params, batch, linearize=False)
    time = medians(
        {
            "gradient": lambda: gradient(params, batch),
            "plain": lambda: plain(params, v, batch),
            "linearized": lambda: apply(linearized, v),
            "recomputed": lambda: apply(recomputed, v),
        },
        rounds=40,
        calls=5,
    )
    work, scratch, kept = matrix_work(widths)
    for name, A, count in (("linearized", linearized, kept), ("recomputed", recomputed, scratch)):
        _, compiling = compile_seconds(lambda A, v: A @ v, A, v)
        gradients = time[name] / time["gradient"]
        yield (
            f"| product, {name} | {1e3 * time[name]:.3f} ms | jvp(grad) | "
            f"{time[name] / time['plain']:.2f} | {compiling:.2f} s against {plain_compile:.2f} s; "
            f"{gradients:.2f} gradients, {count / work:.2f} by matrix products |"
        )


def main():
    print(machine())
    for title, (widths, examples) in NETWORKS.items():
        params, batch = network(widths, examples)
        print(f"\n{title}\n\n| what | time | peer | time / peer | compile; more |")
        print("|---|---|---|---|---|")
        for row in [*steps(params, batch), *products(widths, params, batch)]:
            print(row, flush=True)


if __name__ == "__main__":
    main()
