"""What curvature at the price of a step costs: steps of each member beside those of AdamW.

    python benchmarks/second_order.py

All members take the same steps on the same data, at their default intervals, in one compiled loop,
gradient included; the figure is the time of a step over that of AdamW's. The state's size is in
trees like the parameters.
"""

from __future__ import annotations

import jax
import optax
from measure import compile_seconds, machine, medians

import gradkit as gk
from gradkit.runner import setting
from gradkit.runner.config import Config

STEPS = 20
ROUNDS = 5
TEXT = {
    "data": {"source": {"name": "python_text", "length": 64}},
    "model": {"name": "transformer", "layers": 2, "width": 64, "heads": 4},
}
TASKS = {
    "transformer of 2 layers, width 64, on 32 x 64 characters": TEXT | {"batch_size": 32},
    "the same on 128 x 64 characters": TEXT | {"batch_size": 128},
    "784-128-128-10 on 512 images": {
        "data": {"source": "fashion_mnist", "examples": 512},
        "model": {"hidden": (128, 128)},
        "batch_size": 512,
    },
}
AMORTIZED = ("gk.adamw", "gk.soap", "gk.shampoo", "gk.sophia")  # on large batches these alone
MEMBERS = {
    "gk.adamw": gk.adamw(1e-3),
    "optax.adamw": optax.adamw(1e-3),
    "gk.soap": gk.soap(1e-3),
    "gk.shampoo": gk.shampoo(1e-3),
    "optax.contrib.muon": optax.contrib.muon(1e-3),
    "gk.sophia": gk.sophia(1e-4),
    "gk.adahessian, every 1": gk.adahessian(1e-3),
    "gk.adahessian, every 10": gk.adahessian(1e-3, every=10),
    "gk.scale_by_sharpness": gk.scale_by_sharpness(0.1),
    "gk.sharpness_aware(adamw)": gk.sharpness_aware(gk.adamw(1e-3)),
    "gk.scale_by_quadratic_model": gk.scale_by_quadratic_model(100.0),
}


def steps(tx, task, batch):
    """A function of parameters and state that takes so many steps."""
    tx = optax.with_extra_args_support(tx)

    def one(number, carry):
        params, state = carry
        key = jax.random.fold_in(jax.random.key(0), number)
        curvature = gk.gauss_newton if "damping" in gk.metrics(state) else gk.hessian
        point = gk.observe(task.problem, params, batch, curvature, key=key)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return optax.apply_updates(params, updates), state

    return lambda *carry: jax.lax.fori_loop(0, STEPS, one, carry)


def trees(state, params):
    """How many trees like the parameters a state takes."""
    return optax.tree.size(state) / optax.tree.size(params)


def rows(config):
    made = setting.prepare(Config.model_validate(config | {"optimizer": {"name": "adam"}}))
    params = made.task.init(made.key)
    size = config["batch_size"]
    batch = jax.device_put({k: x[:size] for k, x in made.task.data.train.items()})
    compiled, compiling, held = {}, {}, {}
    for name, tx in MEMBERS.items():
        if size == 128 and name not in AMORTIZED:
            continue
        state = tx.init(params)
        held[name] = trees(state, params)
        function, compiling[name] = compile_seconds(steps(tx, made.task, batch), params, state)
        begun = function(params, state)  # the first bases are no part of an amortized step
        compiled[name] = lambda f=function, c=begun: f(*c)
    time = medians(compiled, rounds=ROUNDS, calls=1)
    for name in compiled:
        ratio = time[name] / time["gk.adamw"]
        yield (
            f"| {name} | {1e3 * time[name] / STEPS:.2f} ms | {ratio:.2f} | {held[name]:.1f} | "
            f"{compiling[name]:.1f} s |"
        )


def main():
    print(machine())
    for title, config in TASKS.items():
        print(f"\n{title}\n\n| member | a step | over AdamW's | state [trees] | compile |")
        print("|---|---|---|---|---|")
        for row in rows(config):
            print(row, flush=True)


if __name__ == "__main__":
    main()
