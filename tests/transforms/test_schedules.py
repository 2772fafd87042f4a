"""Schedules: their end points, their shapes, optax's counterparts, and what they refuse."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gradkit as gk
from gradkit.transforms import schedules
from gradkit.transforms.schedules import (
    one_cycle,
    scaled_by_batch_size,
    step_decay,
    warm_restarts,
    warmup_cosine,
    warmup_exponential,
    warmup_inverse_sqrt,
    warmup_inverse_time,
    warmup_linear,
    warmup_polynomial,
    warmup_stable_decay,
)

# Every schedule with a warm-up, of 20 steps from 0.01 to 0.5; those that end, after 100 at 0.002.
RISE = {"peak": 0.5, "warmup": 20, "start": 0.01}
ENDING = {
    "linear": warmup_linear(**RISE, steps=100, end=0.002),
    "cosine": warmup_cosine(**RISE, steps=100, end=0.002),
    "square": warmup_polynomial(**RISE, steps=100, end=0.002),
    "root": warmup_polynomial(**RISE, steps=100, power=0.5, end=0.002),
    "exponential": warmup_exponential(**RISE, steps=100, end=0.002),
    "stable": warmup_stable_decay(**RISE, steps=100, decay=30, end=0.002),
    "one_cycle": one_cycle(**RISE, steps=100, end=0.002),
}
WARMED = {
    **ENDING,
    "inverse_sqrt": warmup_inverse_sqrt(**RISE),
    "inverse_time": warmup_inverse_time(**RISE, scale=7.0),
}
ALL = {
    **WARMED,
    "at": step_decay(0.5, (30, 60), 0.1),
    "every": step_decay(0.5, every=25, factor=0.5),
    "restarts": warm_restarts(0.5, 10, 1.0, 0.002),
    "longer": warm_restarts(0.5, 10, 1.5, 0.002),
}
FALLING = {**WARMED, "at": ALL["at"], "every": ALL["every"]}
K = np.arange(130)


def each(table):
    return pytest.mark.parametrize("rate", table.values(), ids=table.keys())


def values(rate, steps=K):
    """In one shape for all, as operations are compiled for each shape."""
    padded = np.resize(steps, max(np.size(steps), len(K)))
    return np.asarray(rate(jnp.asarray(padded)), np.float64)[: np.size(steps)]


@each(ALL)
def test_a_value_is_a_scalar_of_the_default_float_type(rate, dtype):
    numbers = [rate(step) for step in (3, np.int64(3), np.uint8(3), jnp.int32(3))]
    for value in numbers:
        assert value.shape == ()
        assert value.dtype == dtype
        assert not value.weak_type
    assert len({float(value) for value in numbers}) == 1


@each(ALL)
def test_jit_and_vmap_agree_with_the_call(rate):
    eager = values(rate)
    np.testing.assert_allclose(values(jax.jit(jax.vmap(rate))), eager, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(rate(K.reshape(2, -1)), eager.reshape(2, -1), rtol=1e-6, atol=1e-7)


@each(WARMED)
def test_the_rise_begins_at_start_and_reaches_the_peak_exactly(rate, dtype):
    assert rate(0) == jnp.asarray(0.01, dtype)
    assert rate(20) == jnp.asarray(0.5, dtype)


@each(ENDING)
def test_the_end_is_exact_and_lasts(rate, dtype):
    after = values(rate, [100, 101, 10**6, 2**31 - 1])
    np.testing.assert_array_equal(after, np.asarray(0.002, dtype))


@each(FALLING)
def test_the_rise_rises_and_the_fall_falls(rate):
    rises, falls = np.split(values(rate), [21 if rate in WARMED.values() else 1])
    assert (np.diff(rises) > 0).all()
    assert (np.diff(falls) <= 0).all()
    assert falls[0] <= rises[-1]


@each(ALL)
def test_the_peak_and_the_end_bound_every_value(rate):
    floor = np.float32(0.002) if rate in ENDING.values() else 0
    every = values(rate)
    assert (every[20:] >= floor).all()
    assert (every <= np.float32(0.5)).all()
    assert every.max() == np.float32(0.5)


@each(ALL)
def test_neither_late_steps_nor_slopes_are_undefined(rate):
    late = values(rate, np.array([2**24 - 1, 2**24 + 1, 2**30, 2**31 - 2, 2**31 - 1]))
    assert np.isfinite(late).all()
    assert (late >= 0).all()
    steps = np.array([-1, 0, 1, 20, 20.5, 30, 99, 100, 101, 2e9], np.float32)
    assert np.isfinite(values(jax.vmap(jax.grad(rate)), steps)).all()


@each(ALL)
def test_a_step_before_the_first_is_the_first(rate):
    assert rate(-3) == rate(0)  # optax.join_schedules asks for them


def test_the_slope_along_the_peak_is_the_shape():
    for factory in (warmup_cosine, warmup_polynomial):
        _, slope = jax.jvp(lambda peak, make=factory: make(peak, 100, 10)(K), (0.3,), (1.0,))
        np.testing.assert_allclose(slope, values(factory(1.0, 100, 10)), rtol=1e-5, atol=1e-7)


PEAKS = st.floats(1e-5, 10)
SHARES = st.just(0.0) | st.floats(1e-6, 1)
LONG = st.integers(1, 10**6)
LENGTHS = st.tuples(st.integers(1, 60), st.integers(1, 60))  # of the rise and of the fall


@settings(max_examples=20)
@given(peak=PEAKS, low=SHARES, share=SHARES, rise=LONG, fall=LONG)
@example(peak=0.6, low=0.7, share=0.1, rise=4066, fall=32471)
def test_end_points_are_exact_and_bound_the_rest(peak, low, share, rise, fall):
    peak, start, end = (np.float32(x) for x in (peak, low * peak, share * peak))
    steps = rise + fall
    k = np.append([0, rise, steps, steps + 1], np.linspace(0, steps, 100).astype(int))
    for factory in (warmup_linear, warmup_cosine, one_cycle):
        every = values(factory(peak, steps, rise, start, end), k)
        np.testing.assert_array_equal(every[:4], [start, peak, end, end])
        assert (every <= peak * (1 + 1.2e-7)).all()
        assert (every[k >= rise] >= end * (1 - 1.2e-7)).all()


def test_end_points_are_exact_in_jit():
    # Here XLA multiplies by the reciprocal of the length, and 32471 · (1 / 32471) < 1 in float32.
    rate = jax.jit(warmup_linear(0.6, 4066 + 32471, 4066, 0.4, 0.1))
    assert [rate(0), rate(4066), rate(4066 + 32471)] == [np.float32(x) for x in (0.4, 0.6, 0.1)]


@settings(max_examples=20)
@given(peak=PEAKS, low=SHARES, share=SHARES, lengths=LENGTHS, power=st.floats(0.3, 4))
def test_optax_has_the_same_values(peak, low, share, lengths, power):
    rise, fall = lengths
    start, end = low * peak, share * peak

    def after_rise(decay):
        return optax.join_schedules([optax.linear_schedule(start, peak, rise), decay], [rise])

    common = {"steps": rise + fall, "warmup": rise, "start": start, "end": end}
    rate = 1e-6 + (1 - 1e-6) * share
    pairs = [
        (warmup_linear(peak, **common), after_rise(optax.linear_schedule(peak, end, fall))),
        (
            warmup_polynomial(peak, power=power, **common),
            after_rise(optax.polynomial_schedule(peak, end, power, fall)),
        ),
        (
            warmup_cosine(peak, **common),
            optax.warmup_cosine_decay_schedule(start, peak, rise, rise + fall, end),
        ),
        (
            warmup_exponential(peak, **{**common, "end": rate * peak}),
            after_rise(optax.exponential_decay(peak, fall, rate, end_value=rate * peak)),
        ),
    ]
    with jax.enable_x64(True):  # in float32 optax's are 1e-6 off
        for ours, theirs in pairs:
            np.testing.assert_allclose(values(ours), values(theirs), rtol=1e-9, atol=1e-13)


@settings(max_examples=20)
@given(
    at=st.lists(st.integers(1, 120), min_size=1, max_size=4, unique=True).map(sorted),
    factor=st.floats(0.1, 1),
)
def test_optax_has_the_same_steps(at, factor):
    ours = step_decay(0.3, tuple(at), factor)
    theirs = optax.piecewise_constant_schedule(0.3, dict.fromkeys(at, factor))
    np.testing.assert_allclose(values(ours), values(theirs), rtol=2e-6)


def test_falls_every_so_many_steps_are_falls_at_their_multiples():
    multiples = tuple(range(25, 130, 25))
    np.testing.assert_array_equal(
        values(step_decay(0.5, every=25, factor=0.5)), values(step_decay(0.5, multiples, 0.5))
    )
    np.testing.assert_array_equal(values(ALL["every"]), 0.5 ** (1 + K // 25))


@given(steps=st.integers(4, 100))
@settings(max_examples=20)
def test_optax_has_the_same_cycle(steps):
    ours = one_cycle(0.3, steps, end=0.3 / 25 / 1e4)
    if int(0.3 * steps) == 3 * steps // 10:
        theirs = optax.cosine_onecycle_schedule(steps, 0.3)
        np.testing.assert_allclose(values(ours), values(jax.vmap(theirs)), atol=1e-6)
    assert ours(0) == np.float32(0.3 / 25)
    assert ours(3 * steps // 10) == np.float32(0.3)
    assert one_cycle(0.3, steps)(steps) == np.float32(0.3 / 1e4)


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_optax_has_the_same_restarts(multiplier):
    lengths = [7 * multiplier**i for i in range(3)]
    periods = [
        {
            "init_value": 0.5,
            "peak_value": 0.5,
            "warmup_steps": 0,
            "decay_steps": n,
            "end_value": 0.1,
        }
        for n in lengths
    ]
    k = np.arange(sum(lengths))
    ours = values(warm_restarts(0.5, 7, multiplier, 0.1), k)
    np.testing.assert_allclose(ours, values(optax.sgdr_schedule(periods), k), atol=1e-6)


@pytest.mark.parametrize("multiplier", [1, 1.001, 1.5, 2, 3, 1000])
@pytest.mark.parametrize("period", [4, 1000])
def test_restarts_are_exact_at_any_step(multiplier, period):
    starts, length = [0], period
    while starts[-1] + length < 2**31 and len(starts) < 100:
        starts.append(starts[-1] + length)
        length *= multiplier
    starts = np.rint(starts).astype(np.int64)[1:]
    rate = warm_restarts(0.5, period, multiplier)
    assert (values(rate, starts) == 0.5).all()
    assert (values(rate, starts - 1) < 0.25).all()
    assert (values(rate, starts + 1) >= 0.25).all()
    lengths = np.diff(starts)
    middle = values(rate, starts[:-1] + lengths // 2)
    expected = np.cos(np.pi / 2 * (lengths // 2) / lengths) ** 2 / 2
    np.testing.assert_allclose(middle, expected, atol=1e-6)


def test_the_periods_of_one_and_a_half():
    k = np.arange(100)
    restarts = np.flatnonzero(values(warm_restarts(0.5, 4, 1.5), k) == 0.5)
    np.testing.assert_array_equal(restarts, [0, 4, 10, 19, 32, 53, 83])  # 4, 6, 9, 13.5, 20.25, ...


def test_a_plateau_lies_between_the_rise_and_the_fall():
    every = values(warmup_stable_decay(0.5, 100, warmup=20, decay=30))
    assert (every[20:71] == 0.5).all()
    np.testing.assert_allclose(every[70:101], 0.5 * np.linspace(1, 0, 31), atol=1e-7)
    np.testing.assert_array_equal(
        values(warmup_stable_decay(0.5, 100)), values(warmup_stable_decay(0.5, 100, decay=10))
    )


def test_inverse_square_root_is_its_formula():
    k = np.arange(1, 5000, 40)
    np.testing.assert_allclose(
        values(warmup_inverse_sqrt(0.5, 400), k),
        0.5 * np.minimum(k / 400, np.sqrt(400 / k)),
        2e-6,
        1e-7,
    )
    np.testing.assert_allclose(values(warmup_inverse_sqrt(0.5), k), 0.5 / np.sqrt(k + 1), 1e-6)


def test_inverse_time_is_its_formula():
    np.testing.assert_allclose(
        values(warmup_inverse_time(0.5, 8.0, 10))[10:], 0.5 / (1 + (K[10:] - 10) / 8), 1e-6
    )
    assert warmup_inverse_time(0.5, 8.0)(8) == 0.25


def test_the_conditions_of_robbins_and_monro():
    decades = [slice(10**i, 10 ** (i + 1)) for i in (2, 3, 4)]
    k = np.arange(10**5)

    def sums(rate, power):
        return np.array([np.sum(values(jax.jit(rate), k)[d] ** power) for d in decades])

    time, root = warmup_inverse_time(0.5, 8.0, 10), warmup_inverse_sqrt(0.5, 10)
    np.testing.assert_allclose(sums(time, 1), 4 * np.log(10), rtol=1e-2)  # Σ η = ∞
    assert (sums(time, 2)[1:] < 0.11 * sums(time, 2)[:-1]).all()  # Σ η² < ∞
    assert (sums(root, 1)[1:] > 3 * sums(root, 1)[:-1]).all()  # Σ η = ∞
    np.testing.assert_allclose(sums(root, 2), 0.25 * 10 * np.log(10), rtol=1e-2)  # Σ η² = ∞


def test_without_a_rise_the_peak_comes_first(dtype):
    for rate in (
        warmup_linear(0.3, 10),
        warmup_cosine(0.3, 10),
        warmup_polynomial(0.3, 10),
        warmup_exponential(0.3, 10, end=0.1),
        warmup_inverse_sqrt(0.3),
        warmup_inverse_time(0.3, 5.0),
        warmup_stable_decay(0.3, 10),
        step_decay(0.3, ()),
        warm_restarts(0.3, 5),
    ):
        assert rate(0) == jnp.asarray(0.3, dtype)


@pytest.mark.parametrize("steps", [1, 10])
def test_a_rise_may_take_all_steps(steps):
    rate = warmup_linear(0.3, steps, steps, end=0.1)
    rises = values(rate, np.arange(steps + 2))
    np.testing.assert_allclose(rises[:steps], 0.3 * np.arange(steps) / steps, rtol=1e-6)
    assert (rises[steps:] == np.float32(0.1)).all()


def test_the_last_possible_update_is_a_step_like_any_other():
    last = 2**31 - 1
    rate = warmup_linear(0.5, last, last - 2**20)
    k = np.array([last - 2**20, last - 2**19, last - 1, last])
    np.testing.assert_allclose(values(rate, k), [0.5, 0.25, 0.5 / 2**20, 0], rtol=1e-6)


def test_rates_grow_with_the_batch():
    assert scaled_by_batch_size(0.1, 512) == pytest.approx(0.2)
    assert isinstance(scaled_by_batch_size(0.1, 64, reference=32), float)
    scaled = scaled_by_batch_size(ALL["linear"], 64)
    np.testing.assert_allclose(values(scaled), values(ALL["linear"]) / 4, rtol=1e-6)
    with pytest.raises(ValueError, match=r"batch_size must be a whole number from 1 to .*, got 0"):
        scaled_by_batch_size(0.1, 0)


@pytest.mark.parametrize("make", [gk.sgd, optax.sgd])
def test_descent_takes_steps_of_the_schedule(make):
    rate = warmup_cosine(0.5, 6, 2)
    tx = make(rate)
    params = jnp.zeros(3)
    state, steps = tx.init(params), []
    for _ in range(7):
        update, state = tx.update(jnp.ones(3), state, params)
        steps.append(float(-update[0]))
    np.testing.assert_allclose(steps, values(rate, np.arange(7)), rtol=1e-6, atol=1e-9)


INVALID = [
    (lambda: warmup_linear(-0.1, 10), "warmup_linear: peak must be a finite number .*, got -0.1"),
    (lambda: warmup_linear(np.nan, 10), "warmup_linear: peak must be a finite .*, got nan"),
    (lambda: warmup_linear(0.1, 0), "warmup_linear: steps must be a whole number from 1 .*, got 0"),
    (lambda: warmup_linear(0.1, 1.5), "warmup_linear: steps must be a whole .*, got 1.5"),
    (lambda: warmup_linear(0.1, 2**31), "warmup_linear: steps must be .* to 2147483647"),
    (lambda: warmup_cosine(0.1, 10, 11), "warmup_cosine: warmup must be .* from 0 to 10, got 11"),
    (lambda: warmup_cosine(0.1, 10, -1), "warmup_cosine: warmup must be .*, got -1"),
    (lambda: warmup_cosine(0.1, 10, 5, 0.2), "warmup_cosine: start must be from 0 to peak = 0.1"),
    (lambda: warmup_polynomial(0.1, 10, end=0.2), "warmup_polynomial: end must be from 0 to peak"),
    (lambda: warmup_polynomial(0.1, 10, power=0), "warmup_polynomial: power must .* above 0"),
    (lambda: warmup_exponential(0.1, 10, end=0.0), "warmup_exponential: end must .* above 0"),
    (lambda: warmup_exponential(0.1, 10, end=0.2), "warmup_exponential: end must be from 0 to"),
    (lambda: warmup_inverse_sqrt(0.1, -1), "warmup_inverse_sqrt: warmup must be"),
    (lambda: warmup_inverse_time(0.1, 0.0), "warmup_inverse_time: scale must .* above 0, got 0.0"),
    (lambda: warmup_stable_decay(0.1, 0), "warmup_stable_decay: steps must be"),
    (
        lambda: warmup_stable_decay(0.1, 10, 4, 7),
        "warmup_stable_decay: decay must be a whole number from 1 to 6, got 7",
    ),
    (lambda: warmup_stable_decay(0.1, 10, decay=0), "warmup_stable_decay: decay must be"),
    (lambda: step_decay(0.1), "step_decay: give one of at and every"),
    (lambda: step_decay(0.1, (5,), every=5), r"step_decay: give one .*, got at=\(5,\), every=5"),
    (lambda: step_decay(0.1, (5, 5)), "step_decay: at must be a whole number from 6 .*, got 5"),
    (lambda: step_decay(0.1, (0,)), "step_decay: at must be a whole number from 1"),
    (lambda: step_decay(0.1, every=0), "step_decay: every must be .*, got 0"),
    (lambda: step_decay(0.1, (5,), 0.0), "step_decay: factor must be above 0 and at most 1"),
    (lambda: step_decay(0.1, (5,), 2.0), "step_decay: factor must be above 0 and at most 1"),
    (lambda: warm_restarts(0.1, 0), "warm_restarts: period must be"),
    (lambda: warm_restarts(0.1, 5, 0.5), "warm_restarts: multiplier must be 1, or from 1.001"),
    (lambda: warm_restarts(0.1, 5, end=0.2), "warm_restarts: end must be from 0 to peak = 0.1"),
    (lambda: one_cycle(0.1, 0), "one_cycle: steps must be"),
    (lambda: one_cycle(0.1, 10, 11), "one_cycle: warmup must be a whole number from 0 to 10"),
]


@pytest.mark.parametrize(("make", "message"), INVALID, ids=[m.split(" .*")[0] for _, m in INVALID])
def test_numbers_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_config_can_write_every_argument():
    public = inspect.getmembers(schedules, inspect.isfunction)
    signatures = {name: inspect.signature(f) for name, f in public if name[0] != "_"}
    assert not {*signatures} & {*dir(optax)}
    assert signatures.pop("scaled_by_batch_size").return_annotation != "optax.Schedule"
    plain = {"float", "int", "int | None", "float | None", "tuple[int, ...] | None"}
    for name, signature in signatures.items():
        assert signature.return_annotation == "optax.Schedule", name
        assert next(iter(signature.parameters)) == "peak"
        assert {p.annotation for p in signature.parameters.values()} <= plain, name
