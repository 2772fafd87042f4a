"""What every public optimizer promises; a new name in the index is enrolled by being there."""

from __future__ import annotations

import inspect
import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk

pytestmark = pytest.mark.contract

OPTIMIZERS = [
    name
    for name in gk.__all__
    if gk._INDEX[name].startswith("gradkit.optimizers.") and not name.startswith("scale_by_")
]


SLOW_UNDER_VMAP = {"cubic", "trust_region", "nonlinear_cg", "saddle_free", "levenberg_marquardt"}


@pytest.fixture
def dtype():
    """One precision, as each test compiles; each optimizer's own tests have both."""
    return np.dtype("float32")


def quadratic(dtype):
    scales = {"a": jnp.asarray([1.0, 10.0, 0.1], dtype), "b": (jnp.asarray(3.0, dtype),)}

    def loss(params, batch):
        terms = jax.tree.map(lambda s, p: jnp.sum(s * (p - 1) ** 2), scales, params)
        return batch * sum(jax.tree.leaves(terms)) / 2

    return loss, jax.tree.map(jnp.zeros_like, scales), jnp.asarray(1.0, dtype)


def logistic(dtype):
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(40, 5)), rng.normal(size=40)
    batch = jnp.asarray(x, dtype), jnp.asarray(x[:, 0] + 0.3 * noise > 0, dtype)

    def loss(params, batch):
        x, y = batch
        z = x @ params["w"] + params["bias"]
        return jnp.mean(jax.nn.softplus(z) - y * z)

    return loss, {"w": jnp.zeros(5, dtype), "bias": jnp.zeros((), dtype)}, batch


PROBLEMS = {"quadratic": quadratic, "logistic": logistic}


@pytest.fixture(params=OPTIMIZERS)
def tx(request):
    return getattr(gk, request.param)()


def observed(loss, params, batch):
    return gk.observe(loss, params, batch, curvature=gk.hessian, key=jax.random.key(0))


def step(tx, loss, params, state, batch):
    point = observed(loss, params, batch)
    updates, state = tx.update(point.grad, state, params, **point.extras)
    return optax.apply_updates(params, updates), state, point.value


def run(tx, problem, steps):
    loss, params, batch = problem
    advance = jax.jit(lambda params, state: step(tx, loss, params, state, batch))
    state = tx.init(params)
    for _ in range(steps):
        params, state, _ = advance(params, state)
    return params, state


def assert_equal_trees(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if tolerance:
            np.testing.assert_allclose(x, y, **tolerance)
        else:
            np.testing.assert_array_equal(x, y)


def types(a):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), a)


def test_there_are_optimizers_to_test():
    assert {"sgd", "adam", "adamw", "rmsprop", "newton_cg", "lbfgs"} <= set(OPTIMIZERS)


@pytest.mark.parametrize("name", PROBLEMS)
def test_lowers_the_loss(tx, name, dtype):
    loss, params, batch = problem = PROBLEMS[name](dtype)
    reached, _ = run(tx, problem, 30)
    assert loss(reached, batch) < loss(params, batch)


def test_lowers_the_loss_of_a_network(tx, network):
    reached, _ = run(tx, (network.loss, network.params, network.batch), 30)
    assert network.loss(reached, network.batch) < network.loss(network.params, network.batch)


def test_jit_equals_eager(tx, dtype, eps):
    loss, params, batch = logistic(dtype)
    state = tx.init(params)
    eager = step(tx, loss, params, state, batch)
    jitted = jax.jit(lambda p, s: step(tx, loss, p, s, batch))(params, state)
    assert_equal_trees(jitted, eager, rtol=100 * eps, atol=100 * eps)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_structure_and_dtypes_are_kept(tx, precision):
    with jax.enable_x64(precision == "float64"):
        loss, params, batch = quadratic(np.dtype(precision))
        state = tx.init(params)

        def update(params, state):
            point = observed(loss, params, batch)
            return tx.update(point.grad, state, params, **point.extras)

        updates, following = jax.eval_shape(update, params, state)
        assert types(updates) == types(params)
        assert types(following) == types(state)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW_UNDER_VMAP else name
        for name in OPTIMIZERS
    ],
)
def test_vmap_equals_one_by_one(name, dtype, eps):
    tx = getattr(gk, name)()
    loss, params, batch = logistic(dtype)
    starts = jax.tree.map(
        lambda x: x + jnp.arange(3, dtype=dtype).reshape(3, *[1] * x.ndim), params
    )

    def two_steps(params):
        state = tx.init(params)
        for _ in range(2):
            params, state, _ = step(tx, loss, params, state, batch)
        return params

    together = jax.jit(jax.vmap(two_steps))(starts)
    for i in range(3):
        alone = jax.jit(two_steps)(jax.tree.map(lambda x, i=i: x[i], starts))
        one = jax.tree.map(lambda x, i=i: x[i], together)
        assert_equal_trees(one, alone, rtol=1e3 * eps, atol=1e3 * eps)


