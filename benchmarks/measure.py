"""Paired timing: candidates in turn, in one process, medians and ratios."""

from __future__ import annotations

import contextlib
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


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Returns what one call gives, and how long it took [s]."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, time.perf_counter() - start


def machine(*more: str) -> str:
    """Returns versions and machine, for the head of a table; of `more` the packages there are."""
    versions = {p: importlib.metadata.version(p) for p in ("jax", "optax", "numpy")}
    for package in more:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    packages = ", ".join(f"{package} {version}" for package, version in versions.items())
    return (
        f"Python {platform.python_version()}, {packages}; {jax.default_backend()}, "
        f"{_cores()} cores, {platform.machine()}"
    )


def _cores() -> int | None:
    """How many this process may use, which `taskset` limits, where the system tells."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count()
