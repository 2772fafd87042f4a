"""Seeds trained at once, or by programs compiled once, are what each is by itself."""

import os
import signal

import jax
import numpy as np
import pytest

from gradkit.runner import checkpoint, programs, record, setting, together, train, training
from gradkit.runner.config import Config

SEEDS = (0, 1, 2)
SMALL = {
    "data": {"source": "wine", "preprocess": "standardize", "validation_fraction": 0.2},
    "model": {"hidden": [6], "batch_norm": True, "dropout": 0.1},
    "optimizer": {"name": "adam", "learning_rate": 0.01},
    "batch_size": 16,
    "epochs": 3,
    "log_every": 1,
    "evaluate_every": 7,
    "checkpoint_every": 14,
}


def configs(**fields):
    return [Config(**{**SMALL, **fields, "seed": seed}) for seed in SEEDS]


def alone(folder, **fields):
    folders = [folder / f"alone{seed}" for seed in SEEDS]
    pairs = zip(configs(**fields), folders, strict=True)
    return [train.begin(config, place, []) for config, place in pairs], folders


def at_once(folder, **fields):
    folders = [folder / f"together{seed}" for seed in SEEDS]
    return together.begin(configs(**fields), folders, ["gradkit", "sweep"]), folders


def lines(folder):
    return record.read_metrics(folder / record.METRICS)[0]


def final(folder):
    opened = record.open_record(folder)
    return setting.state_at(setting.reopen(opened), folder)


def agree(found, expected, tolerance):
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for name in expected[-1].keys() - {"time"}:
        pairs = [(one[name], other[name]) for one, other in zip(found, expected, strict=True)
                 if name in other]  # fmt: skip
        assert [a is None for a, _ in pairs] == [b is None for _, b in pairs]
        numbers = np.array([pair for pair in pairs if None not in pair], float)
        np.testing.assert_allclose(*numbers.T, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_programs_compiled_once_for_all_seeds_give_the_bits_of_each(tmp_path):
    _, folders = alone(tmp_path)
    workshop = train.Workshop()
    for config, by_itself in zip(configs(), folders, strict=True):
        place = tmp_path / f"shared{config.seed}"
        summary = train.begin(config, place, [], workshop)
        assert (summary["compile_seconds"] == 0) == (config.seed > 0)
        for x, y in zip(jax.tree.leaves(final(place)), jax.tree.leaves(final(by_itself))):  # noqa: B905
            if not isinstance(x, float):  # seconds
                np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
        agree(lines(place), lines(by_itself), 0)


def test_another_config_is_built_anew():
    workshop = train.Workshop()
    first = workshop.setting(configs()[0])
    assert workshop.setting(configs()[1]).task is first.task
    assert workshop.setting(configs()[1]).batches.seed == 1
    other = workshop.setting(configs(batch_size=8)[0])
    assert other.tx is not first.tx
    assert other.batches.size == 8
    assert other.task is first.task  # data are read once
    data = {**SMALL["data"], "preprocess": "min_max"}
    assert workshop.setting(configs(data=data)[0]).task is not first.task


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
def test_seeds_at_once_are_one_by_one_to_rounding(tmp_path, monkeypatch, streamed):
    one_by_one, apart = alone(tmp_path)
    if streamed:
        monkeypatch.setattr(programs, "RESIDENT", 0)
        monkeypatch.setattr(programs, "STREAMED", 3000)
    summaries, folders = at_once(tmp_path)
    assert [s["status"] for s in summaries] == ["finished"] * 3
    for found, expected in zip(folders, apart, strict=True):
        agree(lines(found), lines(expected), 2e-4)
        assert checkpoint.steps(found / "checkpoints") == [14, 21]
        assert record.open_record(found).env["command"] == ["gradkit", "sweep"]
    for summary, expected in zip(summaries, one_by_one, strict=True):
        assert summary["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-3)


@pytest.mark.slow
def test_a_seed_that_diverges_ends_by_itself(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 3)), rng.normal(size=64)
    y[5] = 1e30  # a batch with this example has no finite loss
    np.savez(tmp_path / "bad.npz", x=x, y=y, x_test=x[:4], y_test=y[:4])
    fields = {"data": {"source": str(tmp_path / "bad.npz")}, "model": {"hidden": []}}
    fields |= {"batch_size": 8, "optimizer": {"name": "sgd", "learning_rate": 0.01}}
    one_by_one, apart = alone(tmp_path, **fields)
    summaries, folders = at_once(tmp_path, **fields)
    assert len({summary["steps"] for summary in one_by_one}) > 1
    for found, expected, place, other in zip(summaries, one_by_one, folders, apart, strict=True):
        assert (found["status"], found["steps"]) == ("diverged", expected["steps"])
        agree(lines(place), lines(other), 2e-4)


@pytest.mark.slow
def test_a_seed_out_of_patience_ends_by_itself(tmp_path):
    fields = {
        "best": {"metric": "validation_loss", "patience": 2},
        "optimizer": {"name": "sgd", "learning_rate": 2.0},
        "model": {"hidden": [6]},
        "epochs": 100,
    }
    one_by_one, _ = alone(tmp_path, **fields)
    summaries, folders = at_once(tmp_path, **fields)
    assert len({summary["steps"] for summary in one_by_one}) > 1
    for found, expected, place in zip(summaries, one_by_one, folders, strict=True):
        assert (found["status"], found["steps"]) == ("finished", expected["steps"])
        assert found["best"]["step"] == expected["best"]["step"]
        assert checkpoint.steps(place / "best") == [expected["best"]["step"]]


@pytest.mark.slow
@pytest.mark.usefixtures("default_interrupts")
def test_interrupted_every_seed_is_saved_and_goes_on_by_itself(tmp_path, monkeypatch):
    _, apart = alone(tmp_path)
    append = record.append_metrics

    def append_and_interrupt(path, line):
        append(path, line)
        if line["step"] == 9 and "together1" in str(path):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(training, "MOMENT", 0)
        patch.setattr(record, "append_metrics", append_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            at_once(tmp_path)
    for seed, other in zip(SEEDS, apart, strict=True):
        place = tmp_path / f"together{seed}"
        assert checkpoint.steps(place / "checkpoints") == [9]
        assert train.resume(record.open_record(place))["status"] == "finished"
        agree(lines(place), lines(other), 2e-4)
