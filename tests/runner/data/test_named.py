"""The data sets that a config can name are what they say, and follow from their arguments."""

import gzip
import struct

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from gradkit.runner.catalog import catalog
from gradkit.runner.data import installed, named
from gradkit.runner.data.loading import load
from gradkit.runner.errors import UserError
from gradkit.runner.schema import Data

NAMES = sorted(
    name
    for name, entry in catalog().items()
    if entry.module == "gradkit.runner.data.named" and not installed.missing(name)
)


def read(source, **more):
    return load(Data.model_validate({"source": source, **more}))


@pytest.mark.parametrize("name", NAMES)
def test_every_named_set_can_be_learned_from_and_is_the_same_again(name):
    found, again = read(name), read(name)
    assert found.sha256 == again.sha256
    assert found.y_train.dtype == (np.float32 if found.classes is None else np.int32)
    assert all(np.isfinite(part["x"]).all() for part in found.parts.values())
    assert found.x_train.shape[1:] == found.x_test.shape[1:]
    if found.classes:
        seen = {*np.unique(found.y_train), *np.unique(found.y_test)}
        assert seen == set(range(found.classes))
        assert found.y_test.max() < found.classes


@pytest.mark.parametrize("name", [n for n in NAMES if "seed" in catalog()[n].summary or n in (
    "line", "polynomial", "linear_regression", "spirals", "mnist1d")])  # fmt: skip
def test_another_seed_is_another_draw(name):
    assert read({"name": name, "seed": 1}).sha256 != read(name).sha256


def test_digits_are_the_real_ones_scaled_to_one():
    digits = read("digits")
    assert digits.x_train.shape == (1437, 8, 8)
    assert digits.x_test.shape == (360, 8, 8)
    assert (digits.x_train.dtype, digits.y_train.dtype) == (np.float32, np.int32)
    assert (digits.x_train.min(), digits.x_train.max()) == (0, 1)
    assert digits.classes == 10


def test_the_digits_of_the_first_classes():
    three, ten = read({"name": "digits", "classes": 3}), named.digits()
    assert three.classes == 3
    pixels = np.concatenate([three.x_train, three.x_test])
    expected = np.asarray(ten.x)[np.asarray(ten.y) < 3]
    assert sorted(map(bytes, pixels)) == sorted(map(bytes, expected.astype(np.float32)))
    with pytest.raises(UserError, match="classes: expected 2 to 10, got 11"):
        read({"name": "digits", "classes": 11})


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("breast_cancer", (569, 30), 2), ("wine", (178, 13), 3), ("diabetes", (442, 10), None)],
)
def test_sets_of_scikit_learn(name, shape, classes):
    found = getattr(named, name)()
    assert (found.x.shape, found.classes) == (shape, classes)
    assert found.y.shape == ((shape[0],) if classes else (shape[0], 1))


def test_a_line_is_within_its_noise_of_the_line():
    found = named.line(examples=500, slope=3, intercept=2, noise=0.1)
    errors = found.y - (3 * found.x + 2)
    assert np.abs(errors).max() <= 0.1 + 1e-6
    assert errors.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.1)
    assert np.abs(found.x).max() <= 1


def test_a_polynomial_has_its_coefficients():
    found = named.polynomial(examples=50, coefficients=(1.0, -2.0, 0.0, 4.0), noise=0.0)
    expected = [4, 0, -2, 1]
    np.testing.assert_allclose(np.polyfit(found.x[:, 0], found.y[:, 0], 3), expected, atol=1e-5)


def test_a_linear_regression_has_its_spectrum():
    eigenvalues = [0.0, 1e-3, 1.0, 50.0]
    found = named.linear_regression(eigenvalues=eigenvalues, examples=300)
    X = found.x.astype(float)
    np.testing.assert_allclose(np.linalg.eigvalsh(X.T @ X / len(X)), eigenvalues, atol=1e-5)
    np.testing.assert_allclose(found.y[:, 0], X.sum(axis=1), atol=1e-4)
    with pytest.raises(UserError, match=r"expected from 1 to examples=3 of them, .* got 4"):
        named.linear_regression(eigenvalues=eigenvalues, examples=3)
    with pytest.raises(UserError, match="none below 0; got 1, the smallest -1"):
        named.linear_regression(eigenvalues=[-1.0])


def test_exclusive_or_is_its_table():
    found = read("xor")
    table = {tuple(x.astype(int).tolist()): y for x, y in zip(found.x_train, found.y_train)}  # noqa: B905
    assert table == {(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 0}
    np.testing.assert_array_equal(found.x_train, found.x_test)


@pytest.mark.parametrize("name", ["spirals", "mnist1d"])
def test_hard_sets_are_hard_for_lines_and_not_for_neighbors(name):
    found = read({"name": name, "examples": 4000})
    flat = [part["x"].reshape(len(part["x"]), -1) for part in (found.train, found.test)]
    line = LogisticRegression(max_iter=300).fit(flat[0], found.y_train)
    near = KNeighborsClassifier(3).fit(flat[0], found.y_train)
    assert line.score(flat[1], found.y_test) < 0.7
    assert near.score(flat[1], found.y_test) > line.score(flat[1], found.y_test) + 0.05


def test_spirals_stay_near_the_unit_disk():
    found = named.spirals(examples=999, classes=3, noise=0.0)
    assert np.linalg.norm(found.x, axis=1).max() <= 1 + 1e-6
    assert np.bincount(found.y).tolist() == [333, 333, 333]


def test_text_predicts_the_next_character():
    found = named.python_text(length=32, characters=10_000)
    np.testing.assert_array_equal(found.x[:, 1:], found.y[:, :-1])
    np.testing.assert_array_equal(found.x[1:, 0], found.y[:-1, -1])
    assert found.x.max() < found.classes
    assert found.ordered


def test_too_few_examples_are_refused():
    with pytest.raises(UserError, match=r"spirals: examples: expected 2 or more, got 1"):
        named.spirals(examples=1)


def write_idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wb") as file:
        file.write(header + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_fashion_mnist_is_found_where_it_is_installed(tmp_path, monkeypatch, ending):
    rng = np.random.default_rng(0)
    for part, n in (("train", 30), ("t10k", 20)):
        pixels = rng.integers(0, 256, (n, 28, 28))
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{ending}", pixels)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{ending}", np.arange(n) % 10)
    monkeypatch.setitem(installed._PLACES, "fashion_mnist", (str(tmp_path), "package"))
    found = read("fashion_mnist")
    assert (found.x_train.shape, found.x_test.shape) == ((30, 28, 28), (20, 28, 28))
    assert found.meta["source"] == "fashion_mnist"
    np.testing.assert_allclose(found.x_test, pixels / 255, atol=1e-7)


def test_without_fashion_mnist_one_message_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(installed._PLACES, "fashion_mnist", (str(tmp_path), "the-package"))
    with pytest.raises(UserError) as error:
        read("fashion_mnist")
    message = str(error.value)
    assert f"no IDX files (*-ubyte or *-ubyte.gz) in {tmp_path}" in message
    assert "apt-get install the-package" in message
    assert "need nothing" in message
    assert "\n" not in message
