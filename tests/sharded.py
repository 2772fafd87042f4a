"""What `test_sharding` runs on eight virtual devices: python sharded.py MODE PART, with float64.

It prints a line for each thing that differs from one device, and "done".
"""

from __future__ import annotations

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.runner.catalog import catalog

OPTIMIZERS = [
    name
    for name in gk.__all__
    if gk._INDEX[name].startswith("gradkit.optimizers.") and not name.startswith("scale_by_")
]
GIVEN = {
    **dict.fromkeys(("inner", "fast_optimizer"), gk.adam(0.1)),
    **dict.fromkeys(("clipping", "max_delta", "max_norm", "learning_rate", "eta", "gamma"), 0.1),
    "every": 2,
    "decay": 0.9,
    "mask": "w",
    "transforms": {"few": gk.adam(0.1), "more": gk.sgd(0.1)},
    "param_labels": {"w": "few", "t": "more", "b": "more", "c": "few", "s": "few"},
}
"""The arguments that transformations must be given."""
WRAPPED = {
    "adaptive_grad_clip of stacked layers": lambda: gk.chain(
        gk.adaptive_grad_clip(0.1, stacked={"w": 0, "t": 1}), gk.sgd(0.1)
    ),
    "clip_by_leaf_norm of stacked layers": lambda: gk.chain(
        gk.clip_by_leaf_norm(0.1, stacked={"w": 0, "t": 1}), gk.sgd(0.1)
    ),
    "masked": lambda: gk.masked(gk.adam(0.1), "w", unselected="zero"),
    "average_params in a chain": lambda: gk.chain(gk.sgd(0.1), gk.average_params()),
    "clip_by_global_norm in a chain": lambda: gk.chain(gk.clip_by_global_norm(0.1), gk.adamw(0.1)),
    "low_precision, bfloat16": lambda: gk.low_precision(gk.adam(0.1), min_size=8),
    "low_precision, int8": lambda: gk.low_precision(
        gk.adam(0.1), jnp.int8, block_size=4, min_size=8
    ),
    "scale_by_quadratic_model": lambda: gk.chain(
        gk.scale_by_soap(b1=0.0), gk.scale_by_quadratic_model()
    ),
}
WHOLE = ("newton", "bfgs", "shampoo", "soap", "scale_by_quadratic_model", "stack_small_leaves")
"""Those whose matrices or stacks are of whole leaves, or of all of them: they gather."""

SPECS = {
    "w": P("rows", "columns"),
    "t": P(None, "rows"),
    "b": P("columns"),
    "c": P("rows"),
    "s": P(),
}
SHAPES = {"w": (8, 8), "t": (4, 8, 2), "b": (16,), "c": (16,), "s": ()}
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


def outputs(params, batch):
    """Of a network whose weights are gathered for its products, as with FSDP."""
    hidden, last = map(whole, params)
    return jnp.tanh(batch["x"] @ hidden) @ last


def squared(outputs, batch):
    return jnp.mean((outputs - batch["y"]) ** 2)


NETWORK = gk.Problem(predict=outputs, criterion=squared)
network = NETWORK.value


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
    yield from updates(mesh, {name: getattr(gk, name) for name in OPTIMIZERS})


def transforms(mesh):
    """Every link in `gradkit.transforms`, as the catalog knows them."""
    links = {
        entry.name: functools.partial(
            getattr(gk, entry.name),
            **{p.name: GIVEN[p.name] for p in entry.parameters if p.required},
        )
        for entry in catalog().values()
        if entry.kind == "transformation"
        and gk._INDEX.get(entry.name, "").startswith("gradkit.transforms.")
    }
    yield from updates(mesh, links | WRAPPED)


def updates(mesh, making):
    put = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
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
        large = gathers(compiled)
        if bool(large) != (name in WHOLE):
            yield f"{name}: gathers {large}"


