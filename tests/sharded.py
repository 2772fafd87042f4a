"""What `test_sharding` runs on eight virtual devices: python sharded.py MODE PART, with float64.

It prints a line for each thing that differs from one device, and "done".
"""

from __future__ import annotations

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk

OPTIMIZERS = [
    name
    for name in gk.__all__
    if gk._INDEX[name].startswith("gradkit.optimizers.") and not name.startswith("scale_by_")
]
WRAPPED = {
    "accumulate": lambda: gk.accumulate(gk.adam(0.1), 2),
    "average_params": lambda: gk.chain(gk.sgd(0.1), gk.average_params()),
    "clip_by_global_norm": lambda: gk.chain(gk.clip_by_global_norm(0.1), gk.adamw(0.1)),
    "lookahead": lambda: gk.lookahead(gk.adam(0.1)),
    "low_precision, bfloat16": lambda: gk.low_precision(gk.adam(0.1), min_size=8),
    "low_precision, int8": lambda: gk.low_precision(
        gk.adam(0.1), jnp.int8, block_size=4, min_size=8
    ),
    "master_weights": lambda: gk.master_weights(gk.adam(0.1)),
    "scale_by_sharpness": lambda: gk.scale_by_sharpness(0.5, every=2),
    "sharpness_aware": lambda: gk.sharpness_aware(gk.adam(0.1)),
    "soap, the quadratic model": lambda: gk.chain(
        gk.scale_by_soap(b1=0.0), gk.scale_by_quadratic_model()
    ),
}
WHOLE = ("newton", "bfgs", "shampoo", "soap", "soap, the quadratic model")
"""Those whose matrices are of whole leaves, or of all of them: they gather."""

SPECS = {"w": P("rows", "columns"), "t": P(None, "rows"), "b": P("columns"), "s": P()}
SHAPES = {"w": (8, 8), "t": (4, 8, 2), "b": (8,), "s": ()}
KEY = jax.random.key(1)


def scales():
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(np.exp(rng.normal(size=shape))) for name, shape in SHAPES.items()}


def begun():
    return jax.tree.map(lambda c: jnp.full_like(c, 0.5), scales())


def loss(params, batch):
    """Convex, with a coupling of all parameters, and no operation that would need a gather."""
    terms = jax.tree.map(lambda c, x: jnp.sum(c * (jax.nn.softplus(x) - 0.3 * x)), batch, params)
    total = sum(jax.tree.leaves(jax.tree.map(jnp.sum, params)))
    return sum(jax.tree.leaves(terms)) + 0.01 * total**2


def network(params, batch):
    """A network whose weights are gathered for its products, as with FSDP; a mean over examples."""
    hidden, last = (x if jax.typeof(x).sharding.mesh.empty else whole(x) for x in params)
    outputs = jnp.tanh(batch["x"] @ hidden) @ last
    return jnp.mean((outputs - batch["y"]) ** 2)


def whole(x):
    mesh = jax.typeof(x).sharding.mesh
    explicit = AxisType.Explicit in mesh.axis_types
    return jax.reshard(x, NamedSharding(mesh, P())) if explicit else x


def steps(tx, params, state, batch, shardings=None):
    """Three steps; the compiled step too."""

    def step(params, state, batch):
        point = gk.observe(loss, params, batch, gk.hessian, key=KEY)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, out_shardings=shardings)
    compiled = step.lower(params, state, batch).compile()
    for _ in range(3):
        params, state = step(params, state, batch)
    return params, state, compiled


def optimizers(mesh):
    put = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    making = {name: getattr(gk, name) for name in OPTIMIZERS} | WRAPPED
    for name, make in making.items():
        tx = make()
        expected, _, _ = steps(tx, begun(), tx.init(begun()), scales())
        with jax.set_mesh(mesh):
            params, batch = jax.device_put((begun(), scales()), (put, put))
            shardings = gk.state_shardings(tx, params)
            state = jax.jit(tx.init, out_shardings=shardings)(params)
            if explicit(mesh):  # they are part of the types, so that nobody has to ask
                yield from misplaced(f"{name}: init", jax.jit(tx.init)(params), shardings)
            asked = None if explicit(mesh) else (put, shardings)
            params, state, compiled = steps(tx, params, state, batch, asked)
        yield from misplaced(f"{name}: parameters", params, put)
        yield from misplaced(f"{name}: state", state, shardings)
        yield from apart(name, params, expected)
        found = set(re.findall(r"\w+\[([\d,]+)\]\S* all-gather", compiled.as_text()))
        shapes = [tuple(map(int, shape.split(","))) for shape in found]
        gathers = [shape for shape in shapes if np.prod(shape) >= SHAPES["b"][0]]
        if bool(gathers) != (name in WHOLE):
            yield f"{name}: gathers {gathers}"


