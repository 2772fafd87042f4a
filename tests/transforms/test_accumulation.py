"""One update for several micro-batches: as a transformation, and inside the step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import gradkit as gk


def loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


def setting(dtype, sizes):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 4)), "v": rng.normal(size=4)}
    batches = [(rng.normal(size=(n, 3)), rng.normal(size=n)) for n in sizes]
    whole = tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, batches, whole))


@pytest.mark.parametrize("factory", [gk.adam, gk.sgd, lambda: optax.adam(1e-3)])
def test_ragged_micro_batches_weighed_by_examples_are_the_whole_batch(factory, dtype, eps):
    params, batches, whole = setting(dtype, [3, 5, 2])
    inner = factory()
    tx, state, expected_state = (t := gk.accumulate(inner, 3)), t.init(params), inner.init(params)
    step = jax.jit(lambda p, s, b: tx.update(jax.grad(loss)(p, b), s, p, examples=len(b[1])))
    for _ in range(2):
        for micro in batches[:2]:
            updates, state = step(params, state, micro)
            assert not any(jnp.any(u) for u in jax.tree.leaves(updates))
        updates, state = step(params, state, batches[2])
        expected, expected_state = inner.update(
            jax.grad(loss)(params, whole), expected_state, params
        )
        for x, y in zip(*map(jax.tree.leaves, (updates, expected)), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_allclose(x, y, rtol=1e3 * eps, atol=10 * eps)
        params = optax.apply_updates(params, updates)


def test_the_inner_transformation_runs_on_the_emitting_step_alone():
    calls = []

    def update(updates, state, params=None):
        jax.debug.callback(lambda: calls.append(1))
        return updates, state

    tx = gk.accumulate(optax.GradientTransformation(optax.init_empty_state, update), 4)
    step, state = jax.jit(tx.update), tx.init(jnp.ones(2))
    for _ in range(8):
        _, state = step(jnp.ones(2), state)
    jax.effects_barrier()
    assert len(calls) == 2


def test_schedules_within_count_updates_and_those_outside_micro_batches():
    tx = gk.chain(gk.accumulate(gk.sgd(lambda k: k + 1.0), 2), gk.ema(lambda k: k / 100.0))
    state = tx.init(jnp.ones(2))
    rates, decays = [], []
    for _ in range(4):
        _, state = tx.update(jnp.ones(2), state)
        found = gk.hyperparams(state)
        rates.append(float(found["learning_rate"]))
        decays.append(float(found["decay"]))
    assert rates == [1.0, 1.0, 1.0, 2.0]
    np.testing.assert_allclose(decays, [0.0, 0.01, 0.02, 0.03])


@pytest.mark.slow
@pytest.mark.parametrize("low", [jnp.bfloat16, jnp.float16])
def test_low_precision_gradients_are_summed_in_float32_or_the_dtype_chosen(low):
    params = {"w": jnp.ones(100, low)}
    grads = [{"w": jnp.full(100, 1 + i / 7, low)} for i in range(64)]
    tx = gk.accumulate(gk.sgd(1.0), 64)
    state = tx.init(params)
    assert state.gradients["w"].dtype == jnp.float32
    for g in grads:
        updates, state = tx.update(g, state, params)
    mean = np.mean([np.float64(g["w"][0]) for g in grads])
    assert updates["w"].dtype == low
    np.testing.assert_allclose(np.float64(updates["w"]), -mean, rtol=2 * float(jnp.finfo(low).eps))
    chosen = gk.accumulate(gk.sgd(1.0), 64, accumulator_dtype="bfloat16").init(params)
    assert chosen.gradients["w"].dtype == jnp.bfloat16


def test_a_second_order_member_runs_within():
    params, batches, _ = setting(jnp.float32, [10, 10])
    tx = gk.accumulate(gk.newton_cg(), 2)

    @jax.jit
    def step(params, state, batch):
        point = gk.observe(loss, params, batch, gk.hessian)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return optax.apply_updates(params, updates), state

    state, before = tx.init(params), loss(params, batches[1])
    for micro in batches * 6:
        params, state = step(params, state, micro)
    assert loss(params, batches[1]) < 0.5 * before
    assert gk.metrics(state)["products"] > 0


def test_it_works_in_shard_map():
    params, (micro, _), _ = setting(jnp.float32, [8, 8])
    tx = gk.accumulate(gk.adam(0.1), 2)
    mesh = jax.make_mesh((1,), ("data",))

    def two_steps(params, state, batch):
        for _ in range(2):
            grads = jax.lax.pmean(jax.grad(loss)(params, batch), "data")
            updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh):
        sharded = jax.shard_map(two_steps, in_specs=(P(), P(), P("data")), out_specs=(P(), P()))
        got = jax.jit(sharded)(params, tx.init(params), jax.reshard(micro, P("data")))
    expected = two_steps_alone(tx, params, micro)
    np.testing.assert_allclose(got[0]["w"], expected["w"], rtol=1e-6)


def two_steps_alone(tx, params, batch):
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
    return optax.apply_updates(params, updates)


def temporary_memory(tx, params):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), params)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_the_memory_is_one_tree_and_the_step_makes_half_of_what_optax_does():
    params = {f"w{i}": jnp.ones(10_000) for i in range(10)}
    ours, theirs = gk.accumulate(gk.adam(), 4), optax.MultiSteps(optax.adam(0.1), 4)
    kept, inner = (optax.tree.size(tx.init(params)) for tx in (ours, gk.adam()))
    assert kept < inner + optax.tree.size(params) + 10
    mine = temporary_memory(ours, params)
    assert mine < 1.5 * 4 * optax.tree.size(params)
    assert mine < 0.5 * temporary_memory(theirs.gradient_transformation(), params)


@pytest.mark.slow
def test_it_is_differentiable_through_in_both_modes():
    tx = gk.accumulate(gk.adam(0.1), 2)

    def after(x):
        params, state = x, tx.init(x)
        for _ in range(4):
            updates, state = tx.update(2 * params - x**3, state, params)
            params = optax.apply_updates(params, updates)
        return jnp.sum(params**2)

    x = jnp.array([0.3, -0.7])
    reverse, forward = jax.grad(after)(x), jax.jacfwd(after)(x)
    steps = [1e-2 * e for e in jnp.eye(2)]
    central = [(after(x + h) - after(x - h)) / 2e-2 for h in steps]
    np.testing.assert_allclose(reverse, forward, rtol=1e-5)
    np.testing.assert_allclose(reverse, central, rtol=1e-2)


def test_micro_batches_inside_the_step_are_the_whole_batch(dtype, eps):
    params, _, whole = setting(dtype, [12])
    one, split = (gk.observe(loss, params, whole, gk.hessian, micro_batches=k) for k in (None, 4))
    v = jax.tree.map(jnp.cos, params)
    results = [
        (p.value, p.grad, p.extras["value_fn"](v), p.extras["curvature"]() @ v)
        for p in (one, split)
    ]
    for x, y in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e3 * eps, atol=10 * eps)


@pytest.mark.slow
def test_a_newton_step_over_micro_batches_is_that_of_the_whole_batch(dtype, eps):
    params, _, whole = setting(dtype, [12])
    tx = gk.newton_cg()
    steps = []
    for k in (None, 3):
        point = gk.observe(loss, params, whole, gk.hessian, micro_batches=k)
        steps.append(tx.update(point.grad, tx.init(params), params, **point.extras)[0])
    for x, y in zip(*map(jax.tree.leaves, steps), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e4 * eps, atol=1e3 * eps)


def test_the_outputs_of_each_part_are_kept(dtype):
    params, _, whole = setting(dtype, [12])
    problem = gk.Problem(
        predict=lambda p, b: jnp.tanh(b[0] @ p["w"]) @ p["v"],
        criterion=lambda out, b: jnp.mean((out - b[1]) ** 2),
    )
    assert gk.observe(problem, params, whole, micro_batches=3).aux.shape == (3, 4)


def test_bad_counts_are_refused():
    with pytest.raises(ValueError, match="every must be a positive whole number, got 0"):
        gk.accumulate(gk.sgd(), 0)
    params, _, whole = setting(jnp.float32, [12])
    with pytest.raises(ValueError, match=r"micro_batches=5 must divide the first axis.*got 12"):
        gk.observe(loss, params, whole, micro_batches=5)


@pytest.mark.parametrize("jitted", [False, True])
def test_a_schedule_says_how_many_micro_batches_make_an_update_as_in_optax(jitted):
    def every(emitted):
        return jnp.where(emitted < 2, 2, 3)

    ours = gk.accumulate(gk.adam(0.1), every)
    theirs = optax.MultiSteps(optax.adam(0.1), every)
    params = {"w": jnp.ones(3)}
    state, expected_state = ours.init(params), theirs.init(params)
    update = jax.jit(ours.update) if jitted else ours.update
    for i in range(11):
        grads = {"w": jax.random.normal(jax.random.key(i), (3,))}
        u, state = update(grads, state, params)
        expected, expected_state = theirs.update(grads, expected_state, params)
        np.testing.assert_allclose(u["w"], expected["w"], rtol=2e-6, atol=1e-7)
        assert bool((u["w"] != 0).all()) == (i in (1, 3, 6, 9))
    assert state.emitted == 4


@pytest.mark.parametrize("jitted", [False, True])
def test_a_window_can_be_ended_early(jitted):
    """Epochs of five micro-batches in windows of two: the fifth makes an update alone."""
    tx = gk.accumulate(gk.sgd(1.0), 2)
    state, steps = tx.init(jnp.zeros(())), []
    update = tx.update
    if jitted:
        update = jax.jit(lambda g, state, flush: tx.update(g, state, flush=flush))
    for epoch in range(2):
        for i in range(5):
            g = jnp.float32(10 * epoch + i)
            u, state = update(g, state, flush=i == 4)
            steps.append(float(u))
    assert steps == [0, -0.5, 0, -2.5, -4, 0, -10.5, 0, -12.5, -14]
    assert state.emitted == 6
    assert state.micro_step == 0


def test_the_weights_of_a_window_that_ends_early_are_exact():
    tx = gk.accumulate(gk.sgd(1.0), 3)
    _, state = tx.update(jnp.float32(1.0), tx.init(jnp.zeros(())), examples=30)
    u, _ = tx.update(jnp.float32(5.0), state, examples=10, flush=True)
    assert u == -2.0
