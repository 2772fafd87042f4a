"""The command line as a user types it: two commands do the whole job, and mistakes cost nothing."""

import importlib.metadata
import json
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

from gradkit.runner import checkpoint, record, setting, train
from gradkit.runner.cli import main
from gradkit.runner.config import load
from gradkit.runner.data import installed

pytestmark = pytest.mark.flow

CONFIGS = Path(__file__).parents[2] / "configs"
GRADKIT = [sys.executable, "-m", "gradkit.runner.cli"]
TINY = """\
data: {source: blobs.npz}
model: {hidden: [3], activation: tanh}
optimizer:
  name: adam
  learning_rate: 0.01
batch_size: 8
epochs: 2
log_every: 3
evaluate_every: 9
checkpoint_every: 6
spectrum: {top: 2, bottom: 2, probes: 2, steps: 4}
"""


def blobs(examples=90):
    rng = np.random.default_rng(0)
    y = np.arange(examples) % 3
    return {"x": rng.normal(size=(examples, 4)) + 2 * np.eye(4)[y], "y": y}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, but for a small config and its data: 18 steps."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    np.savez("blobs.npz", **blobs())
    return tmp_path


def run_command(*arguments):
    """The exit status of a command, also where argparse leaves by itself."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as left:
        return left.code


def snapshot(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def refused(capsys):
    """The one message of a command that refuses its input and changes nothing."""

    def run_refused(*arguments):
        before = snapshot(".")
        status = run_command(*arguments)
        out, err = capsys.readouterr()
        assert (status, out) == (2, "")
        assert snapshot(".") == before
        assert err.count("gradkit: ") + err.count(": error: ") - err.count("gradkit: error: ") == 1
        assert "Traceback" not in err
        assert len(err) < 1000
        return err

    return run_refused


# Two commands


def kept_in(folder):
    return {path.name for path in Path(folder).iterdir()}


TRAINED = {
    *("config.yaml", "env.json", "metrics.jsonl", "summary.json", "checkpoints", "plots"),
    *("report.html", ".lock"),
}


@pytest.mark.slow
@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_runs_two_steps_and_has_a_spectrum(tmp_path, monkeypatch, capsys, config):
    monkeypatch.chdir(tmp_path)
    small = ["epochs=2", "spectrum.top=1", "spectrum.bottom=1"]
    small += ["spectrum.probes=2", "spectrum.steps=4", "spectrum.tol=0.1"]
    if installed.missing(load(config).data.source.name):
        pytest.skip(f"{config.stem}: its data are not installed")
    (tmp_path / "experiments").symlink_to(CONFIGS.parent / "experiments")
    if load(config).data.source.name in ("digits", "fashion_mnist"):
        small += ["data.examples=400", "batch_size=200"]
    if load(config).data.source.name == "python_text":
        small += ["data.source={name: python_text, characters: 8000}", "batch_size=16"]
        small += ["data.examples=null"]
    assert run_command("run", config, *small) == 0
    folder = Path("runs") / config.stem
    trained = TRAINED | ({"best"} if load(config).best.metric else set())
    assert kept_in(folder) == trained
    steps = record.open_record(folder).summary["steps"]
    assert steps >= 2
    assert checkpoint.steps(folder / "checkpoints") == [steps]
    assert run_command("spectrum", folder) == 0
    assert kept_in(folder) == trained | {"spectrum.json", "spectrum.npz"}
    assert "largest" in capsys.readouterr().out
    assert "<svg" in (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert run_command("report", folder) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert kept_in(folder) == trained | {"spectrum.json", "spectrum.npz"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The run of configs/digits_adam.yaml in full, and its spectrum."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert run_command("run", CONFIGS / "digits_adam.yaml", "--out", folder) == 0
    assert run_command("spectrum", folder) == 0
    return record.open_record(folder)


@pytest.fixture(scope="module")
def eigenvalues(digits):
    """All eigenvalues of the exact Hessian at the checkpoint, ascending, in float64."""
    made = setting.reopen(digits)
    params = setting.state_at(made, digits.path)[0].params
    by_shape = {leaf.shape: np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)}
    shapes = [(64, 32), (32,), (32, 10), (10,)]
    theta = np.concatenate([by_shape[shape].ravel() for shape in shapes])
    dataset = made.task.data

    with jax.enable_x64(True):
        x, y = (
            jnp.asarray(dataset.x_train.reshape(-1, 64), jnp.float64),
            jnp.asarray(dataset.y_train),
        )

        def loss(theta):
            ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
            parts = zip(jnp.split(theta, ends), shapes, strict=True)
            W1, b1, W2, b2 = (part.reshape(shape) for part, shape in parts)
            scores = jnp.tanh(x @ W1 + b1) @ W2 + b2
            correct = jnp.take_along_axis(scores, y[:, None], axis=1)[:, 0]
            return jnp.mean(jax.nn.logsumexp(scores, axis=1) - correct)

        @jax.jit
        def columns(theta, V):
            return jax.vmap(lambda v: jax.jvp(jax.grad(loss), (theta,), (v,))[1])(V)

        chunks = np.split(np.eye(theta.size), 10)
        exact = np.concatenate([columns(jnp.asarray(theta), chunk) for chunk in chunks])
    return np.linalg.eigvalsh((exact + exact.T) / 2)


@pytest.mark.slow
def test_digits_are_read_with_an_accuracy_of_97_percent(digits):
    assert digits.summary["status"] == "finished"
    assert digits.summary["test_accuracy"] >= 0.97
    assert digits.env["parameters"] == 2410


@pytest.mark.slow
def test_the_extreme_eigenvalues_of_digits_are_those_of_the_exact_hessian(digits, eigenvalues):
    largest, smallest = digits.spectrum["largest"], digits.spectrum["smallest"]
    np.testing.assert_allclose(largest["values"], eigenvalues[::-1][:5], rtol=1e-5)
    assert all(largest["converged"])
    np.testing.assert_allclose(smallest["values"], eigenvalues[:5], atol=2e-5)


@pytest.mark.slow
def test_the_density_of_digits_integrates_to_one_and_is_within_its_bound(digits, eigenvalues):
    arrays, figures = digits.arrays, digits.spectrum["density"]
    assert np.trapezoid(arrays["density"], arrays["grid"]) == pytest.approx(1, abs=1e-3)
    assert figures["integral"] == pytest.approx(1, abs=1e-3)
    grid = np.linspace(-1, 2, 30_001)
    steps = np.argsort(arrays["nodes"].ravel())
    mass = np.cumsum(arrays["weights"].ravel()[steps]) / len(arrays["weights"])
    mass = np.concatenate([[0.0], mass])
    estimate = mass[np.searchsorted(arrays["nodes"].ravel()[steps], grid, side="right")]
    true = np.searchsorted(eigenvalues, grid, side="right") / len(eigenvalues)
    distance = np.trapezoid(np.abs(estimate - true), grid)  # Wasserstein-1
    assert distance <= figures["w1_bound"]


@pytest.mark.parametrize(
    "order",
    [
        ["tiny.yaml", "epochs=1", "seed=3", "--out", "run"],
        ["--out", "run", "tiny.yaml", "seed=3", "epochs=1"],
        ["tiny.yaml", "epochs=1", "--out=run", "seed=3"],
    ],
)
def test_options_and_overrides_come_in_any_order(here, monkeypatch, order):
    begun = []

    def begin(config, folder, command, workshop):
        begun.append((config.seed, config.epochs, str(folder), command))
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "begin", begin)
    assert run_command("run", *order) == 130
    assert begun == [(3, 1, "run", ["gradkit", "run", *order])]


def test_the_list_and_its_entries(capsys):
    assert run_command("list") == 0
    assert "newton_cg" in capsys.readouterr().out
    assert run_command("list", "adam") == 0
    assert capsys.readouterr().out.startswith("adam (optimizer, gradkit)")


def test_help_and_config_errors_come_before_the_heavy_imports(here):
    program = """if True:
        import contextlib, io, sys
        from gradkit.runner.cli import main

        def quiet(*arguments):
            sink = io.StringIO()
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                try:
                    return main(arguments)
                except SystemExit as left:
                    return left.code

        def loaded(*names):
            return [name for name in names if name in sys.modules]

        heavy = ["jax", "jaxlib", "flax", "optax", "orbax", "matplotlib", "sklearn"]
        assert quiet("--help") == quiet("run", "--help") == quiet("--version") == 0
        assert quiet("run", "--frob") == quiet("frob") == quiet() == 2
        assert not loaded("numpy", "pydantic", "ruamel.yaml", "rich", *heavy)
        assert quiet("list") == quiet("list", "adam") == 0
        assert quiet("list", "adamm") == quiet("run", "none.yaml") == 2
        assert quiet("run", "tiny.yaml", "optimizer.name=adamm", "seed=x") == 2
        assert quiet("run", "--resume", "none") == quiet("spectrum", "none") == 2
        assert not loaded(*heavy)
        """
    left = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert left.returncode == 0, left.stderr


def test_the_installed_command_is_this_one():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="gradkit")
    assert entry.load() is main
    said = subprocess.run([*GRADKIT, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("gradkit 0")


# Mistakes; the table of them all is in test_mistakes.py


def test_all_problems_of_a_config_are_told_at_once(here, refused):
    Path("bad.yaml").write_text("optimizr: {name: adam}\nepochs: many\n\nbatch_size: 0\n")
    message = refused("run", "bad.yaml", "seed=-1")
    assert message.startswith("gradkit: bad.yaml: 5 problems\n")
    for place in ("bad.yaml:1  ", "bad.yaml:2  ", "bad.yaml:4  ", "command line: seed=-1  "):
        assert place in message


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of tiny.yaml, in a folder with its data."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        Path("tiny.yaml").write_text(TINY)
        np.savez("blobs.npz", **blobs())
        assert run_command("run", "tiny.yaml", "--out", "run") == 0
    return place


@pytest.fixture
def unfinished(trained, tmp_path, monkeypatch):
    """The same run as if it had been killed after its second checkpoint."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(Path("run", "checkpoints", "000018"))
    Path("run", "summary.json").unlink()
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize("command", [["spectrum"], ["run", "--resume"]])
@pytest.mark.parametrize("damage", ["cut", "flipped", "no structure"])
def test_a_damaged_checkpoint(unfinished, refused, command, damage):
    place = Path("run", "checkpoints", "000012")
    files = [path for path in place.rglob("*") if path.is_file() and "arrays" in path.parts]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    if damage == "cut":
        largest.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = len(content) // 2
        content[middle : middle + 8] = bytes(255 - byte for byte in content[middle : middle + 8])
        largest.write_bytes(content)
    else:
        (place / "structure.json").unlink()
    message = refused(*command, "run")
    assert message.startswith(f"gradkit: {place}: damaged checkpoint: ")
    assert "Delete this folder to go on from step 6." in message


