"""What a state tells and takes: hyperparameters, metrics, names, shardings."""

from __future__ import annotations

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradkit as gk
from gradkit.states import Driven

PARAMS = {"w": jnp.ones((3, 2)), "b": [jnp.zeros(2), jnp.float32(1.0)]}
GRADS = jax.tree.map(lambda p: 0.3 * p + 0.1, PARAMS)


def nested():
    return gk.chain(
        clip=gk.clip_by_global_norm(0.5),
        rule=gk.partition({"fast": gk.adam(0.1), "slow": gk.sgd(0.01)}, {"w": "fast", "b": "slow"}),
        decay=gk.add_decayed_weights(0.02),
    )


def test_every_hyperparameter_is_listed_wherever_it_is_nested():
    found = gk.hyperparams(nested().init(PARAMS))
    assert {name: pytest.approx(float(value)) for name, value in found.items()} == {
        "max_norm": 0.5,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "eps_root": 0.0,
        "rule.fast.scale_by_learning_rate.learning_rate": 0.1,
        "rule.slow.scale_by_learning_rate.learning_rate": 0.01,
        "weight_decay": 0.02,
    }


def test_those_that_optax_injects_are_listed_and_set_too():
    tx = gk.chain(gk.clip(1.0), optax.inject_hyperparams(optax.sgd)(learning_rate=0.5))
    state = gk.set_hyperparams(tx.init(PARAMS), learning_rate=0.25, max_delta=2.0)
    assert {k: float(v) for k, v in gk.hyperparams(state).items()} == {
        "max_delta": 2.0,
        "learning_rate": 0.25,
    }
    updates, _ = tx.update(GRADS, state)
    np.testing.assert_allclose(updates["w"], -0.25 * GRADS["w"])
    scheduled = optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(1, 0, 5))
    with pytest.raises(ValueError, match="follows a schedule"):
        gk.set_hyperparams(scheduled.init(PARAMS), learning_rate=0.1)


def test_setting_one_has_the_effect_of_building_with_it_and_compiles_nothing(dtype, eps):
    params, grads = jax.tree.map(lambda x: x.astype(dtype), (PARAMS, GRADS))
    tx, other = gk.adamw(0.1, weight_decay=0.1), gk.adamw(0.02, b2=0.9, weight_decay=0.1)
    step = jax.jit(tx.update)
    step(grads, tx.init(params), params)
    changed = gk.set_hyperparams(tx.init(params), learning_rate=0.02, b2=0.9)
    ours, _ = step(grads, changed, params)
    theirs, _ = other.update(grads, other.init(params), params)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=20 * eps)
    assert step._cache_size() == 1


def test_an_array_that_was_set_survives_the_donation_of_the_state():
    tx, rate = gk.sgd(0.5), jnp.float32(0.25)
    state = gk.set_hyperparams(tx.init(PARAMS), learning_rate=rate)
    jax.jit(tx.update, donate_argnums=1)(GRADS, state)
    assert not rate.is_deleted()


def test_an_ambiguous_name_is_refused_and_its_members_make_it_unique():
    state = nested().init(PARAMS)
    with pytest.raises(ValueError, match=r"ambiguous: it means any of rule\.fast.*rule\.slow"):
        gk.set_hyperparams(state, learning_rate=1.0)
    state = gk.set_hyperparams(state, **{"slow.learning_rate": 7.0})
    found = gk.hyperparams(state)
    assert found["rule.slow.scale_by_learning_rate.learning_rate"] == 7.0
    assert found["rule.fast.scale_by_learning_rate.learning_rate"] == pytest.approx(0.1)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"'learning_rat'; did you mean learning_rate\? there are"):
        gk.set_hyperparams(gk.sgd().init(PARAMS), learning_rat=1.0)


def test_a_value_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(\), got \(2,\)"):
        gk.set_hyperparams(gk.sgd().init(PARAMS), learning_rate=jnp.ones(2))


