"""One optimizer update against optax, torch and a copy: `tx.update` and `apply_updates`, donated.

The copy is the floor: one jitted pass over a single buffer that reads as many parameters, moments
and gradients as Adam and writes the first three back, 28 bytes a parameter. Clipping by the global
norm reads the gradient once more, 32 bytes or 1.14 copies. A micro-batch reads the gradient and
reads and writes the sum, 12 bytes, and the last of 8 updates as well and clears the sum: 15 bytes
on average, 0.54 copies. Where XLA makes three passes of Adam, one for each moment and one for the
parameters, as on the CPU, these are 40 bytes or 1.43 copies.

Times are of one update, of one micro-batch where gradients accumulate. Compiling, timed once and
apart, starts with JAX's caches empty.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import compile_seconds, machine, medians

import gradkit as gk

torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None

STARTED = time.perf_counter()
MICRO_BATCHES = 8
RATE, LARGEST_NORM = 1e-3, 1.0
DECAY = 1e-4  # optax's default, for torch as well
PLAIN, CLIPPED, ACCUMULATED = "adamw", "clip + adamw", f"adamw, {MICRO_BATCHES} micro-batches"
MANY = "2,000 leaves of 1 K"
HEAD = (
    "| update | candidate | time | × optax | × copy | compile | × optax "
    "| temporary memory [trees of parameters] |\n|---|---|---|---|---|---|---|---|"
)


class Candidate(NamedTuple):
    """`run`: some updates in turn. `compiling` [s]. `temporary`: in trees of parameters."""

    run: Callable[[], Any]
    compiling: float | None = None
    temporary: float | None = None


def gpt2(width, vocabulary, positions):
    """The parameter shapes of GPT-2 small, by their paths."""
    norm = {"scale": (width,), "bias": (width,)}

    def dense(m, n):
        return {"kernel": (m, n), "bias": (n,)}

    block = {
        "ln1": norm,
        "qkv": dense(width, 3 * width),
        "proj": dense(width, width),
        "ln2": norm,
        "fc": dense(width, 4 * width),
        "out": dense(4 * width, width),
    }
    blocks = {f"block_{i}": block for i in range(12)}
    return {"wte": (vocabulary, width), "wpe": (positions, width), **blocks, "ln": norm}


def trees(small):
    s = 8 if small else 1
    return {
        "one leaf of 64 M": {"leaf": (2**26 // s**2,)},
        "124 M, 148 leaves": gpt2(768 // s, 50257 // s, 1024 // s),
        MANY: {f"leaf_{i}": (1024,) for i in range(2000 // s**2)},
    }


def gradient(shapes):
    """Random numbers of those shapes; nothing of it comes near a denormal number."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(random.standard_normal(shape, np.float32)),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def ours(kind):
    adamw = gk.adamw(RATE, weight_decay=DECAY)
    if kind == CLIPPED:
        return gk.chain(gk.clip_by_global_norm(LARGEST_NORM), adamw)
    return gk.accumulate(adamw, MICRO_BATCHES) if kind == ACCUMULATED else adamw


def stacked(kind):
    return gk.stack_small_leaves(ours(kind))


def theirs(kind):
    adamw = optax.adamw(RATE, weight_decay=DECAY)
    if kind == CLIPPED:
        return optax.chain(optax.clip_by_global_norm(LARGEST_NORM), adamw)
    if kind == ACCUMULATED:
        return optax.MultiSteps(adamw, MICRO_BATCHES).gradient_transformation()
    return adamw


def update_of(tx, grads):
    """The update as a pure function of what it carries, and what it carries at first."""

    def step(carried, grads):
        params, state = carried
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, grads)
    return step, (params, tx.init(params))


def copy_of(n):
    """28 bytes a number: reads four arrays and writes three of them."""

    def step(carried, fixed):
        p, m, v = carried
        g, c = fixed
        return p + g, m + c, v + c

    return step, (jnp.zeros(n), jnp.zeros(n), jnp.zeros(n))


def carried_on(step, carried, fixed, count, n):
    """Compiles a step; each run takes `count` of them, from where the last one ended."""
    jax.clear_caches()
    compiled, seconds = compile_seconds(step, carried, fixed, donate=(0,))

    def run():
        nonlocal carried
        for _ in range(count):
            carried = compiled(carried, fixed)
        return carried

    memory: Any = compiled.memory_analysis()
    return Candidate(run, seconds, memory.temp_size_in_bytes / (4 * n))


