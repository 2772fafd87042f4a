"""A data set is split once, the same for every run, and is known by its content."""

import numpy as np
import pytest

from gradkit.runner.data.dataset import Dataset, Examples, split
from gradkit.runner.data.loading import load
from gradkit.runner.errors import UserError
from gradkit.runner.schema import Data


def read(source, **more):
    return load(Data.model_validate({"source": source, **more}))


def examples(classes=(66, 22, 11), seed=0):
    y = np.repeat(np.arange(len(classes)), classes).astype(np.int32)
    x = np.random.default_rng(seed).normal(size=(len(y), 4)).astype(np.float32)
    return Examples(x, y, len(classes))


def rows(*arrays):
    return np.sort(np.concatenate(arrays), axis=0)


def test_the_split_is_stratified_and_loses_nothing():
    whole = examples()
    found = split(whole, "here", 1 / 11)
    assert np.bincount(found.y_test).tolist() == [6, 2, 1]
    assert np.bincount(found.y_train).tolist() == [60, 20, 10]
    np.testing.assert_array_equal(rows(found.x_train, found.x_test), rows(whole.x))
    assert found.meta == {"source": "here", "classes": 3}


def test_validation_examples_come_out_of_those_to_train_on():
    whole = examples()
    plain, found = split(whole, "here", 1 / 11), split(whole, "here", 1 / 11, 0.1)
    np.testing.assert_array_equal(found.x_test, plain.x_test)
    assert np.bincount(found.y_validation).tolist() == [6, 2, 1]
    np.testing.assert_array_equal(rows(found.x_train, found.x_validation), rows(plain.x_train))
    assert list(found.parts) == ["train", "test", "validation"]
    assert found.describe()["validation"] == 9
    assert found.sha256 != plain.sha256


def test_a_test_set_of_its_own_is_kept():
    whole, other = examples(), examples(seed=1)
    found = split(whole._replace(test=(other.x, other.y)), "here", 0.2)
    np.testing.assert_array_equal(found.x_train, whole.x)
    np.testing.assert_array_equal(found.x_test, other.x)


def test_where_order_matters_the_end_is_held_out():
    whole = examples()._replace(ordered=True)
    found = split(whole, "here", 0.2, 0.25)
    np.testing.assert_array_equal(found.x_train, whole.x[:59])
    np.testing.assert_array_equal(found.x_validation, whole.x[59:79])
    np.testing.assert_array_equal(found.x_test, whole.x[79:])


def test_numbers_to_predict_are_split_without_classes():
    y = np.linspace(0, 1, 50, dtype=np.float32)[:, None]
    found = split(Examples(y * 2, y, None), "here", 0.3)
    np.testing.assert_array_equal(found.x_train, found.y_train * 2)
    np.testing.assert_array_equal(rows(found.y_train, found.y_test), y)
    assert (found.classes, found.outputs) == (None, 1)
    assert found.describe()["outputs"] == 1


def test_too_few_of_a_class_is_refused():
    with pytest.raises(UserError, match=r"data.validation_fraction: 0.01 of the 89 examples of "):
        split(examples(), "here", 0.1, 0.01)


def test_the_first_examples_are_kept_and_all_that_test():
    whole, part = read("digits"), read("digits", examples=1000)
    np.testing.assert_array_equal(part.x_train, whole.x_train[:1000])
    np.testing.assert_array_equal(part.y_train, whole.y_train[:1000])
    np.testing.assert_array_equal(part.x_test, whole.x_test)
    assert part.describe()["train"] == 1000
    assert part.sha256 != whole.sha256
    with pytest.raises(UserError, match=r"data\.examples: expected at most 1437, .*, got 1438"):
        read("digits", examples=1438)


def test_the_hash_is_that_of_the_content():
    def made(whole, fraction=0.2):
        return split(whole, "here", fraction).sha256

    assert made(examples()) == made(examples())
    assert made(examples()) != made(examples(), 0.3)
    changed = examples()
    changed.x[17, 2] += 1e-3
    assert made(changed) != made(examples())
    shaped = examples()
    assert made(shaped._replace(x=shaped.x.reshape(-1, 2, 2))) != made(examples())


def test_nothing_is_one_example_without_numbers():
    nothing = Dataset.none()
    assert nothing.train["x"].shape == (1, 0)
    assert nothing.meta["source"] == "none"