def test_a_schedule_cannot_be_set_and_shows_its_present_value():
    tx = gk.sgd(lambda step: 1.0 / (step + 1))
    state = tx.init(PARAMS)
    for expected in (1.0, 1.0, 0.5, 1 / 3):  # init's, then one for each update
        assert gk.hyperparams(state)["learning_rate"] == pytest.approx(expected)
        assert gk.metrics(state)["learning_rate"] == pytest.approx(expected)
        updates, state = tx.update(GRADS, state)
    np.testing.assert_allclose(updates["w"], -GRADS["w"] / 4, rtol=1e-6)
    with pytest.raises(ValueError, match="follows a schedule"):
        gk.set_hyperparams(state, learning_rate=1.0)


@pytest.mark.parametrize("low", [jnp.bfloat16, jnp.float16])
def test_hyperparameters_are_float32_whatever_the_parameters(low):
    params = jax.tree.map(lambda x: x.astype(low), PARAMS)
    found = gk.hyperparams(gk.adamw().init(params))
    assert {value.dtype for value in found.values()} == {jnp.dtype("float32")}
    assert found["b2"] == np.float32(0.999)


def test_traced_hyperparameters_are_in_force_where_they_are_traced():
    @jax.jit
    def step(grads, state, rate):
        return gk.sgd(rate).update(grads, state)[0]

    state = gk.sgd(0.5).init(PARAMS)
    for rate in (0.1, 0.3):
        np.testing.assert_allclose(step(GRADS, state, rate)["w"], -rate * GRADS["w"], rtol=1e-6)

    state = jax.jit(lambda rate: gk.sgd(rate).init(PARAMS))(0.25)
    assert isinstance(state.hyperparams["learning_rate"], Driven)
    np.testing.assert_allclose(gk.sgd(9.0).update(GRADS, state)[0]["w"], -0.25 * GRADS["w"])


def test_arrays_are_in_force_themselves():
    """Or a factory under `optax.inject_hyperparams` would not see what that sets."""
    rate = jnp.float32(0.25)
    state = gk.sgd(0.5).init(PARAMS)
    np.testing.assert_allclose(gk.sgd(rate).update(GRADS, state)[0]["w"], -0.25 * GRADS["w"])
    with pytest.raises(ValueError, match="follows a schedule or an array"):
        gk.set_hyperparams(gk.sgd(rate).init(PARAMS), learning_rate=0.5)


@pytest.mark.parametrize("compiled", [False, True])
def test_factories_work_under_optaxs_inject_hyperparams(compiled):
    tx = optax.inject_hyperparams(gk.sgd)(learning_rate=optax.linear_schedule(1.0, 0.0, 4))
    update, state = jax.jit(tx.update) if compiled else tx.update, tx.init(PARAMS)
    for rate in (1.0, 0.75, 0.5):
        updates, state = update(GRADS, state, PARAMS)
        np.testing.assert_allclose(updates["w"], -rate * GRADS["w"], rtol=1e-6)
    tx = optax.inject_hyperparams(gk.sgd)(learning_rate=0.5)
    state = gk.set_hyperparams(tx.init(PARAMS), learning_rate=0.25)
    np.testing.assert_allclose(tx.update(GRADS, state)[0]["w"], -0.25 * GRADS["w"])


@pytest.mark.parametrize("wrong", ["0.1", None, True, [0.1]])
def test_what_cannot_be_a_hyperparameter_is_refused(wrong):
    with pytest.raises(TypeError, match="learning_rate must be a number, an array or a schedule"):
        gk.sgd(learning_rate=wrong)


def test_the_complement_of_a_decay_is_that_of_the_number_given():
    """1 − 0.999 in float32 is 1.3e-5 off; an average of a constant would be."""
    x = jnp.ones(3)
    tx = gk.ema(0.999, debias=False)
    _, state = tx.update(x, tx.init(x))
    np.testing.assert_allclose(state.mean, 0.001, rtol=1e-7)
    _, state = tx.update(x, gk.set_hyperparams(tx.init(x), decay=0.75))
    np.testing.assert_allclose(state.mean, 0.25, rtol=1e-6)


def test_fields_are_reached_by_attribute():
    state = gk.chain(clip=gk.clip_by_global_norm(1.0), adam=gk.adam(0.1)).init(PARAMS)
    assert state.clip.max_norm == 1.0
    assert state.adam.scale_by_adam.mu["w"].shape == (3, 2)
    assert state.adam.mu["w"].shape == (3, 2)  # only one of adam's members has it
    assert state.step == 0
    with pytest.raises(AttributeError, match=r"no 'velocity' in this state.*\(clip, adam, step\)"):
        _ = state.velocity


