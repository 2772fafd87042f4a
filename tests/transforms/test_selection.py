"""Masks, labels and partitions: right leaves, right losses, errors that list paths."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk

PARAMS = {
    "encoder": {"kernel": jnp.full((3, 2), 0.5), "bias": jnp.full(2, 0.25)},
    "head": [jnp.full((2, 2), -0.5), jnp.float32(0.1)],
}
GRADS = jax.tree.map(lambda p: p + 1, PARAMS)


def loss(params, batch):
    h = jnp.tanh(batch @ params["encoder"]["kernel"] + params["encoder"]["bias"])
    return jnp.mean((h @ params["head"][0] + params["head"][1] - 1) ** 2)


BATCH = jnp.asarray(np.random.default_rng(0).normal(size=(10, 3)), jnp.float32)
KERNELS = {"encoder": {"kernel": True, "bias": False}, "head": [True, False]}


@pytest.mark.parametrize(
    "mask",
    [
        KERNELS,
        lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ["*.kernel", "head.0"],
        gk.by_path({"*.kernel": True, "head.0": True}, default=False),
        gk.by_path(lambda path, leaf: leaf.ndim == 2 and "bias" not in path),
    ],
    ids=["tree", "function", "patterns", "by_path", "predicate"],
)
def test_a_mask_in_each_form_selects_the_same(mask):
    updates, _ = (tx := gk.masked(gk.sgd(0.5), mask, unselected="zero")).update(
        GRADS, tx.init(PARAMS), PARAMS
    )
    chosen = jax.tree.leaves(KERNELS)
    for u, g, selected in zip(*map(jax.tree.leaves, (updates, GRADS)), chosen, strict=True):
        np.testing.assert_allclose(u, -0.5 * g if selected else 0 * g)


def test_a_prefix_selects_a_subtree():
    mask = {"encoder": True, "head": False}
    tx = gk.masked(gk.sgd(1.0), mask, unselected="zero")
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert (updates["encoder"]["bias"] == -GRADS["encoder"]["bias"]).all()
    assert not updates["head"][0].any()


def test_the_updates_of_other_leaves_are_zero_or_pass():
    zero, kept = (
        gk.masked(gk.sgd(1.0), "encoder.*", unselected=choice) for choice in ("zero", "keep")
    )
    assert not zero.update(GRADS, zero.init(PARAMS), PARAMS)[0]["head"][0].any()
    passed = kept.update(GRADS, kept.init(PARAMS), PARAMS)[0]["head"][0]
    assert (passed == GRADS["head"][0]).all()
    with pytest.raises(ValueError, match="'zero' or 'keep', got 'raw'"):
        gk.masked(gk.sgd(1.0), True, unselected="raw")


NOT_KERNELS = jax.tree.map(lambda flag: not flag, KERNELS)


def frozen_elsewhere(ox):
    return ox.chain(
        ox.masked(ox.adam(0.1), KERNELS), optax.masked(optax.set_to_zero(), NOT_KERNELS)
    )


IDIOMS = {
    "decay": lambda ox: ox.chain(
        ox.clip_by_global_norm(1.0), ox.masked(ox.add_decayed_weights(0.1), KERNELS), ox.adam(0.1)
    ),
    "two optimizers": lambda ox: ox.chain(
        ox.masked(ox.sgd(0.1), KERNELS), ox.masked(ox.adam(0.1), NOT_KERNELS)
    ),
    "two scalings": lambda ox: ox.chain(
        ox.masked(ox.scale_by_rms(), KERNELS),
        ox.masked(ox.scale_by_adam(), lambda _: NOT_KERNELS),
        optax.scale(-0.1),
    ),
    "frozen before": lambda ox: ox.chain(
        optax.masked(optax.set_to_zero(), NOT_KERNELS), ox.adam(0.1)
    ),
    "frozen behind": frozen_elsewhere,
    "nested": lambda ox: ox.chain(
        ox.chain(ox.masked(ox.sgd(0.1), KERNELS)), ox.chain(ox.masked(ox.adam(0.1), NOT_KERNELS))
    ),
    "scaling alone": lambda ox: ox.masked(ox.scale_by_adam(), KERNELS),
}


@pytest.mark.parametrize("name", IDIOMS)
def test_masks_in_chains_do_what_they_do_in_optax(name):
    ours, theirs = IDIOMS[name](gk), IDIOMS[name](optax)
    state, expected_state = ours.init(PARAMS), theirs.init(PARAMS)
    for _ in range(3):
        updates, state = ours.update(GRADS, state, PARAMS)
        expected, expected_state = theirs.update(GRADS, expected_state, PARAMS)
        for x, y in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7)


TRAPS = {
    "alone": lambda: gk.masked(gk.adam(0.1), KERNELS),
    "optax's": lambda: gk.masked(optax.adam(0.1), KERNELS),
    "optax's search": lambda: gk.masked(optax.lbfgs(), KERNELS),
    "behind clipping": lambda: gk.chain(gk.clip(1.0), gk.masked(gk.sgd(0.1), KERNELS)),
    "before clipping": lambda: gk.chain(gk.masked(gk.lbfgs(), KERNELS), gk.clip(1.0)),
    "accumulated": lambda: gk.accumulate(gk.masked(gk.rmsprop(0.1, momentum=0.9), KERNELS), 2),
    "half covered": lambda: gk.chain(
        gk.masked(gk.sgd(0.1), KERNELS), gk.masked(gk.adam(0.1), "encoder.bias")
    ),
    "by a function": lambda: gk.masked(gk.velocity(0.1), lambda _: KERNELS),
    "in a partition": lambda: gk.partition(
        {"a": gk.masked(gk.sgd(0.1), lambda p: jax.tree.map(lambda x: x.ndim > 1, p))},
        lambda p: jax.tree.map(lambda _: "a", p),
    ),
}


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", TRAPS)
def test_raw_gradients_for_updates_are_refused_with_both_remedies(name, jitted):
    tx = TRAPS[name]()
    with pytest.raises(ValueError, match=r"head\.1.* raw gradients for updates") as raised:
        (jax.jit(tx.init) if jitted else tx.init)(PARAMS)
    for choice in ("zero", "keep"):
        assert f'gk.masked(tx, mask, unselected="{choice}")' in str(raised.value)
        remedied = gk.masked(gk.adam(0.1), KERNELS, unselected=choice)
        updates, _ = remedied.update(GRADS, remedied.init(PARAMS), PARAMS)
        outside = GRADS["head"][1] if choice == "keep" else 0
        assert updates["head"][1] == outside


@pytest.mark.parametrize("ox", [gk, optax], ids=["gradkit", "optax"])
def test_a_bare_array_may_be_left_out(ox):
    x = jnp.ones(3)
    for tx, expected in (
        (ox.partition({"x": ox.sgd(0.5), "y": ox.adamw(0.1)}, "x"), -0.5),
        (ox.chain(ox.masked(ox.add_decayed_weights(0.1), False), ox.sgd(0.5)), -0.5),
    ):
        assert (tx.update(x, tx.init(x), x)[0] == expected).all()


@pytest.mark.parametrize(
    ("inner", "refused"),
    [
        (optax.sgd(optax.linear_schedule(0.0, 0.1, 5)), True),
        (optax.inject_hyperparams(optax.adam)(0.1), True),
        (optax.chain(optax.scale_by_adam(), optax.scale(-0.1)), True),
        (optax.apply_every(2), False),
        (optax.set_to_zero(), False),
        (optax.scale_by_adam(), False),
        (optax.trace(0.9), False),
    ],
)
def test_of_optaxs_members_those_that_descend_are_whole_optimizers(inner, refused):
    tx = gk.masked(inner, KERNELS)
    if refused:
        with pytest.raises(ValueError, match="raw gradients"):
            tx.init(PARAMS)
    else:
        tx.init(PARAMS)


def test_a_mask_that_leaves_nothing_out_is_no_trap():
    tx = gk.masked(gk.sgd(1.0), lambda p: jax.tree.map(lambda _: True, p))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert (updates["head"][0] == -GRADS["head"][0]).all()


class Callable(eqx.Module):
    """A model: a tree that can be called."""

    w: Any
    b: Any

    def __call__(self, x):
        raise AssertionError("a tree of labels was called as a function")


def test_a_tree_that_can_be_called_is_a_tree():
    params, grads = Callable(jnp.ones(2), jnp.ones(3)), Callable(jnp.ones(2), jnp.ones(3))
    mask, labels = Callable(True, False), Callable("fast", "slow")
    arrays = Callable(jnp.array(True), np.bool_(False))
    for tx, expected in (
        (gk.masked(gk.sgd(1.0), mask, unselected="zero"), (-1, 0)),
        (gk.masked(gk.sgd(1.0), arrays, unselected="zero"), (-1, 0)),
        (gk.partition({"fast": gk.sgd(2.0), "slow": gk.sgd(1.0)}, labels), (-2, -1)),
        (gk.chain(gk.add_decayed_weights(1.0, mask), gk.sgd(1.0)), (-2, -1)),
        (gk.proximal_step(1.0, l1=0.5, mask=mask), (-1.0, -1)),
        (gk.chain(gk.sgd(1.0), gk.project_max_norm(1.0, mask)), (-1, -1)),
    ):
        updates, _ = tx.update(grads, tx.init(params), params)
        assert (updates.w[0], updates.b[0]) == expected


def test_brackets_in_patterns_are_themselves_and_stars_can_be_escaped():
    params = {"layer[0]": {"a*b": 1.0, "aab": 1.0}, "layer0": {"a?b": 1.0}}
    rule = {r"layer[0].a\*b": "star", "layer[0].aa?": "any", r"*.a\?b": "mark"}
    assert gk.by_path(rule)(params) == {
        "layer[0]": {"a*b": "star", "aab": "any"},
        "layer0": {"a?b": "mark"},
    }
    with pytest.raises(ValueError, match=r"no leaf matches 'layer\[0-9\]\.\*'") as raised:
        gk.by_path({"layer[0-9].*": "x"})(params)
    assert r"r'\*'" in str(raised.value)
    assert "brackets are themselves" in str(raised.value)


def test_states_hold_the_selected_leaves_alone():
    state = gk.masked(gk.adam(), "head.*", unselected="zero").init(PARAMS)
    assert state.mu["encoder"] == {"kernel": None, "bias": None}
    assert [m.shape for m in state.mu["head"]] == [(2, 2), ()]


MEMBERS = {
    "newton_cg": gk.newton_cg,
    "optax.lbfgs": optax.lbfgs,
    "line search": lambda: gk.chain(gk.scale_by_adam(), gk.line_search()),
    "nesterov": lambda: gk.nesterov(0.1),
}


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("around", ["masked", "partition"])
def test_members_that_call_the_loss_see_whole_parameters(name, around):
    tx = MEMBERS[name]()
    if around == "masked":
        tx = gk.masked(tx, "head.*", unselected="zero")
    else:
        rule = gk.by_path({"head.*": "head"}, default="frozen")
        tx = gk.partition({"head": tx, "frozen": optax.set_to_zero()}, rule)

    @jax.jit
    def step(params, state):
        point = gk.observe(loss, params, BATCH, gk.hessian)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(4):
        params, state = step(params, state)
    assert loss(params, BATCH) < 0.9 * loss(PARAMS, BATCH)
    assert (params["encoder"]["kernel"] == PARAMS["encoder"]["kernel"]).all()
    assert (params["head"][0] != PARAMS["head"][0]).any()


@pytest.mark.slow
def test_newton_on_a_part_is_newton_on_that_part(dtype, eps):
    params, batch = jax.tree.map(lambda x: x.astype(dtype), (PARAMS, BATCH))
    tx = gk.newton_cg(1.0, damping=1e-2, tol=1e-9, max_steps=30)
    part = gk.masked(tx, "head.*", unselected="zero")
    point = gk.observe(loss, params, batch, gk.hessian)
    updates, _ = part.update(point.grad, part.init(params), params, **point.extras)

    def of_head(head, batch):
        return loss(params | {"head": head}, batch)

    alone = gk.observe(of_head, params["head"], batch, gk.hessian)
    expected, _ = tx.update(alone.grad, tx.init(params["head"]), params["head"], **alone.extras)
    for x, y in zip(jax.tree.leaves(updates["head"]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e5 * eps, atol=1e3 * eps)


def test_a_partition_is_each_on_its_own(dtype):
    params, grads = jax.tree.map(lambda x: x.astype(dtype), (PARAMS, GRADS))
    parts = {"a": gk.adam(0.1), "b": gk.sgd(0.2, momentum=0.9)}
    tx = gk.partition(parts, {"encoder": "a", "head": "b"})
    state = tx.init(params)
    alone = {"encoder": parts["a"], "head": parts["b"]}
    states = {name: alone[name].init(params[name]) for name in alone}
    for _ in range(3):
        updates, state = tx.update(grads, state, params)
        for name, own in alone.items():
            expected, states[name] = own.update(grads[name], states[name], params[name])
            for x, y in zip(*map(jax.tree.leaves, (updates[name], expected)), strict=True):
                np.testing.assert_array_equal(x, y)


def test_labels_equal_to_those_of_optax_work_the_same():
    def labels(params):
        return jax.tree.map(lambda p: "big" if p.ndim > 1 else "small", params)

    members = {"big": optax.lion(0.1), "small": optax.adam(0.1)}
    ours, theirs = gk.partition(members, labels), optax.partition(members, labels)
    state, expected_state = ours.init(PARAMS), theirs.init(PARAMS)
    for _ in range(3):
        updates, state = ours.update(GRADS, state, PARAMS)
        expected, expected_state = theirs.update(GRADS, expected_state, PARAMS)
        for x, y in zip(*map(jax.tree.leaves, (updates, expected)), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-6)


def test_the_members_share_the_step():
    tx = gk.partition(
        {"a": gk.sgd(lambda step: step), "b": gk.sgd(1.0)}, {"encoder": "a", "head": "b"}
    )
    state = tx.init(PARAMS, step=7)
    updates, state = tx.update(GRADS, state, PARAMS)
    np.testing.assert_allclose(updates["encoder"]["bias"], -7 * GRADS["encoder"]["bias"])
    assert state.step == 8


ERRORS = {
    "unknown label": (
        {"encoder": "fsat", "head": "slow"},
        r"\['fast', 'slow'\]; did you mean fast\? got\n  encoder.bias: 'fsat'",
    ),
    "wrong tree": ({"encodr": "fast"}, "must form a tree like the parameters or a prefix"),
    "no label": (
        gk.by_path({"head.*": "fast"}),
        "no label for encoder.bias, encoder.kernel; add a pattern, or a default",
    ),
    "two labels": (
        gk.by_path({"*.kernel": "fast", "encoder.*": "slow"}, default="fast"),
        r"one label only:\n  encoder.kernel: '\*.kernel' says 'fast', 'encoder.\*' says 'slow'",
    ),
    "idle pattern": (
        gk.by_path({"*.kernle": "fast"}, default="slow"),
        r"no leaf matches '\*.kernle'; the paths are encoder.bias, encoder.kernel, head.0, head.1",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_labels_are_checked_at_init(name):
    labels, message = ERRORS[name]
    tx = gk.partition({"fast": gk.sgd(1.0), "slow": gk.sgd(0.1)}, labels)
    with pytest.raises(ValueError, match=message):
        tx.init(PARAMS)


def test_masks_are_checked_at_init():
    with pytest.raises(ValueError, match="masked: the mask must hold True and False, got 'yes'"):
        gk.masked(gk.sgd(), {"encoder": "yes", "head": True}).init(PARAMS)
    with pytest.raises(ValueError, match=r"no leaf matches 'heda\.\*'"):
        gk.adamw(mask="heda.*").init(PARAMS)
    with pytest.raises(ValueError, match="add_decayed_weights: the labels must form a tree"):
        gk.add_decayed_weights(0.1, {"encoder": True}).init(PARAMS)
    with pytest.raises(TypeError, match="mapping of patterns to labels, or a function"):
        gk.by_path(["*.kernel"])


def test_a_pattern_of_paths_masks_the_decay():
    tx = gk.adamw(0.1, weight_decay=0.5, mask="*.kernel")
    plain = gk.adam(0.1)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    expected, _ = plain.update(GRADS, plain.init(PARAMS), PARAMS)
    kernel = expected["encoder"]["kernel"] - 0.05 * PARAMS["encoder"]["kernel"]
    np.testing.assert_allclose(updates["encoder"]["kernel"], kernel, rtol=1e-6)
    np.testing.assert_allclose(updates["head"][0], expected["head"][0], rtol=1e-6)


def test_a_key_called_value_is_part_of_the_path():
    params = {"attention": {"query": jnp.ones(2), "value": jnp.ones(2)}}
    labels = gk.by_path({"*.value": "a", "*.query": "b"})(params)
    assert labels == {"attention": {"query": "b", "value": "a"}}
