"""Guards, plateaus, averages and stacks: what they skip, scale and keep."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk

X = {"a": jnp.array([3.0, 4.0]), "b": jnp.float32(0.0)}
NAN = {"a": jnp.array([jnp.nan, 4.0]), "b": jnp.float32(0.0)}


def equal(a, b):
    return all(
        jnp.array_equal(x, y, equal_nan=True)
        for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


def test_updates_that_are_not_finite_leave_state_and_parameters_alone():
    tx = gk.apply_if_finite(gk.adam(0.1), max_consecutive_errors=2)
    step = jax.jit(tx.update)
    _, state = step(X, tx.init(X), X)
    updates, skipped = step(NAN, state, X)
    assert equal(updates, jax.tree.map(jnp.zeros_like, X))
    assert equal(skipped.apply_if_finite.inner, state.apply_if_finite.inner)
    assert gk.metrics(skipped)["skipped"] == 1
    after, _ = step(X, skipped, X)
    expected, _ = step(X, state, X)
    assert equal(after, expected)


def test_after_too_many_in_a_row_they_are_let_through():
    tx = gk.apply_if_finite(gk.sgd(0.1), max_consecutive_errors=2)
    state = tx.init(X)
    shown = []
    for _ in range(3):
        updates, state = tx.update(NAN, state, X)
        shown.append(bool(jnp.isnan(updates["a"][0])))
    assert shown == [False, False, True]


def test_skipping_equals_optax_on_the_same_gradients():
    ours, theirs = gk.apply_if_finite(gk.adam(0.1), 5), optax.apply_if_finite(optax.adam(0.1), 5)
    state, expected_state = ours.init(X), theirs.init(X)
    step, expected_step = jax.jit(ours.update), jax.jit(theirs.update)
    for g in (X, NAN, X, NAN, NAN, X):
        u, state = step(g, state, X)
        expected, expected_state = expected_step(g, expected_state, X)
        for x, y in zip(*map(jax.tree.leaves, (u, expected)), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-6)


def noisy_norms(count, seed=0):
    return np.exp(0.2 * np.random.default_rng(seed).normal(size=count))


def run_guard(tx, norms, **extra):
    state, outputs = tx.init(jnp.ones(1)), []
    step = jax.jit(tx.update)
    for norm in norms:
        update, state = step(jnp.array([norm], jnp.float32), state, **extra)
        outputs.append(float(update[0]))
    return np.array(outputs), state


def test_a_spike_is_skipped_and_ordinary_updates_are_not():
    norms = noisy_norms(300)
    norms[[100, 200]] = 50.0, np.nan
    outputs, state = run_guard(gk.guard_spikes(gk.sgd(1.0)), norms)
    assert (outputs[[100, 200]] == 0).all()
    assert (np.delete(outputs, [100, 200]) < 0).all()
    assert gk.metrics(state)["spikes"] == 2


def test_a_spike_is_clipped_to_the_limit():
    norms = noisy_norms(101)
    norms[100] = 1e4
    outputs, state = run_guard(gk.guard_spikes(gk.sgd(1.0), action="clip"), norms)
    assert 1.5 < -outputs[100] < 20  # exp(6 standard deviations of 0.2) is 3.3
    assert gk.metrics(state)["deviation"] > 6


def test_a_lasting_change_of_level_is_followed():
    norms = np.concatenate([noisy_norms(100), 30 * noisy_norms(300)])
    outputs, _ = run_guard(gk.guard_spikes(gk.sgd(1.0)), norms)
    assert outputs[100] == 0
    assert (outputs[-100:] < 0).all()


def test_the_loss_can_be_watched_and_may_be_negative():
    tx = gk.guard_spikes(gk.sgd(1.0), watch="value", warmup=5)
    state = tx.init(jnp.ones(1))
    for i in range(30):
        update, state = tx.update(jnp.ones(1), state, value=jnp.float32(-5 + 0.01 * (i % 3)))
        assert update == -1
    update, _ = tx.update(jnp.ones(1), state, value=jnp.float32(3.0))
    assert update == 0
    with pytest.raises(TypeError, match="guard_spikes needs the extra argument 'value'"):
        tx.update(jnp.ones(1), state)
    with pytest.raises(TypeError, match="got valu \\(is 'valu' misspelt"):
        tx.update(jnp.ones(1), state, valu=1.0)


def test_guards_read_nothing_back_to_the_host():
    tx = gk.guard_spikes(gk.apply_if_finite(gk.adam()))

    def run(state):
        return jax.lax.fori_loop(0, 5, lambda _, s: tx.update(X, s, X)[1], state)

    state, compiled = tx.init(X), jax.jit(run)
    with jax.transfer_guard("disallow"):
        state = compiled(state)
    assert state.guard_spikes.applied == 5


@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
def test_the_rate_falls_on_a_plateau_of_either_sign(sign):
    tx = gk.reduce_on_plateau(factor=0.5, patience=3, cooldown=2)
    state = tx.init(X)
    values = [sign * 4 - i for i in range(4)] + [sign * 4 - 3] * 8
    scales = []
    for value in values:
        updates, state = tx.update(X, state, value=jnp.float32(value))
        scales.append(float(gk.metrics(state)["plateau_scale"]))
        np.testing.assert_allclose(updates["a"], scales[-1] * X["a"])
    assert scales == [1.0] * 6 + [0.5] * 5 + [0.25]


@pytest.mark.slow
def test_plateaus_of_positive_values_are_those_of_optax():
    arguments = {"factor": 0.3, "patience": 2, "cooldown": 1, "accumulation_size": 2}
    ours = gk.reduce_on_plateau(**arguments, min_scale=0.05)
    theirs = optax.contrib.reduce_on_plateau(**arguments, min_scale=0.05)
    state, expected_state = ours.init(X), theirs.init(X)
    for value in np.random.default_rng(1).uniform(1, 2, size=40):
        u, state = ours.update(X, state, value=jnp.float32(value))
        expected, expected_state = theirs.update(X, expected_state, value=jnp.float32(value))
        np.testing.assert_allclose(u["a"], expected["a"], rtol=1e-5)


def test_the_average_of_the_parameters_is_their_corrected_sum(dtype, eps):
    tx = gk.chain(gk.sgd(0.1), gk.average_params(0.9))
    params, state, seen = jnp.asarray([1.0, -2.0], dtype), None, []
    state = tx.init(params)
    for _ in range(6):
        updates, state = tx.update(params, state, params)
        params = params + updates
        seen.append(np.asarray(params))
    weights = 0.9 ** np.arange(5, -1, -1)
    expected = weights @ np.array(seen) / weights.sum()
    np.testing.assert_allclose(state.average_params.average, expected, rtol=50 * eps)


def test_the_decay_k_over_k_plus_one_is_the_plain_mean():
    tx = gk.average_params(lambda k: k / (k + 1))
    state, seen = tx.init(X["a"]), []
    for i in range(5):
        _, state = tx.update(jnp.ones(2), state, i * X["a"])
        seen.append(i * X["a"] + 1)
    np.testing.assert_allclose(state.average, np.mean(seen, axis=0), rtol=1e-6)


def test_lookahead_follows_its_algorithm(dtype, eps):
    def loss(p):
        return jnp.sum(jnp.array([1.0, 7.0], dtype) * p**2) / 2

    tx = gk.lookahead(gk.sgd(0.1, momentum=0.5), sync_period=3, slow_step_size=0.4)
    params = slow = fast = jnp.asarray([1.0, 1.0], dtype)
    state, v = tx.init(params), jnp.zeros(2, dtype)
    for t in range(1, 8):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = params + updates
        v = 0.5 * v + jax.grad(loss)(fast)
        fast = fast - 0.1 * v
        if t % 3 == 0:
            slow = fast = slow + 0.4 * (fast - slow)
        np.testing.assert_allclose(params, fast, rtol=100 * eps, atol=10 * eps)


def test_lookahead_may_start_the_fast_optimizer_anew():
    tx = gk.lookahead(gk.sgd(0.1, momentum=0.9), sync_period=2, reset_state=True)
    state = tx.init(X)
    for expected in (1.0, 0.0, 1.0):
        _, state = tx.update(X, state, X)
        np.testing.assert_allclose(state.velocity["a"], expected * X["a"])


TREE = {
    f"layer{i}": {"kernel": jnp.full((4, 3), 0.1 * i), "bias": jnp.full(3, 0.2 * i)}
    for i in range(7)
} | {"large": jnp.ones(50), "scale": jnp.float32(2.0)}


@pytest.mark.parametrize("group", [2, 32])
def test_stacked_updates_are_the_same(group, dtype, eps):
    tree = jax.tree.map(lambda x: x.astype(dtype), TREE)
    tx = gk.chain(gk.clip_by_global_norm(0.5), gk.adamw(0.1, weight_decay=0.01))
    stacked = gk.stack_small_leaves(tx, largest=20, group=group)
    state, expected_state = stacked.init(tree), tx.init(tree)
    step, plain = jax.jit(stacked.update), jax.jit(tx.update)
    for i in range(3):
        grads = jax.tree.map(lambda x, i=i: jnp.cos(i + x), tree)
        u, state = step(grads, state, tree)
        expected, expected_state = plain(grads, expected_state, tree)
        assert jax.tree.structure(u) == jax.tree.structure(expected)
        for x, y in zip(*map(jax.tree.leaves, (u, expected)), strict=True):
            np.testing.assert_allclose(x, y, rtol=20 * eps, atol=2 * eps)


@pytest.mark.slow
def test_stacked_members_may_call_the_loss():
    def loss(p, _):
        return sum(jnp.sum((x - 1) ** 4) for x in jax.tree.leaves(p))

    tx = gk.stack_small_leaves(gk.newton_cg(), largest=20)
    params, state = TREE, tx.init(TREE)
    for _ in range(5):
        point = gk.observe(loss, params, None, gk.hessian)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        params = optax.apply_updates(params, updates)
    assert loss(params, None) < 0.1 * loss(TREE, None)


@pytest.mark.parametrize(
    ("member", "name"),
    [
        (gk.adamw(mask="*.kernel"), "add_decayed_weights"),
        (gk.clip_by_leaf_norm(1.0), "clip_by_leaf_norm"),
        (gk.accumulate(gk.adaptive_grad_clip(0.1), 2), "adaptive_grad_clip"),
        (gk.masked(gk.sgd(), "*.kernel", unselected="zero"), "masked"),
        (optax.scale_by_trust_ratio(), "scale_by_trust_ratio"),
    ],
)
def test_members_that_look_at_whole_leaves_are_not_stacked(member, name):
    with pytest.raises(TypeError, match=f"{name} may look at whole leaves"):
        gk.stack_small_leaves(gk.chain(gk.sgd(), member))
