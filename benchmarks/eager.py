"""Updates outside `jit`, one Python call each, against optax's of the same name or meaning.

The trees are small, as where people try things out, so that what is measured is the cost of
dispatching. The first call compiles and is apart; after it nothing may be compiled.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.monitoring
import jax.numpy as jnp
import optax
from measure import machine, medians

import gradkit as gk

ROUNDS = 20
PARAMS = {f"layer_{i}": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)} for i in range(4)}
MASK = {name: {"kernel": True, "bias": False} for name in PARAMS}
NOT_MASK = {name: {"kernel": False, "bias": True} for name in PARAMS}
LABELS = {name: {"kernel": "fast", "bias": "slow"} for name in PARAMS}

PAIRS: dict[str, Callable] = {
    "sgd": lambda ox: ox.sgd(0.1),
    "sgd, momentum": lambda ox: ox.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda ox: ox.adam(1e-3),
    "adam, schedule": lambda ox: ox.adam(optax.linear_schedule(1e-3, 0.0, 100)),
    "adamw": lambda ox: ox.adamw(1e-3),
    "rmsprop": lambda ox: ox.rmsprop(1e-3, momentum=0.9),
    "adagrad": lambda ox: ox.adagrad(0.1),
    "adadelta": lambda ox: ox.adadelta(1.0),
    "clip_by_global_norm": lambda ox: ox.clip_by_global_norm(1.0),
    "clip": lambda ox: ox.clip(1.0),
    "adaptive_grad_clip": lambda ox: ox.adaptive_grad_clip(0.1),
    "add_decayed_weights": lambda ox: ox.add_decayed_weights(1e-4),
    "add_noise": lambda ox: ox.add_noise(0.01, 0.55, 0),
    "centralize": lambda ox: ox.centralize(),
    "ema": lambda ox: ox.ema(0.9),
    "chain": lambda ox: ox.chain(ox.clip_by_global_norm(1.0), ox.adamw(1e-3)),
    "masked": lambda ox: ox.chain(ox.masked(ox.sgd(0.1), MASK), ox.masked(ox.adam(0.1), NOT_MASK)),
    "partition": lambda ox: ox.partition({"fast": ox.adam(0.1), "slow": ox.sgd(0.1)}, LABELS),
    "apply_if_finite": lambda ox: ox.apply_if_finite(ox.adam(1e-3), 5),
    "accumulate": lambda ox: (
        gk.accumulate(gk.adam(1e-3), 2) if ox is gk else optax.MultiSteps(optax.adam(1e-3), 2)
    ),
    "lbfgs, a fixed rate": lambda ox: ox.lbfgs(0.1, linesearch=None),
}

COMPILED = [0]


def count(event, duration_secs, **_):
    COMPILED[0] += "backend_compile" in event


def loop(tx):
    """A function that makes one more update."""
    held = [tx.init(PARAMS)]

    def update():
        updates, held[0] = tx.update(PARAMS, held[0], PARAMS)
        return updates

    return update


def main():
    jax.monitoring.register_event_duration_secs_listener(count)
    print(f"{machine()}\n")
    print("| update outside jit | gradkit [ms] | optax [ms] | × optax | compiled in 30 updates |")
    print("|---|---|---|---|---|")
    for name, make in PAIRS.items():
        loops = {"gradkit": loop(make(gk)), "optax": loop(make(optax))}
        for _ in range(5):
            for update in loops.values():
                jax.block_until_ready(update())
        before = COMPILED[0]
        for _ in range(30):
            jax.block_until_ready(loops["gradkit"]())
        compiled = COMPILED[0] - before
        times = medians(loops, rounds=ROUNDS, calls=5)
        ours, theirs = (1e3 * times[who] for who in ("gradkit", "optax"))
        print(
            f"| {name} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} | {compiled} |", flush=True
        )


if __name__ == "__main__":
    main()
