"""`gradkit spectrum` on runs and on models trained elsewhere, against dense matrices in float64."""

import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk
from gradkit import tree
from gradkit.runner import elsewhere, progress, record, setting, spectrum, subject
from gradkit.runner.cli import main
from gradkit.runner.config import load
from gradkit.runner.stability import stability

pytestmark = pytest.mark.flow

GRADKIT = [sys.executable, "-m", "gradkit.runner.cli"]
TINY = """\
data: {source: blobs.npz}
model: {hidden: [3], activation: tanh}
optimizer: {name: sgd, learning_rate: 0.1, momentum: 0.5}
batch_size: 8
epochs: 2
checkpoint_every: 6
spectrum: {top: 3, bottom: 2, probes: 4, steps: 10}
"""
FILES = {"config.yaml", "env.json", "metrics.jsonl", "summary.json", "checkpoints", ".lock"}
PARAMETERS, EXAMPLES = 27, 72


def run_command(*arguments):
    """The exit status of a command, also where argparse leaves by itself."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as left:
        return left.code


def snapshot(folder="."):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def kept_in(folder):
    return {path.name for path in Path(folder).iterdir()} - {"plots", "report.html"}


@pytest.fixture(scope="module", autouse=True)
def _one_task():
    """The runs here are copies of one: their task is built once, and its programs compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        tasks, reopen = {}, setting.reopen
        patch.setattr(subject, "reopen", lambda run, _: reopen(run, tasks))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, blobs):
    """A folder with a run of 18 steps, checkpoints at 6, 12 and 18, and its data."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        shutil.copy(blobs, "blobs.npz")
        Path("tiny.yaml").write_text(TINY)
        assert run_command("run", "tiny.yaml", "--out", "run") == 0
    return place


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of that folder as the current one."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys):
    """The one message of a command that refuses its input and changes nothing."""

    def run_refused(*arguments):
        capsys.readouterr()
        before = snapshot()
        status = run_command("spectrum", *arguments)
        out, err = capsys.readouterr()
        assert (status, out) == (2, "")
        assert snapshot() == before
        assert err.count("gradkit: ") + err.count(": error: ") == 1
        assert "Traceback" not in err
        return err

    return run_refused


def exact(one, matrix="hessian"):
    """The matrix of a subject in float64, its leaves in order, and where each leaf begins."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), one.params)
    batch = jax.tree.map(
        lambda x: x.astype(np.float64) if x.dtype == np.float32 else x,
        jax.tree.map(np.asarray, one.batch),
    )
    with jax.enable_x64(True):
        theta, unravel = ravel_pytree(jax.tree.map(jnp.asarray, params))
        problem = one.problem
        if matrix == "hessian":
            return np.asarray(jax.hessian(lambda t: problem.value(unravel(t), batch))(theta))
        outputs = problem.predict(unravel(theta), batch)
        J = jax.jacobian(lambda t: problem.predict(unravel(t), batch))(theta)
        H = jax.hessian(lambda z: problem.criterion(z, batch))(outputs)
        J, H = np.asarray(J), np.asarray(H)
        return np.einsum("iap,iajb,jbq->pq", J, H, J)


def assert_ends_are(values, matrix):
    """The listed eigenvalues are those of the matrix, to the errors that they come with."""
    w = np.linalg.eigvalsh(matrix)
    largest, smallest = values["largest"], values["smallest"]
    atol = 30 * np.finfo(np.float32).eps * np.abs(w).max()
    count = len(largest["values"])
    np.testing.assert_allclose(largest["values"], w[::-1][:count], atol=atol)
    np.testing.assert_allclose(smallest["values"], w[: len(smallest["values"])], atol=atol)
    assert all(largest["converged"] + smallest["converged"])
    assert 0 < max(largest["residuals"]) < 1e-4 * np.abs(w).max()


# Runs


