"""The line searches by name."""

from __future__ import annotations

import difflib

from gradkit.searches.backtracking import backtracking
from gradkit.searches.hager_zhang import hager_zhang
from gradkit.searches.line import Method
from gradkit.searches.more_thuente import more_thuente

METHODS = {
    "backtracking": backtracking,
    "more_thuente": more_thuente,
    "hager_zhang": hager_zhang,
}


def method_named(name: str) -> Method:
    """Returns the line search of that name.

    Raises:
        ValueError: there is none; the message names the nearest and all.
    """
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(str(name), METHODS, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}{hint}")