def test_metrics_are_collected_from_members_within_members():
    inner = gk.chain(gk.clip_by_global_norm(0.1), gk.sgd(0.1))
    tx = gk.chain(gk.apply_if_finite(inner), gk.monitor())
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    found = gk.metrics(state)
    assert set(found) == {
        *("skipped", "norm_before_clipping", "clipped"),
        *("update_norm", "param_norm", "update_to_weight"),
    }
    assert found["update_norm"] == pytest.approx(0.01, rel=1e-5)
    assert found["update_to_weight"] == pytest.approx(
        float(found["update_norm"] / found["param_norm"])
    )


def test_a_flat_dictionary_goes_through_a_file_and_back(tmp_path):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    tx = gk.chain(
        optax.add_noise(0.1, 0.5, 0), gk.adamw(lambda step: 0.1 / (step + 1), mu_dtype="bfloat16")
    )
    _, state = tx.update(params, tx.init(params), params)
    np.savez(tmp_path / "state.npz", **gk.to_flat_dict(state))
    with np.load(tmp_path / "state.npz") as flat:
        loaded = gk.from_flat_dict(flat, tx.init(params))
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(loaded), jax.tree.leaves(state), strict=True):
        assert x.dtype == y.dtype
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        x, y = (jax.random.key_data(x), jax.random.key_data(y)) if is_key else (x, y)
        assert (x == y).all()


def test_a_flat_dictionary_of_another_optimizer_is_refused_by_name():
    flat = gk.to_flat_dict(gk.adam().init(PARAMS))
    with pytest.raises(ValueError, match=r"weight_decay: expected float32\[\], got nothing"):
        gk.from_flat_dict(flat, gk.adamw().init(PARAMS))
    with pytest.raises(ValueError, match=r"mu\.w: expected float32\[4\], got float32\[3, 2\]"):
        gk.from_flat_dict(flat, gk.adam().init(PARAMS | {"w": jnp.ones(4)}))
    with pytest.raises(ValueError, match="expected a dictionary of format 1"):
        gk.from_flat_dict({}, gk.adam().init(PARAMS))


def test_names_do_not_move_when_a_member_comes_or_goes():
    def paths(*members):
        return set(gk.to_flat_dict(gk.chain(*members).init(PARAMS)))

    alone = paths(gk.scale_by_adam(), gk.scale_by_learning_rate(0.1))
    longer = paths(
        *(optax.zero_nans(), gk.centralize(), gk.clip(1.0)),
        *(gk.scale_by_adam(), gk.monitor(), gk.scale_by_learning_rate(0.1)),
    )
    assert alone < longer


def test_states_are_pickled_copied_and_of_one_type(dtype):
    state = nested().init(PARAMS)
    loaded = pickle.loads(pickle.dumps(jax.device_get(state)))
    assert type(loaded) is type(state) is type(nested().init(PARAMS))
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    assert "clip=" in repr(state)


def test_optax_finds_its_way_in_a_state():
    state = gk.chain(gk.clip(1.0), gk.adam(0.1)).init(PARAMS)
    assert optax.tree.get(state, "mu")["w"].shape == (3, 2)
    assert optax.tree.get(state, "learning_rate") == pytest.approx(0.1)


def test_names_that_collide_are_refused_and_keys_of_the_users_own_are_kept():
    tree = {"memory": {"w": jnp.ones(2)}, "w": jnp.zeros(2)}
    loaded = gk.from_flat_dict(gk.to_flat_dict(tree), tree)
    np.testing.assert_array_equal(loaded["memory"]["w"], 1.0)
    with pytest.raises(ValueError, match=r"two leaves have the same dotted path: a\.b"):
        gk.to_flat_dict({"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}})


def test_states_within_flax_variables_are_set_and_read():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    tx = gk.chain(gk.clip_by_global_norm(1.0), gk.sgd(0.5))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.opt_state = gk.set_hyperparams(optimizer.opt_state, learning_rate=0.25)
    assert gk.hyperparams(optimizer.opt_state)["learning_rate"] == 0.25
    optimizer.update(model, nnx.state(model, nnx.Param))
    assert isinstance(gk.metrics(optimizer.opt_state)["norm_before_clipping"], jax.Array)
