"""The line searches by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from gradkit.searches.backtracking import backtracking
from gradkit.searches.hager_zhang import hager_zhang
from gradkit.searches.more_thuente import more_thuente

T = TypeVar("T")

METHODS: Any = {
    "backtracking": backtracking,
    "more_thuente": more_thuente,
    "hager_zhang": hager_zhang,
}


def method_named(name: str, methods: Mapping[str, T] = METHODS) -> T:
    """Returns the method of that name, by default a line search.

    Raises:
        ValueError: there is none; the message names the nearest and all.
    """
    if name in methods:
        return methods[name]
    near = difflib.get_close_matches(str(name), methods, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"method: expected one of {', '.join(methods)}, got {name!r}{hint}")
