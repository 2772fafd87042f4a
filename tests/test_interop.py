"""Each recipe of docs/interop.md runs, and does what the page says of it."""

from __future__ import annotations

import functools
import pickle
import re
import runpy
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import errors, nnx, serialization
from flax import linen as nn
from flax.training.train_state import TrainState
from orbax.checkpoint import v1 as ocp

import gradkit as gk

PAGE = (Path(__file__).parents[1] / "docs" / "interop.md").read_text("utf-8")


def recipes():
    """Every Python block of the page, with the heading that it stands under."""
    found, heading = [], ""
    for part in re.split(
        r"^(#+ [^\n]*\n|```python\n.*?^```)", PAGE, flags=re.MULTILINE | re.DOTALL
    ):
        if part.startswith("#"):
            heading = part.strip("# \n")
        elif part.startswith("```python"):
            found.append(pytest.param(part[10:-3], id=heading.replace(" ", "-")))
    return found


@pytest.mark.flow
@pytest.mark.parametrize("recipe", recipes())
def test_a_recipe_runs(recipe, tmp_path):
    script = tmp_path / "recipe.py"
    script.write_text(recipe, "utf-8")
    names = runpy.run_path(str(script))
    assert "gk" in names
    assert "assert " in recipe


def test_the_page_has_its_recipes_and_links_to_them():
    assert len(recipes()) == PAGE.count("```python") == 21
    headings = re.findall(r"^##+ (.*)$", re.sub(r"(?s)```.*?```", "", PAGE), re.MULTILINE)
    anchors: list[str] = []
    for heading in headings:
        anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        anchors.append(f"{anchor}-1" if anchor in anchors else anchor)
    assert re.findall(r"\(#(.*?)\)", PAGE) == anchors


# One small network, written four times.

KEYS = jax.random.split(jax.random.key(0), 3)
START = {
    "hidden": {"bias": jnp.zeros(8), "kernel": jax.random.normal(KEYS[0], (3, 8)) / 2},
    "out": {"bias": jnp.zeros(1), "kernel": jax.random.normal(KEYS[1], (8, 1)) / 4},
}
X = jax.random.normal(KEYS[2], (64, 3))
BATCH = (X, jnp.sin(X.sum(1, keepdims=True)))
STEPS = 8


def double(tree):
    """The tree in float64, where rounding is too small to end a solve or a search a step later."""
    return jax.tree.map(lambda x: jnp.asarray(x, "float64"), tree)


def network(params, x):
    h = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return h @ params["out"]["kernel"] + params["out"]["bias"]


def loss(params, batch):
    x, y = batch
    return jnp.mean((network(params, x) - y) ** 2)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 8, rngs=rngs)
        self.out = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.hidden(x)))


def nnx_model(start=START):
    model = Nnx(nnx.Rngs(0))
    nnx.update(model, nnx.State(start))
    return model


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = jnp.tanh(nn.Dense(8, name="hidden")(x))
        return nn.Dense(1, name="out")(h)


class Equinox(eqx.Module):
    hidden: eqx.nn.Linear
    out: eqx.nn.Linear
    activation: Any  # a leaf that is no array

    def __call__(self, x):
        return self.out(self.activation(self.hidden(x)))


def plain_training(tx, start=START, batch=BATCH):
    @jax.jit
    def step(params, state):
        point = gk.observe(loss, params, batch, gk.hessian)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return optax.apply_updates(params, updates), state

    params, state = start, tx.init(start)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params


def nnx_step(model, optimizer, batch=BATCH):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def nnx_loss(params, batch):
        x, y = batch
        return jnp.mean((nnx.merge(graphdef, params, rest, copy=True)(x) - y) ** 2)

    point = gk.observe(nnx_loss, params, batch, gk.hessian)
    optimizer.update(model, point.grad, **point.extras)
    return point.value


