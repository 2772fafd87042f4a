"""How many steps are taken at a time changes nothing; models with a state and random numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.runner import checkpoint, programs, record, setting, subject, train, training
from gradkit.runner.best import Watch
from gradkit.runner.config import Config
from gradkit.runner.errors import UserError
from gradkit.runner.schema import Best

SMALL = {
    "data": {"source": "wine", "preprocess": "standardize", "validation_fraction": 0.2},
    "model": {"hidden": [6], "activation": "tanh"},
    "optimizer": {"name": "adam", "learning_rate": 0.01},
    "batch_size": 16,
    "epochs": 6,
    "log_every": 1,
    "evaluate_every": 7,
    "checkpoint_every": 14,
}
MODELS = {
    "plain": {},
    "batch norm": {"model": {"hidden": [6], "batch_norm": True}},
    "dropout": {"model": {"hidden": [16], "dropout": 0.5}},
    "both, balanced": {
        "model": {"hidden": [6, 5], "batch_norm": True, "dropout": 0.2},
        "sampling": "balanced",
    },
    "micro-batches with dropout": {
        "model": {"hidden": [6], "dropout": 0.5},
        "micro_batches": 4,
        "sampling": "replacement",
    },
    "skipping": {"on_nan": "skip"},
    "augmented": {
        "data": {"source": "digits", "examples": 96, "augment": {"crop": 1, "jitter": 0.2}}
    },
    "centers kept": {"model": {"name": "rbf", "units": 5}},
    "curvature of some examples": {
        "optimizer": {"name": "hessian_free", "max_steps": 4},
        "curvature": {"examples": 8},
        "epochs": 3,
    },
    "labels that are drawn": {
        "optimizer": {"name": "sophia", "every": 3},
        "curvature": {"diagonal": "fisher"},
    },
    "bases renewed": {"optimizer": {"name": "soap", "every": 3}},
    "numbers": {"data": {"source": "diabetes", "preprocess": "whiten"}, "sampling": "cyclic"},
}


def run(folder, **fields):
    summary = train.begin(Config(**{**SMALL, **fields}), folder, [])
    return summary, record.read_metrics(folder / record.METRICS)[0]


def timeless(lines):
    return [{name: v for name, v in line.items() if name != "time"} for line in lines]


def bits(folder):
    opened = record.open_record(folder)
    state, step, _ = setting.state_at(setting.reopen(opened), folder)
    return step, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_step_at_a_time_or_many_are_the_same_bits(tmp_path, monkeypatch, name):
    _, many = run(tmp_path / "many", **MODELS[name])
    monkeypatch.setattr(training, "MOMENT", 0)
    _, one = run(tmp_path / "one", **MODELS[name])
    assert timeless(one) == timeless(many)
    assert bits(tmp_path / "one") == bits(tmp_path / "many")
    assert many[-1]["loss"] < many[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_run_cut_short_goes_on_to_the_same_bits(tmp_path, name):
    _, lines = run(tmp_path / "whole", **MODELS[name])
    run(tmp_path / "cut", **MODELS[name])
    cut = tmp_path / "cut"
    (cut / "summary.json").unlink()
    for step in checkpoint.steps(cut / "checkpoints")[1:]:
        (cut / "checkpoints" / f"{step:06d}").rename(cut / f".{step}.tmp")
    train.resume(record.open_record(cut))
    assert timeless(record.read_metrics(cut / record.METRICS)[0]) == timeless(lines)
    assert bits(cut) == bits(tmp_path / "whole")


@pytest.mark.slow
def test_examples_that_do_not_fit_on_the_device_are_sent_there(tmp_path, monkeypatch):
    _, resident = run(tmp_path / "resident")
    monkeypatch.setattr(programs, "RESIDENT", 0)
    monkeypatch.setattr(programs, "STREAMED", 3000)  # bytes: some three batches
    _, streamed = run(tmp_path / "streamed")
    assert timeless(streamed) == timeless(resident)
    assert bits(tmp_path / "streamed") == bits(tmp_path / "resident")


@pytest.mark.slow
def test_an_evaluation_in_pieces_is_that_of_the_whole(tmp_path, monkeypatch):
    _, whole = run(tmp_path / "whole")
    monkeypatch.setattr(programs, "EVALUATED", 13)
    _, pieces = run(tmp_path / "pieces")
    for name in ("train_loss", "test_accuracy", "validation_loss"):
        found = [line[name] for line in pieces if name in line]
        assert found == pytest.approx([line[name] for line in whole if name in line], rel=1e-5)


@pytest.mark.slow
def test_a_loop_written_by_hand_ends_at_the_same_parameters(tmp_path):
    run(tmp_path / "run")
    made = setting.reopen(record.open_record(tmp_path / "run"))
    tx, data = gk.adam(0.01), made.task.data.train
    params = made.initial().params
    state = tx.init(params)
    for step in range(made.steps):
        batch = {name: array[made.batches.indices(step)] for name, array in data.items()}
        grads = jax.grad(made.task.problem.value)(params, batch)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    found, step, _ = setting.state_at(made, tmp_path / "run")
    assert step == made.steps
    for x, y in zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_micro_batches_are_the_batch(tmp_path):
    _, whole = run(tmp_path / "whole", optimizer={"name": "sgd", "learning_rate": 0.1})
    _, parts = run(
        tmp_path / "parts", optimizer={"name": "sgd", "learning_rate": 0.1}, micro_batches=4
    )
    for name in ("loss", "accuracy", "gradient_norm"):
        found = [line[name] for line in parts]
        assert found == pytest.approx([line[name] for line in whole], rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_an_optimizer_sees_the_curvature_that_the_config_says(tmp_path):
    """Hessian-free the Gauss–Newton matrix, if nothing is said, and others the Hessian."""

    def losses(name, optimizer, **curvature):
        fields = {"optimizer": optimizer, "curvature": curvature, "epochs": 1}
        _, lines = run(tmp_path / name, **fields)
        return [line["loss"] for line in lines]

    free = {"name": "hessian_free", "max_steps": 4}
    newton = {"name": "newton_cg", "max_steps": 4}
    chain = [{"name": "clip_by_global_norm", "max_norm": 100.0}, free]
    unsaid = losses("unsaid", free)
    assert unsaid == losses("said", free, operator="gauss_newton")
    assert unsaid != losses("other", free, operator="hessian")
    assert unsaid == losses("chain", chain)
    assert losses("newton", newton) == losses("hessian", newton, operator="hessian")


@pytest.mark.slow
def test_a_diagonal_is_of_the_operator_or_of_labels_that_are_drawn(tmp_path):
    def trained(name, **curvature):
        fields = {"optimizer": {"name": "sophia", "every": 2}, "curvature": curvature, "epochs": 1}
        return [line for line in run(tmp_path / name, **fields)[1] if "products" in line]

    by_signs, drawn = trained("signs"), trained("drawn", diagonal="fisher")
    last, other = by_signs[-1], drawn[-1]
    assert last["products"] == last["diagonals"] == other["diagonals"] > 1
    assert other["products"] == 0
    assert [line["loss"] for line in by_signs] != [line["loss"] for line in drawn]


@pytest.mark.slow
def test_products_with_some_examples_count_as_their_share(tmp_path):
    fields = {"optimizer": {"name": "newton_cg", "max_steps": 4, "tol": 1e-6}, "epochs": 1}
    (_, whole), (_, part) = (
        run(
            tmp_path / f"{examples}",
            curvature={"operator": "gauss_newton", "examples": examples},  # never negative
            **fields,
        )
        for examples in (16, 4)
    )
    counted = [line["products"] for line in part]
    assert whole[0]["products"] == 5  # four steps and a residual
    assert counted[0] == 5 / 4
    assert all(4 * products == int(4 * products) for products in counted)
    assert [line["loss"] for line in part] != [line["loss"] for line in whole]


@pytest.mark.slow
def test_dropout_draws_anew_at_every_step(tmp_path):
    still = {"name": "sgd", "learning_rate": 0.0}
    fields = {"optimizer": still, "batch_size": 113, "epochs": 20}
    _, plain = run(tmp_path / "plain", **fields)
    _, lines = run(tmp_path / "run", **fields, model={"hidden": [6], "dropout": 0.5})
    assert len({line["loss"] for line in plain}) == 1
    assert len({line["loss"] for line in lines}) == 20
    assert len({line["test_loss"] for line in lines if "test_loss" in line}) == 1


def test_a_bound_on_the_weights_of_the_layers_that_a_mask_names(tmp_path):
    run(
        tmp_path,
        optimizer=[
            {"name": "sgd", "learning_rate": 0.3},
            {"name": "project_max_norm", "max_norm": 0.8, "mask": "layers.0.kernel"},
        ],
    )
    state, _, _ = setting.state_at(setting.reopen(record.open_record(tmp_path)), tmp_path)
    first, last = (
        np.linalg.norm(layer["kernel"][...], axis=0) for layer in state.params["layers"].values()
    )
    assert first.max() == pytest.approx(0.8, rel=1e-5)
    assert last.max() > 1


@pytest.mark.slow
def test_a_line_search_never_takes_over_a_loss_of_other_random_numbers(tmp_path):
    fields = {"batch_size": 113, "epochs": 10, "model": {"hidden": [8], "dropout": 0.5}}
    searched = [{"name": "scale_by_adam"}, {"name": "line_search"}]
    _, lines = run(tmp_path / "run", optimizer=searched, **fields)
    made = setting.reopen(record.open_record(tmp_path / "run"))
    state = made.initial()
    for step, line in enumerate(lines):
        drawn = jax.random.fold_in(jax.random.key(0), step)
        batch = made.task.data.train | {"key": jax.random.fold_in(drawn, 1)}
        point = gk.observe(made.task.problem, state.params, batch, key=drawn)
        assert line["loss"] == pytest.approx(float(point.value), rel=1e-3)
        updates, opt_state = made.tx.update(
            point.grad, state.optimizer, state.params, **point.extras
        )
        params = optax.apply_updates(state.params, updates)
        state = state._replace(params=params, optimizer=opt_state)


@pytest.mark.slow
def test_the_best_evaluation_is_kept_and_patience_ends_the_run(tmp_path):
    best = {"metric": "validation_loss", "patience": 3}
    hot = {"name": "sgd", "learning_rate": 4.0}
    summary, lines = run(tmp_path / "run", best=best, optimizer=hot, epochs=200)
    seen = [(line["validation_loss"], line["step"]) for line in lines if "validation_loss" in line]
    value, step = min(seen)
    at_best = next(line for line in lines if line["step"] == step)
    tested = {name: at_best[name] for name in ("test_loss", "test_accuracy")}
    expected = {"metric": "validation_loss", "value": value, "step": step}
    assert summary["best"] == expected | tested
    assert summary["status"] == "finished"
    assert summary["steps"] == lines[-1]["step"] == step + 3 * 7 < 200 * 7
    assert checkpoint.steps(tmp_path / "run" / "best") == [step]
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == summary["steps"]
    one = next(subject.of_run(record.open_record(tmp_path / "run"), "best", "test"))
    assert (one.step, one.plain) == (step, False)
    again = {**SMALL, "best": best, "optimizer": hot, "epochs": 200}
    cut = tmp_path / "cut"
    train.begin(Config(**again), cut, [])
    (cut / "summary.json").unlink()
    for late in checkpoint.steps(cut / "checkpoints")[1:]:
        (cut / "checkpoints" / f"{late:06d}").rename(cut / f".{late}.tmp")
    assert train.resume(record.open_record(cut))["best"] == summary["best"]
    assert bits(cut) == bits(tmp_path / "run")


@pytest.mark.parametrize(("goal", "better"), [("lowest", [3, 2, 1]), ("highest", [1, 2, 3])])
def test_what_is_better(goal, better):
    watch = Watch(Best(metric="test_x", goal=goal, patience=2))
    for step, value in enumerate(better):
        assert watch.see({"step": step, "test_x": value})
        assert not watch.see({"step": step, "loss": -9.0})
    assert not watch.see({"step": 3, "test_x": better[-1]})
    assert not watch.out_of_patience
    assert not watch.see({"step": 4, "test_x": None})  # not finite
    assert watch.out_of_patience
    assert watch.summary()["best"]["step"] == 2


def test_a_run_without_a_best_says_so(tmp_path):
    run(tmp_path / "run")
    with pytest.raises(UserError, match=r"kept no best checkpoint; its config has no best\.metric"):
        next(subject.of_run(record.open_record(tmp_path / "run"), "best"))


@pytest.fixture
def bad_example(tmp_path):
    """Data of which one example has a gradient that is not finite in float32."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 3)), rng.normal(size=64)
    y[5] = 1e30
    np.savez(tmp_path / "bad.npz", x=x, y=y, x_test=x[:4], y_test=y[:4])
    return {
        "data": {"source": str(tmp_path / "bad.npz")},
        "model": {"hidden": []},
        "optimizer": {"name": "sgd", "learning_rate": 1e-2},
        "batch_size": 8,
    }


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(tmp_path, bad_example):
    summary, lines = run(tmp_path / "run", **bad_example, on_nan="skip")
    assert (summary["status"], summary["steps"]) == ("finished", 48)
    assert lines[-1]["skipped"] == 6  # once an epoch
    lost = [line["step"] for line in lines if line["loss"] is None]
    assert len(lost) == 6
    for line in lines:
        before = lines[line["step"] - 2]["skipped"] if line["step"] > 1 else 0
        assert line["skipped"] - before == (line["step"] in lost)


