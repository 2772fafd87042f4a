"""What the runner costs beside loops written by hand, and how long a user waits.

    python benchmarks/training.py            # all, some 5 minutes on 2 cores
    python benchmarks/training.py small      # 64-32-10 on digits, batch 32
    python benchmarks/training.py fashion    # 784-128-128-10 on Fashion-MNIST, batch 128
    python benchmarks/training.py waiting    # seconds until a first line, and of `gradkit check`

`small` compares thousands of steps of the runner, its loop in Python and its metrics lines
included, with its compiled steps on examples that were chosen before, with one `lax.scan` over the
runner's own step, and with one over a step of loss, gradient and optax's Adam alone (what else the
step does: figures, and the test that all is finite); the scans draw the orders of their epochs too.
`fashion` compares an epoch with a loop that a user would write: a jitted step of optax's Adam,
called for each batch of a permutation, data on the device.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import machine, medians

from gradkit.runner import programs, setting
from gradkit.runner.config import Config
from gradkit.runner.training import Training

ROUNDS = 7
SMALL = {
    "optimizer": {"name": "adam", "learning_rate": 1e-3},
    "model": {"activation": "tanh"},
    "batch_size": 32,
    "epochs": 300,
    "evaluate_every": 10**9,
    "checkpoint_every": 10**9,
}
FASHION = SMALL | {
    "data": {"source": "fashion_mnist"},
    "model": {"hidden": (128, 128)},
    "batch_size": 128,
    "epochs": 1,
}


def runner(made, compiled):
    """A function that trains from the start and returns the state."""

    def train():
        training = Training(made, compiled, made.initial())
        while training.goes_on:
            for _ in training.advance():
                pass
        return training.state

    compiled = dataclasses.replace(compiled, evaluate=lambda state: {})
    return train


def loss(made):
    def value(params, batch):
        scores = made.task.predict(params, batch)
        return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(scores, batch["y"]))

    return value


def small():
    """One scan over the runner's own step, one over a bare step, and the runner."""
    made = setting.prepare(Config.model_validate(SMALL))
    compiled = programs.compiled(made, made.initial())
    data = jax.device_put(made.task.data.train)
    update, tx, value = programs._update(made), optax.adam(1e-3), loss(made)

    def own(state, row):
        step, state = state
        batch = {name: array[row] for name, array in data.items()}
        state, figures = update(state, made.key, batch, step)
        return (step + 1, state), figures

    def bare(state, row):
        params, opt_state = state
        batch = {name: array[row] for name, array in data.items()}
        value_, grads = jax.value_and_grad(value)(params, batch)
        updates, opt_state = tx.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value_

    scan_own = jax.jit(lambda state, rows: jax.lax.scan(own, (jnp.int32(0), state), rows))
    scan_bare = jax.jit(lambda state, rows: jax.lax.scan(bare, state, rows))

    def rows():
        return jnp.asarray(made.batches.rows(0, made.steps), jnp.int32)

    def start():
        params = made.initial().params
        return params, tx.init(params)

    most = compiled.feed.most
    feeds = [(n, compiled.feed.ahead(n, most)) for n in range(0, made.steps, most)]

    def alone():
        state = made.initial()
        for n, feed in feeds:
            count = np.int32(min(most, made.steps - n))
            state, *_ = compiled.advance(state, made.key, *feed, np.int32(n), count)
        return state

    times = medians(
        {
            "the runner": runner(made, compiled),
            "its compiled steps alone": alone,
            "lax.scan over its step": lambda: scan_own(made.initial(), rows()),
            "lax.scan over loss and optax.adam": lambda: scan_bare(start(), rows()),
        },
        rounds=ROUNDS,
        calls=1,
    )
    table(f"digits 64-32-10, batch 32, {made.steps:,} steps", times, made.steps)


def fashion():
    """An epoch of the runner, and of a loop by hand."""
    made = setting.prepare(Config.model_validate(FASHION))
    compiled = programs.compiled(made, made.initial())
    data = jax.device_put(made.task.data.train)
    tx, value = optax.adam(1e-3), loss(made)

    @jax.jit
    def step(params, opt_state, row):
        batch = {name: array[row] for name, array in data.items()}
        value_, grads = jax.value_and_grad(value)(params, batch)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, value_

    def by_hand():
        params = made.initial().params
        opt_state = tx.init(params)
        order = np.random.default_rng(0).permutation(len(data["y"]))
        for i in range(made.steps):
            row = order[i * 128 : (i + 1) * 128]
            params, opt_state, value_ = step(params, opt_state, row)
            if i % 20 == 19:
                float(value_)
        return params

    times = medians(
        {"the runner": runner(made, compiled), "a jitted step in a loop": by_hand},
        rounds=ROUNDS,
        calls=1,
    )
    table(f"Fashion-MNIST 784-128-128-10, batch 128, {made.steps:,} steps", times, made.steps)


def table(title, times, steps):
    """Prints times, and the runner's as a ratio to each."""
    print(f"{title}; {machine()}\n")
    print("| loop | s | µs a step | the runner over it |\n|---|---|---|---|")
    for name, seconds in times.items():
        ratio = times["the runner"] / seconds
        print(f"| {name} | {seconds:.3f} | {1e6 * seconds / steps:.1f} | {ratio:.2f} |")
    print()


def waiting():
    """Seconds from the command to its first metrics line, and of checking a config."""
    config = Path(__file__).parent.parent / "configs" / "digits_adam.yaml"
    command = [sys.executable, "-m", "gradkit.runner.cli"]
    lines, checks = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        subprocess.run([*command, "check", config], check=True, capture_output=True)
        checks.append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            start = time.perf_counter()
            process = subprocess.Popen(
                [*command, "run", config, "--out", out], stderr=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            metrics = out / "metrics.jsonl"
            while not (metrics.is_file() and metrics.read_bytes().count(b"\n")):
                time.sleep(0.005)
            lines.append(time.perf_counter() - start)
            assert json.loads(metrics.read_text().splitlines()[0])["step"] == 20
            process.wait()
    print(f"first metrics line: {np.median(lines):.2f} s (most {max(lines):.2f})")
    print(f"gradkit check: {np.median(checks):.2f} s (most {max(checks):.2f})")


if __name__ == "__main__":
    for part in sys.argv[1:] or ("small", "fashion", "waiting"):
        {"small": small, "fashion": fashion, "waiting": waiting}[part]()