@pytest.mark.slow
@pytest.mark.parametrize("command", [["spectrum"], ["run", "--resume"]])
def test_what_changed_since_the_run_began(unfinished, refused, command):
    config = unfinished / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("learning_rate: 0.01", "learning_rate: 0.02"))
    message = refused(*command, "run")
    assert "run/config.yaml: changed since the run began: optimizer: expected" in message
    config.write_text(text.replace("epochs: 2", "epochs: two"))
    assert "run/config.yaml: 1 problem" in refused(*command, "run")
    config.write_text(text)
    np.savez("blobs.npz", **blobs(examples=93))
    assert "run: the data have changed since the run began" in refused(*command, "run")


def test_a_finished_run_says_so_and_stays_as_it_is(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    before = snapshot(".")
    assert run_command("run", "--resume", "run") == 0
    out, err = capsys.readouterr()
    assert out.startswith("run has ended, and nothing is left to do:\ntest accuracy ")
    assert err == ""
    assert snapshot(".") == before


@pytest.mark.slow
def test_a_diverging_run_ends_with_status_1_and_a_report(here, capsys):
    huge = ["optimizer.name=sgd", "optimizer.learning_rate=1e38", "log_every=1"]
    assert run_command("run", "tiny.yaml", *huge, "--out", "run") == 1
    out, err = capsys.readouterr()
    message = err.splitlines()[-1]
    assert out == ""
    assert message.startswith("gradkit: the loss became NaN or infinite by step ")
    assert "Lower optimizer.learning_rate or clip the gradient" in message
    assert err.count("gradkit: ") == 1
    assert record.open_record("run").summary["status"] == "diverged"
    assert kept_in("run") == TRAINED - {"checkpoints"}
    before = snapshot("run")
    assert run_command("run", "--resume", "run") == 1
    assert run_command("spectrum", "run") == 2
    assert "diverged before its first checkpoint" in capsys.readouterr().err
    assert snapshot("run") == before


# Interruptions


@pytest.mark.slow
@pytest.mark.usefixtures("default_interrupts")
def test_an_interrupted_run_prints_the_command_that_resumes_it(here, monkeypatch, capsys):
    append = record.append_metrics

    def append_and_interrupt(path, line):
        append(path, line)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(record, "append_metrics", append_and_interrupt)
        assert run_command("run", "tiny.yaml", "--out", "a run") == 130
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == "gradkit: interrupted; go on by gradkit run --resume 'a run'"
    assert run_command("run", "--resume", "a run") == 0
    assert "after 18 steps" in capsys.readouterr().out


def test_interrupted_before_there_is_a_run_it_leaves_nothing(here, monkeypatch, capsys):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "prepare", interrupt)
    assert run_command("run", "tiny.yaml", "--out", "run") == 130
    assert capsys.readouterr().err == "gradkit: interrupted\n"
    assert not Path("run").exists()