def test_a_step_without_a_finite_loss_ends_the_run(tmp_path, bad_example):
    summary, lines = run(tmp_path / "run", **bad_example)
    assert summary["status"] == "diverged"
    assert [line["loss"] is None for line in lines] == [False] * (len(lines) - 1) + [True]
    assert summary["steps"] == len(lines) <= 8


@pytest.mark.slow
def test_a_function_to_minimize_is_a_run(tmp_path):
    fields = {"task": "rosenbrock", "optimizer": {"name": "lbfgs"}, "epochs": 60, "data": {}}
    summary, lines = run(tmp_path / "run", **fields)
    assert summary["test_x"] == pytest.approx(1, abs=1e-3)
    assert lines[0]["loss"] == pytest.approx(24.2)
    assert (lines[0]["x"], lines[0]["y"]) == pytest.approx((-1.2, 1.0))
    opened = record.open_record(tmp_path / "run")
    assert opened.env["data"]["source"] == "none"


def test_a_run_of_another_version_is_refused_with_the_reason(tmp_path):
    run(tmp_path / "run")
    env = json.loads((tmp_path / "run" / "env.json").read_text())
    (tmp_path / "run" / "env.json").write_text(json.dumps(env | {"gradkit": "0.0.9"}))
    with pytest.raises(UserError, match=r"was begun with gradkit 0\.0\.9; this is .* Install grad"):
        next(subject.of_run(record.open_record(tmp_path / "run")))


