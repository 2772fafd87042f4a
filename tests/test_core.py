from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.core import required


def predict(params, batch):
    return batch["x"] @ params["w"]


def criterion(outputs, batch):
    return jnp.mean((outputs - batch["y"]) ** 2)


PARAMS = {"w": jnp.array([1.0, -2.0])}
BATCH = {"x": jnp.array([[1.0, 0.0], [2.0, 1.0]]), "y": jnp.array([0.0, 1.0])}


def test_value_and_gradient_are_those_of_the_loss():
    point = gk.observe(lambda p, b: criterion(predict(p, b), b), PARAMS, BATCH)
    outputs = np.array([1.0, 0.0])
    assert point.value == pytest.approx(1.0)
    expected = np.array([[1.0, 2.0], [0.0, 1.0]]) @ (outputs - [0.0, 1.0])  # 2/2 Xᵀ(Xw − y)
    np.testing.assert_allclose(point.grad["w"], expected, rtol=1e-6)
    assert point.aux is None
    assert set(point.extras) == {"value", "grad", "value_fn"}


def test_a_predict_problem_gives_its_outputs_as_aux():
    point = gk.observe(gk.Problem(predict=predict, criterion=criterion), PARAMS, BATCH)
    np.testing.assert_allclose(point.aux, [1.0, 0.0])


def test_has_aux_is_carried_through():
    problem = gk.Problem(lambda p, b: (jnp.sum(p["w"] ** 2), {"n": 2}), has_aux=True)
    point = gk.observe(problem, PARAMS, BATCH)
    assert point.value == 5.0
    assert point.aux == {"n": 2}


def test_a_point_crosses_jit_with_all_its_extras():
    observe = jax.jit(gk.observe, static_argnums=(0, 3))
    point = observe(lambda p, b: jnp.sum(p["w"] ** 4), PARAMS, BATCH, gk.hessian)
    H = point.extras["curvature"]()
    np.testing.assert_allclose((H @ PARAMS)["w"], 12 * PARAMS["w"] ** 3, rtol=1e-6)
    assert point.extras["value_fn"](PARAMS) == point.value


def test_the_key_reaches_the_extras():
    key = jax.random.key(0)
    assert gk.observe(lambda p, b: jnp.sum(p["w"]), PARAMS, BATCH, key=key).extras["key"] is key


@pytest.mark.parametrize(
    "arguments",
    [{}, {"predict": predict}, {"loss": criterion, "predict": predict, "criterion": criterion}],
)
def test_an_incomplete_problem_is_refused(arguments):
    with pytest.raises(TypeError, match="either loss, or predict and criterion together"):
        gk.Problem(**arguments)


def test_a_loss_for_each_example_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"scalar, got shape \(2,\): average it"):
        gk.observe(predict, PARAMS, BATCH)


def test_a_forgotten_has_aux_is_named():
    with pytest.raises(TypeError, match="has_aux=True"):
        gk.observe(lambda p, b: (jnp.sum(p["w"]), 1), PARAMS, BATCH)


def test_something_that_is_no_problem_is_refused():
    with pytest.raises(TypeError, match=r"expected a gk.Problem or a function .* got dict"):
        gk.observe({}, PARAMS, BATCH)


def test_a_missing_extra_is_named_with_the_call():
    with pytest.raises(
        TypeError, match=r"tx needs the extra argument 'curvature', got grad, value"
    ):
        required({"value": 1, "grad": 2}, "curvature", member="tx")


@pytest.mark.parametrize(
    "tx",
    [
        optax.lbfgs(),
        gk.chain(gk.sgd(1.0), optax.scale_by_backtracking_linesearch(15)),
        optax.chain(gk.scale_by_newton_cg(), optax.scale(-1.0), optax.scale_by_zoom_linesearch(15)),
    ],
)
def test_the_extras_are_what_optax_line_searches_take(tx):
    params, state = PARAMS, tx.init(PARAMS)
    problem = gk.Problem(predict=predict, criterion=criterion)

    @jax.jit
    def step(params, state):
        point = gk.observe(problem, params, BATCH, gk.hessian, key=jax.random.key(0))
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return optax.apply_updates(params, updates), state

    for _ in range(10):
        params, state = step(params, state)
    assert problem.value(params, BATCH) < 0.5 * problem.value(PARAMS, BATCH)


class Publishing(NamedTuple):
    rate: float

    def metrics(self):
        return {"rate": self.rate}


def test_metrics_are_collected_however_nested_and_repeats_are_numbered():
    state = ({"a": Publishing(1.0)}, [Publishing(2.0), (jnp.ones(2), Publishing(3.0))])
    assert gk.metrics(state) == {"rate": 1.0, "rate_2": 2.0, "rate_3": 3.0}
    assert gk.metrics((jnp.ones(3), None)) == {}
