"""Curvature products in gradients, alone and inside gradkit's own loops.

Floors: a layer's gradient is 3 matrix products, a Hessian-vector product 8 from scratch and 6
linearized, a Gauss–Newton product 5 and 4. The first layer, whose input is data, takes 2, 3 and 2,
3 and 2. A convolution counts as the matrix product that it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import digits
import jax
from measure import compile_seconds, medians

import gradkit as gk

COUNTS = {  # matrix products of the first layer and of each other, against 2 and 3 of a gradient
    "Hessian, linearized": (gk.hessian, True, 2, 6),
    "Hessian, recomputed": (gk.hessian, False, 3, 8),
    "Gauss–Newton, linearized": (gk.gauss_newton, True, 2, 4),
    "Gauss–Newton, recomputed": (gk.gauss_newton, False, 3, 5),
}
TRAINED = 10  # steps of Adam
ROUNDS, CALLS = 15, 5
LOOP_STEPS, LOOP_ROUNDS = 40, 5


class Network(NamedTuple):
    """`work`: multiplications of an example in each layer, forward."""

    title: str
    problem: gk.Problem
    params: Any
    batch: Any
    work: tuple[int, ...]


def perceptron(widths: tuple[int, ...], batch: Any) -> Network:
    title = f"perceptron {'-'.join(map(str, widths))}, {len(batch['y']):,} examples"
    work = tuple(m * n for m, n in itertools.pairwise(widths))
    return trained(title, digits.PERCEPTRON, digits.dense_layers(widths), batch, work)


def trained(title, problem, params, batch, work) -> Network:
    """A little: at the start the largest eigenvalues lie too close for `eigsh` to tell apart."""
    params, _ = digits.trained(problem, params, batch, steps=TRAINED, rate=1e-3)
    return Network(title, problem, params, batch, work)


def networks(small: bool) -> Iterator[Network]:
    yield perceptron((64, 128, 10), digits.digits())
    if not small:
        yield perceptron((784, 512, 512, 10), digits.clusters(784, 512))
    c, d = digits.CONVOLVED
    batch = jax.tree.map(lambda x: x[:100], digits.digits()) if small else digits.digits()
    title = f"8 × 8 convolutional, {c} and {d} channels, {len(batch['y']):,} examples"
    work = (64 * 9 * c, 16 * 9 * c * d, 16 * d * 10)
    yield trained(title, digits.CONVOLUTIONAL, digits.conv_layers(), batch, work)


def alone(network: Network) -> Iterator[str]:
    """Each product in gradients, against its floor."""
    _, problem, params, batch, (first, *rest) = network
    v = jax.tree.map(lambda x: x + 1, params)
    gradient, _ = compile_seconds(jax.grad(problem.value), params, batch)
    apply = jax.jit(lambda A, v: A @ v)
    operators = {
        name: make(problem, params, batch, linearize=linearize)
        for name, (make, linearize, _, _) in COUNTS.items()
    }
    runs: dict[str, Any] = {name: lambda A=A: apply(A, v) for name, A in operators.items()}
    runs["gradient"] = lambda: gradient(params, batch)
    time = medians(runs, rounds=ROUNDS, calls=CALLS)
    yield f"| gradient | {1e3 * time['gradient']:.3f} ms | 1 | 1 | – |"
    for name, (_, _, of_first, of_rest) in COUNTS.items():
        floor = (of_first * first + of_rest * sum(rest)) / (2 * first + 3 * sum(rest))
        _, compiling = compile_seconds(lambda A, v: A @ v, operators[name], v)
        yield (
            f"| {name} | {1e3 * time[name]:.3f} ms | {time[name] / time['gradient']:.2f} "
            f"| {floor:.2f} | {compiling:.2f} s |"
        )


def looped(network: Network) -> Iterator[str]:
    """A product of the Hessian inside `density` and `eigsh`, driven as they choose, against one."""
    _, problem, params, batch, _ = network
    H = gk.hessian(problem, params, batch)
    v, key = jax.tree.map(lambda x: x + 1, params), jax.random.key(0)
    apply = jax.jit(lambda A, v: A @ v)
    runs = {
        "density": lambda: gk.density(H, key=key, probes=1, steps=LOOP_STEPS),
        "eigsh": lambda: gk.eigsh(H, 5, key=key, tol=1e-6),
    }
    products = {name: int(run().products) for name, run in runs.items()}
    single = lambda: apply(H, v)  # noqa: E731
    time = medians({"one": single, **runs}, rounds=LOOP_ROUNDS, calls=1)
    for name, count in products.items():
        each = time[name] / count
        yield (
            f"| {name} | {count} | {1e3 * time[name]:.1f} ms | {1e3 * each:.3f} ms "
            f"| {1e3 * time['one']:.3f} ms | {each / time['one']:.2f} |"
        )


def tables(small: bool) -> None:
    for network in networks(small):
        print(f"\n{network.title}\n\n| product | time | gradients | floor | compile |")
        print("|---|---|---|---|---|")
        for row in alone(network):
            print(row, flush=True)
        print("\n| inside | products | time | of a product | alone | inside / alone |")
        print("|---|---|---|---|---|---|")
        for row in looped(network):
            print(row, flush=True)