def in_torch(kind, grads, count, **how):
    leaves = [torch.tensor(np.asarray(g)) for g in jax.tree.leaves(grads)]
    params = [torch.nn.Parameter(g.clone()) for g in leaves]
    for p, g in zip(params, leaves, strict=True):
        p.grad = torch.zeros_like(g) if kind == ACCUMULATED else g
    sums = [p.grad for p in params]
    optimizer = torch.optim.AdamW(params, lr=RATE, weight_decay=DECAY, **how)

    def run():
        for number in range(1, count + 1):
            if kind == ACCUMULATED:
                torch._foreach_add_(sums, leaves, alpha=1 / MICRO_BATCHES)
            if kind == CLIPPED:
                torch.nn.utils.clip_grad_norm_(params, LARGEST_NORM, foreach=True)
            if kind != ACCUMULATED or number % MICRO_BATCHES == 0:
                optimizer.step()
            if kind == ACCUMULATED and number % MICRO_BATCHES == 0:
                optimizer.zero_grad(set_to_none=False)

    return Candidate(run)


def candidates(title, kind, grads, count) -> Iterator[tuple[str, Callable[[], Candidate]]]:
    """The names of the candidates, and what makes each."""
    n = sum(g.size for g in jax.tree.leaves(grads))
    members = {"gradkit": ours, "gradkit, stacked": stacked, "optax": theirs}
    for name, member in members.items():
        if name != "gradkit, stacked" or title == MANY:
            yield name, lambda m=member: carried_on(*update_of(m(kind), grads), grads, count, n)
    yield "copy", lambda: carried_on(*copy_of(n), (jnp.ones(n), jnp.float32(1e-3)), count, n)
    if torch is not None:
        yield "torch, fused", lambda: in_torch(kind, grads, count, fused=True)
        yield "torch, foreach", lambda: in_torch(kind, grads, count, foreach=True)


def progress(*words):
    print(f"[{time.perf_counter() - STARTED:6.1f} s]", *words, file=sys.stderr, flush=True)


def warm_up():
    """Compiles every update once for a tree of a few numbers: the first pays for imports."""
    for kind in (PLAIN, CLIPPED, ACCUMULATED):
        grads = gradient({"a": (8,), "b": (8,)})
        for _, make in candidates(MANY, kind, grads, MICRO_BATCHES):
            jax.block_until_ready(make().run())


def ratio(a, b):
    return f"{a / b:.2f}" if a is not None and b is not None else "–"


def rows(title, kind, grads, rounds):
    """Every candidate for one kind of update, alive together and timed in turn."""
    count = MICRO_BATCHES if kind == ACCUMULATED else 10 if title == MANY else 1
    made = {}
    for name, make in candidates(title, kind, grads, count):
        progress(f"{title}: {kind}: making {name}")
        made[name] = make()
    progress(f"{title}: {kind}: timing, {rounds} rounds of {count}")
    total = medians({name: c.run for name, c in made.items()}, rounds=rounds, calls=1)
    peer = made["optax"].compiling
    for name, (_, compiling, temporary) in made.items():
        compile_time = "–" if compiling is None else f"{compiling:.2f} s"
        memory = "–" if temporary is None else f"{temporary:.2f}"
        yield (
            f"| {kind} | {name} | {1e3 * total[name] / count:.2f} ms "
            f"| {ratio(total[name], total['optax'])} | {ratio(total[name], total['copy'])} "
            f"| {compile_time} | {ratio(compiling, peer)} | {memory} |"
        )


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timings of each candidate")
    parser.add_argument("--only", default="", help="the trees whose name contains this")
    parser.add_argument("--small", action="store_true", help="trees 64 times smaller: a smoke test")
    asked = parser.parse_args()
    if torch is None:
        print(f"{machine()}; torch is not installed, its rows are left out")
    else:
        torch.set_num_threads(os.cpu_count())
        print(f"{machine()}; torch {torch.__version__}")
    progress("warming up")
    warm_up()
    for title, shapes in trees(asked.small).items():
        if asked.only not in title:
            continue
        print(f"\n{title}{', 64 times smaller' if asked.small else ''}\n\n{HEAD}")
        grads = gradient(shapes)
        for kind in (PLAIN, CLIPPED, ACCUMULATED):
            for row in rows(title, kind, grads, asked.rounds):
                print(row, flush=True)
            gc.collect()


if __name__ == "__main__":
    main()
