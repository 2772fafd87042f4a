"""A task is what its config or a user's file says, and nothing that cannot be learned."""

import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradkit.runner import setting, tasks
from gradkit.runner.config import Config, dump, load
from gradkit.runner.errors import UserError
from gradkit.runner.models import Sizes, mlp


def built(**fields: Any):
    return tasks.build(Config(**{"optimizer": {"name": "adam"}, **fields}))


def refusal(**fields: Any):
    with pytest.raises(UserError) as error:
        setting.prepare(Config(**{"optimizer": {"name": "adam"}, **fields}))
    return str(error.value)


def test_a_config_chooses_its_examples_and_its_loss():
    task = built(
        data={"source": "wine", "examples": 50, "preprocess": "standardize"}, loss="squared_error"
    )
    assert task.data.x_train.shape == (50, 13)
    np.testing.assert_allclose(task.data.x_train.std(axis=0), 1, rtol=1e-5)
    value, scores = task.problem.value_and_aux(task.init(jax.random.key(0)), task.data.train)
    errors = np.asarray(scores, float) - np.eye(3)[task.data.y_train]
    assert value == pytest.approx((errors**2).sum(axis=1).mean() / 2, rel=1e-5)
    assert task.likelihood == "normal"


def test_numbers_are_learned_by_squared_error():
    task = built(data={"source": "diabetes"}, model={"hidden": []})
    params = task.init(jax.random.key(0))
    value, outputs = task.problem.value_and_aux(params, task.data.train)
    errors = np.asarray(outputs, float) - task.data.y_train
    assert value == pytest.approx((errors**2).mean() / 2, rel=1e-5)
    figures = task.figures(outputs, task.data.train)
    assert figures.keys() == {"absolute_error"}
    assert figures["absolute_error"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)


def test_two_classes_have_one_score_by_binary_cross_entropy():
    task = built(data={"source": "xor"}, loss="binary_cross_entropy")
    value, scores = task.problem.value_and_aux(task.init(jax.random.key(0)), task.data.train)
    assert scores.shape == (4, 1)
    s, y = np.asarray(scores, float)[:, 0], task.data.y_train
    expected = np.mean(np.log1p(np.exp(-np.where(y == 1, s, -s))))
    assert value == pytest.approx(expected, rel=1e-5)
    assert task.figures(scores, task.data.train)["accuracy"] == np.mean((s > 0) == (y == 1))
    assert task.likelihood == "bernoulli"


def test_a_linear_regression_of_a_given_spectrum_has_it_as_its_hessian():
    import gradkit as gk

    task = built(
        data={"source": {"name": "linear_regression", "eigenvalues": [0.1, 1.0, 7.0]}},
        model={"hidden": [], "bias": False},
    )
    H = gk.hessian(task.problem, task.init(jax.random.key(0)), task.data.train)
    np.testing.assert_allclose(np.linalg.eigvalsh(H.dense()), [0.1, 1, 7], rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data": {"source": "diabetes"}, "loss": "cross_entropy"}, "is for classes, and diabetes"),
        ({"data": {"source": "wine"}, "loss": "binary_cross_entropy"}, "2 classes, and wine has 3"),
        ({"data": {"source": "python_text"}}, "python_text holds tokens: choose the model transfo"),
        ({"model": "transformer"}, "transformer learns from tokens, and digits holds numbers"),
        ({"data": {"source": "diabetes"}, "sampling": "balanced"}, "sampling: balanced needs a cl"),
        (
            {"model": {"hidden": [7], "activation": "maxout"}},
            "model: mlp cannot be built: cannot reshape",
        ),
        (
            {"model": {"hidden": [7], "kernel_init": "sparse"}},
            "model: mlp cannot be built: sparse: expected a matrix of at least nonzero=15 inputs",
        ),
        ({"micro_batches": 7}, "micro_batches: expected a divisor of the batch_size 64, got 7"),
        (
            {"micro_batches": 2, "model": {"batch_norm": True}},
            "a model with a state, such as batch norm, sees the whole batch",
        ),
        (
            {"best": {"metric": "validation_loss"}},
            "no figure 'validation_loss'; there are train_loss, train_accuracy, test_loss, "
            "test_accuracy. Set data.validation_fraction.",
        ),
        ({"best": {"metric": "test_los"}}, "did you mean test_loss"),
    ],
)
def test_values_that_do_not_go_together(fields, words):
    assert words in refusal(**fields)