@pytest.fixture(scope="module")
def looked_at(trained, tmp_path_factory):
    """That run with the spectra of all its checkpoints, layer by layer."""
    place = tmp_path_factory.mktemp("looked_at")
    shutil.copytree(trained, place, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run_command("spectrum", "run", "--checkpoint", "all", "--blocks") == 0
    return place


@pytest.fixture
def here_too(looked_at, tmp_path, monkeypatch):
    shutil.copytree(looked_at, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_checkpoint_has_its_spectrum_and_that_of_each_layer(looked_at, monkeypatch):
    monkeypatch.chdir(looked_at)
    assert kept_in("run") == FILES | {"spectrum.json", "spectrum.npz", "spectra"}
    ends, steps = (".json", ".npz"), ("00", "06", "12")
    names = {f"0000{step}-hessian-train{end}" for step in steps for end in ends}
    assert kept_in("run/spectra") == names
    found = record.open_record("run")
    assert [one.step for one in found.spectra] == [0, 6, 12, 18]
    assert found.main.step == 18
    for kept, one in zip(found.spectra, subject.of_run(found, "all"), strict=True):
        values, matrix = kept.values, exact(one)
        assert_ends_are(values, matrix)
        assert (values["parameters"], values["examples"]) == (PARAMETERS, EXAMPLES)
        assert values["loss"] == pytest.approx(float(one.problem.value(one.params, one.batch)))
        value, error = values["trace"]["value"], values["trace"]["stderr"]
        assert abs(value - np.trace(matrix)) < 5 * error
        assert np.trapezoid(kept.arrays["density"], kept.arrays["grid"]) == pytest.approx(
            1, abs=2e-3
        )
        sizes = {"layers.0": slice(0, 15), "layers.1": slice(15, 27)}
        assert list(kept.blocks) == list(sizes)
        for name, rows in sizes.items():
            assert_ends_are(kept.blocks[name].values, matrix[rows, rows])
            assert kept.blocks[name].arrays["nodes"].shape == (4, 10)


def test_the_start_is_looked_at_before_there_is_a_checkpoint(here):
    shutil.rmtree("run/checkpoints")
    assert run_command("spectrum", "run", "--checkpoint", "0", "--no-density") == 0
    (kept,) = record.open_record("run").spectra
    assert (kept.name, kept.step) == ("000000-hessian-train", 0)
    made = setting.reopen(record.open_record("run"))
    start = made.initial().params
    one = next(subject.of_run(record.open_record("run"), "0"))
    for mine, theirs in zip(*map(jax.tree.leaves, (one.params, start)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert_ends_are(kept.values, exact(one))


@pytest.mark.slow
def test_the_share_of_the_gradient_in_each_of_the_largest_eigenvectors(looked_at, monkeypatch):
    monkeypatch.chdir(looked_at)
    found = record.open_record("run")
    for kept, one in zip(found.spectra, subject.of_run(found, "all"), strict=True):
        _, Q = np.linalg.eigh(exact(one))
        gradient = ravel_pytree(gk.observe(one.problem, one.params, one.batch).grad)[0]
        shares = (Q.T @ np.asarray(gradient, np.float64)) ** 2 / np.sum(np.square(gradient))
        np.testing.assert_allclose(
            kept.values["largest"]["gradient"], shares[::-1][:3], rtol=1e-3, atol=1e-5
        )
    assert "% of the squared gradient" in Path("run/report.html").read_text("utf-8")


def test_the_report_shows_them_all(looked_at):
    page = (looked_at / "run" / "report.html").read_text()
    plots = {path.stem for path in (looked_at / "run" / "plots").iterdir()}
    assert {"spectrum", "blocks", "evolution"} <= plots
    for words in ("Over training", "Layer by layer", "2(1 + μ)/η = 30", "All spectra"):
        assert words in page


def never(*_, **__):
    raise AssertionError("computed again")


@pytest.mark.slow
def test_what_is_there_is_not_computed_again(here_too, monkeypatch, capsys):
    before = {path: text for path, text in snapshot().items() if "plots" not in path.parts}
    monkeypatch.setattr(gk, "spectrum", never, raising=False)
    assert run_command("spectrum", "run") == 0
    assert run_command("spectrum", "run", "--checkpoint", "all", "--no-density") == 0
    out = capsys.readouterr().out
    told = [line for line in out.splitlines() if line.startswith(("0 ", "6 ", "12 ", "18 "))]
    assert len(told) == 4
    assert run_command("spectrum", "run", "--checkpoint", "12", "--blocks") == 0
    assert "layers.1" in capsys.readouterr().out
    assert {path: snapshot()[path] for path in before} == before
    with pytest.raises(AssertionError, match="computed again"):
        run_command("spectrum", "run", "--top", "4")


@pytest.mark.slow
def test_another_operator_on_other_data(here):
    options = ("--operator", "gauss_newton", "--data", "test", "--no-density", "--top", PARAMETERS)
    assert run_command("spectrum", "run", *options) == 0
    assert kept_in("run") == FILES | {"spectra"}
    found = record.open_record("run")
    assert found.main.name == "000018-gauss_newton-test"
    (one,) = subject.of_run(found, "last", "test")
    assert_ends_are(found.main.values, exact(one, "gauss_newton"))
    assert found.main.values["examples"] == 18
    assert len(found.main.values["largest"]["values"]) == PARAMETERS
    assert (found.main.values["density"], found.main.values["trace"]) == (None, None)
    assert found.main.arrays == {}
    assert "The Gauss–Newton matrix of the loss" in Path("run/report.html").read_text()


@pytest.mark.slow
def test_the_curvature_that_training_sees_is_that_of_units_normalized_by_the_batch(here):
    options = ("model.batch_norm=true", "epochs=1", "--out", "normed")
    assert run_command("run", "tiny.yaml", *options) == 0
    options = ("--operator", "gauss_newton", "--no-density", "--data", "training")
    assert run_command("spectrum", "normed", *options) == 0
    found = record.open_record("normed")
    assert found.main.name == "000009-gauss_newton-training"
    (one,) = subject.of_run(found, "last", "training")
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), float), one.params)
        theta, unravel = ravel_pytree(params)
        x, y = np.asarray(one.batch["x"], float), np.asarray(one.batch["y"])

        def scores(theta):
            p = unravel(theta)
            z = x @ p["layers"][0]["kernel"][...] + p["layers"][0]["bias"][...]
            z = (z - z.mean(axis=0)) / jnp.sqrt(z.var(axis=0) + 1e-5)
            h = jnp.tanh(z * p["norms"][0]["scale"][...] + p["norms"][0]["bias"][...])
            return h @ p["layers"][1]["kernel"][...] + p["layers"][1]["bias"][...]

        J, s = np.asarray(jax.jacobian(scores)(theta)), np.asarray(jax.nn.softmax(scores(theta)))
    H = (s[:, :, None] * np.eye(3) - s[:, :, None] * s[:, None]) / len(y)
    assert_ends_are(found.main.values, np.einsum("iap,iab,ibq->pq", J, H, J))


@pytest.mark.slow
def test_the_fisher_matrix_of_some_examples_of_an_earlier_checkpoint(here):
    options = ("--operator", "fisher", "--data", "40", "--checkpoint", "6", "--no-density")
    assert run_command("spectrum", "run", *options) == 0
    (kept,) = record.open_record("run").spectra
    assert (kept.name, kept.values["data"]) == ("000006-fisher-40", "40 of train")
    (one,) = subject.of_run(record.open_record("run"), "6", "40")
    (whole,) = subject.of_run(record.open_record("run"), "6")
    rows = np.sort(np.random.default_rng(0).permutation(EXAMPLES)[:40])
    np.testing.assert_array_equal(one.batch["x"], whole.batch["x"][rows])
    key = jax.random.fold_in(jax.random.key(0), 1)
    F = gk.fisher(one.problem, one.params, one.batch, key=key, likelihood="categorical")
    assert_ends_are(kept.values, np.asarray(F.dense(), np.float64))
    assert kept.values["stability"] is None
    assert "eigenvalue [1/param²]" in Path("run/report.html").read_text()


@pytest.mark.slow
def test_micro_batches_are_the_whole_batch(here):
    assert run_command("spectrum", "run", "--micro-batch", "50", "--no-density") == 0
    (kept,) = record.open_record("run").spectra
    (one,) = subject.of_run(record.open_record("run"))
    assert_ends_are(kept.values, exact(one))
    point = gk.observe(one.problem, one.params, one.batch)
    assert kept.values["loss"] == pytest.approx(float(point.value), rel=1e-5)
    assert kept.values["gradient_norm"] == pytest.approx(float(tree.norm(point.grad)), rel=1e-4)


@pytest.mark.slow
def test_a_memory_limit_keeps_fewer_vectors_and_says_so(here, capsys):
    options = ("--no-density", "--top", "2", "--bottom", "2", "--memory-limit")
    assert run_command("spectrum", "run", *options, "1kB") == 2
    least = int(re.search(r"at least ([\d,]+) bytes", capsys.readouterr().err)[1].replace(",", ""))
    strategies = []
    for size in (f"{least}B", "1GB"):
        assert run_command("spectrum", "run", *options, size) == 0
        kept = json.loads(Path("run/spectrum.json").read_text())
        assert_ends_are(kept, exact(next(subject.of_run(record.open_record("run")))))
        strategies.append(kept["memory"]["strategy"])
        assert kept["memory"]["bytes"] <= kept["settings"]["memory_limit"]
        assert f"memory: {strategies[-1]}, " in capsys.readouterr().out
    assert strategies == ["restarted", "all vectors"]


@pytest.mark.slow
def test_an_earlier_plain_spectrum_makes_room_for_a_later_one(here):
    shutil.move("run/checkpoints/000018", "later")
    assert run_command("spectrum", "run", "--no-density") == 0
    first = Path("run/spectrum.json").read_bytes()
    shutil.move("later", "run/checkpoints/000018")
    assert run_command("spectrum", "run", "--no-density") == 0
    assert Path("run/spectra/000012-hessian-train.json").read_bytes() == first
    assert [one.step for one in record.open_record("run").spectra] == [12, 18]
    assert json.loads(Path("run/spectrum.json").read_text())["step"] == 18


# Interruptions


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(here, monkeypatch, capsys):
    assert run_command("spectrum", "run", "--no-density") == 0
    whole = record.open_record("run").main
    for ending in (".json", ".npz"):
        Path(f"run/spectrum{ending}").unlink()
    update, titles = progress.Progress.update, []

    def interrupt(self, done, **figures):
        update(self, done, **figures)
        if (self.title, done) == ("residuals", 2):
            raise KeyboardInterrupt

    def note(self, done, **figures):
        update(self, done, **figures)
        titles.append(self.title)

    with monkeypatch.context() as patch:
        patch.setattr(progress.Progress, "update", interrupt)
        assert run_command("spectrum", "run", "--no-density") == 130
    assert "gradkit: interrupted; the same command goes on from there" in capsys.readouterr().err
    assert len(list(Path("run").glob("spectrum.*.krylov"))) == 1
    assert not Path("run/spectrum.json").exists()
    monkeypatch.setattr(progress.Progress, "update", note)
    assert run_command("spectrum", "run", "--no-density") == 0
    assert titles[:5] == ["residuals"] * 5  # and no eigenpairs are looked for
    assert set(titles[5:]) == {"slice of the loss"}
    again = record.open_record("run").main
    assert again.values | {"seconds": 0} == whole.values | {"seconds": 0}
    assert again.values["seconds"] is None
    assert kept_in("run") == FILES | {"spectrum.json", "spectrum.npz"}


@pytest.mark.slow
def test_a_killed_spectrum_goes_on_from_what_was_saved(here):
    arguments = ["spectrum", "run", "--checkpoint", "6", "--no-density"]
    process = subprocess.Popen([*GRADKIT, *arguments], stderr=subprocess.DEVNULL)
    try:
        while not list(Path("run").glob("spectra/*.krylov/whole/stage-000.npz")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kept_in("run") == FILES | {"spectra"}
    assert run_command(*arguments) == 0
    (kept,) = record.open_record("run").spectra
    (one,) = subject.of_run(record.open_record("run"), "6")
    assert kept.values["seconds"] is None  # not all of it was spent here
    assert_ends_are(kept.values, exact(one))
    assert kept_in("run/spectra") == {"000006-hessian-train.json", "000006-hessian-train.npz"}


def test_a_damaged_saved_state_is_told_and_kept(here, monkeypatch, refused):
    (one,) = subject.of_run(record.open_record("run"))
    settings = spectrum._settings(one, spectrum.Options())
    place = Path(f"run/spectrum.{spectrum._digest(settings)}.krylov/whole")
    place.mkdir(parents=True)
    (place / "stage-000.npz").write_bytes(b"half")
    message = refused("run")
    assert "stage-000.npz: a damaged saved state" in message
    assert f"Delete {place} " in message or f"delete {place} " in message


# The slice of the loss


def test_the_plain_spectrum_alone_has_a_slice_of_the_loss(looked_at, monkeypatch):
    monkeypatch.chdir(looked_at)
    *others, main = record.open_record("run").spectra
    assert main.values["slice"]["eigenvalues"] == main.values["largest"]["values"][:2]
    (one,) = subject.of_run(record.open_record("run"))
    _, Q = np.linalg.eigh(exact(one))
    flat, unravel = ravel_pytree(one.params)
    a, b, loss = (main.arrays[record.slice_array(name)] for name in ("a", "b", "loss"))
    found = []
    for signs in itertools.product((1, -1), repeat=2):  # eigenvectors have none
        there = flat + signs[0] * a[20] * Q[:, -1] + signs[1] * b[7] * Q[:, -2]
        found.append(float(one.problem.value(unravel(there), one.batch)))
    assert min(np.abs(np.array(found) / loss[20, 7] - 1)) < 1e-5
    assert loss[len(a) // 2, len(b) // 2] == pytest.approx(main.values["loss"])
    for other in others:
        assert "slice" not in other.values
        assert not any(name.startswith("slice/") for name in other.arrays)
    page = Path("run/report.html").read_text("utf-8")
    assert 'id="race-plot"' in page
    assert len(page.encode()) < 500_000


@pytest.mark.slow
def test_a_result_from_before_there_were_slices_is_kept_and_read(here_too, monkeypatch):
    main = record.open_record("run").main
    old = {name: x for name, x in main.arrays.items() if not name.startswith("slice/")}
    record.write_arrays("run/spectrum.npz", **old)
    record.write_json("run/spectrum.json", {k: v for k, v in main.values.items() if k != "slice"})
    kept = Path("run/spectrum.npz").read_bytes()
    monkeypatch.delattr(gk, "spectrum")
    assert run_command("spectrum", "run") == 0
    assert Path("run/spectrum.npz").read_bytes() == kept
    assert "<script" not in Path("run/report.html").read_text("utf-8")


# Mistakes


RUN_MISTAKES = {
    "no such checkpoint": (["run", "--checkpoint", "7"], "at step 7; there are: 0, 6, 12, 18"),
    "checkpoint word": (
        ["run", "--checkpoint", "first"],
        "expected a step, all, best or last, got",
    ),
    "too many examples": (["run", "--data", "73"], "--data: expected 1 to 72, the examples there"),
    "no examples": (
        ["run", "--data", "0"],
        "--data: expected 1 to 72, the examples there are, got",
    ),
    "data word": (["run", "--data", "validation"], "expected train, test, training or a number of"),
    "too many": (
        ["run", "--top", "28"],
        "--top: expected 1 to 27, the number of parameters, got 28",
    ),
    "none": (["run", "--bottom", "0"], "expected a whole number >= 1, got '0'"),
    "operator": (["run", "--operator", "jacobian"], "invalid choice: 'jacobian'"),
    "both": (
        ["run", "--task", "model.py:task"],
        "expected a RUN folder or --task FILE.py:FUNCTION",
    ),
    "neither": ([], "expected a RUN folder or --task FILE.py:FUNCTION, got neither"),
    "params of a run": (["run", "--params", "a.npz"], "--params goes with --task, not with a RUN"),
}


@pytest.mark.parametrize("case", RUN_MISTAKES)
def test_mistakes_with_a_run(here, refused, case):
    arguments, words = RUN_MISTAKES[case]
    assert words in refused(*arguments)


def test_a_damaged_result_is_told(here_too, refused):
    Path("run/spectra/000006-hessian-train.npz").write_bytes(b"half")
    message = refused("run")
    assert "run/spectra/000006-hessian-train.npz: not a readable .npz file" in message


# Models trained elsewhere

# The file of the README.
MODEL = """\
import gradkit as gk
import jax.numpy as jnp
import numpy as np


def task():
    def predict(params, batch):
        return jnp.tanh(batch["x"] @ params["hidden"]["w"]) @ params["out"]

    def criterion(outputs, batch):
        return jnp.mean((outputs - batch["y"]) ** 2) / 2

    x = np.linspace(-2, 2, 40).reshape(20, 2)
    params = {"hidden": {"w": np.zeros((2, 6))}, "out": np.zeros((6, 1))}
    return gk.Problem(predict=predict, criterion=criterion), params, {"x": x, "y": np.sin(x[:, :1])}
"""
MORE = """
import jax
from pathlib import Path

count = 3

def reading(file):
    problem, _, batch = task()
    w, out = np.split(np.array(Path(file).read_text().split(), float), [12])
    return problem, {"hidden": {"w": w.reshape(2, 6)}, "out": out.reshape(6, 1)}, batch

def two(a, b):
    return a, b

def nothing():
    pass

def raising():
    return {}["key"]

def misnamed():
    problem, params, batch = task()
    return problem, params, {"z": batch["x"]}

def whole_numbers():
    return lambda p, b: jnp.sum(p["n"] * 1.0), {"n": np.arange(3)}, None

def plain_loss():
    return lambda p, b: jnp.sum(p**4), jnp.ones(3), None

def negative():
    return lambda p, b: jnp.sum(jnp.log(p)), -jnp.ones(3), None

@jax.custom_vjp
def crooked(x):
    return jnp.sum(x**2)

crooked.defvjp(lambda x: (crooked(x), x), lambda x, g: (g * jnp.stack([x[1], 0 * x[0]]),))

def skew():
    return lambda p, b: crooked(p), jnp.ones(2), None
"""


def weights():
    rng = np.random.default_rng(3)
    return {"hidden.w": rng.normal(size=(2, 6)), "out": rng.normal(size=(6, 1))}


@pytest.fixture
def model(tmp_path, monkeypatch):
    """An empty current folder with a task and its parameters in three formats."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL + MORE)
    np.savez("trained.npz", **weights())
    numbers = np.concatenate([x.ravel() for x in weights().values()])
    Path("trained.txt").write_text(" ".join(map(repr, numbers.tolist())))
    return tmp_path


def exact_of_model():
    flat = np.concatenate([x.ravel() for x in weights().values()])
    with jax.enable_x64(True):
        x = jnp.linspace(-2, 2, 40).reshape(20, 2)

        def loss(theta):
            w, out = theta[:12].reshape(2, 6), theta[12:].reshape(6, 1)
            return jnp.mean((jnp.tanh(x @ w) @ out - jnp.sin(x[:, :1])) ** 2) / 2

        return np.asarray(jax.hessian(loss)(jnp.asarray(flat)))


@pytest.mark.slow
def test_a_model_trained_elsewhere(model, capsys, monkeypatch):
    few = ("--no-density", "--top", "2")
    assert run_command("spectrum", "--task", "model.py:task", "--params", "trained.npz", *few) == 0
    out = capsys.readouterr().out
    assert out.endswith("spectra/trained/report.html\n")
    folder = Path("spectra/trained")
    assert kept_in(folder) == {"env.json", "spectrum.json", "spectrum.npz"}
    kept = record.open_record(folder)
    assert_ends_are(kept.main.values, exact_of_model())
    assert kept.main.step is None
    assert kept.env["task"] == "model.py:task"
    page = (folder / "report.html").read_text()
    assert "Curvature of the task model.py:task at trained.npz." in page
    assert "<h2>Training</h2>" not in page
    before = snapshot(folder)
    assert run_command("report", folder) == 0
    assert snapshot(folder) == before
    monkeypatch.setattr(gk, "spectrum", never, raising=False)
    again = ("--task", "./model.py:task", "--params", "trained.npz", *few)
    assert run_command("spectrum", *again) == 0
    assert run_command("spectrum", folder) == 2
    assert "a model trained elsewhere is looked at by" in capsys.readouterr().err


def test_parameters_come_from_checkpoints_and_from_the_task_itself(model):
    from flax import nnx
    from orbax.checkpoint import v1 as orbax

    params = {"hidden": {"w": weights()["hidden.w"]}, "out": weights()["out"]}
    orbax.save((model / "saved").absolute(), params)
    for task, file in (("task", "saved"), ("task", "trained.npz"), ("reading", "trained.txt")):
        found = elsewhere.load(f"model.py:{task}", file)
        np.testing.assert_allclose(found.params["hidden"]["w"], weights()["hidden.w"], rtol=1e-6)
        np.testing.assert_allclose(found.params["out"], weights()["out"], rtol=1e-6)
    linear = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    np.savez("linear.npz", kernel=np.ones((2, 3)), **{"bias/value": np.arange(3)})
    found = elsewhere.restored(Path("linear.npz"), linear)
    np.testing.assert_array_equal(found["kernel"].get_value(), np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(found["bias"].get_value(), [0, 1, 2])
    one = subject.of_task(
        "model.py:plain_loss", None, out=None, data="batch", likelihood=None, command=[]
    )
    np.testing.assert_array_equal(one.params, np.ones(3))
    assert (one.folder, one.examples) == (Path("spectra/model"), None)


TASK_MISTAKES = {
    "no colon": (["model.py"], "expected FILE.py:NAME or MODULE:NAME, got 'model.py'"),
    "no file": (["modl.py:task"], "no such file modl.py; did you mean model.py?"),
    "no module": (["nowhere:task"], "no module named 'nowhere'"),
    "no attribute": (["model.py:tsk"], "model.py has no tsk; did you mean task?"),
    "no function": (["model.py:count"], "expected a function, got an int"),
    "two arguments": (["model.py:two"], "of no argument or of the params file, got one of a, b"),
    "no params": (["model.py:reading"], "takes a file of parameters: name it by --params FILE"),
    "returns": (["model.py:nothing"], "a task returns (problem, params, batch), got None"),
    "raises": (["model.py:raising"], "model.py:34: model.py:raising fails: KeyError: 'key'"),
    "batch": (["model.py:misnamed"], "model.py:8: model.py:misnamed: the loss cannot be evaluated"),
    "integers": (["model.py:whole_numbers"], "n: expected floating-point parameters, got int32"),
    "syntax": (["broken.py:task"], "broken.py:2: broken.py cannot be imported: SyntaxError"),
    "import": (["needy.py:task"], "needy.py:1: needy.py cannot be imported: ModuleNotFoundError"),
    "missing params": (
        ["model.py:task", "--params", "none.npz"],
        "--params: no such file none.npz",
    ),
    "damaged params": (
        ["model.py:task", "--params", "cut.npz"],
        "cut.npz: not a readable .npz file",
    ),
    "damaged folder": (["model.py:task", "--params", "empty"], "empty: not a readable orbax check"),
    "format": (["model.py:task", "--params", "model.py"], "task(file), reads any other format its"),
    "shape": (
        ["model.py:task", "--params", "shape.npz"],
        "hidden.w: expected shape (2, 6), got (6, 2)",
    ),
    "leaf": (["model.py:task", "--params", "leaf.npz"], "out: missing; did you mean out2?"),
    "left over": (["model.py:task", "--params", "leaf.npz"], "out2: shape (6, 1), is no leaf of"),
    "nan": (
        ["model.py:task", "--params", "nan.npz"],
        "nan.npz: not finite: 2 of the 12 numbers of hidden.w are NaN or infinite",
    ),
    "checkpoint": (["model.py:task", "--checkpoint", "all"], "--checkpoint is for a RUN"),
    "data": (["model.py:task", "--data", "test"], "--data test is for a RUN"),
    "draws": (["model.py:plain_loss", "--data", "3"], "no common first axis to draw examples from"),
    "micro-batch": (["model.py:plain_loss", "--micro-batch", "3"], "no common first axis to cut"),
    "too little memory": (["model.py:task", "--memory-limit", "1kB"], "by --micro-batch and by"),
    "likelihood": (
        ["model.py:task", "--operator", "fisher"],
        "say how by --likelihood categorical",
    ),
    "nan loss": (["model.py:negative"], "the loss is nan: there is no curvature to look at"),
    "no hessian": (
        ["model.py:skew"],
        "is not a symmetric linear map that repeats itself:\ndefects",
    ),
    "no outputs": (
        ["model.py:plain_loss", "--operator", "gauss_newton"],
        "model.py:plain_loss: gauss_newton needs the model's outputs: expected gk.Problem(",
    ),
    "other params": (
        ["model.py:task", "--params", "trained.npz", "--out", "other"],
        "other: holds spectra of model.py:task at other parameters, old.npz; name another by --out",
    ),
    "other task": (
        ["model.py:plain_loss", "--out", "other"],
        "other: holds spectra of another task, model.py:task; name another by --out",
    ),
    "full folder": (
        ["model.py:task", "--out", "full"],
        "full: exists already and is not the folder",
    ),
    "file": (["model.py:task", "--out", "model.py"], "model.py: exists already and is not the fol"),
}


@pytest.mark.parametrize("case", TASK_MISTAKES)
def test_mistakes_with_a_task(model, refused, case):
    good = weights()
    Path("broken.py").write_text("x = 1\ny = (\n")
    Path("needy.py").write_text("import a_package_that_is_not_there\n")
    Path("cut.npz").write_bytes(Path("trained.npz").read_bytes()[:100])
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    Path("other").mkdir()
    was = {"task": "model.py:task", "params": "old.npz", "sha256": "0"}
    Path("other/env.json").write_text(json.dumps(was))
    np.savez("shape.npz", **good | {"hidden.w": good["hidden.w"].T})
    np.savez("leaf.npz", **{"hidden.w": good["hidden.w"], "out2": good["out"]})
    bad = good["hidden.w"].copy()
    bad[0, 1], bad[1, 5] = np.nan, np.inf
    np.savez("nan.npz", **good | {"hidden.w": bad})
    arguments, words = TASK_MISTAKES[case]
    assert words in refused("--task", *arguments)


# What a learning rate says


def members(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"optimizer: {text}\n")
    return load(path).optimizer


def diverges(curvature, rate, momentum, nesterov):
    """Whether 4,000 steps on a quadratic of that curvature end further out than they began."""
    x, v = 1.0, 0.0
    for _ in range(4000):
        v = momentum * v + curvature * x
        x -= rate * (curvature * x + momentum * v if nesterov else v)
        if abs(x) > 1e6:
            return True
    return abs(x) > 1


@pytest.mark.parametrize(
    ("text", "rate", "momentum", "nesterov"),
    [
        ("{name: sgd, learning_rate: 0.1}", 0.1, 0.0, False),
        ("{name: sgd, learning_rate: 0.1, momentum: 0.9}", 0.1, 0.9, False),
        ("{name: optax.sgd, learning_rate: 2, momentum: 0.5, nesterov: true}", 2.0, 0.5, True),
        ("{name: nesterov, learning_rate: 0.05}", 0.05, 0.9, True),
        ("sgd", 0.01, 0.0, False),
    ],
)
def test_beyond_the_line_of_stability_descent_diverges(tmp_path, text, rate, momentum, nesterov):
    found = stability(members(text, tmp_path))
    assert diverges(1.001 * found["threshold"], rate, momentum, nesterov)
    assert not diverges(0.999 * found["threshold"], rate, momentum, nesterov)
    assert f"η = {rate:g}" in found["words"]
    assert found["formula"].startswith("2")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{name: adam, learning_rate: 0.1}", "adam is not plain gradient descent"),
        (
            "[{name: clip, max_delta: 1}, {name: sgd, learning_rate: 0.1}]",
            "clip, sgd is not plain gradient descent",
        ),
        (
            "{name: sgd, learning_rate: {warmup_cosine: {peak: 0.1, steps: 100}}}",
            "the learning rate or the momentum changes",
        ),
        ("{name: sgd, learning_rate: 0}", "a learning rate of 0 with momentum 0 has none"),
    ],
)
def test_other_optimizers_have_no_line_of_stability(tmp_path, text, why):
    found = stability(members(text, tmp_path))
    assert found["threshold"] is None
    assert why in found["words"]
