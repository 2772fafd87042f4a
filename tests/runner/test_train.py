"""A run trains, records what it did, and goes on after a crash as if nothing had happened."""

import json
import os
import shutil
import signal
import threading

import jax
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.runner import (
    checkpoint,
    guard,
    optimizers,
    record,
    setting,
    signals,
    subject,
    train,
    training,
)
from gradkit.runner.config import Config, dump
from gradkit.runner.errors import UserError

STEPS = 18  # 72 training examples in batches of 8, twice


@pytest.fixture
def config(blobs):
    """Makes a config of 18 steps with checkpoints at 6, 12 and 18."""

    def make(optimizer, **fields):
        small = {"data": {"source": blobs}, "model": {"hidden": [3], "activation": "tanh"}}
        small |= {"batch_size": 8, "epochs": 2, "log_every": 1, "evaluate_every": 9}
        return Config(**{"optimizer": optimizer, "checkpoint_every": 6, **small, **fields})

    return make


def begin(config, folder):
    summary = train.begin(config, folder, ["gradkit", "run"])
    lines, truncated = record.read_metrics(folder / "metrics.jsonl")
    assert not truncated
    return summary, lines


def crash(folder, *, after):
    """Leaves a finished run as a SIGKILL some steps after the checkpoint `after` would."""
    (folder / "summary.json").unlink()
    for step in checkpoint.steps(folder / "checkpoints"):
        if step > after:
            shutil.rmtree(folder / "checkpoints" / f"{step:06d}")
    draft = folder / "checkpoints" / f".{after + 6:06d}.tmp" / "arrays.orbax-checkpoint-tmp"
    draft.mkdir(parents=True)
    (draft / "manifest").write_bytes(b"half")
    (folder / ".metrics.jsonl.1-0a.tmp").write_bytes(b"half")
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(lines[: after + 3]) + lines[after + 3][:20])


def resume(folder):
    return train.resume(record.open_record(folder))


def final_bits(folder):
    run = record.open_record(folder)
    state, step, _ = setting.state_at(setting.reopen(run), folder)
    assert step == STEPS
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): bits(leaf) for path, leaf in leaves}


def bits(leaf):
    is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()


def timeless(folder):
    lines, truncated = record.read_metrics(folder / "metrics.jsonl")
    assert not truncated
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def drafts(folder):
    return [path.name for path in folder.rglob(".*") if path.name != guard.LOCK]


