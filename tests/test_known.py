"""What a line search has computed is taken from its state where it holds, and nowhere else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit import tree
from gradkit.core import known

SEARCHES = ("more_thuente", "hager_zhang")


def loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


def setting(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "w": jax.random.normal(keys[0], (3, 5), dtype),
        "v": jax.random.normal(keys[1], (5,), dtype),
    }
    return params, (
        jax.random.normal(keys[2], (20, 3), dtype),
        jax.random.normal(keys[3], (20,), dtype),
    )


def counted(calls):
    """The loss, with a callback where it is computed."""

    def fun(params, batch):
        jax.debug.callback(lambda: calls.append(1))
        return loss(params, batch)

    return fun


def stepped(tx, problem, params, state, batch, after=None):
    @jax.jit
    def step(params, state, batch):
        point = gk.observe(problem, params, batch, state=state)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return optax.apply_updates(params, updates), state, point

    params, state, point = step(params, state, batch)
    return (params if after is None else after(params)), state, point


@pytest.mark.slow
@pytest.mark.parametrize("search", SEARCHES)
def test_a_gradient_is_computed_once(search, dtype):
    params, batch = setting(dtype)
    tx, calls = gk.chain(gk.scale_by_lbfgs(), gk.line_search(search)), []
    problem = gk.Problem(counted(calls))
    state = tx.init(params)
    for number in range(4):
        params, state, _ = stepped(tx, problem, params, state, batch)
        jax.effects_barrier()
        trials = int(gk.metrics(state)["evaluations"])
        assert len(calls) == trials + 1, number  # one for the start, and the trials
    fresh = gk.observe(loss, params, batch)
    kept = gk.observe(loss, params, batch, state=state)
    np.testing.assert_allclose(kept.value, fresh.value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(kept.grad), jax.tree.leaves(fresh.grad), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["batch", "params", "one number", "nothing before"])
def test_it_is_computed_anew_where_anything_has_changed(what):
    params, batch = setting()
    tx = gk.chain(gk.scale_by_lbfgs(), gk.line_search("hager_zhang"))
    state = tx.init(params)
    if what != "nothing before":
        params, state, _ = stepped(tx, loss, params, state, batch)
    if what == "batch":
        batch = (batch[0], batch[1] + 1)
    if what == "params":
        params = jax.tree.map(lambda x: x + 1, params)
    if what == "one number":
        params["w"] = params["w"].at[2, 4].multiply(1 + 2**-23)
    point = gk.observe(loss, params, batch, state=state)
    fresh = gk.observe(loss, params, batch)
    np.testing.assert_array_equal(point.value, fresh.value)
    np.testing.assert_array_equal(point.grad["w"], fresh.grad["w"])


@pytest.mark.slow
def test_auxiliary_values_and_micro_batches_are_those_of_the_point():
    params, batch = setting()

    def with_aux(params, batch):
        return loss(params, batch), {"norm": jnp.sum(params["w"] ** 2)}

    problem, tx = gk.Problem(with_aux, has_aux=True), gk.lbfgs()
    state = tx.init(params)
    for _ in range(2):
        params, state, _ = stepped(tx, problem, params, state, batch)
    point = gk.observe(problem, params, batch, state=state)
    np.testing.assert_allclose(point.aux["norm"], jnp.sum(params["w"] ** 2), rtol=1e-6)
    parts = gk.observe(loss, params, batch, state=state, micro_batches=2)
    np.testing.assert_allclose(parts.value, loss(params, batch), rtol=1e-5)


def test_a_later_member_that_changes_the_update_is_noticed():
    params, batch = setting()
    tx = optax.chain(gk.lbfgs(), optax.scale(0.5))
    state = tx.init(params)
    params, state, _ = stepped(tx, loss, params, state, batch)
    assert known(state) is not None
    point = gk.observe(loss, params, batch, state=state)
    np.testing.assert_array_equal(point.value, gk.observe(loss, params, batch).value)


@pytest.mark.slow
@pytest.mark.parametrize("around", ["nothing", "masked", "partition"])
def test_a_changing_batch_is_noticed_within_others_too(around):
    params, batch = setting()
    tx = {
        "nothing": gk.lbfgs(),
        "masked": gk.masked(gk.lbfgs(), {"w": True, "v": False}, unselected="zero"),
        "partition": gk.partition({"a": gk.lbfgs()}, {"w": "a", "v": "a"}),
    }[around]
    state = tx.init(params)
    for number in range(4):
        params, state, _ = stepped(tx, loss, params, state, (batch[0], batch[1] + number // 2))
    assert gk.metrics(state)["function_changes"] == 1


def test_marks_tell_trees_apart():
    a = {"x": jnp.arange(5.0), "y": jnp.ones((2, 3)), "n": jnp.arange(3), "b": jnp.array(True)}
    mark = tree.mark(a).tolist()
    assert jax.jit(tree.mark)(a).tolist() == mark
    others = [
        {**a, "x": a["x"].at[0].set(-0.0)},
        {**a, "x": a["x"][::-1]},
        {**a, "y": a["y"].at[1, 2].add(2.0**-23)},
        {**a, "n": a["n"].at[2].set(1)},
        {**a, "b": jnp.array(False)},
    ]
    marks = [tuple(tree.mark(b).tolist()) for b in others]
    assert len({tuple(mark), *marks}) == 1 + len(others)
    with_function = tree.mark({**a, "f": lambda: None})
    assert with_function.tolist() == mark


def test_the_largest_number_of_a_tree():
    assert tree.largest({}) == 0
    assert tree.largest({"a": jnp.zeros((0, 3)), "b": jnp.array([-3.0, 2.0])}) == 3
    assert np.isnan(tree.largest([jnp.array([1.0, jnp.nan])]))
