"""The benchmark of large models, at small ones: their sizes, what products multiply, its tables."""

from __future__ import annotations

import argparse

import accelerator
import jax
import jax.numpy as jnp
import pytest

import gradkit as gk

SIZES = {
    "transformer": (accelerator.Transformer(), jnp.zeros((1, 1024), jnp.int32), 124_439_808),
    "resnet": (accelerator.ResNet(), jnp.zeros((1, 224, 224, 3)), 25_557_032),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_models_have_their_published_sizes(name):
    model, x, size = SIZES[name]
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size


def flops(function, *shapes):
    return jax.jit(function).lower(*shapes).compile().cost_analysis()["flops"]


def test_products_of_the_transformer_multiply_what_their_floors_say():
    asked, problems = argparse.Namespace(small=True, dtype="float32", unroll=False, batch=1), []

    def arrays():
        made = accelerator.transformer(asked)
        problems.append(made.problem)
        return made.params, made.batch

    params, batch = jax.eval_shape(arrays)
    (problem,) = problems
    gradient = flops(jax.value_and_grad(problem.value), params, batch)
    for name, (curvature, linearize, floor) in accelerator.PRODUCTS.items():

        def operator(params, batch, curvature=curvature, linearize=linearize):
            return curvature(problem, params, batch, linearize=linearize)

        if linearize:
            A = jax.eval_shape(operator, params, batch)
            count = flops(lambda A, v: A.matvec(v), A, params)
        else:
            count = flops(lambda p, b, v, make=operator: make(p, b) @ v, params, batch, params)
        assert count / gradient == pytest.approx(floor, rel=0.04), name


def toy(asked):
    """Two layers, for a model that takes long to compile."""

    def predict(params, batch):
        first, second = params["blocks"]["w"]
        return jnp.tanh(batch["x"] @ first) @ second

    def criterion(scores, batch):
        return jnp.mean((scores - batch["y"]) ** 2)

    x, y, *w = jax.random.normal(jax.random.key(0), (4, 8, 8))
    problem = gk.Problem(predict=predict, criterion=criterion)
    return accelerator.Subject(
        "toy", problem, {"blocks": {"w": jnp.stack(w)}}, {"x": x, "y": y}, {}
    )


def rows(printed):
    """The cells of each row of the printed tables, by its first cell."""
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[:2] == "| "]
    return {first: rest for first, *rest in lines}


def exhausted(*_):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand much more")


FAILED = "failed: RuntimeError: RESOURCE_EXHAUSTED: Out of memory"


def test_every_section_prints_its_rows_and_what_fails_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(accelerator, "transformer", toy)
    monkeypatch.setattr(accelerator, "resnet", exhausted)
    assert accelerator.main(["--small", "--rounds", "1"]) == 1
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if "failed" in line] == [f"products {FAILED}"]
    assert f"jax {jax.__version__}" in printed.splitlines()[0]
    assert "updates of 128 parameters, layers apart, 2 leaves" in printed
    found = rows(printed)
    assert {*accelerator.UPDATES, *accelerator.PRODUCTS} < set(found)
    assert {"one by one", "2 at once", "4 at once", "all at once"} < set(found)
    assert "10 of 10 converged" in found["10 largest, a basis of 30"][-1]
    assert found["density, 1 probes of 5 steps"][2] == "5"
    for name, (_, _, floor) in accelerator.PRODUCTS.items():
        assert found[name][2] == f"{floor:.2f}"


def test_a_row_that_fails_leaves_the_others(capsys):
    assert accelerator.table("title", "a | b", {"bad": exhausted, "good": lambda: ["1"]}) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [f"| bad | {FAILED} |", "| good | 1 |"]


def test_an_unknown_section(capsys):
    with pytest.raises(SystemExit):
        accelerator.main(["updates"])
    assert "there are update, products, spectrum, probes" in capsys.readouterr().err