PIECES = {"piecewise_constant_schedule": {"init_value": 0.1, "boundaries_and_scales": {6: 0.5}}}
OPTIMIZERS = {
    "adam": ({"name": "adam", "learning_rate": 0.02}, lambda step: 0.02),
    "chain": (
        [
            {"name": "clip_by_global_norm", "max_norm": 1.0},
            {"name": "adam", "learning_rate": 1e-2},
        ],
        lambda step: 0.01,
    ),
    "optax's bare name": ({"name": "lion", "learning_rate": 0.01}, lambda step: 0.01),
    "optax's muon": ({"name": "contrib.muon", "learning_rate": 0.02}, lambda step: 0.02),
    "schedule": (
        {"name": "sgd", "learning_rate": {"linear": {"init_value": 0.5, "end_value": 0.0,
         "transition_steps": 20}}},
        lambda step: 0.5 * (1 - step / 20),
    ),
    "optax with a schedule": (
        {"name": "optax.sgd", "momentum": 0.9, "learning_rate": PIECES},
        lambda step: 0.1 if step < 6 else 0.05,
    ),
    "mixed": ([{"name": "optax.scale_by_sign"}, {"name": "scale_by_learning_rate",
         "learning_rate": 0.01}], lambda step: 0.01),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_from_a_config(tmp_path, config, name):
    optimizer, rate = OPTIMIZERS[name]
    summary, lines = begin(config(optimizer), tmp_path / "run")
    assert summary["status"] == "finished"
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(line["gradients"] == line["step"] for line in lines)
    assert np.mean([line["loss"] for line in lines[-3:]]) < lines[0]["loss"]
    expected = [rate(step) for step in range(STEPS)]
    found = [line["learning_rate"] for line in lines]
    assert found == (expected if expected[0] is None else pytest.approx(expected, rel=1e-6))


def test_a_metrics_line_has_what_the_report_reads(tmp_path, config):
    summary, lines = begin(config({"name": "adam"}), tmp_path / "run")
    assert lines[0].keys() == {
        *("step", "epoch", "time", "loss", "accuracy", "gradient_norm"),
        *("learning_rate", "gradients", "evaluations", "products"),
    }
    assert lines[0]["learning_rate"] == 0.001  # and not 0.0010000000474974513
    evaluated = [line["step"] for line in lines if "test_accuracy" in line]
    assert evaluated == [9, 18]
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert summary[name] == lines[-1][name]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    run = record.open_record(tmp_path / "run")
    assert run.env["parameters"] == 4 * 3 + 3 + 3 * 3 + 3
    assert run.env["data"]["train"] == 72
    assert run.env["command"] == ["gradkit", "run"]
    assert run.config_text == dump(config({"name": "adam"}))


def test_cadences_are_independent_and_the_last_step_has_everything(tmp_path, config):
    cadence = {"log_every": 7, "evaluate_every": 100, "checkpoint_every": 5}
    _, lines = begin(config({"name": "sgd"}, **cadence), tmp_path / "run")
    assert [line["step"] for line in lines] == [5, 7, 10, 14, 15, 18]
    assert [line["step"] for line in lines if "test_loss" in line] == [18]
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [5, 10, 15, 18]


RESUMED = {
    "newton_cg": {"name": "newton_cg"},
    "random": [{"name": "optax.add_noise", "eta": 0.1, "gamma": 0.5, "key": 3}, {"name": "sgd"}],
    "mapping": {"name": "adam", "learning_rate": PIECES},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_a_crashed_run_goes_on_to_the_same_bits(tmp_path, config, name):
    _, lines = begin(config(RESUMED[name]), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "crashed")
    crash(tmp_path / "crashed", after=6)
    assert resume(tmp_path / "crashed")["status"] == "finished"
    assert final_bits(tmp_path / "crashed") == final_bits(tmp_path / "whole")
    assert timeless(tmp_path / "crashed") == timeless(tmp_path / "whole")
    assert drafts(tmp_path / "crashed") == []
    if name == "newton_cg":
        the_work_is_counted(lines)


def the_work_is_counted(lines):
    for name in ("products", "evaluations"):
        counts = [line[name] for line in lines]
        assert counts == sorted(counts)
        assert all(count >= line["step"] for count, line in zip(counts, lines, strict=True))


@pytest.mark.slow
def test_the_sharpness_is_measured_beside_a_training_that_it_does_not_change(tmp_path, config):
    full = {"batch_size": 72, "epochs": STEPS}
    adam = {"name": "adam", "learning_rate": 0.02}
    _, plain = begin(config(adam, **full), tmp_path / "plain")
    _, lines = begin(config(adam, sharpness_every=6, **full), tmp_path / "run")
    assert [line["sharpness_step"] for line in lines] == [step - step % 6 for step in range(STEPS)]
    added = {"sharpness", "sharpness_residual", "preconditioned_sharpness"}
    added |= {"preconditioned_sharpness_residual", "preconditioned_sharpness_limit"}
    assert lines[0].keys() - plain[0].keys() == added | {"sharpness_step", "sharpness_products"}
    for name in plain[0].keys() - {"time"}:
        assert [line[name] for line in lines] == [line[name] for line in plain]
    assert lines[0]["preconditioned_sharpness_limit"] == pytest.approx(38 / 0.02, rel=1e-6)
    made = setting.prepare(config(adam, **full))
    state, _ = checkpoint.restore(tmp_path / "plain" / "checkpoints", 12, made.initial())
    H = gk.hessian(made.task.problem, state.params, made.task.data.train).dense()
    exact = np.linalg.eigvalsh(np.asarray(H, float))[-1]
    assert lines[12]["sharpness"] == pytest.approx(exact, rel=0.02)
    shutil.copytree(tmp_path / "run", tmp_path / "crashed")
    crash(tmp_path / "crashed", after=6)
    resume(tmp_path / "crashed")
    assert final_bits(tmp_path / "crashed") == final_bits(tmp_path / "run")
    assert timeless(tmp_path / "crashed") == timeless(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "arguments", "limit"),
    [
        ("sgd", {"learning_rate": 0.1}, 20),
        ("sgd", {"learning_rate": 0.1, "momentum": 0.9}, 38),
        ("adam", {}, 38e3),
        ("optax.adam", {"learning_rate": 0.1, "b1": 0.5}, 60),
        ("rmsprop", {"learning_rate": 0.1}, 20),
        ("rmsprop", {"learning_rate": 0.1, "momentum": 0.9}, 38),
        ("adam", {"nesterov": True}, None),
        ("adam", {"learning_rate": {"constant_schedule": {"value": 0.1}}}, None),
        ("rmsprop", {"centered": True}, None),
        ("rmsprop", {"learning_rate": 0.0}, None),
        ("adamw", {}, None),
    ],
)
def test_the_limit_of_the_sharpness(config, name, arguments, limit):
    found = optimizers.sharpness_limits(config({"name": name, **arguments}).optimizer)
    key = "sharpness_limit" if name == "sgd" else "preconditioned_sharpness_limit"
    assert found == pytest.approx({key: limit} if limit else {}, rel=1e-6)


def test_a_chain_has_no_known_limit_of_the_sharpness(config):
    assert optimizers.sharpness_limits(config([{"name": "adam"}] * 2).optimizer) == {}


@pytest.fixture(scope="module")
def finished(blobs, tmp_path_factory):
    """A finished run of 18 steps with Adam; copy it before changing it."""
    folder = tmp_path_factory.mktemp("runs") / "adam"
    small = {"data": {"source": blobs}, "model": {"hidden": [3], "activation": "tanh"}}
    small |= {"batch_size": 8, "epochs": 2, "log_every": 1, "checkpoint_every": 6}
    train.begin(
        Config(optimizer={"name": "optax.adam", "learning_rate": 0.02}, **small), folder, []
    )
    return folder


@pytest.fixture
def crashed(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    crash(tmp_path / "run", after=12)
    return tmp_path / "run"


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_it_begins_anew(finished, crashed):
    shutil.rmtree(crashed / "checkpoints")
    (crashed / "checkpoints").mkdir()
    rewrite(crashed / "env.json", '"parameters": 27', '"parameters": 0')
    assert resume(crashed)["steps"] == STEPS
    assert final_bits(crashed) == final_bits(finished)
    assert timeless(crashed) == timeless(finished)
    assert record.open_record(crashed).env["parameters"] == 27


def test_killed_between_the_last_checkpoint_and_the_summary(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    summary = resume(tmp_path / "run")
    before = json.loads((finished / "summary.json").read_text())
    assert summary["test_loss"] == before["test_loss"]
    assert timeless(tmp_path / "run") == timeless(finished)


@pytest.mark.slow
def test_a_resumed_run_can_be_resumed(finished, crashed):
    resume(crashed)
    crash(crashed, after=6)
    resume(crashed)
    assert final_bits(crashed) == final_bits(finished)
    assert timeless(crashed) == timeless(finished)


EDITS = [
    ("learning_rate: 0.02", "learning_rate: 0.03", "optimizer: expected [{'name': 'optax.adam'"),
    ("name: optax.adam", "name: optax.adamw", "got [{'name': 'optax.adamw'"),
    ("name: optax.adam", "name: optax.sgd", "saved by a different model or optimizer"),
    ("name: tanh", "name: relu", "model: expected"),
    ("seed: 0", "seed: 1", "seed: expected 0, got 1"),
    ("batch_size: 8", "batch_size: 9", "batch_size: expected 8, got 9"),
    ("\nloss:", "\nloss: squared_error", "loss: expected None, got squared_error"),
]


def looked_at(folder):
    return next(subject.of_run(record.open_record(folder)))


@pytest.mark.parametrize(
    ("command", "old", "new", "words"),
    [*[("resume", *edit) for edit in EDITS], ("spectrum", *EDITS[3])],
)
def test_a_config_edited_since_is_refused(crashed, command, old, new, words):
    rewrite(crashed / "config.yaml", old, new)
    before = {path: path.read_bytes() for path in crashed.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as error:
        resume(crashed) if command == "resume" else looked_at(crashed)
    assert words in str(error.value)
    assert {path: path.read_bytes() for path in crashed.rglob("*") if path.is_file()} == before


def test_a_longer_run_and_other_cadences_are_no_change_of_the_run(crashed):
    rewrite(crashed / "config.yaml", "epochs: 2", "epochs: 3")
    rewrite(crashed / "config.yaml", "checkpoint_every: 6", "checkpoint_every: 7")
    assert resume(crashed)["steps"] == 27
    assert checkpoint.steps(crashed / "checkpoints") == [6, 12, 14, 21, 27]


@pytest.mark.parametrize("command", ["resume", "spectrum"])
def test_data_changed_since_are_refused(crashed, tmp_path, blobs, command):
    with np.load(blobs) as arrays:
        x, y = arrays["x"], arrays["y"]
    x[5, 1] += 1
    np.savez(tmp_path / "other.npz", x=x, y=y)
    rewrite(crashed / "config.yaml", blobs, str(tmp_path / "other.npz"))
    with pytest.raises(UserError, match="the data have changed since the run began: expected sha2"):
        resume(crashed) if command == "resume" else looked_at(crashed)


def test_a_diverging_run_stops_and_keeps_its_last_good_checkpoint(tmp_path, config):
    jump = {"init_value": 0.1, "boundaries_and_scales": {8: 1e38, 9: 1e38}}
    optimizer = {"name": "sgd", "learning_rate": {"piecewise_constant_schedule": jump}}
    summary, lines = begin(config(optimizer), tmp_path / "run")
    assert summary["status"] == "diverged"
    assert summary["steps"] == lines[-1]["step"] < 12
    assert "test_accuracy" not in summary
    run = record.open_record(tmp_path / "run")
    state, step, _ = setting.state_at(setting.reopen(run), run.path)  # that of a spectrum
    assert step == 6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_a_run_that_diverges_at_once_has_no_checkpoint(tmp_path, config):
    summary, _ = begin(config({"name": "sgd", "learning_rate": 1e38}), tmp_path / "run")
    assert summary["status"] == "diverged"
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == []
    with pytest.raises(UserError, match=r"diverged before its first checkpoint: .* lower"):
        looked_at(tmp_path / "run")


def test_divergence_between_two_logged_steps_is_never_saved(tmp_path, config):
    optimizer = {"name": "sgd", "learning_rate": 1e38}
    cadence = {"log_every": 100, "evaluate_every": 100, "checkpoint_every": 4}
    summary, lines = begin(config(optimizer, **cadence), tmp_path / "run")
    assert (summary["status"], summary["steps"]) == ("diverged", 2)
    assert [(line["step"], line["loss"]) for line in lines] == [(2, None)]
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == []


def test_a_spectrum_without_a_checkpoint_says_how_to_get_one(crashed):
    shutil.rmtree(crashed / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint yet; finish it by gradkit run --resume"):
        looked_at(crashed)


REFUSED = {
    "factory": (
        {"name": "sgd", "learning_rate": {"cosine_decay_schedule": {"init_value": 0.1,
         "decay_steps": -1}}},
        "optimizer: optax.cosine_decay_schedule refuses its arguments: ",
    ),
    "mini-batches": (
        {"name": "lbfgs"},
        "optimizer: it compares the gradients of one step and the next, which must be of the",
    ),
    "init": ({"name": "contrib.scale_by_muon"}, "optimizer: cannot be "),
    "update": ({"name": "contrib.sophia", "learning_rate": 0.1}, "optimizer: cannot be run from a"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_optimizer_that_cannot_work_leaves_no_folder(tmp_path, config, case):
    optimizer, words = REFUSED[case]
    with pytest.raises(UserError) as error:
        begin(config(optimizer), tmp_path / "run")
    assert str(error.value).startswith(words)
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_is_never_overwritten(tmp_path, config):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already and is not overwritten"):
        begin(config({"name": "sgd"}), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def interrupt_at(monkeypatch, step):
    append = record.append_metrics

    def append_and_interrupt(path, line):
        append(path, line)
        if line["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(record, "append_metrics", append_and_interrupt)


@pytest.mark.slow
@pytest.mark.usefixtures("default_interrupts")
def test_an_interrupted_run_keeps_its_last_step(tmp_path, config, finished, monkeypatch):
    same = config({"name": "optax.adam", "learning_rate": 0.02}, evaluate_every=100)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        patch.setattr(training, "MOMENT", 0)  # a step at a time
        with pytest.raises(KeyboardInterrupt):
            begin(same, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [6, 8]
    assert not (tmp_path / "run" / "summary.json").exists()
    assert resume(tmp_path / "run")["status"] == "finished"
    assert final_bits(tmp_path / "run") == final_bits(finished)
    assert timeless(tmp_path / "run") == timeless(finished)


@pytest.mark.usefixtures("default_interrupts")
def test_interrupted_at_the_last_step_it_is_finished(tmp_path, config, monkeypatch):
    interrupt_at(monkeypatch, STEPS)
    assert begin(config({"name": "sgd"}), tmp_path / "run")[0]["status"] == "finished"


@pytest.mark.usefixtures("default_interrupts")
def test_a_second_interrupt_does_not_wait():
    with signals.patience() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked.by == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupts_that_are_anothers_business_are_left_alone():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.patience() as asked:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert asked.by is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_outside_the_main_thread(tmp_path, config):
    summaries = []
    thread = threading.Thread(
        target=lambda: summaries.append(begin(config({"name": "sgd"}), tmp_path / "run")[0])
    )
    thread.start()
    thread.join()
    assert summaries[0]["status"] == "finished"


def test_the_state_at_the_start_has_a_buffer_for_every_leaf(config):
    state = setting.prepare(config({"name": "newton_cg"})).initial()
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


def test_the_chain_of_a_config_is_the_chain_of_python(config):
    members = [{"name": "clip_by_global_norm", "max_norm": 0.1}, {"name": "adam"}]
    made = setting.prepare(config(members))
    by_hand = gk.chain(gk.clip_by_global_norm(0.1), gk.adam())
    params = made.initial().params
    grads = optax.tree.random_like(jax.random.key(0), params)
    found, _ = made.tx.update(grads, made.tx.init(params), params)
    expected, _ = by_hand.update(grads, by_hand.init(params), params)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)
