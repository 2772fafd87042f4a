"""Paired timing: candidates in turn, in one process, medians and ratios."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def compile_seconds(
    function: Callable, *arguments: Any, donate: tuple[int, ...] = ()
) -> tuple[jax.stages.Compiled, float]:
    """Returns the compiled function and how long tracing and compiling took [s]."""
    start = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    return compiled, time.perf_counter() - start


def medians(candidates: dict[str, Callable[[], Any]], *, rounds: int, calls: int) -> dict:
    """Returns the median time of one call of each candidate [s].

    Each round times every candidate once, `calls` calls together, in an order that turns by one
    from round to round, so that a drift of the machine's speed meets all of them alike.
    """
    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    for function in candidates.values():
        jax.block_until_ready(function())
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            jax.block_until_ready([candidates[name]() for _ in range(calls)])
            times[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> str:
    """Returns versions and machine, for the head of a table."""
    packages = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "optax", "numpy"))
    return (
        f"Python {platform.python_version()}, {packages}; {jax.default_backend()}, "
        f"{os.cpu_count()} cores, {platform.machine()}"
    )
