from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import gradkit as gk
from gradkit.spectra.dynamics import dynamics

# In units of 1/η: slow, decaying, oscillating, negative, and growing at 2.05.
SPECTRUM = np.concatenate([np.linspace(0.01, 1, 8), np.linspace(1.1, 1.95, 8), [-0.05, 2.05]])


def diagonal(values):
    d = jnp.asarray(values)
    return gk.Operator(Partial(jnp.multiply, d), d)


def trajectory(A, tx, theta, steps):
    """Parameters before each step on ½ θᵀAθ and after the last, a flat float64 row each."""

    def step(carry, _):
        theta, state = carry
        updates, state = tx.update(A @ theta, state, theta)
        return (optax.apply_updates(theta, updates), state), ravel_pytree(theta)[0]

    _, rows = jax.jit(lambda c: jax.lax.scan(step, c, length=steps + 1))((theta, tx.init(theta)))
    return np.asarray(rows, np.float64)


def optimizer(name, learning_rate, momentum):
    return {
        "sgd": lambda: gk.sgd(learning_rate, momentum=momentum or None),
        "optax": lambda: optax.sgd(learning_rate, momentum=momentum or None),
        "heavy_ball": lambda: gk.chain(
            gk.heavy_ball(momentum), gk.scale_by_learning_rate(learning_rate)
        ),
    }[name]()


@pytest.mark.parametrize(
    ("name", "momentum", "rotated"),
    [
        ("sgd", 0.0, True),
        ("sgd", 0.9, True),
        ("optax", 0.6, True),
        ("heavy_ball", 0.25, True),
        ("sgd", 0.9, False),
    ],
)
def test_a_quadratic_moves_mode_by_mode_as_foretold(
    operator_with, dtype, eps, rotated, name, momentum
):
    eta, steps = 0.1, 40
    if rotated:
        oracle = operator_with(SPECTRUM / eta)
        A, (theta, start) = oracle.operator, oracle.vector(3)
        values, Q = np.linalg.eigh(oracle.matrix)
    else:
        start = np.random.default_rng(3).normal(size=len(SPECTRUM))
        theta = jnp.asarray(start, dtype)
        A = diagonal(jnp.asarray(SPECTRUM / eta, dtype))
        values, Q = np.asarray(A.matvec(jnp.ones_like(theta)), np.float64), np.eye(len(start))
    observed = trajectory(A, optimizer(name, eta, momentum), theta, steps) @ Q
    found = dynamics(jnp.asarray(values), learning_rate=eta, momentum=momentum, steps=steps)
    amplitudes = np.asarray(found.amplitudes, np.float64)
    assert found.amplitudes.dtype == dtype
    # Each step rounds the product, and a mode carries an error on as it carries itself.
    growth = np.abs(amplitudes).max()
    tolerance = 10 * steps * eps * growth * np.linalg.norm(start)
    np.testing.assert_allclose(observed, amplitudes * (start @ Q), atol=tolerance)
    assert tolerance < 0.01 * np.abs(observed).max()


def test_without_momentum_amplitudes_are_powers(dtype, eps):
    a = np.array([-0.5, 0, 1e-3, 0.5, 1, 1.5, 1.999, 2, 2.5])
    found = dynamics(jnp.asarray(a, dtype), learning_rate=1.0, steps=30)
    c = 1 - np.asarray(jnp.asarray(a, dtype), np.float64)
    t = np.arange(31)[:, None]
    tolerance = 2 * eps * t * (1 + np.abs(a)) * np.abs(c) ** np.maximum(t - 1, 0)
    assert (np.abs(np.asarray(found.amplitudes, np.float64) - c**t) <= tolerance).all()
    np.testing.assert_allclose(found.rate, np.abs(c), rtol=2 * eps)
    decays, oscillates = ["decays"] * 3, ["oscillates"] * 2
    assert found.kinds.tolist() == [
        "diverges",
        "neutral",
        *decays,
        *oscillates,
        "neutral",
        "diverges",
    ]


def test_modes_too_slow_for_one_step_to_show_are_right(dtype, eps):
    a = jnp.asarray([1e-10, 1e-8, 3e-8, 1e-6, 1e-4], dtype)
    found = dynamics(a, learning_rate=1.0, steps=20_000)
    exact = np.exp(np.arange(20_001)[:, None] * np.log1p(-np.asarray(a, np.float64)))
    np.testing.assert_allclose(found.amplitudes, exact, atol=4 * eps)