def nnx_training(tx, start=START, batch=BATCH):
    model = nnx_model(start)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    step = nnx.jit(nnx_step)
    for _ in range(STEPS):
        step(model, optimizer, batch)
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def linen_training(tx, start=START, batch=BATCH):
    model = Linen()

    def linen_loss(params, batch):
        x, y = batch
        return jnp.mean((model.apply({"params": params}, x) - y) ** 2)

    @jax.jit
    def step(train_state):
        point = gk.observe(linen_loss, train_state.params, batch, gk.hessian)
        return gk.apply_gradients(train_state, point)

    train_state = TrainState.create(apply_fn=model.apply, params=start, tx=tx)
    for _ in range(STEPS):
        train_state = step(train_state)
    assert train_state.step == STEPS
    return train_state.params


def equinox_training(tx, start=START, batch=BATCH):
    def layer(name):
        kernel, bias = start[name]["kernel"], start[name]["bias"]
        linear = eqx.nn.Linear(*kernel.shape, key=jax.random.key(0))
        return eqx.tree_at(lambda m: (m.weight, m.bias), linear, (kernel.T, bias))

    @eqx.filter_jit
    def step(model, state):
        params, static = eqx.partition(model, eqx.is_inexact_array)

        def equinox_loss(params, batch):
            x, y = batch
            return jnp.mean((jax.vmap(eqx.combine(params, static))(x) - y) ** 2)

        point = gk.observe(equinox_loss, params, batch, gk.hessian)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return eqx.apply_updates(model, updates), state

    model = Equinox(layer("hidden"), layer("out"), jnp.tanh)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    for _ in range(STEPS):
        model, state = step(model, state)
    return {
        name: {"kernel": getattr(model, name).weight.T, "bias": getattr(model, name).bias}
        for name in start
    }


FIRST_ORDER = gk.chain(gk.clip_by_global_norm(1.0), gk.adamw(1e-2))


@pytest.mark.slow
@pytest.mark.parametrize("tx", [FIRST_ORDER, gk.newton_cg()], ids=["adamw", "newton_cg"])
def test_every_library_trains_to_the_same_parameters(tx):
    with jax.enable_x64(True):
        start, batch = double((START, BATCH))
        expected = plain_training(tx, start, batch)
        assert loss(expected, batch) < 0.9 * loss(start, batch)
        for training in (nnx_training, linen_training, equinox_training):
            assert_close(training(tx, start, batch), expected, atol=1e-10)


def assert_close(found, expected, atol):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol), found, expected)


@pytest.mark.slow
def test_linens_own_apply_gradients_serves_the_first_order():
    train_state = TrainState.create(apply_fn=None, params=START, tx=FIRST_ORDER)
    for _ in range(STEPS):
        grads = jax.grad(loss)(train_state.params, BATCH)
        train_state = train_state.apply_gradients(grads=grads)
    assert_close(train_state.params, plain_training(FIRST_ORDER), atol=1e-5)
    assert train_state.opt_state.step == STEPS


def test_linens_own_apply_gradients_drops_what_newton_needs():
    train_state = TrainState.create(apply_fn=None, params=START, tx=gk.newton_cg())
    with pytest.raises(TypeError, match="scale_by_newton_cg needs the extra argument 'curvature'"):
        train_state.apply_gradients(grads=START)


# Batch norm and dropout


class Difference(NamedTuple):
    at_zero: jax.Array


def compare_values():
    """A member that evaluates the loss where it was observed, as a line search would at α = 0."""

    def update(updates, state, params=None, *, value, value_fn, **extra):
        return updates, Difference(value_fn(params) - value)

    return optax.GradientTransformationExtraArgs(lambda params: Difference(jnp.ones(())), update)


SEARCHED = {
    "newton_cg": gk.chain(spy=compare_values(), search=gk.newton_cg()),
    "line_search": gk.chain(spy=compare_values(), adam=gk.scale_by_adam(), search=gk.line_search()),
}


class Noisy(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.out = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(jnp.tanh(self.norm(self.hidden(x)))))


def noisy_step(model, optimizer, copy):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def noisy_loss(params, batch):
        x, y = batch
        frozen = nnx.merge(graphdef, params, rest, copy=copy)
        value = jnp.mean((frozen(x) - y) ** 2)
        return value, nnx.state(frozen, nnx.Not(nnx.Param))

    problem = gk.Problem(noisy_loss, has_aux=True)
    point = gk.observe(problem, params, BATCH, gk.hessian)
    optimizer.update(model, point.grad, **point.extras)
    nnx.update(model, point.aux)