@pytest.mark.slow
def test_a_chosen_part_of_the_hidden_units_is_left_out_in_training_alone():
    model = mlp(Sizes((40,), 1, None), hidden=(2000,), dropout=0.25)(nnx.Rngs(0))
    model.layers[0].kernel[...] = jnp.ones((40, 2000)) / 40
    model.layers[1].kernel[...] = jnp.ones((2000, 1)) / 2000
    x = jnp.ones((1, 40))
    assert model(x)[0, 0] == pytest.approx(1, rel=1e-5)
    keys = jax.random.split(jax.random.key(0), 200)
    drawn = np.array([model(x, key)[0, 0] for key in keys], float)
    np.testing.assert_array_equal(model(x, keys[0]), model(x, keys[0]))
    error = np.sqrt(0.25 / 0.75 / 2000)  # of one draw, each unit 0 or 4/3
    assert drawn.std() == pytest.approx(error, rel=0.2)
    assert drawn.mean() == pytest.approx(1, abs=4 * error / np.sqrt(200))


def test_batch_norm_normalizes_by_the_batch_in_training_and_by_averages_after():
    task = built(data={"source": "wine"}, model={"hidden": [5], "batch_norm": True})
    key = jax.random.key(0)
    params, state = task.init(key), task.init_state(key)
    batch = {"x": task.data.x_train[:32], "y": task.data.y_train[:32], "state": state}
    _, after = task.predict(params, batch | {"key": key})
    linear = params["layers"][0]
    hidden = batch["x"].astype(float) @ np.asarray(linear["kernel"][...], float)
    mean = jax.tree.leaves(after["norms"][0]["mean"])[0]
    np.testing.assert_allclose(mean, 0.01 * hidden.mean(axis=0), rtol=1e-3)
    _, same = task.predict(params, batch | {"state": after})
    jax.tree.map(np.testing.assert_array_equal, same, after)  # evaluation changes nothing
    value, (outputs, again) = task.training.value_and_aux(params, batch | {"key": key})
    jax.tree.map(np.testing.assert_array_equal, again, after)
    assert np.isfinite(value)
    assert outputs.shape == (32, 3)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("rosenbrock", 24.2, [1, 1]),
        ("himmelblau", 170, [3, 2]),
        ("beale", 14.203125, [3, 0.5]),
        ("saddle", 0.5 - 5e-7, None),
        ("ravine", 57, [0, 0]),
        ("plateau", 1 - np.exp(-9.25), [0, 0]),
        ("cliff", 0.0555854941, [3, np.log(7 / 3) - 2.1]),
        ({"name": "quadratic", "eigenvalues": [1.0, 4.0]}, 2.5, [0, 0]),
    ],
)
def test_functions_to_minimize_have_their_values(name, value, least):
    task = built(task=name)
    start = task.init(jax.random.key(0))
    assert task.problem.value(start, task.data.train) == pytest.approx(value, rel=1e-6)
    if least:
        assert task.problem.value(jnp.array(least, float), task.data.train) < 1e-10
    assert task.figures(start, {})["x"] == start[0]


def test_the_cliff_is_that_of_a_recurrent_unit():
    task = built(task="cliff")
    for x, y in ((5.0, -2.7), (5.0, -2.6), (3.0, 1.0)):
        h = 0.5
        for _ in range(50):
            h = x / (1 + np.exp(-h)) + y
        value = task.problem.value(jnp.array([x, y]), task.data.train)
        assert value == pytest.approx((1 / (1 + np.exp(-h)) - 0.7) ** 2, rel=1e-4)


