"""How many classical problems each solver solves on an equal budget, and what its steps cost.

    python benchmarks/minimize.py                      # everything, some 40 minutes on 2 cores
    python benchmarks/minimize.py solved lbfgs "scipy L-BFGS-B"
    python benchmarks/minimize.py float32
    python benchmarks/minimize.py steps

`solved` runs every problem of `benchmarks/problems` from its standard start, in float64 and with
2,000 gradient-equivalents: a loss counts a third of a gradient with it, a gradient two thirds, a
Hessian-vector product one, for everybody. Solved means that the point returned has ‖g‖∞ ≤ 1e-5, or
a loss within 1e-6 relative of the best known, of another known minimizer's, or 1e-12 of zero;
nearly solved, 1e-3 for both. False convergence is a claim of success at a point that is not solved.
What a solver spends is counted in its calls of the loss, or told by gradkit, whose counts the tests
compare with calls.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax
import problems
import scipy.optimize

import gradkit as gk

BUDGET = 2000.0
OURS = (
    "lbfgs",
    "bfgs",
    "nonlinear_cg",
    "trust_region",
    "cubic",
    "levenberg_marquardt",
    "newton_cg",
)
SCIPY = ("L-BFGS-B", "BFGS", "CG", "Newton-CG", "trust-ncg", "trust-krylov")
TIGHT = {
    "L-BFGS-B": {"ftol": 0, "gtol": 1e-8, "maxfun": 10**6, "maxiter": 10**6},
    "Newton-CG": {"xtol": 1e-12, "maxiter": 10**6},
}
OPTIMISTIX = ("BFGS", "LBFGS", "NonlinearCG")


class Run(NamedTuple):
    """Where a solver ended: loss, largest gradient entry, its claim, and what it spent."""

    value: float
    norm: float
    claimed: bool
    spent: float
    status: str


class Spent(Exception):  # noqa: N818
    """The budget is spent."""


def solves(problem: problems.Unconstrained, run: Run) -> bool:
    near = [
        run.value - best <= max(1e-6 * abs(best), 1e-12) for best in (problem.best, *problem.local)
    ]
    return (
        run.norm <= 1e-5
        or near[0]
        or any(abs(run.value - best) <= 1e-6 * abs(best) for best in problem.local)
    )


def nearly(problem: problems.Unconstrained, run: Run) -> bool:
    """What float32 is asked for: ‖g‖∞ ≤ 1e-3, or a loss within 1e-3 relative of the best known."""
    return run.norm <= 1e-3 or run.value - problem.best <= 1e-3 * abs(problem.best)


def ours(problem: problems.Unconstrained, method: str, dtype: Any = jnp.float64) -> Run:
    x0 = jnp.asarray(problem.x0, dtype)
    found = gk.minimize(problem.fun, x0, method=method, max_steps=10**6, budget=BUDGET)
    status = gk.Status(int(found.status))
    norm = float(jnp.max(jnp.abs(found.grad)))
    spent = float(found.gradient_equivalents)
    return Run(float(found.value), norm, bool(found.converged), spent, status.name)


def scipys(problem: problems.Unconstrained, method: str) -> Run:
    """The best point that SciPy has seen when it stops, or when the budget is spent."""
    value_and_grad = jax.jit(jax.value_and_grad(problem.fun))
    product = jax.jit(lambda x, v: jax.jvp(jax.grad(problem.fun), (x,), (v,))[1])
    best, spent = [np.inf, np.inf], [0.0]

    def fun(x):
        spend(1.0)
        value, grad = value_and_grad(x)
        if value < best[0]:
            best[:] = [float(value), float(jnp.max(jnp.abs(grad)))]
        return float(value), np.asarray(grad)

    def hessp(x, v):
        spend(1.0)
        return np.asarray(product(x, v))

    def spend(cost):
        if spent[0] + cost > BUDGET:
            raise Spent
        spent[0] += cost

    extra = {} if method in ("L-BFGS-B", "BFGS", "CG") else {"hessp": hessp}
    options = TIGHT.get(method, {"gtol": 1e-8, "maxiter": 10**6})
    try:
        found = scipy.optimize.minimize(
            fun, problem.x0, jac=True, method=method, options=options, **extra
        )
        return Run(best[0], best[1], bool(found.success), spent[0], str(found.message))
    except (Spent, FloatingPointError, np.linalg.LinAlgError, ValueError) as error:
        return Run(best[0], best[1], False, spent[0], type(error).__name__)


def optax_lbfgs(problem: problems.Unconstrained) -> Run:
    """Its documented loop, which takes value and gradient from the state of its line search."""
    tx = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(problem.fun)

    def step(carry):
        state: Any
        grad: Any
        x, state, best, spent = carry
        value, grad = value_and_grad(x, state=state)
        norm = jnp.max(jnp.abs(grad))
        best = jax.tree.map(lambda a, b: jnp.where(value < best[0], a, b), (value, norm), best)
        updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=problem.fun)
        trials = jnp.asarray(state[-1].info.num_linesearch_steps, jnp.int32)
        return optax.apply_updates(x, updates), state, best, spent + trials

    def go_on(carry):
        _, _, (_, norm), spent = carry
        return (norm > 1e-8) & (spent < BUDGET)

    @jax.jit
    def solve(x0):
        start = (jnp.asarray(jnp.inf), jnp.asarray(jnp.inf))
        carry = x0, tx.init(x0), start, jnp.ones((), jnp.int32)
        return jax.lax.while_loop(go_on, step, carry)[2:]

    (value, norm), spent = solve(jnp.asarray(problem.x0))
    return Run(float(value), float(norm), bool(norm <= 1e-8), float(spent), "")


def optimistixs(problem: problems.Unconstrained, name: str) -> Run:
    """A loss a step and a gradient an accepted step, counted in its calls."""
    optimistix: Any = importlib.import_module("optimistix")

    spent, best = [0.0], [np.inf, np.inf]

    def count(value):
        spent[0] += 1.0 / 3
        best[0] = min(best[0], float(value))

    def fun(x, _):
        value = problem.fun(x)
        jax.debug.callback(count, value)
        return value

    solver = getattr(optimistix, name)(rtol=1e-9, atol=1e-9)
    found = optimistix.minimise(fun, solver, problem.x0, max_steps=2000, throw=False)
    value, grad = jax.value_and_grad(problem.fun)(found.value)
    jax.effects_barrier()
    accepted = int(found.stats.get("num_accepted_steps", found.stats["num_steps"]))
    total = spent[0] + 2 * accepted / 3
    claimed = bool(found.result == optimistix.RESULTS.successful)
    return Run(float(value), float(jnp.max(jnp.abs(grad))), claimed, total, "")


def solvers() -> dict[str, Callable[[problems.Unconstrained], Run]]:
    found: dict[str, Callable] = {name: functools.partial(ours, method=name) for name in OURS}
    found |= {f"scipy {name}": functools.partial(scipys, method=name) for name in SCIPY}
    found["optax lbfgs"] = optax_lbfgs
    if importlib.util.find_spec("optimistix"):
        found |= {f"optimistix {n}": functools.partial(optimistixs, name=n) for n in OPTIMISTIX}
    return found


def solved(names: list[str]) -> None:
    every = problems.unconstrained()
    chosen = {n: solver for n, solver in solvers().items() if not names or n in names}
    print(measure.machine("scipy", "optimistix"))
    print(f"{len(every)} problems, {BUDGET:.0f} gradient-equivalents, float64\n")
    print("| solver | solved | % | nearly, % | false convergence | median spent where solved |")
    print("|---|---|---|---|---|---|")
    for name, solver in chosen.items():
        start, runs = time.perf_counter(), []
        for number, problem in enumerate(every):
            runs.append(solver(problem))
            jax.clear_caches()
            done = time.perf_counter() - start
            left = done / (number + 1) * (len(every) - number - 1)
            print(
                f"\r{name} {number + 1}/{len(every)}, {left:.0f} s left ", end="", file=sys.stderr
            )
        print("\r", end="", file=sys.stderr)
        there = [
            solves(p, r) and r.spent <= BUDGET * 1.02 for p, r in zip(every, runs, strict=True)
        ]
        false = [p.name for p, r in zip(every, runs, strict=True) if r.claimed and not solves(p, r)]
        spent = np.median([r.spent for r, ok in zip(runs, there, strict=True) if ok])
        share = 100 * sum(there) / len(every)
        close = 100 * np.mean([nearly(p, r) for p, r in zip(every, runs, strict=True)])
        print(
            f"| {name} | {sum(there)} | {share:.1f} | {close:.1f} | {len(false)} | {spent:.0f} |",
            flush=True,
        )
        failed = [
            f"{p.name} ({r.status}, {r.norm:.0e})"
            for p, r, ok in zip(every, runs, there, strict=True)
            if not ok
        ]
        print(
            f"{name}: false: {', '.join(false) or 'none'}; failed: {', '.join(failed)}",
            file=sys.stderr,
        )


def float32(names: list[str]) -> None:
    """How many of them are nearly solved in float32: beside the column of `solved` in float64."""
    every = problems.unconstrained()
    print("| method | nearly, % | not finite |\n|---|---|---|")
    for method in names or OURS:
        runs = []
        for problem in every:
            runs.append(ours(problem, method, jnp.float32))
            jax.clear_caches()
        share = 100 * np.mean([nearly(p, r) for p, r in zip(every, runs, strict=True)])
        broken = sum(not np.isfinite(r.value) and r.status != "NONFINITE_START" for r in runs)
        print(f"| {method} | {share:.1f} | {broken} |", flush=True)


def steps(names: list[str]) -> None:
    """What a step costs beside the losses and gradients it asks for, and what compiling costs."""
    del names
    print(measure.machine(), "\n")
    print("| method | compile and first call, 2 variables [s] | a solve then [ms] |\n|---|---|---|")
    for method in OURS:
        x0 = jnp.array([-1.2, 1.0])
        solve = functools.partial(gk.minimize, lambda x: _rosenbrock(x), x0, method=method)
        first, again = measure.timed(solve)[1], min(measure.timed(solve)[1] for _ in range(5))
        print(f"| {method} | {first:.2f} | {1e3 * again:.1f} |", flush=True)
    print("\n| method | n | step in gradients | asked for in gradients | ratio |")
    print("|---|---|---|---|---|")
    loss, x0, args = _classifier()
    gradient = jax.jit(jax.value_and_grad(loss))
    for method in ("lbfgs", "nonlinear_cg", "newton_cg", "trust_region"):
        solve = functools.partial(gk.minimize, loss, x0, method=method, args=args, tol=0.0)
        few, many = functools.partial(solve, max_steps=5), functools.partial(solve, max_steps=25)
        work = many().gradient_equivalents - few().gradient_equivalents
        times = measure.medians(
            {"few": few, "many": many, "gradient": lambda: gradient(x0, *args)}, rounds=7, calls=1
        )
        taken = (times["many"] - times["few"]) / times["gradient"]
        n = optax.tree.size(x0)
        ratio = taken / float(work)
        print(f"| {method} | {n} | {taken / 20:.2f} | {float(work) / 20:.2f} | {ratio:.2f} |")


def _rosenbrock(x: jax.Array) -> jax.Array:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def _classifier() -> tuple[Callable, Any, tuple]:
    """A 64-256-10 network on 1,797 random images: 18,944 parameters."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (1797, 64), jnp.float32)
    y = jax.random.randint(keys[1], (1797,), 0, 10)
    params = {
        "w": jax.random.normal(keys[2], (64, 256), jnp.float32) / 8,
        "v": jax.random.normal(keys[3], (256, 10), jnp.float32) / 16,
    }

    def loss(p, x, y):
        z = jnp.tanh(x @ p["w"]) @ p["v"]
        return optax.losses.softmax_cross_entropy_with_integer_labels(z, y).mean()

    return loss, params, (x, y)


def main() -> None:
    what, *names = sys.argv[1:] or ["solved"]
    jax.config.update("jax_enable_x64", what != "steps")
    {"solved": solved, "float32": float32, "steps": steps}[what](names)


if __name__ == "__main__":
    main()