@pytest.mark.parametrize("name", SEARCHED)
def test_nnx_frozen_copies_give_the_search_the_value_observed(name):
    model, reference = Noisy(nnx.Rngs(0)), Noisy(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, SEARCHED[name], wrt=nnx.Param)
    step = nnx.jit(noisy_step, static_argnums=2)
    reference(X)  # one evaluation, however often the search evaluates
    for count in range(1, 4):
        step(model, optimizer, True)
        state = nnx.as_pure(optimizer.opt_state)
        assert state.spy.at_zero == 0
        assert state.search.failures == 0
        assert model.dropout.rngs.count[...] == count
        if count == 1:
            np.testing.assert_allclose(model.norm.mean, reference.norm.mean, atol=1e-6)
            np.testing.assert_allclose(model.norm.var, reference.norm.var, atol=1e-6)
    assert gk.metrics(state)["evaluations"] >= 3


def test_nnx_refuses_to_be_merged_without_a_copy():
    model = Noisy(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, gk.newton_cg(), wrt=nnx.Param)
    with pytest.raises(errors.TraceContextError):
        nnx.jit(noisy_step, static_argnums=2)(model, optimizer, False)


class NoisyLinen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(1)(nn.Dropout(0.3, deterministic=not train)(jnp.tanh(x)))


class NoisyTrainState(TrainState):
    batch_stats: Any


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", SEARCHED)
def test_linen_with_a_fixed_key_gives_the_search_the_value_observed(name, train):
    model = NoisyLinen()
    variables = model.init(jax.random.key(1), X, train=False)
    train_state = NoisyTrainState.create(apply_fn=model.apply, tx=SEARCHED[name], **variables)

    @jax.jit
    def step(train_state, key):
        def noisy_loss(params, batch):
            (x, y), kept = batch, {"params": params, "batch_stats": train_state.batch_stats}
            if not train:
                return jnp.mean((model.apply(kept, x, train=False) - y) ** 2), kept["batch_stats"]
            outputs, changed = model.apply(
                kept, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
            )
            return jnp.mean((outputs - y) ** 2), changed["batch_stats"]

        problem = gk.Problem(noisy_loss, has_aux=True)
        point = gk.observe(problem, train_state.params, BATCH, gk.hessian)
        return gk.apply_gradients(train_state, point, batch_stats=point.aux)

    for seed in range(3):
        before, train_state = train_state.batch_stats, step(train_state, jax.random.key(seed))
        assert train_state.opt_state.spy.at_zero == 0
        assert train_state.opt_state.search.failures == 0
        moved = before["BatchNorm_0"]["mean"] != train_state.batch_stats["BatchNorm_0"]["mean"]
        assert moved.any() == train


# Some of the leaves


@pytest.mark.parametrize("inner", [gk.newton_cg(), optax.lbfgs()], ids=["newton_cg", "lbfgs"])
def test_masked_is_the_inner_one_on_its_block_and_the_loss_sees_all(inner):
    with jax.enable_x64(True):
        start, batch = double((START, BATCH))

        def block_loss(out, batch):
            return loss({"hidden": start["hidden"], "out": out}, batch)

        masked = gk.masked(inner, "out.*", unselected="zero")
        step = jax.jit(functools.partial(one_step, masked, loss))
        block_step = jax.jit(functools.partial(one_step, inner, block_loss))
        params, state = start, masked.init(start)
        block, block_state = start["out"], inner.init(start["out"])
        for _ in range(3):
            params, state = step(params, state, batch)
            block, block_state = block_step(block, block_state, batch)
        jax.tree.map(np.testing.assert_array_equal, params["hidden"], start["hidden"])
        assert_close(params["out"], block, atol=1e-10)
        assert loss(params, batch) < loss(start, batch)