LONG = ["epochs=300", "log_every=10", "evaluate_every=500", "checkpoint_every=100"]  # 2,700 steps


def start_and_kill(arguments, run, *, after):
    """Kills a command when the run has a checkpoint beyond the step `after`; returns its step."""
    process = subprocess.Popen([*GRADKIT, *arguments], stderr=subprocess.DEVNULL)
    try:
        while not (found := [s for s in checkpoint.steps(run / "checkpoints") if s > after]):
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (run / "summary.json").exists(), "the run ended before it could be killed"
    return found[-1]


def leave_things_half_written(run):
    draft = run / "checkpoints" / ".999999.tmp" / "arrays.orbax-checkpoint-tmp"
    draft.mkdir(parents=True)
    (draft / "manifest.ocdbt").write_bytes(b"half")
    (run / ".env.json.1-0a.tmp").write_bytes(b"{")
    text = (run / "metrics.jsonl").read_bytes()
    if text.endswith(b"\n"):
        (run / "metrics.jsonl").write_bytes(text + text.splitlines()[-1][:25])


def final_bits(run):
    opened = record.open_record(run)
    state, step, _ = setting.state_at(setting.reopen(opened), run)
    return step, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def timeless(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


@pytest.mark.slow
def test_a_run_that_was_killed_twice_ends_with_the_same_bits(here):
    whole, killed = Path("whole"), Path("killed")
    first = start_and_kill(["run", "tiny.yaml", *LONG, "--out", "killed"], killed, after=0)
    leave_things_half_written(killed)
    start_and_kill(["run", "--resume", "killed"], killed, after=first)
    leave_things_half_written(killed)
    assert run_command("run", "--resume", "killed") == 0
    assert run_command("run", "tiny.yaml", *LONG, "--out", "whole") == 0
    assert final_bits(killed) == final_bits(whole)
    assert final_bits(killed)[0] == 2700
    assert timeless(killed) == timeless(whole)
    assert not [path for path in killed.rglob("*") if path.name.endswith(".tmp")]
    assert kept_in(killed) == kept_in(whole)
    assert kept_in(killed / "checkpoints") == kept_in(whole / "checkpoints")