MODEL = """
    import jax, jax.numpy as jnp
    from gradkit.runner.data.dataset import Dataset

    class Cubic:
        def __init__(self, data, scale=1.0):
            self.data, self.scale = data, scale
            self.metrics = {"largest": lambda outputs, batch: jnp.max(jnp.abs(outputs))}
        def init(self, key):
            return {"w": jax.random.normal(key, (4,))}
        def predict(self, params, batch):
            powers = jnp.stack([batch["x"][:, 0] ** i for i in range(4)], 1)
            return self.scale * powers @ params["w"]
        def criterion(self, outputs, batch):
            return jnp.mean((outputs - batch["y"][:, 0]) ** 2)

    def own():
        import numpy as np
        x = np.linspace(-1, 1, 30, dtype=np.float32)[:, None]
        return Cubic(Dataset(x, x**3, x[::3], x[::3] ** 3, {"source": "a cube"}))

    ready = own()
    half = Dataset.none()
    def broken(data):
        return Cubic(data, scale=jnp.zeros(3) @ jnp.zeros(4))
    def pixels(data):
        task = Cubic(data)
        task.metrics = {"time": None}
        return task
    def typed(data):
        task = Cubic(data)
        task.data = {"x": 1}
        return task
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(textwrap.dedent(MODEL))
    return tmp_path


POLYNOMIAL = {"source": {"name": "polynomial", "examples": 40}}


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("task", "source"),
    [
        ("model.py:Cubic", "polynomial"),
        ({"name": "model.py:Cubic", "scale": 2.0}, "polynomial"),
        ("model.py:own", "a cube"),
        ("model.py:ready", "a cube"),
    ],
)
def test_a_users_task_is_an_object_or_what_makes_one(task, source):
    found = built(task=task, data=POLYNOMIAL)
    assert found.data.meta["source"] == source
    assert found.source.name == "model.py"
    params = found.init(jax.random.key(0))
    scale = task["scale"] if isinstance(task, dict) else 1
    outputs = np.polyval(np.asarray(params["w"], float)[::-1], found.data.x_train[:, 0]) * scale
    expected = np.mean((outputs - found.data.y_train[:, 0]) ** 2)
    value, outputs = found.problem.value_and_aux(params, found.data.train)
    assert value == pytest.approx(expected, rel=1e-4)
    assert found.figures(outputs, found.data.train)["largest"] == jnp.max(jnp.abs(outputs))


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("model.py:Cubik", "task: model.py has no Cubik; did you mean Cubic?"),
        ("modle.py:own", "task: no such file modle.py; did you mean model.py?"),
        ("nowhere:own", "task: no module named 'nowhere' from here"),
        ("model.py:half", "a task has data, init, predict, criterion; got a Dataset without data"),
        ("model.py:broken", "model.py:25: task model.py:broken fails: TypeError: dot_general"),
        ("model.py:pixels", "metrics: time is the name of another figure"),
        ("model.py:typed", "data: expected a gradkit.runner.data.dataset.Dataset, got a dict"),
        (
            {"name": "model.py:Cubic", "size": 3},
            "task.size: unknown argument of model.py:Cubic, which takes scale",
        ),
        ({"name": "model.py:own", "size": 3}, "which takes none from a config"),
    ],
)
def test_mistakes_in_a_users_task(task, words):
    assert words in refusal(task=task, data=POLYNOMIAL)


def test_a_task_whose_loss_cannot_be_evaluated_names_the_line(model):
    text = (model / "model.py").read_text().replace('batch["y"][:, 0]', 'batch["z"]')
    (model / "model.py").write_text(text)
    message = refusal(task="model.py:own")
    assert message == "model.py:15: task model.py:own: the loss cannot be evaluated: KeyError: 'z'"


def test_a_config_with_a_task_has_no_model_and_no_loss(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("task: {name: rosenbrock, a: 2.0}\noptimizer: adam\n")
    config = load(path)
    assert {"model:", "loss:"}.isdisjoint(dump(config).split())
    path.write_text(dump(config))
    assert load(path) == config
    for more in ("model: {hidden: [3]}", "loss: squared_error"):
        path.write_text(f"task: rosenbrock\noptimizer: adam\n{more}\n")
        with pytest.raises(UserError, match=f"x.yaml:3  {more.split(':')[0]}: task rosenbrock br"):
            load(path)