def one_step(tx, loss, params, state, batch=BATCH):
    point = gk.observe(loss, params, batch, gk.hessian)
    updates, state = tx.update(point.grad, state, params, **point.extras)
    return optax.apply_updates(params, updates), state


def test_masked_newton_in_nnx_leaves_the_frozen_exactly():
    model = nnx_model()
    tx = gk.masked(gk.newton_cg(), ["out.kernel", "hidden.bias"], unselected="zero")
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    step = nnx.jit(nnx_step)
    values = [float(step(model, optimizer)) for _ in range(3)]
    assert values == sorted(values, reverse=True)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), params, START)
    assert same == {
        "hidden": {"bias": False, "kernel": True},
        "out": {"bias": True, "kernel": False},
    }


# Chains in chains


def members():
    clip, decay = gk.clip_by_global_norm(1.0), optax.add_decayed_weights(1e-2)
    return clip, gk.scale_by_adam(), decay, gk.line_search()


def test_chains_in_chains_are_the_flat_chain():
    a, b, c, d = members()
    trees = [
        gk.chain(a, optax.chain(gk.chain(b, c), d)),
        optax.chain(gk.chain(a, optax.chain(b, c)), d),
        optax.chain(a, b, c, d),
    ]
    expected = plain_training(gk.chain(a, b, c, d))
    assert loss(expected, BATCH) < loss(START, BATCH)
    for tx in trees:
        jax.tree.map(np.testing.assert_array_equal, plain_training(tx), expected)


@pytest.mark.parametrize("make", [optax.contrib.muon, optax.contrib.prodigy])
def test_contrib_in_our_chain_is_contrib_in_optaxs(make):
    ours = gk.chain(gk.clip_by_global_norm(1.0), make(0.02))
    theirs = optax.chain(optax.clip_by_global_norm(1.0), make(0.02))
    assert_close(plain_training(ours), plain_training(theirs), atol=1e-5)
    assert loss(plain_training(ours), BATCH) < loss(START, BATCH)


# Saving


def by_state_dict(state, like, folder):
    return serialization.from_state_dict(like, serialization.to_state_dict(state))


def by_bytes(state, like, folder):
    return serialization.from_bytes(like, serialization.to_bytes(state))


def by_orbax(state, like, folder):
    ocp.save(folder / "state", state)
    return ocp.load(folder / "state", like)


def by_pickle(state, like, folder):
    return pickle.loads(pickle.dumps(state))


def by_npz(state, like, folder):
    np.savez(folder / "state.npz", **gk.to_flat_dict(state))
    with np.load(folder / "state.npz") as flat:
        return gk.from_flat_dict(flat, like)


SAVED = {
    "adamw": gk.chain(gk.clip_by_global_norm(1.0), gk.adamw(optax.cosine_decay_schedule(1e-2, 10))),
    "newton_cg": gk.newton_cg(),
    "parts": gk.partition(
        {"hidden": optax.lbfgs(), "out": gk.sgd(1e-2, momentum=0.9)},
        gk.by_path({"hidden.*": "hidden", "out.*": "out"}),
    ),
    "muon": gk.chain(gk.add_noise(0.01, 0.5, key=1), optax.contrib.muon(0.02)),
}


@functools.cache
def interrupted(name):
    """A step, the parameters and state after two, and those after two more without a break."""
    tx = SAVED[name]
    step = jax.jit(functools.partial(one_step, tx, loss))
    params, state = START, tx.init(START)
    halfway = None
    for i in range(4):
        params, state = step(params, state)
        halfway = (params, state) if i == 1 else halfway
    return step, halfway, (params, state)


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("way", [by_state_dict, by_bytes, by_orbax, by_pickle, by_npz])
def test_a_saved_state_comes_back_and_goes_on_bit_for_bit(way, name, tmp_path):
    step, halfway, end = interrupted(name)
    restored = way(halfway, (START, SAVED[name].init(START)), tmp_path)
    assert jax.tree.structure(restored) == jax.tree.structure(halfway)
    jax.tree.map(assert_same_bits, restored, halfway)
    for _ in range(2):
        restored = step(*restored)
    jax.tree.map(assert_same_bits, restored, end)


