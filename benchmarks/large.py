"""A perceptron of a million parameters: the time and the memory of eigenvalues and of a density.

Each candidate runs in a process of its own. Its memory is the growth of the largest resident size
from after one product, with the gradient linearized, to the end of the first call; a tree of
parameters is 4 MB. Compiling is in it. A call of more than half a minute is not repeated.
"""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import digits
import jax
import numpy as np
import peers
from jax.flatten_util import ravel_pytree
from measure import timed

import gradkit as gk

WIDTHS, EXAMPLES = (784, 1024, 200, 10), 2000
SMALL = (784, 32, 10)
TOP, TOL = 10, 1e-5
PROBES, STEPS = 10, 80
TRAINED = 4  # steps of Adam, to a loss of about 0.4: rounding hides the Hessian of a perfect fit
PATIENCE, LONGEST = 30, 900  # s
HEAD = (
    "| task | candidate | time | first call | products | memory | answer |\n"
    "|---|---|---|---|---|---|---|"
)


def problem_of(file: str) -> tuple[Any, Any]:
    """The parameters that were saved and the batch."""
    saved = np.load(file)
    widths = tuple(int(width) for width in saved["widths"])
    _, unravel = ravel_pytree(digits.dense_layers(widths))
    return unravel(saved["flat"]), digits.clusters(widths[0], EXAMPLES)


def measure(task: str, file: str) -> None:
    """Runs one candidate twice, and prints what it took as JSON."""
    name, what = task.split(":")
    params, batch = problem_of(file)
    H = gk.hessian(digits.PERCEPTRON, params, batch)
    jax.block_until_ready(jax.jit(lambda A, v: A @ v)(H, params))
    before = resident()
    if name == "gradkit":
        key = jax.random.key(0)
        runs: peers.Runs = {
            "top": lambda: gk.eigsh(H, TOP, key=key, tol=TOL),
            "density": lambda: gk.density(H, key=key, probes=PROBES, steps=STEPS),
        }
        run = runs[what]
    else:
        member: Any = next(m for m in peers.MEMBERS if m.package == name)
        peer = member(digits.PERCEPTRON, params, batch)
        before = resident()
        runs = peer.top(TOP, TOL) if what == "top" else peer.density(PROBES, STEPS)
        run = next(iter(runs.values()))
    answer, first = timed(run)
    grown = resident() - before
    again = timed(run)[1] if first < PATIENCE else None
    if what == "top":
        text = f"λ₁ {float(answer.values[-1]):.5f}, λ₁₀ {float(answer.values[0]):.5f}"
        if hasattr(answer, "converged"):
            text += f"; converged {bool(answer.converged.all())}"
    else:
        nodes, weights = np.asarray(answer.nodes), np.asarray(answer.weights)
        text = f"mean {float((nodes * weights).sum(axis=1).mean()):.3e}"
    report = {"first": first, "again": again, "products": int(answer.products), "text": text}
    print(json.dumps(report | {"grown": grown, "trees": grown / (4 * H.dimension)}))


def resident() -> int:
    """The largest resident size so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # On Linux a child's `ru_maxrss` begins at its parent's.
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def table(only: str, small: bool) -> None:
    """Trains briefly, then measures every candidate in its own process."""
    widths = SMALL if small else WIDTHS
    params, loss = digits.trained(
        digits.PERCEPTRON,
        digits.dense_layers(widths),
        digits.clusters(widths[0], EXAMPLES),
        steps=TRAINED,
        rate=1e-3,
    )
    flat, _ = ravel_pytree(params)
    found, missing = peers.installed()
    for line in missing:
        print(line)
    print(f"\n{'-'.join(map(str, widths))}, {flat.size:,} parameters, loss {loss:.3f}\n\n{HEAD}")
    names = ["gradkit", *(member.package for member in found)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "params.npz"
        np.savez(file, flat=np.asarray(flat), widths=np.asarray(widths))
        for what, name in itertools.product(("top", "density"), names):
            if only in what:
                print(row(name, what, str(file)), flush=True)


def row(name: str, what: str, file: str) -> str:
    script = str(Path(__file__).with_name("spectrum.py"))
    command = [sys.executable, script, "--child", f"{name}:{what}", file]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    except subprocess.TimeoutExpired:
        return f"| {what} | {name} | more than {LONGEST} s |"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"| {what} | {name} | failed: {reason} |"
    r = json.loads(done.stdout.splitlines()[-1])
    again = "–" if r["again"] is None else f"{r['again']:.2f} s"
    return (
        f"| {what} | {name} | {again} | {r['first']:.2f} s | {r['products']} "
        f"| {r['grown'] / 1e6:.0f} MB, {r['trees']:.0f} trees | {r['text']} |"
    )
