"""Readers of the user's own files: each a function of a path, its arguments those of the config."""

from __future__ import annotations

import csv as csv_format
import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gradkit.runner.data import arrays
from gradkit.runner.data.dataset import Examples
from gradkit.runner.errors import UserError

SUFFIXES = {".npz": "npz", ".csv": "csv", ".txt": "text"}
_IDX_DTYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_SAVED = "write it by numpy.savez(FILE, x=x, y=y)"
_FROM = "seen from the current folder"
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}


def npz(path: str) -> Examples:
    """Arrays x (examples, ...) and y, and where there are x_test and y_test a test set of its own.

    Whole numbers in y (examples,) are classes from 0; others, (examples,) or (examples, outputs),
    are numbers to predict.
    """
    file = _file(path, "an .npz file with x and y")
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as stored:
            names = stored.files
            wanted = ("x", "y", "x_test", "y_test")
            found = {name: stored[name] for name in wanted if name in names}
    except Exception as error:  # zip, zlib and numpy each have their own for a damaged file
        why = str(error) if zipfile.is_zipfile(file) else "it is no zip archive, or cut short"
        raise UserError(f"{path}: not a readable .npz file: {why}; {_SAVED}") from None
    if not {"x", "y"} <= found.keys():
        raise UserError(
            f"{path}: expected arrays x and y, got {', '.join(names) or 'none'}; {_SAVED}"
        )
    if len(found) == 3:
        raise UserError(
            f"{path}: expected x_test and y_test or neither, got {', '.join(names)}; add the other "
            "or leave this one out"
        )
    return arrays.checked(path, **found)


def csv(
    path: str, target: str | None = None, predict: Literal["classes", "numbers"] | None = None
) -> Examples:
    """A table of numbers with a header; the column `target`, by default the last, is to be learned.

    Its values are classes where they are text or whole numbers from 0, else numbers; `predict`
    says so where that guess is wrong. Texts are classes in alphabetical order.
    """
    file = _file(path, "a .csv file")
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            rows = [(n, row) for n, row in enumerate(csv_format.reader(opened), start=1) if row]
    except (UnicodeDecodeError, csv_format.Error) as error:
        raise UserError(f"{path}: not a readable .csv file: {error}; save it as UTF-8") from None
    if len(rows) < 2:
        got = "a header alone; add the rows" if rows else "nothing; write both"
        raise UserError(f"{path}: expected a header and rows below it, got {got}")
    (_, header), *rows = rows
    names = [name.strip() for name in header]
    if target is not None and target not in names:
        raise UserError(f"{path}: no column {target!r}; there are {', '.join(names)}")
    column = len(names) - 1 if target is None else names.index(target)
    for line, row in rows:
        if len(row) != len(names):
            raise UserError(
                f"{path}:{line}: expected {len(names)} values as in the header, got {len(row)}; "
                "fill the row or take it out"
            )
    x = [
        [_cell(path, line, names[i], text) for i, text in enumerate(row) if i != column]
        for line, row in rows
    ]
    y = _targets(path, names[column], [(line, row[column].strip()) for line, row in rows], predict)
    return arrays.checked(path, np.array(x), y)


def idx(path: str) -> Examples:
    """A folder of four IDX files, plain or gzipped, named as those of MNIST.

    They are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same with `t10k`; pixels
    are scaled to 0 … 1.

    Source: LeCun, Cortes and Burges (1998), the MNIST database.
    """
    folder = _folder(path, "a folder of IDX files")
    x, y, x_test, y_test = (
        _read_idx(folder, name)
        for name in (
            *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
            *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        )
    )
    scale = np.float32(1 / 255) if x.dtype == np.uint8 else np.float32(1)
    return arrays.checked(path, x * scale, y, x_test * scale, y_test)


def images(path: str) -> Examples:
    """A folder with a folder of images for each class, all of one size; pixels from 0 to 1.

    Gray images have the shape (height, width), others (height, width, 3).
    """
    from PIL import Image

    folder = _folder(path, "a folder with a folder of images for each class")
    classes = sorted(child for child in folder.iterdir() if child.is_dir())
    files = [
        (file, label)
        for label, child in enumerate(classes)
        for file in sorted(child.iterdir())
        if file.suffix.lower() in _PICTURES
    ]
    if not files:
        raise UserError(
            f"{path}: expected a folder of images for each class, such as {path}/cat/1.png; got "
            f"{len(classes)} folder{'' if len(classes) == 1 else 's'} without images"
        )
    pixels = []
    for file, _ in files:
        try:
            with Image.open(file) as image:
                mode = "L" if image.mode in ("1", "L", "I", "I;16") else "RGB"
                pixels.append(np.asarray(image.convert(mode), np.float32) / 255)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file}: not a readable image: {error}; write it again or take it out"
            ) from None
        if pixels[-1].shape != pixels[0].shape:
            raise UserError(
                f"{file}: expected the shape {pixels[0].shape} of the first image, got "
                f"{pixels[-1].shape}; bring all to one size and to gray or color"
            )
    return arrays.checked(path, np.stack(pixels), np.array([label for _, label in files]))


def text(path: str, length: int = 64) -> Examples:
    """A text by its characters: predict the next one; examples are `length` in a row."""
    file = _file(path, "a text file")
    try:
        return arrays.characters(file.read_text("utf-8"), length, path)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not text in UTF-8: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from None


def _file(path: str, what: str) -> Path:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"data.source: no such file {path}, {_FROM}; expected {what}")
    return file


def _folder(path: str, what: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"data.source: no such folder {path}, {_FROM}; expected {what}")
    return folder


def _cell(path: str, line: int, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"{path}:{line}: {name}: expected a number, got {text!r}; leave the column out or "
            "number its values"
        ) from None


def _targets(path: str, name: str, cells: list[tuple[int, str]], predict: str | None) -> np.ndarray:
    try:
        numbers = np.array([float(text) for _, text in cells])
    except ValueError:
        numbers = None
    if numbers is None and predict == "numbers":
        for line, text in cells:
            _cell(path, line, name, text)
    from_0 = numbers is not None and np.array_equal(np.unique(numbers), range(len({*numbers})))
    if numbers is not None and (predict == "numbers" or (predict is None and not from_0)):
        return numbers
    labels = [text for _, text in cells] if numbers is None else numbers
    return np.unique(labels, return_inverse=True)[1]


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """The array of an IDX file: two zeros, type, number of axes, their lengths, the data."""
    dotted = name.replace("-idx", ".idx")
    names = (name, f"{name}.gz", dotted, f"{dotted}.gz")
    file = next((folder / n for n in names if (folder / n).is_file()), None)
    if file is None:
        there = ", ".join(sorted(child.name for child in folder.iterdir())[:8]) or "nothing"
        raise UserError(f"{folder}: expected {name}, plain or .gz; there is {there}")
    opened: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rb") as stream:
            content = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read: {error}; get it anew") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_DTYPES:
        begins = content[:4].hex(" ") or "nothing"
        raise UserError(
            f"{file}: expected an IDX file, which begins with 00 00, got {begins}; get it anew"
        )
    dtype, axes = np.dtype(_IDX_DTYPES[content[2]]), content[3]
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes].ljust(4 * axes, b"\0"))
    expected = 4 + 4 * axes + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise UserError(
            f"{file}: expected {expected} bytes for an array of shape {shape}, got {len(content)}: "
            "the file is damaged; get it anew"
        )
    array = np.frombuffer(content, dtype, offset=4 + 4 * axes).reshape(shape)
    return array.astype(dtype.newbyteorder("="))