def assert_same_bits(a, b):
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_orbax_restores_into_shapes_with_the_shardings_of_the_state(tmp_path):
    _, (params, state), _ = interrupted("adamw")
    shapes = jax.eval_shape(SAVED["adamw"].init, params)
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        gk.state_shardings(SAVED["adamw"], params),
    )
    restored = by_orbax(state, like, tmp_path)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(assert_same_bits, restored, state)


def test_adam_and_adamw_refuse_each_others_states():
    adam, adamw = gk.adam(1e-2).init(START), gk.adamw(1e-2).init(START)
    for state, like in ((adam, adamw), (adamw, adam)):
        with pytest.raises(ValueError, match=r"add_decayed_weights\S*weight_decay: expected"):
            gk.from_flat_dict(gk.to_flat_dict(state), like)


def test_no_state_of_ours_holds_a_typed_key_and_optaxs_goes_into_a_flat_dict():
    ours = gk.chain(gk.add_noise(0.01, 0.5, key=jax.random.key(3)), gk.stochastic_rounding(4))
    assert serialization.to_bytes(ours.init(START))
    theirs = gk.chain(optax.add_noise(0.01, 0.5, key=3)).init(START)
    with pytest.raises(TypeError, match="PRNGKey dtype"):
        serialization.to_bytes(theirs)
    flat = gk.to_flat_dict(theirs)
    back = gk.from_flat_dict(flat, gk.chain(optax.add_noise(0.01, 0.5, key=4)).init(START))
    assert (jax.random.key_data(back.add_noise.rng_key) == flat["add_noise.rng_key"]).all()


def test_an_nnx_optimizer_takes_a_restored_state_and_goes_on_bit_for_bit():
    step = nnx.jit(nnx_step)
    model = nnx_model()
    optimizer = nnx.Optimizer(model, FIRST_ORDER, wrt=nnx.Param)
    for _ in range(2):
        step(model, optimizer)
    saved = {"params": nnx.state(model, nnx.Param), "state": optimizer.opt_state}
    flat = gk.to_flat_dict(nnx.as_pure(saved))

    other = Nnx(nnx.Rngs(1))
    resumed = nnx.Optimizer(other, FIRST_ORDER, wrt=nnx.Param)
    like = nnx.as_pure({"params": nnx.state(other, nnx.Param), "state": resumed.opt_state})
    restored = gk.from_flat_dict(flat, like)
    nnx.update(other, restored["params"])
    nnx.update(resumed.opt_state, nnx.state(restored["state"]))
    for _ in range(2):
        step(model, optimizer)
        step(other, resumed)
    once = nnx.as_pure((nnx.state(model), optimizer.opt_state))
    again = nnx.as_pure((nnx.state(other), resumed.opt_state))
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
        assert_same_bits(a, b)


# Hyperparameters


def test_setting_a_rate_compiles_nothing_again_and_takes_effect():
    tx, traced = gk.chain(gk.clip_by_global_norm(1.0), gk.sgd(0.1)), []

    @jax.jit
    def step(params, state):
        traced.append(1)
        return tx.update(jax.grad(loss)(params, BATCH), state, params)

    _, state = step(START, tx.init(START))
    before, state = step(START, state)
    after, _ = step(START, gk.set_hyperparams(state, learning_rate=0.2))
    assert len(traced) == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-6), after, before)


def test_vmapped_rates_are_the_runs_one_by_one():
    tx = gk.chain(gk.clip_by_global_norm(1.0), gk.adam(1e-3))

    def train(rate):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(loss)(params, BATCH)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = (START, gk.set_hyperparams(tx.init(START), learning_rate=rate))
        return jax.lax.scan(step, start, length=STEPS)[0][0]

    rates = jnp.array([1e-3, 1e-2, 1e-1])
    together = jax.jit(jax.vmap(train))(rates)
    alone = jax.jit(train)
    for i, rate in enumerate(rates):
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone(rate), atol=1e-5)
    assert not np.allclose(together["out"]["kernel"][0], together["out"]["kernel"][1])