@pytest.mark.parametrize(
    ("chain", "clip"),
    [
        (gk.chain, optax.clip_by_global_norm(0.1)),
        (optax.chain, gk.clip_by_global_norm(0.1)),
    ],
    ids=["gradkit", "optax"],
)
def test_chains_before_and_after_clipping_with_gradkit_and_optax(tx, chain, clip):
    loss, params, batch = problem = logistic(jnp.float32)
    before, _ = run(chain(clip, tx), problem, 10)
    after, _ = run(chain(tx, clip), problem, 10)
    assert loss(before, batch) < loss(params, batch)
    assert loss(after, batch) < loss(params, batch)


def test_a_state_that_was_saved_goes_on_bit_for_bit(tx, dtype):
    loss, _, batch = problem = logistic(dtype)
    params, state = run(tx, problem, 3)
    loaded = pickle.loads(pickle.dumps(jax.device_get(state)))
    advance = jax.jit(lambda p, s: step(tx, loss, p, s, batch))
    assert_equal_trees(advance(params, loaded), advance(params, state))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_may_be_donated(name, dtype):
    rate = jnp.asarray(0.01, dtype)
    factory = getattr(gk, name)
    takes_rate = "learning_rate" in inspect.signature(factory).parameters
    tx = factory(learning_rate=rate) if takes_rate else factory()
    loss, params, batch = logistic(dtype)
    advance = jax.jit(lambda p, s: step(tx, loss, p, s, batch), donate_argnums=(0, 1))
    state = tx.init(params)
    for _ in range(3):
        params, state, _ = advance(params, state)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, state, rate)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_that_are_not_finite_are_never_hidden(name, dtype):
    loss, params, batch = logistic(dtype)
    tx = getattr(gk, name)()
    params = jax.tree.map(lambda x: x * jnp.nan, params)
    point = observed(loss, params, batch)

    @jax.jit
    def update(point, state):
        return tx.update(point.grad, state, params, **point.extras)

    updates, state = update(point, tx.init(params))
    failures = gk.metrics(state).get("failures")  # of what tries the loss: it moves nothing then
    assert failures is None or failures == 1
    for leaf in jax.tree.leaves(updates):
        assert jnp.isnan(leaf).all() if failures is None else (leaf == 0).all()


def test_what_tries_the_loss_counts_its_failures():
    x = jnp.ones(2)
    trying = {n for n in OPTIMIZERS if "failures" in gk.metrics(getattr(gk, n)().init(x))}
    assert trying >= {"newton_cg", "lbfgs", "bfgs", "nonlinear_cg", "trust_region", "cubic"}
    assert not trying & {"sgd", "adam", "adamw", "rmsprop"}


def transformations_of_both():
    """The names that gradkit and optax give to a factory of transformations."""
    for name in gk.__all__:
        theirs = getattr(optax, name, None)
        returned = getattr(theirs, "__annotations__", {}).get("return")
        ours = gk._INDEX[name].startswith(("gradkit.transforms.", "gradkit.optimizers."))
        if ours and "GradientTransformation" in str(returned) and name != "chain":
            yield name


def differences(name):
    """What the `Differs:` of a docstring says, up to the next section."""
    _, _, text = getattr(gk, name).__doc__.partition("Differs:")
    return text.partition("\n\n")[0]


@pytest.mark.parametrize("name", list(transformations_of_both()))
def test_arguments_and_their_defaults_are_those_of_optax(name):
    """Positional ones exactly; what differs is named in the docstring."""
    ours = dict(inspect.signature(getattr(gk, name)).parameters)
    theirs = dict(inspect.signature(getattr(optax, name)).parameters)
    keyword = inspect.Parameter.KEYWORD_ONLY
    mine, others = ([p.name for p in s.values() if p.kind != keyword] for s in (ours, theirs))
    for a, b in itertools.zip_longest(mine, others):
        assert a == b or (a in differences(name) and b in differences(name)), (a, b)
    for argument in ours.keys() ^ theirs.keys():
        assert argument in differences(name), argument
    for argument in ours.keys() & theirs.keys():
        default = theirs[argument].default
        if default is not inspect.Parameter.empty and ours[argument].default != default:
            assert argument in differences(name), argument