def roots(a, momentum):
    return np.roots([1, -(1 + momentum - a), momentum])


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.9])
def test_the_rate_is_the_larger_root(dtype, eps, momentum):
    shares = np.array([-0.1, 0.001, 0.2, 0.5, 0.7, 0.95, 0.999, 1.02])
    a = np.asarray(jnp.asarray(2 * (1 + momentum) * shares, dtype), np.float64)
    found = dynamics(jnp.asarray(a), learning_rate=1.0, momentum=momentum, steps=1)
    expected = [np.abs(roots(x, momentum)).max() for x in a]
    # d rate / d a is at most 1 / |difference of the roots|.
    gap = min(abs(np.subtract(*roots(x, momentum))) for x in a) if momentum else 1.0
    np.testing.assert_allclose(found.rate, expected, atol=10 * eps / gap)


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.9])
def test_the_rate_is_what_is_seen_in_the_long_run(momentum):
    with jax.enable_x64(True):
        a = 2 * (1 + momentum) * np.array([-0.1, 0.001, 0.2, 0.4, 0.7, 0.97, 1.02])
        found = dynamics(a, learning_rate=1.0, momentum=momentum, steps=400)
    relative = np.abs(found.amplitudes) / np.asarray(found.rate) ** np.arange(401)[:, None]
    early, late = relative[50:200].max(axis=0), relative[250:].max(axis=0)
    # Wrong by 1% in a step, the rate would be wrong by a factor of 7 in 200.
    assert (late / early > 0.5).all()
    assert (late / early < 2).all()


def test_double_roots_are_exact(dtype, eps):
    found = dynamics(jnp.asarray([0.25, 2.25], dtype), learning_rate=1.0, momentum=0.25, steps=60)
    t = np.arange(61)
    exact = np.stack([(1 + t / 2) * 0.5**t, (1 + 3 * t / 2) * (-0.5) ** t], axis=1)
    errors = np.abs(np.asarray(found.amplitudes, np.float64) - exact)
    assert (errors <= 4 * eps * (t[:, None] + 1) * 0.5 ** t[:, None] * (t[:, None] + 1)).all()
    assert found.rate.tolist() == [0.5, 0.5]
    assert found.kinds.tolist() == ["decays", "oscillates"]


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.5625])
def test_kinds_change_where_they_should(dtype, momentum):
    critical, limit = (1 - momentum**0.5) ** 2, 2 * (1 + momentum)
    zero, tiny = dtype.type(0), np.finfo(dtype).tiny
    below, above = (np.nextafter(dtype.type(limit), dtype.type(x)) for x in (0, 10))
    past = np.nextafter(dtype.type(critical), dtype.type(10))
    a = jnp.asarray([-tiny, zero, tiny, critical, past, below, limit, above, np.inf, np.nan], dtype)
    found = dynamics(a, learning_rate=1.0, momentum=momentum, steps=1)
    expected = "diverges neutral decays decays oscillates oscillates neutral diverges diverges"
    assert found.kinds.tolist() == [*expected.split(), "not a number"]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_amplitudes_do_what_their_kind_says(momentum):
    a = np.concatenate(
        [[-0.1, 0.0], np.linspace(0.05, 2.2 * (1 + momentum), 40), [2 + 2 * momentum]]
    )
    a = np.delete(a, np.abs(a / (1 - momentum**0.5) ** 2 - 1) < 0.02)  # where a period is long
    found = dynamics(a, learning_rate=1.0, momentum=momentum, steps=300)
    x, kinds = np.asarray(found.amplitudes), found.kinds
    assert set(kinds) == {"decays", "oscillates", "diverges", "neutral"} or momentum == 0.9
    for mode, kind in zip(x.T, kinds, strict=True):
        if kind == "decays":
            assert (np.diff(mode) <= 0).all()
            assert (mode >= 0).all()
        if kind == "oscillates":
            assert mode.min() < 0
        if kind in ("decays", "oscillates"):
            assert abs(mode[-1]) < 0.1
        if kind == "diverges":
            assert abs(mode[-1]) > 10
        if kind == "neutral":
            assert 0.5 < abs(mode[-1]) <= np.abs(mode).max() < 30


def test_overflow_is_infinite_and_nan_stays_with_its_mode(dtype):
    a = jnp.asarray([1e30, -1e30, np.nan, 0.5], dtype)
    found = dynamics(a, learning_rate=1.0, steps=60)
    assert np.isinf(found.amplitudes[-1, :2]).all()
    assert np.isnan(found.amplitudes[1:, 2]).all()
    assert np.isnan(found.rate).tolist() == [False, False, True, False]
    assert found.amplitudes[-1, 3] == 0.5**60


def test_dynamics_take_any_shape_and_run_under_jit_and_vmap(dtype, eps):
    values = jnp.asarray(np.linspace(0.1, 1.9, 6).reshape(2, 3), dtype)

    def many(eta, mu):
        return dynamics(values, learning_rate=eta, momentum=mu, steps=5)

    etas, mus = jnp.asarray([0.5, 1.0], dtype), jnp.asarray([0.9, 0.0], dtype)
    together = jax.jit(jax.vmap(many))(etas, mus)
    assert together.amplitudes.shape == (2, 6, 2, 3)
    for i in range(2):
        alone = many(float(etas[i]), float(mus[i]))
        assert alone.kinds.shape == (2, 3)
        np.testing.assert_array_equal(together.code[i], alone.code)
        np.testing.assert_allclose(together.amplitudes[i], alone.amplitudes, atol=10 * eps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate: expected a positive number"),
        ({"learning_rate": np.nan}, "learning_rate: expected a positive number"),
        ({"learning_rate": 0.1, "momentum": 1.0}, "momentum: expected 0 <= momentum < 1"),
        ({"learning_rate": 0.1, "steps": 0}, "steps: expected a positive whole number"),
    ],
)
def test_dynamics_refuse_numbers_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        dynamics(jnp.ones(2), **arguments)
