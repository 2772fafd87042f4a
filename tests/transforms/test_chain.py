"""Composition: one step, any nesting, any leaves, derivatives, shardings."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk

PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.float32(0.25)}
GRADS = [jax.tree.map(lambda p, i=i: jnp.sin(i + 3 * p), PARAMS) for i in range(4)]


def outputs(tx, params=PARAMS, grads=GRADS, step=None):
    state = tx.init(params) if step is None else tx.init(params, step=step)
    results = []
    for g in grads:
        update, state = tx.update(g, state, params)
        results.append(update)
    return results


def assert_equal(a, b, rtol=0.0, atol=0.0):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def members():
    return (
        gk.clip_by_global_norm(0.5),
        gk.scale_by_adam(),
        gk.scale_by_learning_rate(gk.warmup_linear(0.1, steps=5, warmup=2)),
    )


def test_chains_are_associative():
    a, b, c = members()
    flat = outputs(gk.chain(a, b, c))
    for nested in (
        gk.chain(gk.chain(a, b), c),
        gk.chain(a, gk.chain(b, c)),
        gk.chain(x=a, y=gk.chain(z=b, w=c)),
    ):
        assert_equal(outputs(nested), flat)
    assert_equal(outputs(optax.chain(a, gk.chain(b, c))), flat, rtol=1e-6)
    assert_equal(outputs(gk.chain(optax.chain(a, b), c)), flat, rtol=1e-6)


def test_an_empty_chain_is_the_identity():
    assert_equal(outputs(gk.chain()), GRADS)


def test_a_linear_chain_is_linear():
    tx = gk.chain(gk.heavy_ball(0.9), gk.scale_by_learning_rate(0.1))
    doubled = outputs(tx, grads=jax.tree.map(lambda g: -2 * g, GRADS))
    assert_equal(doubled, jax.tree.map(lambda u: -2 * u, outputs(tx)), rtol=1e-6)


def test_members_share_one_step():
    tx = gk.chain(inner=gk.chain(*members()), decay=gk.add_decayed_weights(lambda step: step))
    state = tx.init(PARAMS)
    counters = [
        path
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jnp.issubdtype(leaf.dtype, jnp.integer)
    ]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path in counters]
    assert names == ["inner.scale_by_adam.memory.age", "step"]
    for t in range(3):
        assert state.step == t
        _, state = tx.update(GRADS[0], state, PARAMS)


def test_a_run_goes_on_at_a_step_with_fresh_averages():
    rate = gk.warmup_linear(0.1, steps=100)
    tx = gk.adam(rate)
    late = outputs(tx, step=50)
    fresh = outputs(gk.adam(1.0))
    scaled = [jax.tree.map(lambda u, k=k: rate(50 + k) * u, u) for k, u in enumerate(fresh)]
    assert_equal(late, scaled, rtol=1e-5)


def test_the_schedules_of_optax_members_begin_at_the_step_too():
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    tx = gk.chain(gk.clip(9.0), optax.scale_by_learning_rate(schedule))
    (update,) = outputs(tx, grads=GRADS[:1], step=5)
    assert_equal(update, jax.tree.map(lambda g: -0.5 * g, GRADS[0]), rtol=1e-6)


def test_bad_chains_are_refused():
    with pytest.raises(TypeError, match="a name or none, got 1 without and adam"):
        gk.chain(gk.clip(1.0), adam=gk.adam())
    with pytest.raises(ValueError, match="'step' is the name of the chain's own counter"):
        gk.chain(step=gk.adam())
    tx = gk.chain(clip=gk.clip(1.0), adam=gk.adam())
    with pytest.raises(ValueError, match=r"fields \(clip, adam, step\); got a dict"):
        tx.update(GRADS[0], {"clip": ()}, PARAMS)


def test_repeated_members_are_numbered():
    state = gk.chain(gk.clip(1.0), gk.clip(2.0), optax.clip(1.0)).init(PARAMS)
    assert state._fields == ("clip", "clip_2", "clip_3", "step")
    assert gk.hyperparams(state) == {"clip.max_delta": 1.0, "clip_2.max_delta": 2.0}


ALL = {
    "sgd": gk.sgd(0.1, momentum=0.9, nesterov=True),
    "velocity": gk.velocity(0.1),
    "adam": gk.adam(0.1, nesterov=True),
    "adamw": gk.adamw(0.1),
    "rmsprop": gk.rmsprop(0.1, centered=True, momentum=0.5),
    "adagrad": gk.adagrad(0.1, initial_accumulator_value=0.0, eps_in_sqrt=False),
    "adadelta": gk.adadelta(),
    "clips": gk.chain(
        gk.clip_by_global_norm(0.5), gk.clip_by_leaf_norm(0.3), gk.adaptive_grad_clip(0.1)
    ),
    "proximal": gk.proximal_step(0.1, l1=0.01, l2=0.1),
    "max norm": gk.chain(gk.sgd(0.1), gk.project_max_norm(1.0)),
    "guards": gk.guard_spikes(gk.apply_if_finite(gk.adam(0.1))),
    "lookahead": gk.lookahead(gk.adam(0.1), sync_period=2),
    "average": gk.chain(gk.ema(0.9), gk.bias_correction(0.9), gk.average_params(0.9)),
    "accumulate": gk.accumulate(gk.adam(0.1), 2),
    "monitor": gk.chain(gk.centralize(), gk.monitor()),
    "master": gk.master_weights(gk.adam(0.1)),
    "partition": gk.partition({"a": gk.adam(0.1), "b": gk.sgd(0.1)}, {"w": "a", "b": "b"}),
    "stacked": gk.stack_small_leaves(gk.adamw(0.1)),
}


@pytest.mark.parametrize("name", ALL)
def test_meta_gradients_are_finite_at_a_zero_gradient(name):
    tx = ALL[name]

    @jax.jit
    def after(params, scale):
        state = tx.init(params)
        for _ in range(2):
            grads = jax.tree.map(lambda p: scale * p, params)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return sum(jnp.sum(x) for x in jax.tree.leaves(params))

    derivatives = jax.grad(after, argnums=(0, 1))(PARAMS, jnp.float32(0.0))
    assert all(jnp.isfinite(d).all() for d in jax.tree.leaves(derivatives))


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"partition"}))  # whose labels name leaves
def test_leaves_may_be_none_or_scalars(name):
    holes = {"w": PARAMS["w"], "none": None, "b": PARAMS["b"]}
    with_none = outputs(ALL[name], holes, [g | {"none": None} for g in GRADS[:2]])
    plain = outputs(ALL[name], PARAMS, GRADS[:2])
    assert all(update["none"] is None for update in with_none)
    assert_equal(with_none, plain)


def test_the_rate_has_a_gradient(dtype, eps):
    def loss_after(rate):
        params = jnp.asarray([1.0, 2.0], dtype)
        tx = gk.sgd(rate)
        updates, _ = tx.update(params, tx.init(params), params)
        return jnp.sum((params + updates) ** 2)

    rate = jnp.asarray(0.1, dtype)
    np.testing.assert_allclose(jax.grad(loss_after)(rate), -2 * 0.9 * 5, rtol=20 * eps)


def test_vmap_over_hyperparameters_is_one_run_each():
    tx, rates = gk.adamw(0.1, weight_decay=0.1), jnp.array([0.1, 0.02, 0.5])

    def run(state):
        params = PARAMS
        for g in GRADS:
            updates, state = tx.update(g, state, params)
            params = optax.apply_updates(params, updates)
        return params

    def started(rate):
        return gk.set_hyperparams(tx.init(PARAMS), learning_rate=rate)

    states = jax.vmap(started)(rates)
    assert gk.hyperparams(states)["learning_rate"].shape == (3,)
    together = jax.jit(jax.vmap(run))(states)
    for i, rate in enumerate(rates):
        alone = jax.jit(run)(started(rate))
        assert_equal(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=1e-6)
    as_arguments = jax.vmap(lambda rate: gk.adamw(rate, weight_decay=0.1).init(PARAMS))(rates)
    assert_equal(jax.jit(jax.vmap(run))(as_arguments), together, rtol=1e-6)
    changed = gk.set_hyperparams(states, learning_rate=jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(gk.hyperparams(changed)["learning_rate"], [1.0, 2.0, 3.0])


def test_complex_parameters_descend_like_pairs_of_reals():
    """observe conjugates, so that a step along the gradient ascends; moments are of |g|²."""

    def of_complex(z, _):
        return jnp.sum(jnp.abs(z - (1 + 2j)) ** 2 * jnp.array([1.0, 5.0]))

    def of_pairs(xy, _):
        return of_complex(xy[0] + 1j * xy[1], None)

    for factory in (
        lambda: gk.sgd(0.05, momentum=0.9),
        lambda: gk.chain(gk.clip_by_global_norm(1.0), gk.sgd(0.1)),
    ):
        z, xy, tx = jnp.zeros(2, jnp.complex64), jnp.zeros((2, 2)), factory()
        state, real_state = tx.init(z), tx.init(xy)
        for _ in range(20):
            point, real = gk.observe(of_complex, z, None), gk.observe(of_pairs, xy, None)
            step, state = tx.update(point.grad, state, z)
            real_step, real_state = tx.update(real.grad, real_state, xy)
            z, xy = z + step, xy + real_step
        np.testing.assert_allclose(z, xy[0] + 1j * xy[1], rtol=1e-5)
    tx = gk.scale_by_adam()
    u, state = tx.update(jnp.array([3 + 4j]), tx.init(z[:1]))
    assert state.nu.dtype == jnp.float32
    np.testing.assert_allclose(u, [(3 + 4j) / 5], rtol=1e-5)


def test_a_missing_or_misspelt_extra_argument_is_named_at_its_member():
    tx = gk.chain(gk.clip(1.0), gk.newton_cg())
    state = tx.init(PARAMS)
    with pytest.raises(TypeError, match="scale_by_newton_cg needs the extra argument 'curvature'"):
        tx.update(GRADS[0], state, PARAMS)
    with pytest.raises(TypeError, match=r"got curvture \(is 'curvture' misspelt\?\)"):
        tx.update(GRADS[0], state, PARAMS, curvture=lambda: None)


@pytest.mark.slow
def test_states_are_sharded_like_the_parameters_in_both_modes():
    """On four virtual devices, which must be asked for before JAX is imported."""
    script = textwrap.dedent(
        """
        import jax, jax.numpy as jnp, gradkit as gk
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        for mode in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((4,), ("x",), axis_types=(mode,))
            split, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
            params = {"w": jax.device_put(jnp.ones((8, 2)), split),
                      "b": jax.device_put(jnp.ones(3), whole)}
            tx = gk.chain(gk.clip_by_global_norm(0.1), gk.adamw(0.1, mask="w"), gk.average_params())
            shardings = gk.state_shardings(tx, params)
            assert shardings.adamw.mu["w"] == split and shardings.step.spec == P(), shardings
            abstract = jax.tree.map(
                lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), params)
            assert gk.state_shardings(tx, abstract) == shardings
            with jax.set_mesh(mesh):
                state = jax.jit(tx.init, out_shardings=shardings)(params)
                assert state.adamw.mu["w"].sharding.is_equivalent_to(split, 2)
                assert tx.init(params).adamw.mu["w"].sharding.is_equivalent_to(split, 2)
                updates, state = jax.jit(tx.update)(params, state, params)
                assert updates["w"].sharding.is_equivalent_to(split, 2), updates["w"].sharding
                assert state.adamw.nu["w"].sharding.is_equivalent_to(split, 2)
            if mode == AxisType.Explicit:  # init under jit keeps it by itself
                with jax.set_mesh(mesh):
                    state = jax.jit(tx.init)(params)
                assert state.adamw.mu["w"].sharding.is_equivalent_to(split, 2)
        print("both modes")
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "both modes\n", done.stderr[-2000:]


def test_shardings_need_parameters_that_have_one():
    with pytest.raises(ValueError, match="w has no sharding; expected arrays"):
        gk.state_shardings(gk.adam(), {"w": np.ones(3)})


def test_gradients_that_are_not_like_the_parameters_are_refused_leaf_by_leaf():
    tx = gk.adam()
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"w: expected shape \(2, 2\), got shape \(2,\)"):
        tx.update({"w": jnp.ones(2), "b": PARAMS["b"]}, state, PARAMS)
    with pytest.raises(ValueError, match=r"b: expected shape \(\), got no leaf\n  v: expected no"):
        tx.update({"w": PARAMS["w"], "v": jnp.ones(1)}, state, PARAMS)
