"""Arrays and texts as examples, once it is certain that they can be learned from."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from gradkit.runner.data.dataset import Examples
from gradkit.runner.errors import UserError


def characters(written: str, length: int, source: str = "the text") -> Examples:
    """Returns a text in pieces of `length` characters, targets one character later."""
    pieces = (len(written) - 1) // length if length > 0 else 0
    if pieces < 2:
        raise UserError(
            f"{source}: expected more than twice length={length} characters, got {len(written)}; "
            "lower length or take a longer text"
        )
    codes = np.frombuffer(written.encode("utf-32-le"), np.uint32)
    alphabet, tokens = np.unique(codes, return_inverse=True)
    if len(alphabet) < 2:
        raise UserError(f"{source}: expected two characters or more, got one alone")
    end = pieces * length
    x, y = (tokens[i : end + i].reshape(pieces, length).astype(np.int32) for i in (0, 1))
    return Examples(x, y, len(alphabet), ordered=True)


def checked(
    source: str,
    x: np.ndarray,
    y: np.ndarray,
    x_test: np.ndarray | None = None,
    y_test: np.ndarray | None = None,
) -> Examples:
    """Returns the examples of arrays that can be learned from.

    Raises:
        UserError: they cannot; the message has the first place where.
    """
    x, y, classes = _checked(source, "", x, y)
    if x_test is None or y_test is None:
        return Examples(x, y, classes)
    x_test, y_test, known = _checked(source, "_test", x_test, y_test, whole=False)
    if x_test.shape[1:] != x.shape[1:] or y_test.shape[1:] != y.shape[1:]:
        _refuse(source, "x_test", f"examples of shape {x.shape[1:]}, as in x", x_test.shape[1:])
    if (known is None) != (classes is None) or (known or 0) > (classes or 0):
        _refuse(
            source,
            "y_test",
            f"classes below {classes}, as y has",
            f"{(known or 1) - 1}; number them as in y",
        )
    return Examples(x, y, classes, test=(x_test, y_test))


def _checked(
    source: str, suffix: str, x: np.ndarray, y: np.ndarray, *, whole: bool = True
) -> tuple[np.ndarray, np.ndarray, int | None]:
    if x.ndim < 2 or x.size == 0 or x.dtype.kind not in "fiub":
        got = f"{x.dtype} of shape {x.shape}; give it a row for each example"
        _refuse(source, f"x{suffix}", "numbers of shape (examples, features)", got)
    if y.dtype.kind not in "fiu":
        _refuse(
            source,
            f"y{suffix}",
            "classes as whole numbers from 0, or numbers",
            f"{y.dtype}; number the classes from 0",
        )
    classes = y.dtype.kind in "iu"
    if y.ndim not in ((1,) if classes else (1, 2)) or len(y) != len(x) or not y.size:
        what = f"({len(x)},), a class" if classes else f"({len(x)},) or ({len(x)}, outputs)"
        _refuse(
            source,
            f"y{suffix}",
            f"shape {what} for each row of x",
            f"shape {y.shape}; drop or add some",
        )
    if classes and whole:
        _check_classes(source, y)
    elif classes and y.min() < 0:
        _refuse(source, f"y{suffix}", "classes from 0", y.min())
    x = _finite(source, f"x{suffix}", x)
    if not classes:
        return x, _finite(source, f"y{suffix}", y).reshape(len(y), -1), None
    return x, y.astype(np.int32), int(y.max()) + 1


def _finite(source: str, name: str, values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes infinite, and is refused
        values = values.astype(np.float32, copy=False)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, *rest = bad[0].tolist()
        where = f"row {row}" + (f", column {', '.join(map(str, rest))}" if rest else "")
        got = f"{len(bad)} that are not, the first {values[tuple(bad[0])]} at {where}; "
        _refuse(source, name, "finite numbers", got + "remove or replace them")
    return values


def _check_classes(source: str, y: np.ndarray) -> None:
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) == 1:
        _refuse(
            source, "y", "two classes or more", f"class {classes[0]} alone; add examples of another"
        )
    missing = np.flatnonzero(classes != np.arange(len(classes)))
    if len(missing):
        got = f"class {classes[missing[0]]} and none of class {missing[0]}; number them anew"
        _refuse(source, "y", "classes 0, 1, 2 … without a gap", f"{got}, or give floats to predict")
    if counts.min() < 2:
        got = f"1 of class {counts.argmin()}; add another or leave the class out"
        _refuse(source, "y", "at least 2 examples of each class, to train and to test on", got)


def _refuse(source: str, name: str, expected: str, got: Any) -> NoReturn:
    raise UserError(f"{source}: {name}: expected {expected}, got {got}")
