"""Spectra of a trained network against matfree, curvlinops and PyHessian, to the same accuracy.

The network is a perceptron 64-128-10 with tanh on scikit-learn's 1,797 digits. The truth is the
exact spectrum: `eigvalsh` of the float64 Hessian, 9,610 rows, which takes a minute and 3 GB. A
first call, timed once, starts with JAX's caches empty and so includes compiling. `taskset -c 0`
before the command gives all of them one core.

Peers that are absent are left out. They are not dependencies; `make benchmarks` runs without them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import digits
import jax
import large
import numpy as np
import peers
import products
from measure import machine, medians, timed
from scipy.stats import wasserstein_distance

import gradkit as gk

STARTED = time.perf_counter()
TOL, TOP = 1e-6, 5
PROBES, STEPS = 10, 80
ACCURACY = 0.01  # of the trace
ENDS, ENDS_STEPS, SHIFT = 2, 40, 0.1
SECONDS = 15  # for the rounds of one table, about
HEAD = (
    "| candidate | time | × gradkit | first call | products | answer |\n|---|---|---|---|---|---|"
)


class Task(NamedTuple):
    """`ours`: candidates by name. `theirs`: those of a peer. `judge`: what an answer is worth."""

    title: str
    ours: peers.Runs
    theirs: Callable[[Any], peers.Runs]
    judge: Callable[[Any], str]


def top(H, exact) -> Task:
    def judge(answer):
        error = np.max(np.abs(np.asarray(answer.values) / exact[-TOP:] - 1))
        text = f"largest relative error {error:.0e}"
        if hasattr(answer, "converged"):
            residual = float(answer.residuals.max() / answer.values.max())
            text += f"; converged {np.asarray(answer.converged).all()}, residuals {residual:.0e}"
        return text

    run = {"gradkit": lambda: gk.eigsh(H, TOP, key=jax.random.key(0), tol=TOL)}
    title = f"the {TOP} largest eigenvalues, residuals of at most {TOL:.0e} of the largest"
    return Task(title, run, lambda peer: peer.top(TOP, TOL), judge)


def density(H, exact) -> Task:
    def judge(answer):
        nodes, weights = (np.asarray(x, np.float64).ravel() for x in (answer.nodes, answer.weights))
        distance = wasserstein_distance(nodes, exact, np.maximum(weights, 0)) / exact[-1]
        text = f"W₁ {distance:.1e} λ_max"
        if hasattr(answer, "w1_bound"):
            text += f", bound {float(answer.w1_bound) / exact[-1]:.1e} λ_max"
        return text

    runs = {"gradkit": lambda: gk.density(H, key=jax.random.key(0), probes=PROBES, steps=STEPS)}
    title = f"density, {PROBES} probes of {STEPS} steps"
    return Task(title, runs, lambda peer: peer.density(PROBES, STEPS), judge)


def trace(H, exact) -> Task:
    truth = exact.sum()

    def judge(answer):
        error, stderr = float(answer.value) / truth - 1, answer.stderr
        given = "none given" if stderr is None else f"{float(stderr) / truth:.1%}"
        return f"{float(answer.value):.4f}, error {error:+.1%}, standard error {given}"

    def run(method):
        return lambda: gk.trace(H, key=jax.random.key(0), tol=ACCURACY, method=method)

    runs = {f"gradkit, {method}": run(method) for method in ("hutch++", "xtrace", "hutchinson")}
    spent = {name: int(runs[f"gradkit, {name}"]().products) for name in ("hutchinson", "xtrace")}
    title = f"trace to {ACCURACY:.0%}, in truth {truth:.4f}; peers spend gradkit's products"
    return Task(title, runs, lambda peer: peer.trace(**spent), judge)


def ends(H, exact) -> Task:
    magnitude = np.abs(exact + SHIFT)
    truth = magnitude.max() / magnitude.min()

    def judge(answer):
        found = np.concatenate([np.asarray(answer.smallest), np.asarray(answer.largest)])
        error = np.abs(found - np.concatenate([exact[:ENDS], exact[-ENDS:]])).max() / exact[-1]
        condition = (found.max() + SHIFT) / (found.min() + SHIFT)
        text = f"errors of at most {error:.0e} λ_max; condition {condition:.4f}"
        if answer.condition is not None:
            lower, upper = float(answer.condition.lower), float(answer.condition.upper)
            text += f", in [{lower:.4f}, {upper:.4f}]"
        return text if answer.negative is None else f"{text}; {answer.negative} negative at least"

    def run(check):
        options: Any = {"probes": 0, "max_products": ENDS_STEPS + 2 * ENDS, "check": check}
        s: Any = gk.spectrum(H, key=jax.random.key(0), top=ENDS, bottom=ENDS, **options)
        condition = s.shifted_condition(SHIFT)
        least = s.negative.at_least
        return peers.Ends(s.smallest.values, s.largest.values, least, s.products, condition)

    runs: peers.Runs = {
        "gradkit": lambda: run(False),
        "gradkit, operator checked first": lambda: run(True),
    }
    try:
        run(False)
    except (AttributeError, TypeError, ValueError) as error:
        progress(f"ends: gradkit's row is left out: {error}")
        runs = {}
    title = (
        f"{ENDS} eigenvalues at both ends, negative ones and the condition number of H + {SHIFT} I "
        f"from {ENDS_STEPS} steps; in truth {truth:.4f}, {np.sum(exact < 0):,} negative"
    )
    return Task(title, runs, lambda peer: peer.ends(ENDS_STEPS), judge)


TASKS = {"top": top, "density": density, "trace": trace, "ends": ends}


def rows(task: Task, members: list) -> Iterator[str]:
    """Every candidate, first alone, then all in turn."""
    runs = dict(task.ours)
    for member in members:
        runs |= task.theirs(member)
    first, answers, seconds = {}, {}, {}
    for name, run in runs.items():
        progress(f"{task.title.split(',')[0]}: {name}")
        jax.clear_caches()
        answers[name], first[name] = timed(run)
        seconds[name] = timed(run)[1]
    rounds = int(np.clip(SECONDS / sum(seconds.values()), 3, 15)) if runs else 0
    progress(f"timing, {rounds} rounds")
    time_of = medians(runs, rounds=rounds, calls=1)
    ours = next((time_of[name] for name in task.ours), None)
    for name, answer in answers.items():
        ratio = "–" if ours is None else f"{time_of[name] / ours:.2f}"
        yield (
            f"| {name} | {1e3 * time_of[name]:.1f} ms | {ratio} | {first[name]:.2f} s "
            f"| {int(answer.products)} | {task.judge(answer)} |"
        )


def tables(only: str, small: bool) -> None:
    """Trains, computes the truth, and prints a table for each task."""
    batch = digits.digits()
    widths = (64, 16, 10) if small else (64, 128, 10)
    layers = digits.dense_layers(widths)
    params, loss = digits.trained(digits.PERCEPTRON, layers, batch, steps=300, rate=3e-3)
    H = gk.hessian(digits.PERCEPTRON, params, batch)
    name = "-".join(map(str, widths))
    progress(f"{name}: {H.dimension:,} parameters, loss {loss:.4f}; now the exact spectrum")
    exact = digits.exact_eigenvalues(digits.PERCEPTRON, params, batch)
    found, missing = peers.installed()
    for line in missing:
        print(line)
    members = [member(digits.PERCEPTRON, params, batch) for member in found]
    print(
        f"{name}, {H.dimension:,} parameters, loss {loss:.4f}, λ_max {exact[-1]:.4f}, "
        f"λ_min {exact[0]:.1e}, trace {exact.sum():.4f}"
    )
    for task, make in TASKS.items():
        if only in task:
            made = make(H, exact)
            print(f"\n{made.title}\n\n{HEAD}", flush=True)
            for row in rows(made, members):
                print(row, flush=True)


def progress(*words):
    print(f"[{time.perf_counter() - STARTED:6.1f} s]", *words, file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help=f"one of {', '.join(TASKS)}, products")
    parser.add_argument("--small", action="store_true", help="1,210 parameters: a smoke test")
    parser.add_argument(
        "--large", action="store_true", help="a million parameters: time and memory"
    )
    parser.add_argument("--child", nargs=2, metavar=("TASK", "FILE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        large.measure(*asked.child)
        return
    print(machine("matfree", "curvlinops-for-pytorch", "PyHessian", "torch", "scipy"))
    if asked.large:
        large.table(asked.only, asked.small)
        return
    if any(asked.only in task for task in TASKS):
        tables(asked.only, asked.small)
    if asked.only in "products":
        products.tables(asked.small)


if __name__ == "__main__":
    main()
