"""Data sets that come as packages of the system: where they are looked for, how to get them."""

from __future__ import annotations

from pathlib import Path

_PLACES = {"fashion_mnist": ("/usr/share/datasets/fashion-mnist", "dataset-fashion-mnist")}


def found(name: str) -> Path:
    """Returns the folder of a data set."""
    return Path(_PLACES[name][0])


def missing(name: str) -> str | None:
    """Returns how to get a data set that is not there; None for one that is or needs nothing."""
    if name not in _PLACES or any(found(name).glob("*-idx?-ubyte*")):
        return None
    place, package = _PLACES[name]
    return (
        f"no IDX files (*-ubyte or *-ubyte.gz) in {place}; install them by apt-get install "
        f"{package} (Debian), or name a folder that holds them; nothing is downloaded. digits, "
        "mnist1d and the others of `gradkit list` need nothing"
    )