def gathers(compiled):
    """The shapes of parameters' size that a compiled function gathers."""
    found = set(re.findall(r"\w+\[([\d,]+)\]\S* all-gather", compiled.as_text()))
    shapes = [tuple(map(int, shape.split(","))) for shape in found]
    return [shape for shape in shapes if np.prod(shape) >= SHAPES["b"][0]]


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
    yield from compared(mesh, quantities, (begun(), scales()), (put, put))
    with jax.set_mesh(mesh):
        at = jax.device_put((begun(), scales()), (put, put))
        product = jax.jit(lambda p, b, v: operator(p, b) @ v, out_shardings=put)
        compiled = product.lower(*at, at[0]).compile()
    if large := gathers(compiled):
        yield f"product: gathers {large}"


def split_network(mesh):
    """Parameters and batch of a network; weights split over both axes and examples over one."""
    keys = jax.random.split(KEY, 4)
    params = jax.random.normal(keys[0], (8, 16)) / 3, jax.random.normal(keys[1], (16, 2)) / 4
    batch = {"x": jax.random.normal(keys[2], (64, 8)), "y": jax.random.normal(keys[3], (64, 2))}
    split, examples = NamedSharding(mesh, P("rows", "columns")), NamedSharding(mesh, P("rows"))
    return (params, batch), ((split, split), {"x": examples, "y": examples})


def networks(mesh):
    """Gradient, products and steps."""
    single, shardings = split_network(mesh)

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
    yield from compared(mesh, quantities, single, shardings)


def curvatures(mesh):
    """Every operator, and what is made of several."""
    single, shardings = split_network(mesh)
    operators = {
        "hessian": gk.hessian,
        "gauss_newton": gk.gauss_newton,
        **{
            f"fisher, {name}": functools.partial(gk.fisher, key=KEY, likelihood=name)
            for name in ("normal", "bernoulli", "categorical")
        },
        "empirical_fisher": gk.empirical_fisher,
        "micro_batched": gk.micro_batched(gk.hessian, 16),
        "streamed": lambda f, p, B: gk.streamed(gk.hessian)(f, p, [B, jax.tree.map(jnp.cos, B)]),
    }
    quantities = {
        name: lambda *at, build=build: build(NETWORK, *at) @ at[0]
        for name, build in operators.items()
    } | {
        "fisher_diagonal": lambda *at: gk.fisher_diagonal(
            NETWORK, *at, key=KEY, likelihood="categorical"
        ),
        "empirical_fisher_diagonal": lambda *at: gk.empirical_fisher_diagonal(NETWORK, *at),
        "blocks": lambda *at: [
            gk.eigsh(B, 1, key=KEY).values for B in gk.blocks(gk.hessian(NETWORK, *at)).values()
        ],
        "block_diagonal": lambda *at: gk.block_diagonal(gk.hessian(NETWORK, *at)) @ at[0],
        "check_operator": lambda *at: gk.check_operator(gk.hessian(NETWORK, *at), key=KEY).ok,
        "taylor_check": lambda *at: (
            gk.taylor_check(
                lambda q: network(q, at[1]),
                gk.hessian(NETWORK, *at),
                jax.grad(network)(*at),
                at[0],
                learning_rates=[0.1],
            ).actual
        ),
        "least_squares": lambda *at: (
            gk.least_squares(lambda q: outputs(q, at[1]) - at[1]["y"], at[0], max_steps=3).value
        ),
        "memory_limit": lambda *at: (
            gk.spectrum(gk.hessian(NETWORK, *at), key=KEY, memory_limit=1e6, top=2).largest.values
        ),
        "on_host": lambda *at: (
            gk.eigsh(gk.hessian(NETWORK, *at), 2, key=KEY, drive=gk.on_host).values
        ),
    }
    yield from compared(mesh, quantities, single, shardings)
    with jax.set_mesh(mesh):
        A = gk.hessian(NETWORK, *jax.device_put(single, shardings))
        told = gk.spectrum(A, key=KEY, probes=0, memory_limit=1e6).memory
    one, rows = (told.bytes - told.product) / 8, told.basis.size
    parts = 8 if explicit(mesh) else 1  # in Auto mode the vectors are counted as if whole
    if not rows + 1 <= one / (A.dimension / parts) <= 2 * rows + 60:
        yield f"memory_limit: {told} for {A.dimension} numbers in {parts} parts"


def compared(mesh, quantities, single, shardings):
    for name, quantity in quantities.items():
        expected = quantity(*single)
        with jax.set_mesh(mesh):
            got = quantity(*jax.device_put(single, shardings))
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
