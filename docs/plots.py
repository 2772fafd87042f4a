"""The figures of docs/methods, of gradkit's own numbers: `python docs/plots.py` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import gradkit as gk
from gradkit.report.palette import AMBER, BLUE, GRAY, GREEN, PINK, RED, SKY
from gradkit.report.svg import INK, drawing, to_svg

FOLDER = Path(__file__).parent / "methods"
PAPER, TEXT = "#ffffff", "#1b1f24"
BOX = {"frameon": True, "facecolor": PAPER, "edgecolor": "none", "framealpha": 1}
DASHED, DOTTED = (0, (4, 3)), (0, (2, 3))


def momentum() -> Figure:
    """Left: a rate that falls, in two conventions. Right: two forms of Nesterov's method."""
    figure = Figure(figsize=(8.4, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)

    fall = 14
    rate = gk.step_decay(0.05, (fall,), 0.1)

    def slope(theta):
        return 0.1 * theta**2

    forms = {
        "heavy_ball": (BLUE, gk.sgd(rate, 0.9)),
        "velocity": (RED, gk.velocity(rate, 0.9)),
    }
    for name, (color, tx) in forms.items():
        theta, _ = path(tx, slope, jnp.float32(1.0), 80)
        left.plot(theta, color=color, label=f"gk.{name}")
    left.axhline(0, color=INK, linewidth=0.6)
    left.axvline(fall, color=GRAY, linewidth=0.8, linestyle=DASHED)
    left.annotate("rate × 0.1", (fall, 0.97), xytext=(4, 0), textcoords="offset points", fontsize=8)
    left.set(xlabel="step", ylabel="θ [param]")
    left.set_title("When the rate falls, velocity coasts on,\nheavy_ball slows down at once")
    left.legend()

    scales = jnp.array([1.0, 25.0])

    def ravine(theta):
        return jnp.sum(scales * theta**2) / 2

    start, eta, mu = jnp.array([-1.6, 0.6]), 0.02, 0.8
    one, _ = path(gk.sgd(eta, mu, nesterov=True), ravine, start, 30)
    true, states = path(gk.nesterov(eta, mu), ravine, start, 30)
    ahead = true + mu * states.velocity
    contours(right, ravine, (-1.75, 0.35), (-0.42, 0.72))
    right.plot(*one.T, color=BLUE, label="gk.sgd(nesterov=True): θ")
    right.plot(*true.T, color=RED, label="gk.nesterov: θ")
    style = {"marker": "o", "markersize": 4.5, "markerfacecolor": "none", "linestyle": "none"}
    right.plot(*ahead.T, color=GREEN, label="gk.nesterov: θ + μv", **style)
    right.plot(0, 0, marker="+", color=INK, markersize=8)
    right.set(xlabel="θ₁ [param]", ylabel="θ₂ [param]")
    right.grid(visible=False)
    right.set_title("The points nesterov looks ahead to are\nthe path of the one-evaluation form")
    right.legend(**BOX)
    return figure


def adaptive() -> Figure:
    """The step per unit of rate: in the first steps, and after the gradient has fallen."""
    figure = Figure(figsize=(8.4, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)

    adam = gk.scale_by_adam
    corrected = gk.scale_by_rms(bias_correction=True)
    shown = {
        "Adam, no bias correction": (BLUE, "-", adam(bias_correction=False)),
        "Adam": (BLUE, DASHED, adam()),
        "RMSProp (no bias correction)": (RED, "-", gk.scale_by_rms()),
        "RMSProp, bias correction": (RED, DOTTED, corrected),
    }
    for name, (color, dashes, tx) in shown.items():
        u = updates(tx, jnp.ones(1000))
        left.plot(1 + np.arange(1000), u, color=color, linestyle=dashes, label=name)
    left.set(xlabel="step", ylabel="step / η", xscale="log", ylim=(0, 9.9))
    left.set_title("Without bias correction the first steps\nare up to 6.6 times as long (g = 1)")
    left.legend(loc="upper right")

    before, after = 2000, 20_000
    gradient = jnp.where(jnp.arange(before + after) < before, 1.0, 0.01)
    shown = {
        "RMSProp, ρ 0.9": (RED, gk.scale_by_rms()),
        "Adam, β₂ 0.99": (SKY, adam(b2=0.99)),
        "Adam, β₂ 0.999": (BLUE, adam()),
        "AdaGrad": (GREEN, gk.scale_by_rss(0.0)),
    }
    kept = np.unique(np.geomspace(1, after, 160).astype(int))
    for name, (color, tx) in shown.items():
        u = updates(tx, gradient)
        right.plot(kept, u[before + kept - 1] / u[before - 1], color=color, label=name)
    right.set(xlabel="steps since the fall", ylabel="step / step before the fall")
    right.set(xscale="log", yscale="log", ylim=(2.2e-3, 1.4))
    right.set_title(
        "After the gradient falls from 1 to 0.01,\nthe memory of g² sets how long it takes"
    )
    right.legend(loc="lower center", ncols=2)
    return figure


def clipping() -> Figure:
    """Left: norms before and after each clip. Right: descent onto a cliff."""
    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)

    rng = np.random.default_rng(2)
    params = {"kernel": rng.normal(size=(8, 4)) / np.sqrt(8), "bias": np.zeros(4)}
    params = jax.tree.map(jnp.float32, params)
    sizes = 0.15 * rng.standard_t(1.5, size=32)
    draws = {
        name: jnp.float32(sizes.reshape(-1, *[1] * p.ndim) * rng.normal(size=(32, *p.shape)))
        for name, p in params.items()
    }
    clips = {
        "clip_by_leaf_norm(1.0)": (RED, "s", gk.clip_by_leaf_norm(1.0)),
        "clip(1.0)": (GREEN, "^", gk.clip(1.0)),
        "adaptive_grad_clip(0.1)": (PINK, "v", gk.adaptive_grad_clip(0.1)),
        "clip_by_global_norm(1.0)": (BLUE, "o", gk.clip_by_global_norm(1.0)),
    }
    norms = jax.vmap(optax.global_norm)
    lengths = norms(draws)
    left.plot([0.05, 30], [0.05, 30], color=GRAY, linewidth=0.8, linestyle=DASHED)
    left.annotate(
        "unchanged", (12, 12), xytext=(-6, 0), textcoords="offset points", ha="right", fontsize=8
    )
    for name, (color, marker, tx) in clips.items():
        clipped = jax.vmap(lambda g, tx=tx: tx.update(g, tx.init(params), params)[0])(draws)
        style = {"linestyle": "none", "markersize": 3.6, "markeredgewidth": 0.8}
        left.plot(
            lengths,
            norms(clipped),
            marker=marker,
            color=color,
            label=name,
            markerfacecolor="none",
            **style,
        )
    left.set(xscale="log", yscale="log", xlim=(0.05, 30), ylim=(0.05, 30))
    left.set(xlabel="norm before [loss/param]", ylabel="norm after [loss/param]")
    left.set_title("Only the global norm bounds\nthe whole gradient by the number given")
    left.legend(loc="upper left", **BOX)
    _cliff(right)
    return figure


def _cliff(axes) -> None:
    """The error of one recurrent unit after 50 steps: Pascanu, Mikolov & Bengio (2013), fig. 6."""

    def error(theta):
        w, b = theta
        x, _ = jax.lax.scan(lambda x, _: (w * jax.nn.sigmoid(x) + b, None), 0.5, length=50)
        return (jax.nn.sigmoid(x) - 0.7) ** 2

    start, steps = jnp.array([4.8, -2.0]), 40
    runs = {
        "no clipping": (RED, gk.sgd(0.5)),
        "clip_by_global_norm(0.2)": (BLUE, gk.chain(gk.clip_by_global_norm(0.2), gk.sgd(0.5))),
    }
    contours(axes, error, (4.1, 5.0), (-2.5, -1.6))
    for name, (color, tx) in runs.items():
        theta, _ = path(tx, error, start, steps)
        axes.plot(*theta.T, color=color, label=name, marker="o", markersize=2.5, linewidth=1)
        if name == "no clipping":
            out = theta[np.argmax(theta[:, 0])]
    axes.annotate(f"to ({out[0]:.1f}, {out[1]:.1f})", (4.705, -1.83), fontsize=8)
    axes.set(xlabel="w [param]", ylabel="b [param]")
    axes.grid(visible=False)
    axes.set_title("At the edge of a cliff one plain step\nleads far away, clipped ones stay near")
    axes.legend(loc="upper left", **BOX)


def decay() -> Figure:
    """The weights that a penalty leaves of a least-squares fit, for each strength of it."""
    figure = Figure(figsize=(8.8, 3.7), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)

    rng = np.random.default_rng(0)
    X = jnp.float32(np.linalg.qr(rng.normal(size=(40, 5)))[0])
    z = jnp.array([2.0, -1.4, 0.9, -0.5, 0.2])
    y = X @ z
    colors = (BLUE, RED, GREEN, PINK, AMBER)

    def loss(theta):
        return jnp.sum((X @ theta - y) ** 2) / 2

    falling = gk.warmup_linear(0.02, 1500)
    adam, rate, decayed = (
        gk.scale_by_adam(b2=0.9),
        gk.scale_by_learning_rate,
        gk.add_decayed_weights,
    )
    rules = {
        "L2 before Adam: all weights\nby one factor, none to zero": (
            "weight_decay",
            gk.chain(decayed(0.0), adam, rate(falling)),
        ),
        "Decoupled (AdamW): cuts off the\nlargest at 1/w, leaves the others": (
            "weight_decay",
            gk.adamw(falling, b2=0.9, weight_decay=0.0),
        ),
        "L1 by a proximal step:\none after the other to exact zero": (
            "l1",
            gk.proximal_step(0.5),
        ),
    }
    strengths = jnp.linspace(0, 2.2, 45)
    for axes, (title, (name, tx)) in zip(panels, rules.items(), strict=True):

        def fitted(strength, tx=tx, name=name):
            state = gk.set_hyperparams(tx.init(z), **{name: strength})
            return path(tx, loss, jnp.zeros(5), 1500, state)[0][-1]

        weights = np.asarray(jax.jit(jax.vmap(fitted))(strengths))
        for i, color in enumerate(colors):
            axes.plot(strengths, weights[:, i], color=color, label=f"θ{'₁₂₃₄₅'[i]}")
            zeros = np.flatnonzero(weights[:, i] == 0)
            if name == "l1" and zeros.size:
                axes.plot(strengths[zeros[0]], 0, marker="o", color=color, markersize=4)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("λ₁ [loss/param]" if name == "l1" else "w")
    panels[0].set_ylabel("weight [param]")
    panels[0].set_xlabel("w [loss/param²]")
    panels[1].set_xlabel("w [1/param]")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def schedules() -> Figure:
    """Every schedule, 100 steps of each."""
    k = np.arange(121)
    rise = {"warmup": 15, "start": 0.1}
    table = {
        "warmup_linear": {"": gk.warmup_linear(1.0, 100, **rise)},
        "warmup_cosine": {"": gk.warmup_cosine(1.0, 100, **rise)},
        "warmup_polynomial": {
            "power=2": gk.warmup_polynomial(1.0, 100, **rise),
            "power=0.5": gk.warmup_polynomial(1.0, 100, power=0.5, **rise),
        },
        "warmup_exponential": {"": gk.warmup_exponential(1.0, 100, **rise, end=0.01)},
        "warmup_inverse_sqrt": {"": gk.warmup_inverse_sqrt(1.0, **rise)},
        "warmup_inverse_time": {"": gk.warmup_inverse_time(1.0, 15, **rise)},
        "warmup_stable_decay": {"": gk.warmup_stable_decay(1.0, 100, decay=30, **rise)},
        "one_cycle": {"": gk.one_cycle(1.0, 100)},
        "step_decay": {
            "at=(40, 80)": gk.step_decay(1.0, (40, 80), 0.1),
            "every=20": gk.step_decay(1.0, every=20, factor=0.5),
        },
        "warm_restarts": {
            "period=30": gk.warm_restarts(1.0, 30),
            "multiplier=2": gk.warm_restarts(1.0, 15, 2.0),
        },
        "scaled_by_batch_size": {
            "256 examples": gk.warmup_cosine(0.5, 100, **(rise | {"start": 0.05})),
            "512 examples": gk.scaled_by_batch_size(
                gk.warmup_cosine(0.5, 100, **(rise | {"start": 0.05})), 512
            ),
        },
    }
    figure = Figure(figsize=(8.8, 5.6), layout="constrained")
    panels = figure.subplots(3, 4, sharex=True, sharey=True)
    for axes, (name, rates) in zip(panels.flat, table.items(), strict=False):
        jumps = name in ("step_decay", "warm_restarts")
        at = k if jumps else np.union1d(k[::3], [70, 97, 98, 99, 100])
        for color, (label, rate) in zip((BLUE, RED), rates.items(), strict=False):
            style = {
                "linewidth": 1.3,
                "drawstyle": "steps-post" if name == "step_decay" else "default",
            }
            axes.plot(at, np.asarray(rate(at)), color=color, label=label, **style)
        axes.set_title(name)
        if len(rates) > 1:
            axes.legend()
    axes = panels.flat[-1]
    values = jnp.float32(0.3 + np.exp(-k / 8))
    tx = gk.reduce_on_plateau(factor=0.5, patience=10, rtol=0.01)
    scales = updates(tx, jnp.ones(121), values)
    axes.plot(k[::3], values[::3], color=GRAY, label="value", linewidth=1.3)
    axes.plot(k, scales, color=BLUE, label="scale", linewidth=1.3, drawstyle="steps-post")
    axes.set_title("reduce_on_plateau")
    axes.legend()
    axes.set(ylim=(0, 1.55), xlim=(0, 120), xticks=(0, 50, 100))
    for axes in panels[-1]:
        axes.set_xlabel("step")
    for axes in panels[:, 0]:
        axes.set_ylabel("value / peak")
    title = "Six schedules end after the steps given, here 100; the others go on"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def composition() -> Figure:
    """Steps of 1e-4 on bfloat16 parameters near 1, where neighbors are 2⁻⁸ apart."""
    figure = Figure(figsize=(8.4, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, count, small = 1000, 500, gk.sgd(1e-4)
    rules = {
        "plain bfloat16": (RED, small),
        "master_weights": (BLUE, gk.master_weights(small)),
        "stochastic_rounding": (GREEN, gk.chain(small, gk.stochastic_rounding(0))),
    }
    slopes = jnp.linspace(0.5, 1.5, count + 1)  # the steps of each parameter are of another size

    def loss(theta):
        return jnp.sum(slopes * theta)

    exact, _ = path(small, loss, jnp.ones(count + 1), steps)
    k = np.arange(steps + 1)
    left.plot(k, exact[:, count // 2], color=GRAY, label="float32", linewidth=1, zorder=3)
    for name, (color, tx) in rules.items():
        theta, _ = path(tx, loss, jnp.ones(count + 1, jnp.bfloat16), steps)
        left.plot(k, theta[:, count // 2], color=color, label=name, linewidth=1.2)
        if name == "stochastic_rounding":
            others = theta[:, count // 2 + np.array([-2, -1, 1, 2])]
            left.plot(k, others, color=color, linewidth=0.5, alpha=0.8)
        error = np.sqrt(np.mean((theta - exact) ** 2, axis=1))
        kept = np.unique(np.geomspace(1, steps, 120).astype(int))
        right.plot(kept, error[kept], color=color, label=name)
    left.set(xlabel="step", ylabel="parameter [param]")
    left.set_title("Steps of 1e-4 are lost in bfloat16,\nunless kept or drawn")
    left.legend()
    style = {"color": GRAY, "linewidth": 0.8, "linestyle": DASHED}
    right.axhline(2**-9, label="half a unit in the last place", **style)
    right.set(xscale="log", yscale="log", xlabel="step")
    right.set_ylabel("RMS distance from float32 [param]")
    right.set_title("Master weights stay within half a unit;\nrandom rounding strays like √steps")
    right.legend()
    return figure


def path(tx, loss: Callable, start, steps: int, state=None) -> tuple:
    """The parameters before each step and after the last, in float32, and the states with them."""

    def step(carry, _):
        params, state = carry
        point = gk.observe(lambda p, _: loss(p).astype(jnp.float32), params, None)
        u, state = tx.update(point.grad, state, params, **point.extras)
        carry = optax.apply_updates(params, u), state
        return carry, carry

    first = start, tx.init(start) if state is None else state
    rest = jax.lax.scan(step, first, length=steps)[1]
    params, states = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, rest)
    return params.astype(jnp.float32), states


def updates(tx, gradients: jax.Array, values: jax.Array | None = None) -> np.ndarray:
    """What the transformation makes of each of the gradients, all of one parameter."""

    def step(state, given):
        g, value = given
        u, state = tx.update(g, state, jnp.float32(0), value=value)
        return state, u

    given = gradients, gradients if values is None else values
    return np.asarray(jax.lax.scan(step, tx.init(gradients[0]), given)[1])


def contours(axes, loss: Callable, x: tuple, y: tuple) -> None:
    """Level lines of a loss of two parameters."""
    grid = np.meshgrid(np.linspace(*x, 45), np.linspace(*y, 45))
    heights = jax.vmap(jax.vmap(loss))(jnp.stack(jnp.float32(grid), axis=-1))
    axes.contour(*grid, np.asarray(heights), 10, colors=GRAY, linewidths=0.5, alpha=0.7)
    axes.set(xlim=x, ylim=y)


def write(*figures: Callable[[], Figure]) -> None:
    """Writes each figure under its name, in ink on white paper, whatever the page around it."""
    for figure in figures:
        (FOLDER / f"{figure.__name__}.svg").write_text(_drawn(figure), "utf-8")


def _drawn(figure: Callable[[], Figure]) -> str:
    name = figure.__name__
    with drawing(name, math=True):
        text = to_svg(figure(), name)
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    text = text.replace('<svg style="', f'<svg style="color: {TEXT}; ', 1)
    opening = text.index(">", text.index("<svg")) + 1
    paper = f'\n<rect width="100%" height="100%" fill="{PAPER}"/>'
    return text[:opening] + paper + text[opening:].rstrip() + "\n"


if __name__ == "__main__":
    write(momentum, adaptive, clipping, decay, schedules, composition)