def spectra(mesh):
    put = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}

    def operator(params, batch):
        return gk.hessian(loss, params, batch)

    quantities = {
        "eigsh": lambda *at: gk.eigsh(operator(*at), 3, key=KEY).values,
        "eigsh, restarted": lambda *at: gk.eigsh(operator(*at), 3, key=KEY, basis=12).values,
        "density": lambda *at: gk.density(operator(*at), key=KEY, probes=2, steps=10).nodes,
        "trace": lambda *at: gk.trace(operator(*at), key=KEY).value,
        "condition_number": lambda *at: gk.condition_number(operator(*at), key=KEY).lower,
        "frobenius_norm": lambda *at: gk.frobenius_norm(operator(*at), key=KEY).value,
        "logdet": lambda *at: gk.logdet(operator(*at) + 1.0, key=KEY).value,
        "diagonal": lambda *at: gk.diagonal(operator(*at), key=KEY).value,
        "cg": lambda *at: gk.cg(operator(*at) + 1.0, at[1]).x,
        "minres": lambda *at: gk.minres(operator(*at) + 1.0, at[1]).x,
        "dense": lambda *at: operator(*at).dense(),
        "spectrum": lambda *at: gk.spectrum(operator(*at), key=KEY).largest.values,
        "critical_point": lambda *at: (
            gk.critical_point(operator(*at), jax.grad(loss)(*at), key=KEY).gradient_norm
        ),
        "minimize": lambda *at: gk.minimize(lambda q: loss(q, at[1]), at[0], tol=1e-8).value,
    }
    for name, quantity in quantities.items():
        expected = quantity(begun(), scales())
        with jax.set_mesh(mesh):
            got = quantity(*jax.device_put((begun(), scales()), (put, put)))
        yield from apart(name, got, expected)


def networks(mesh):
    """Weights split over both axes and examples over one: products and steps."""
    keys = jax.random.split(KEY, 4)
    params = jax.random.normal(keys[0], (8, 16)) / 3, jax.random.normal(keys[1], (16, 2)) / 4
    batch = {"x": jax.random.normal(keys[2], (64, 8)), "y": jax.random.normal(keys[3], (64, 2))}
    split = NamedSharding(mesh, P("rows", "columns"))
    examples = NamedSharding(mesh, P("rows"))

    def after(tx, params, batch):
        def step(params, state):
            point = gk.observe(network, params, batch, gk.hessian, key=KEY)
            updates, state = tx.update(point.grad, state, params, **point.extras)
            return optax.apply_updates(params, updates), state

        state = tx.init(params)
        for _ in range(3):
            params, state = jax.jit(step)(params, state)
        return params

    quantities = {
        "gradient": lambda *at: jax.grad(network)(*at),
        "eigsh": lambda *at: gk.eigsh(gk.hessian(network, *at), 2, key=KEY).values,
        "adam": lambda *at: after(gk.adam(0.1), *at),
        "newton_cg": lambda *at: after(gk.newton_cg(), *at),
        "trust_region": lambda *at: after(gk.trust_region(), *at),
        "lbfgs": lambda *at: after(gk.lbfgs(), *at),
    }
    for name, quantity in quantities.items():
        expected = quantity(params, batch)
        with jax.set_mesh(mesh):
            at = jax.device_put((params, batch), ((split, split), {"x": examples, "y": examples}))
            got = quantity(*at)
        yield from apart(name, got, expected)


def explicit(mesh):
    return AxisType.Explicit in mesh.axis_types


def misplaced(what, got, shardings):
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(shardings), strict=True)
    for (path, x), wanted in pairs:
        if not x.sharding.is_equivalent_to(wanted, x.ndim):
            yield f"{what}: {jax.tree_util.keystr(path)} is {x.sharding.spec}, not {wanted.spec}"


def apart(what, got, expected):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if not np.allclose(x, y, rtol=1e-7, atol=1e-9):
            yield f"{what}: {np.max(np.abs(x - y)):.1e} apart"


def main(mode, part):
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(getattr(AxisType, mode),) * 2)
    for failure in globals()[part](mesh):
        print(failure, flush=True)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
