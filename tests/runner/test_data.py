"""Data are split once, refused where nothing can be learned, and served in a fixed order."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradkit.runner import tasks
from gradkit.runner.config import Config
from gradkit.runner.data import Batches, load
from gradkit.runner.errors import UserError


def blobs(examples=90, features=4, classes=3):
    rng = np.random.default_rng(0)
    y = np.arange(examples) % classes
    return {"x": rng.normal(size=(examples, features)) + y[:, None], "y": y}


@pytest.fixture
def write(tmp_path):
    def write_npz(**arrays):
        path = tmp_path / "blobs.npz"
        np.savez(path, **arrays)
        return str(path)

    return write_npz


def refusal(source, test_fraction=0.2):
    with pytest.raises(UserError) as error:
        load(source, test_fraction)
    return str(error.value)


def test_digits_are_the_real_ones_scaled_to_one():
    digits = load("digits", 0.2)
    assert digits.x_train.shape == (1437, 64)
    assert digits.x_test.shape == (360, 64)
    assert (digits.x_train.dtype, digits.y_train.dtype) == (np.float32, np.int32)
    assert (digits.x_train.min(), digits.x_train.max()) == (0, 1)
    assert digits.classes == 10


def test_the_split_is_stratified_and_loses_nothing(write):
    arrays = blobs(examples=99)
    arrays["y"] = np.where(np.arange(99) < 66, 0, np.where(np.arange(99) < 88, 1, 2))
    found = load(write(**arrays), 1 / 11)
    assert np.bincount(found.y_test).tolist() == [6, 2, 1]
    assert np.bincount(found.y_train).tolist() == [60, 20, 10]
    rows = np.concatenate([found.x_train, found.x_test])
    np.testing.assert_array_equal(
        np.sort(rows, axis=0), np.sort(arrays["x"].astype(np.float32), axis=0)
    )


def test_the_first_examples_are_kept_and_all_that_test():
    whole = load("digits", 0.2)
    part = whole.first(1000)
    np.testing.assert_array_equal(part.x_train, whole.x_train[:1000])
    np.testing.assert_array_equal(part.y_train, whole.y_train[:1000])
    np.testing.assert_array_equal(part.x_test, whole.x_test)
    assert part.describe()["train"] == 1000
    assert part.sha256 != whole.sha256
    with pytest.raises(UserError, match=r"data\.examples: expected at most 1437, .*, got 1438"):
        whole.first(1438)


def test_standardized_features_have_mean_0_and_deviation_1_in_training(write):
    arrays = blobs()
    arrays["x"] = arrays["x"] * [1, 1e-3, 1e3, 0] + [0, 5, -2, 0.7]
    plain = load(write(**arrays), 0.2)
    found = plain.standardized()
    assert (found.x_train.dtype, found.x_test.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(found.x_train.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(found.x_train.std(axis=0), [1, 1, 1, 0], atol=1e-5)
    mean, deviation = plain.x_train[:, 0].mean(), plain.x_train[:, 0].std()
    np.testing.assert_allclose(found.x_test[:, 0], (plain.x_test[:, 0] - mean) / deviation, 1e-5)


def test_a_config_chooses_its_examples_and_its_loss(write):
    fields: dict[str, Any] = {"optimizer": {"name": "adam"}, "loss": "squared_error"}
    fields |= {"data": {"source": write(**blobs()), "examples": 50, "standardize": True}}
    task = tasks.build(Config(**fields))
    assert task.dataset.x_train.shape == (50, 4)
    np.testing.assert_allclose(task.dataset.x_train.std(axis=0), 1, rtol=1e-5)
    value, scores = task.problem.value_and_aux(task.params, task.dataset.train)
    errors = np.asarray(scores, float) - np.eye(3)[task.dataset.y_train]
    assert value == pytest.approx((errors**2).sum(axis=1).mean() / 2, rel=1e-5)
    assert task.likelihood == "normal"


def test_the_split_is_the_same_whatever_the_runs_seed():
    first, second = (
        tasks.build(Config(optimizer={"name": "adam"}, seed=seed)).dataset for seed in (0, 1)
    )
    np.testing.assert_array_equal(first.x_test, second.x_test)
    assert first.sha256 == second.sha256


def test_the_hash_is_that_of_the_content(write):
    arrays = blobs()
    first = load(write(**arrays), 0.2)
    assert load(write(**arrays), 0.2).sha256 == first.sha256
    assert load(write(**arrays), 0.3).sha256 != first.sha256
    arrays["x"][17, 2] += 1e-3
    assert load(write(**arrays), 0.2).sha256 != first.sha256
    assert first.describe()["sha256"] == first.sha256


def test_images_become_rows_and_any_numbers_float32(write):
    y = blobs()["y"]
    x = np.random.default_rng(0).integers(0, 255, size=(90, 2, 3), dtype=np.uint8)
    found = load(write(x=x, y=y.astype(np.uint64)), 0.2)
    assert found.x_train.shape == (72, 6)
    assert (found.x_train.dtype, found.y_train.dtype) == (np.float32, np.int32)


def changed(name, place, value):
    arrays = blobs()
    arrays[name] = arrays[name].copy()
    arrays[name][place] = value
    return arrays


REFUSED = {
    "no y": ({"x": blobs()["x"]}, "expected arrays x and y, got x"),
    "nothing": ({}, "expected arrays x and y, got none"),
    "flat x": (blobs() | {"x": np.ones(90)}, "(examples, features), got float64 of shape (90,)"),
    "empty": ({"x": np.ones((0, 3)), "y": np.ones(0, int)}, "got float64 of shape (0, 3)"),
    "no features": (blobs() | {"x": np.ones((90, 0))}, "got float64 of shape (90, 0)"),
    "text": (blobs() | {"x": np.full((90, 2), "a")}, "x: expected numbers"),
    "complex": (blobs() | {"x": np.ones((90, 2)) * 1j}, "x: expected numbers"),
    "short y": (blobs() | {"y": np.zeros(89, int)}, "y: expected shape (90,), a class for each"),
    "deep y": (blobs() | {"y": np.zeros((90, 1), int)}, "got shape (90, 1)"),
    "float y": (blobs() | {"y": np.zeros(90)}, "whole numbers from 0, got float64; convert it"),
    "one class": (blobs() | {"y": np.zeros(90, int)}, "two classes or more, got class 0 alone"),
    "negative": (changed("y", slice(0, 3), -1), "without a gap, got class -1 and none of class 0"),
    "gap": (changed("y", slice(0, 3), 9), "got class 9 and none of class 3; number them anew"),
    "huge": (changed("y", slice(0, 3), 2**40), f"got class {2**40} and none of class 3"),
    "rare": (changed("y", 5, 3), "at least 2 examples of each class, to train and to test on, got"),
    "nan": (
        changed("x", (7, 1), np.nan),
        "finite numbers, got 1 that are not, the first nan at row 7, column 1; remove or replace",
    ),
    "inf": (changed("x", slice(2, 4), np.inf), "got 8 that are not, the first inf at row 2"),
    "beyond float32": (changed("x", (1, 2), 1e300), "the first inf at row 1, column 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_that_cannot_be_learned_from_are_refused(write, case):
    arrays, words = REFUSED[case]
    source = write(**arrays)
    message = refusal(source)
    assert message.startswith(source)
    assert words in message


def test_a_split_without_every_class_on_both_sides_is_refused(write):
    message = refusal(write(**blobs(examples=9)), 0.1)
    assert message.startswith("data.test_fraction: 0.1 of the 9 examples of ")


def test_a_missing_file_is_refused(tmp_path):
    assert "no such file" in refusal(str(tmp_path / "none.npz"))


@pytest.mark.parametrize("damage", ["text", "array", "cut", "flipped", "pickled"])
def test_a_file_that_is_no_npz_is_refused(write, damage):
    source = write(**blobs())
    with open(source, "rb") as file:
        content = bytearray(file.read())
    if damage == "text":
        content = b"x,y\n1,2\n"
    if damage == "cut":
        content = content[: len(content) // 2]
    if damage == "flipped":
        content[400:500] = bytes(255 - byte for byte in content[400:500])
    if damage == "array":
        with open(source, "wb") as file:
            np.save(file, np.ones(3))
    elif damage == "pickled":
        source = write(x=np.full((90, 2), None), y=blobs()["y"])
    else:
        with open(source, "wb") as file:
            file.write(content)
    assert refusal(source).startswith(f"{source}: not a readable .npz file: ")


batches = st.integers(1, 60).flatmap(
    lambda examples: st.builds(
        Batches,
        examples=st.just(examples),
        size=st.integers(1, examples),
        seed=st.integers(0, 2**32 - 1),
    )
)


@given(batches, st.integers(0, 5))
def test_an_epoch_is_without_replacement_and_leaves_less_than_a_batch(batches, epoch):
    first = epoch * batches.per_epoch
    seen = [batches.indices(first + index) for index in range(batches.per_epoch)]
    assert all(indices.shape == (batches.size,) for indices in seen)
    seen = np.concatenate(seen)
    assert len(set(seen.tolist())) == len(seen)
    assert set(seen.tolist()) <= set(range(batches.examples))
    assert batches.examples - len(seen) < batches.size


@given(batches, st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_a_batch_depends_on_seed_and_step_alone(batches, steps):
    there = [batches.indices(step).tolist() for step in steps]
    again = Batches(batches.examples, batches.size, batches.seed)
    back = [again.indices(step).tolist() for step in reversed(steps)]
    assert back[::-1] == there


def test_epochs_and_seeds_differ():
    def epoch(seed, number):
        return Batches(100, 50, seed).indices(2 * number).tolist()

    orders = [epoch(seed, number) for seed in (0, 1) for number in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_a_batch_of_all_examples_is_the_same_at_every_step():
    batches = Batches(100, 100, seed=0)
    assert batches.indices(0).tolist() == batches.indices(7).tolist() == list(range(100))


def test_a_batch_larger_than_the_training_set_is_refused():
    with pytest.raises(UserError, match=r"batch_size: expected at most 10, .* got 11"):
        Batches(10, 11, seed=0)