def test_a_users_file_changed_since_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(
        "import jax.numpy as jnp\n"
        "from gradkit.runner.data.dataset import Dataset\n"
        "class Own:\n"
        "    data = Dataset.none()\n"
        "    init = lambda self, key: jnp.ones(3)\n"
        "    predict = lambda self, params, batch: params\n"
        "    criterion = lambda self, outputs, batch: jnp.sum(outputs**2)\n"
    )
    small = {"task": "model.py:Own", "optimizer": {"name": "sgd"}, "epochs": 3}
    train.begin(Config(**small), tmp_path / "run", [])
    assert record.open_record(tmp_path / "run").env["task"]["source"] == "model.py"
    (tmp_path / "run" / "summary.json").unlink()
    with open("model.py", "a") as file:
        file.write("# changed\n")
    with pytest.raises(UserError, match="the file of the task has changed since the run began"):
        train.resume(record.open_record(tmp_path / "run"))


@pytest.mark.slow
def test_a_convolution_is_stepped_outside_of_compiled_loops(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(
        "import jax, jax.numpy as jnp\n"
        "from gradkit.runner.losses import accuracy, cross_entropy\n"
        "class Net:\n"
        "    metrics = {'accuracy': accuracy}\n"
        "    def __init__(self, data):\n"
        "        self.data = data\n"
        "    def init(self, key):\n"
        "        return {'w': jax.random.normal(key, (3, 3, 1, 4)), 'v': jnp.zeros((4, 10))}\n"
        "    def predict(self, params, batch):\n"
        "        x = jax.lax.conv_general_dilated(batch['x'][..., None], params['w'], (1, 1),\n"
        "            'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))\n"
        "        return jnp.mean(jax.nn.relu(x), (1, 2)) @ params['v']\n"
        "    criterion = staticmethod(cross_entropy)\n"
    )
    small = {"task": "model.py:Net", "data": {}, "epochs": 1, "batch_size": 200}
    config = Config(**{**SMALL, **small, "model": {}})
    made = setting.prepare(config)
    assert programs.compiled(made, made.initial()).feed.most == (
        1 if jax.default_backend() == "cpu" else programs.MOST_STEPS
    )
    summary, lines = run(tmp_path / "run", **small)
    assert (summary["status"], len(lines)) == ("finished", 7)
    assert all(jnp.isfinite(line["loss"]) for line in lines)
