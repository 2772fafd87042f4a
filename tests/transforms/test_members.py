"""What every public transformation promises to who comes from optax, read off the index."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import re

import cloudpickle
import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from public_members import MEMBERS, WRAPPERS, inner, make

import gradkit as gk
from gradkit import core
from gradkit.transforms import adaptive, curvature_scaling
from gradkit.transforms.link import Link

X = jnp.linspace(-1.0, 1.0, 20).reshape(5, 4)
PARAMS = {"w": jnp.ones((4, 3)), "b": jnp.arange(3.0)}
RANDOM = {"add_noise", "stochastic_rounding", "low_precision"}  # by the step
MEASURING = {"scale_by_sharpness", "track_sharpness", "sophia", "adahessian"}  # noise by the step
MEASURING |= {"scale_by_sophia", "scale_by_adahessian"}

# Those that take a second to compile are for `make test-all`, but for one of a kind.
HEAVY = {name for name in MEMBERS if re.search("newton|bfgs|saddle_free|nonlinear_cg", name)}
HEAVY |= {"cubic", "trust_region", "levenberg_marquardt", "hessian_free"}
HEAVY |= {"scale_by_quadratic_model", "shampoo", "soap", *MEASURING} - {"track_sharpness"}
HEAVY -= {"lbfgs"}


def quick_first(names):
    """The names in order, the heavy ones marked as slow."""
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name
        for name in sorted(names)
    ]


def loss(params, x):
    return jnp.mean((jnp.tanh(x @ params["w"]) + params["b"] - 1) ** 2)


def observe(params, seed=0):
    return gk.observe(loss, params, X, gk.hessian, key=jax.random.key(seed))


def update(tx, state, params=PARAMS, seed=0):
    point = observe(params, seed)
    return tx.update(point.grad, state, params, **point.extras)


def assert_same(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def test_there_are_members_to_test():
    assert len(MEMBERS) >= 69
    assert {"masked", "partition", "adam", "lbfgs", "soap", "accumulate"} <= set(MEMBERS)
    assert {"accumulate", "lookahead", "masked", "apply_if_finite"} <= set(WRAPPERS)


# A transformation is a value


@pytest.mark.parametrize("name", MEMBERS)
def test_members_are_copied_pickled_and_equal_to_those_made_alike(name):
    tx, alike = make(name), make(name)
    assert tx == alike
    assert hash(tx) == hash(alike)
    named = optax.chain(optax.identity())
    for other in (
        copy.copy(tx),
        copy.deepcopy(tx),
        pickle.loads(pickle.dumps(tx)),
        cloudpickle.loads(cloudpickle.dumps(tx)),
    ):
        assert isinstance(other, Link)
        assert other == tx
        assert hash(other) == hash(tx)
    replaced = tx._replace(init=named.init)
    assert replaced.init is named.init
    assert replaced.update is tx.update
    assert tx != replaced
    different = gk.chain(gk.clip(0.123), tx)
    assert different not in (tx, gk.chain(gk.clip(0.124), tx))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (lambda: gk.adam(1e-3), lambda: gk.adam(learning_rate=1e-3), True),
        (lambda: gk.adam(1e-3), lambda: gk.adam(1e-2), False),
        (lambda: gk.adam(1e-3), lambda: gk.scale_by_adam(), False),
        (
            lambda: gk.adam(gk.warmup_cosine(0.1, 10)),
            lambda: gk.adam(gk.warmup_cosine(0.1, 10)),
            True,
        ),
        (
            lambda: gk.adam(gk.warmup_cosine(0.1, 10)),
            lambda: gk.adam(gk.warmup_cosine(0.1, 9)),
            False,
        ),
        (lambda: gk.chain(optax.adam(1e-3)), lambda: gk.chain(optax.adam(1e-3)), True),
        (lambda: gk.chain(optax.adam(1e-3)), lambda: gk.chain(optax.adam(2e-3)), False),
        (lambda: gk.chain(a=gk.clip(1.0)), lambda: gk.chain(b=gk.clip(1.0)), False),
        (
            lambda: gk.chain(a=gk.clip(1.0), b=gk.sgd()),
            lambda: gk.chain(b=gk.sgd(), a=gk.clip(1.0)),
            False,
        ),
        (lambda: gk.adam(jnp.float32(0.1)), lambda: gk.adam(jnp.float32(0.1)), True),
        (lambda: gk.adam(jnp.float32(0.1)), lambda: gk.adam(jnp.float32(0.2)), False),
        (lambda: gk.adamw(mask="*.w"), lambda: gk.adamw(mask="*.w"), True),
        (
            lambda: gk.adamw(mask=gk.by_path({"w": 1})),
            lambda: gk.adamw(mask=gk.by_path({"w": 1})),
            True,
        ),
        (
            lambda: gk.adamw(mask=gk.by_path({"w": 1})),
            lambda: gk.adamw(mask=gk.by_path({"v": 1})),
            False,
        ),
        (lambda: gk.sgd(np.float64("nan")), lambda: gk.sgd(np.float64("nan")), True),
    ],
)
def test_equality_is_that_of_the_factory_and_its_arguments(one, other, same):
    a, b = one(), other()
    assert (a == b) is same
    if same:
        assert hash(a) == hash(b)


def test_equal_members_compile_once_as_static_arguments_and_in_nnx():
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def first_update(tx, params):
        traced.append(tx)
        return tx.update(params, tx.init(params), params)[0]

    for rate in (1e-3, 1e-3, 1e-2):
        first_update(gk.chain(gk.clip(1.0), gk.adam(gk.warmup_cosine(rate, 10))), PARAMS)
    assert len(traced) == 2

    @nnx.jit
    def step(model, optimizer):
        traced.append(optimizer)
        optimizer.update(model, nnx.state(model, nnx.Param))

    for seed in range(2):
        model = nnx.Linear(2, 2, rngs=nnx.Rngs(seed))
        optimizer = nnx.Optimizer(model, gk.adam(1e-3), wrt=nnx.Param)
        step(*copy.deepcopy((model, optimizer)))
    assert len(traced) == 3


# States


def pointers(tree):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree) if leaf.size]


@pytest.mark.parametrize("jitted", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MEMBERS)
def test_fresh_states_share_no_buffer_and_can_be_donated_with_the_parameters(name, jitted):
    txs = [make(name)]
    if name in WRAPPERS:
        scheduled = (optax.adam, gk.sgd, optax.sgd)
        rate = optax.linear_schedule(0.1, 0.0, 10)
        txs += [
            make(name, lambda factory=factory: gk.chain(gk.clip(1.0), factory(rate)))
            for factory in (scheduled if name != "stack_small_leaves" else scheduled[1:2])
        ]
    for tx in txs:
        state = (jax.jit(tx.init) if jitted else tx.init)(PARAMS)
        held = pointers(state) + pointers(PARAMS)
        assert len(held) == len(set(held))


# Of optax's field names those that mean there what they mean here.
MEANT = {
    core.Known: {"value", "grad"},
    adaptive.MomentsState: {"mu", "nu"},
    adaptive.RmsState: {"nu"},
    curvature_scaling.CurvatureMomentsState: {"mu"},
}


@pytest.mark.parametrize("name", MEMBERS)
def test_state_fields_bear_optaxs_names_with_its_meaning_only(name):
    def fields(node):
        children = jax.tree_util.default_registry.flatten_one_level(node)
        for field in getattr(node, "_fields", ()):
            yield type(node), field
        for child in children[0] if children else ():
            yield from fields(child)

    state = make(name, lambda: gk.scale_by_rms()).init(PARAMS)
    for kind, field in fields(state):
        if field in {"value", "grad", "count", "mu", "nu", "params", "updates", "trace"}:
            assert field in MEANT.get(kind, ()), (kind, field)
    for field in ("value", "grad", "count"):
        optax.tree.get(state, field)  # raises where there are two


@pytest.mark.parametrize("name", quick_first(set(MEMBERS) - RANDOM - MEASURING))
def test_a_fresh_state_in_mid_run_is_as_fresh_as_at_the_start(name):
    tx = make(name)
    fresh = tx.init(PARAMS)
    expected, _ = update(tx, fresh)
    for step in (5, 20_000):
        late = fresh._replace(step=jnp.int32(step))
        updates, following = update(tx, late)
        assert following.step == step + 1
        assert_same(updates, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", quick_first(MEASURING))
def test_a_fresh_state_in_mid_run_measures_at_its_first_update(name):
    tx = make(name)
    fresh = tx.init(PARAMS)
    expected, _ = update(tx, fresh)
    updates, _ = update(tx, fresh._replace(step=jnp.int32(5)))
    for x, y in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        assert jnp.isfinite(x).all()
        assert 0.2 < tree_norm(x) / tree_norm(y) < 5


def tree_norm(x):
    return float(jnp.linalg.norm(x.ravel()))


@pytest.mark.parametrize("steps", [5, 300])
def test_one_group_of_a_partition_can_begin_anew(steps):
    tx = gk.partition({"fast": gk.adam(0.1), "slow": gk.adamw(0.1)}, {"w": "fast", "b": "slow"})
    advance = jax.jit(lambda s: tx.update(PARAMS, s, PARAMS))
    state = tx.init(PARAMS)
    first, _ = advance(state)
    for _ in range(steps):
        _, state = advance(state)
    memory = dict(state.partition.memory)
    memory["fast"] = tx.init(PARAMS).partition.memory["fast"]
    state = state._replace(partition=state.partition._replace(memory=memory))
    updates, _ = advance(state)
    np.testing.assert_allclose(updates["w"], first["w"], rtol=1e-6)


# Outside jit


COMPILED = [0]


def count(event, duration, **_):
    COMPILED[0] += "backend_compile" in event


jax.monitoring.register_event_duration_secs_listener(count)


@pytest.mark.parametrize("name", quick_first(MEMBERS))
def test_updates_outside_jit_compile_nothing_after_the_first_ones(name):
    """Neither those of the same member, nor those of one that was made alike."""
    points = [observe(PARAMS, seed) for seed in range(9)]
    before = 0
    for number, tx in enumerate((make(name), make(name))):
        state = tx.init(PARAMS)
        for point in points:
            _, state = tx.update(point.grad, state, PARAMS, **point.extras)
            if number == 0 and point is points[4]:
                before = COMPILED[0]
        if number == 0:
            assert COMPILED[0] == before
            before = COMPILED[0]
    assert COMPILED[0] == before


def test_a_loss_that_reads_what_has_changed_is_compiled_again_or_read_again():
    target = {"y": jnp.float32(1.0), "power": 2}

    def f(x):
        return jnp.sum(jnp.abs(x - target["y"]) ** target["power"])

    tx, x = gk.lbfgs(), jnp.array([3.0])
    for y, power in ((1.0, 2), (2.0, 2), (2.0, 4)):
        target.update(y=jnp.float32(y), power=power)
        value, g = jax.value_and_grad(f)(x)
        extras = {"value": value, "grad": g, "value_fn": f}
        found, _ = tx.update(g, tx.init(x), x, **extras)
        expected, _ = jax.jit(lambda x: tx.update(g, tx.init(x), x, **extras))(x)  # noqa: B023
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_mask_that_is_a_function_is_asked_at_each_update_outside_jit():
    thawed = {"w"}

    def mask(params):
        return {name: name in thawed for name in params}

    for tx in (
        gk.chain(gk.add_decayed_weights(1.0, mask)),
        gk.masked(gk.scale_by_learning_rate(2.0, flip_sign=False), mask, unselected="keep"),
    ):
        thawed.discard("b")
        state = tx.init(PARAMS)
        before, state = tx.update(PARAMS, state, PARAMS)
        thawed.add("b")
        after, _ = tx.update(PARAMS, state, PARAMS)
        np.testing.assert_array_equal(before["b"], PARAMS["b"])
        np.testing.assert_array_equal(after["b"], 2 * PARAMS["b"])


# Leaves


class Layer(eqx.Module):
    w: jax.Array
    b: jax.Array
    other: object


BAD = {
    "int32": jnp.arange(3),
    "bool": jnp.array([True, False]),
    "key": jax.random.key(0),
    "function": jax.nn.relu,
    "str": "tanh",
    "int": 3,
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", sorted(set(MEMBERS) - {"masked", "partition"}))
def test_leaves_that_are_no_parameters_are_named_with_a_remedy(name, kind):
    tx, whole = make(name), {**PARAMS, "layer": {"other": BAD[kind]}}
    said = []
    for attempt in (
        lambda: tx.init(whole),
        lambda: tx.update(whole, tx.init(PARAMS), whole),
    ):
        try:
            attempt()
        except (TypeError, ValueError) as error:
            said.append(str(error))
    assert said  # what keeps nothing of the leaves takes whole models at init
    for text in said:
        assert "layer.other" in text
        assert "eqx.filter(model, eqx.is_inexact_array)" in text
        assert "nnx.state(model, nnx.Param)" in text
        assert {"key": "key<", "function": "relu", "str": "'tanh'", "int": "int"}.get(
            kind, kind
        ) in text
        assert len(text) < 1000


@pytest.mark.parametrize("name", sorted(set(MEMBERS) - {"masked", "partition"}))
def test_a_gradient_that_is_none_alone_is_named(name):
    tx = make(name)
    grads = {"w": PARAMS["w"], "b": None}
    with pytest.raises(ValueError, match=r"b: expected shape \(3,\), got no leaf") as raised:
        tx.update(grads, tx.init(PARAMS), PARAMS)
    assert "eqx.filter" in str(raised.value)


def test_a_gradient_that_is_none_without_parameters_is_named_where_the_state_has_its_leaf():
    grads = {"w": PARAMS["w"], "b": None}
    for tx in (gk.sgd(0.1, 0.9), gk.rmsprop(), gk.ema(0.9), gk.adam()):
        with pytest.raises(ValueError, match="b: got no leaf"):
            tx.update(grads, tx.init(PARAMS))
    updates, _ = gk.sgd(0.1).update(grads, gk.sgd(0.1).init(PARAMS))
    assert updates["b"] is None
    with pytest.raises(ValueError, match="add_decayed_weights needs the parameters"):
        gk.adamw().update(grads, gk.adamw().init(grads))
    with pytest.raises(TypeError, match="line_search needs the extra argument 'value'"):
        gk.line_search().update(grads, gk.line_search().init(grads))


@pytest.mark.parametrize("name", quick_first(set(MEMBERS) - {"masked", "partition"}))
def test_whole_models_stand_where_only_some_leaves_have_gradients(name):
    """As in equinox: filtered at init, whole at update."""
    whole = Layer(PARAMS["w"], PARAMS["b"], jax.nn.relu)
    trained = eqx.filter(whole, eqx.is_inexact_array)
    tx = make(name)

    def of_layer(layer, x):
        return loss({"w": layer.w, "b": layer.b}, x)

    point = gk.observe(of_layer, trained, X, gk.hessian, key=jax.random.key(0))
    updates, _ = tx.update(point.grad, tx.init(trained), whole, **point.extras)
    expected, _ = tx.update(point.grad, tx.init(trained), trained, **point.extras)
    assert_same(updates, expected, rtol=1e-6)


@pytest.mark.parametrize("name", quick_first(MEMBERS))
def test_pythons_numbers_are_parameters(name):
    tx = make(name)
    params = {"w": PARAMS["w"], "b": 0.5}
    arrays = {"w": PARAMS["w"], "b": jnp.array(0.5)}

    def of_scalar(p, x):
        return loss({"w": p["w"], "b": p["b"] * jnp.ones(3)}, x)

    point = gk.observe(of_scalar, arrays, X, gk.hessian, key=jax.random.key(0))
    found, state = tx.update(point.grad, tx.init(params), params, **point.extras)
    expected, _ = tx.update(point.grad, tx.init(arrays), arrays, **point.extras)
    assert_same(found, expected, rtol=1e-6)
    assert_same(state, jax.tree.map(jnp.asarray, state))


# Dtypes of members of others


def spy(seen):
    def update(updates, state, params=None, **extra):
        seen.append(jax.tree.map(lambda u: u.dtype, updates))
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("give_params", [True, False])
@pytest.mark.parametrize(
    "name", ["clip_by_global_norm", "scale_by_adam", "heavy_ball", "centralize"]
)
def test_what_enters_a_foreign_member_has_the_dtype_of_optaxs_chain(name, dtype, give_params):
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    seen = []
    for chain in (gk.chain, optax.chain):
        tx = chain(make(name), chain(gk.clip(1.0), spy(seen)))
        tx.update(params, tx.init(params), params if give_params else None)
    assert seen[0] == seen[1]


FOREIGN = {
    "adamw": lambda: optax.adamw(1e-2),
    "adam": lambda: optax.adam(optax.linear_schedule(0.1, 0.0, 9)),
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "lion": lambda: optax.lion(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1, momentum=0.9),
    "trace": lambda: optax.trace(0.9),
    "ema": lambda: optax.ema(0.9),
}


HEAVY_AROUND = {"track_sharpness", "sharpness_aware", "rmsprop", "lion", "ema"}
AROUND = [("chain", name) for name in FOREIGN]
AROUND += [(name, "adamw") for name in WRAPPERS if name != "stack_small_leaves"]
AROUND = [
    pytest.param(*each, marks=pytest.mark.slow) if set(each) & HEAVY_AROUND else each
    for each in AROUND
]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(("around", "name"), AROUND)
def test_states_of_foreign_members_keep_their_dtypes(name, around, dtype):
    def within():
        return gk.chain(gk.clip_by_global_norm(1.0), FOREIGN[name]())

    tx = within() if around == "chain" else make(around, within)
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    state = tx.init(params)

    def step(state, _):
        point = observe(params)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return state, updates

    following, _ = jax.lax.scan(step, state, length=2)  # raises where a dtype changes
    assert jax.tree.map(jnp.result_type, following) == jax.tree.map(jnp.result_type, state)


def test_every_argument_without_a_default_has_a_value_to_test_with():
    for name in MEMBERS:
        assert isinstance(make(name, inner), Link), inspect.signature(getattr(gk, name))


@pytest.mark.parametrize("name", sorted(set(MEMBERS) - {"stack_small_leaves"}))
def test_optax_finds_what_a_state_keeps_for_each_parameter(name):
    state = make(name).init(PARAMS)
    mapped = optax.tree.map_params(make(name), lambda x: x * 0 + 7, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    shapes = [x.shape for x in jax.tree.leaves(PARAMS)]  # histories and factors have others
    found = [x.shape for x in jax.tree.leaves(mapped) if x.shape in shapes and (x == 7).all()]
    assert found == [x.shape for x in jax.tree.leaves(state) if x.shape in shapes]
