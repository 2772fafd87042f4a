"""Files are read as they are, and refused where nothing can be learned from them."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from gradkit.runner.data.loading import load
from gradkit.runner.errors import UserError
from gradkit.runner.schema import Data


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


def read(source, **more):
    """The data set of a config's `data.source` and what else its section says."""
    return load(Data.model_validate({"source": source, **more}))


def refusal(source, **more):
    with pytest.raises(UserError) as error:
        read(source, **more)
    return str(error.value)


def test_images_keep_their_shape_and_any_numbers_become_float32(write):
    y = blobs()["y"]
    x = np.random.default_rng(0).integers(0, 255, size=(90, 2, 3), dtype=np.uint8)
    found = read(write(x=x, y=y.astype(np.uint64)))
    assert found.x_train.shape == (72, 2, 3)
    assert (found.x_train.dtype, found.y_train.dtype) == (np.float32, np.int32)


def changed(name, place, value):
    arrays = blobs()
    arrays[name] = arrays[name].copy()
    arrays[name][place] = value
    return arrays


REFUSED = {
    "no y": ({"x": blobs()["x"]}, "expected arrays x and y, got x"),
    "nothing": ({}, "expected arrays x and y, got none"),
    "empty": ({"x": np.ones((0, 3)), "y": np.ones(0, int)}, "got float64 of shape (0, 3)"),
    "no features": (blobs() | {"x": np.ones((90, 0))}, "got float64 of shape (90, 0)"),
    "text": (blobs() | {"x": np.full((90, 2), "a")}, "x: expected numbers"),
    "complex": (blobs() | {"x": np.ones((90, 2)) * 1j}, "x: expected numbers"),
    "deep y": (blobs() | {"y": np.zeros((90, 1), int)}, "got shape (90, 1)"),
    "nan y": (blobs() | {"y": np.full(90, np.nan)}, "y: expected finite numbers, got 90 that are"),
    "cube y": (blobs() | {"y": np.ones((90, 1, 1))}, "expected shape (90,) or (90, outputs) for"),
    "gap": (changed("y", slice(0, 3), 9), "got class 9 and none of class 3; number them anew"),
    "huge": (changed("y", slice(0, 3), 2**40), f"got class {2**40} and none of class 3"),
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
    message = refusal(write(**blobs(examples=9)), test_fraction=0.1)
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


def test_a_test_set_in_the_file_is_kept_and_floats_are_numbers_to_predict(write):
    x, y = blobs()["x"], np.linspace(-1, 1, 90)
    found = read(write(x=x, y=y, x_test=x[:7], y_test=y[:7]))
    np.testing.assert_allclose(found.y_train[:, 0], y, rtol=1e-6)
    np.testing.assert_allclose(found.x_test, x[:7], rtol=1e-6)
    assert found.classes is None
    assert read(write(x=x, y=np.stack([y, y, -y], axis=1))).outputs == 3


@pytest.fixture
def table(tmp_path):
    def write_csv(text):
        (tmp_path / "table.csv").write_text(text, "utf-8")
        return str(tmp_path / "table.csv")

    return write_csv


HOUSES = "size,rooms,price\n" + "".join(f"{50 + i},{i % 4},{i * 1.5}\n" for i in range(20))
IRISES = "width,kind\n" + "".join(f"{i / 7},{'ab'[i % 2]}\n" for i in range(20))


def test_a_csv_table_has_the_last_column_or_another_to_learn(table):
    houses = read(table(HOUSES))
    assert (houses.classes, houses.x_train.shape) == (None, (16, 2))
    np.testing.assert_allclose(houses.y_train[:, 0], (houses.x_train[:, 0] - 50) * 1.5)
    rooms = read({"name": "csv", "path": table(HOUSES), "target": "rooms"})
    assert (rooms.classes, rooms.x_train.shape) == (4, (16, 2))
    forced = read({"name": "csv", "path": table(HOUSES), "target": "rooms", "predict": "numbers"})
    assert forced.classes is None


def test_texts_in_a_csv_table_are_classes_in_alphabetical_order(table):
    found = read(table(IRISES.replace("width", "\ufeffwidth")))
    assert found.classes == 2
    parity = np.round(found.x_train[:, 0] * 7).astype(int) % 2
    np.testing.assert_array_equal(found.y_train, parity)


TABLES = {
    "nan": ("a,b\n1,0.5\nnan,2.5\n", "x: expected finite numbers, got 1 that are not, the first"),
    "no features": ("b\n1\n2\n", "x: expected numbers of shape (examples, features)"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_cannot_be_learned_from(table, case):
    text, words = TABLES[case]
    assert words in refusal(table(text))


def test_a_target_that_is_no_column_or_no_number(table):
    path = table(IRISES)
    message = refusal({"name": "csv", "path": path, "target": "color"})
    assert "no column 'color'; there are width, kind" in message
    message = refusal({"name": "csv", "path": path, "predict": "numbers"})
    assert "table.csv:2: kind: expected a number, got 'a'" in message


def draw(folder, name, shape, value, mode="L"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new(mode, shape, value).save(folder / name)


def test_a_folder_of_images_has_a_class_for_each_folder_in_it(tmp_path):
    for i in range(10):
        draw(tmp_path / "cat", f"{i}.png", (5, 3), 51 * (i % 5))
        draw(tmp_path / "dog", f"{i}.bmp", (5, 3), 255)
    (tmp_path / "cat" / "notes.md").write_text("no image")
    found = read(str(tmp_path))
    assert found.x_train.shape == (16, 3, 5)
    assert found.x_train[found.y_train == 1].min() == 1
    cats = [part["x"][part["y"] == 0] for part in found.parts.values()]
    np.testing.assert_allclose(np.unique(np.concatenate(cats)) * 5, range(5), atol=1e-6)
    for i in range(10):
        draw(tmp_path / "eel", f"{i}.png", (5, 3), (255, 0, 0), "RGB")
    assert "eel/0.png: expected the shape (3, 5) of the first image, got (3, 5, 3)" in refusal(
        str(tmp_path)
    )


def test_a_folder_without_images(tmp_path):
    assert "expected a folder of images for each class" in refusal(str(tmp_path))


def test_a_text_is_read_in_pieces(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("abcä" * 50, "utf-8")
    found = read({"name": "text", "path": str(path), "length": 8})
    assert (found.classes, found.x_train.shape) == (4, (19, 8))
    assert found.x_train[0].tolist() == [0, 1, 2, 3] * 2
    assert found.y_train[0].tolist() == [1, 2, 3, 0] * 2
    assert "more than twice length=100 characters, got 200" in refusal(
        {"name": "text", "path": str(path), "length": 100}
    )
    path.write_bytes(b"abc\xff\xfe" * 99)
    assert "not text in UTF-8: invalid start byte at byte 3" in refusal(str(path))


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def idx(tmp_path):
    """A folder as MNIST's, with 20 images in 2 classes in either part."""
    for part in ("train", "t10k"):
        pixels = np.arange(20 * 4, dtype=np.uint8)
        for name, shape in (("images-idx3", (20, 2, 2)), ("labels-idx1", (20,))):
            head = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
            body = pixels if len(shape) > 1 else pixels[:20] % 2
            (tmp_path / f"{part}-{name}-ubyte").write_bytes(head + body.tobytes())
    return tmp_path


def test_idx_files_are_read_as_they_are(idx):
    found = read(str(idx))
    assert found.x_train.shape == found.x_test.shape == (20, 2, 2)
    np.testing.assert_allclose(found.x_train.ravel() * 255, range(80), rtol=1e-6)
    assert found.y_test.tolist() == [0, 1] * 10
    zipped = gzip.compress((idx / IMAGES).read_bytes())
    (idx / IMAGES).unlink()
    (idx / f"{IMAGES}.gz").write_bytes(zipped)
    assert read(str(idx)).sha256 == found.sha256


DAMAGE = {
    "empty": (lambda b: b"", "which begins with 00 00, got nothing"),
    "header": (lambda b: b[:7], "the file is damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_idx_files(idx, case):
    damage, words = DAMAGE[case]
    (idx / IMAGES).write_bytes(damage((idx / IMAGES).read_bytes()))
    assert words in refusal(str(idx))


def test_an_idx_file_that_is_missing_or_badly_zipped(idx):
    (idx / LABELS).rename(idx / f"{LABELS}.gz")
    assert f"{LABELS}.gz: cannot be read: Not a gzipped file" in refusal(str(idx))
    (idx / f"{LABELS}.gz").unlink()
    assert f"expected {LABELS}, plain or .gz; there is t10k-images" in refusal(str(idx))
