"""One look for each optimizer, the same in every figure: a color, and a marker as a second cue."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradkit.report.svg import INK

# Okabe and Ito's palette, without its yellow: told apart with every common color vision.
BLUE, RED, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
AMBER, SKY, GRAY = "#E69F00", "#56B4E9", "#999999"
COLORS = (BLUE, RED, GREEN, PINK, AMBER, SKY, INK, GRAY)
MARKERS = ("o", "^", "s", "v", "D", "P", "X", "p")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (5, 1.5, 1, 1.5)), (0, (1.5, 1.5)))

# Methods of one kind, which are compared most, differ in color.
_OPTIMIZERS = {
    "sgd": (GREEN, "s"),
    "momentum": (PINK, "s"),
    "nesterov": (GRAY, "s"),
    "adagrad": (AMBER, "v"),
    "adadelta": (PINK, "^"),
    "rmsprop": (RED, "^"),
    "adam": (BLUE, "o"),
    "adamw": (SKY, "o"),
    "newton": (RED, "D"),
    "newton_cg": (PINK, "D"),
    "saddle_free": (BLUE, "D"),
    "cubic": (SKY, "D"),
    "trust_region": (GRAY, "D"),
    "levenberg_marquardt": (AMBER, "X"),
    "hessian_free": (RED, "X"),
    "bfgs": (GREEN, "P"),
    "lbfgs": (INK, "P"),
    "nonlinear_cg": (AMBER, "P"),
    "soap": (RED, "p"),
    "shampoo": (AMBER, "p"),
    "sophia": (GREEN, "p"),
    "adahessian": (PINK, "p"),
    "muon": (BLUE, "p"),
}


@dataclass(frozen=True)
class Look:
    """How a curve and its points are drawn."""

    color: str
    marker: str
    dashes: Any = "-"
    hollow: bool = False

    @property
    def points(self) -> dict[str, Any]:
        """The look of its points, in matplotlib's words."""
        edge, face = (self.color, "none") if self.hollow else ("none", self.color)
        look = {"color": self.color, "marker": self.marker}
        return look | {"markerfacecolor": face, "markeredgecolor": edge}


def optimizer_looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each optimizer: its own, and of one without the next that is not taken.

    optax's looks like gradkit's of the same name, but for when both are there.
    """
    called = {name: name.removeprefix("optax.") for name in names}
    called = {name: own for name, own in called.items() if own == name or own not in called}
    known = {n: Look(*_OPTIMIZERS[own]) for n, own in called.items() if own in _OPTIMIZERS}
    taken = {look.color for look in known.values()}
    free = [color for color in COLORS if color not in taken] or list(COLORS)
    others = [name for name in dict.fromkeys(names) if name not in known]
    return known | {
        name: Look(free[place % len(free)], MARKERS[(place + 5) % len(MARKERS)])
        for place, name in enumerate(others)
    }


def looks(optimizers: Sequence[str]) -> list[Look]:
    """A look for each curve of a figure, no two alike for as long as there are enough.

    Args:
        optimizers: the name of each curve's optimizer; where they differ, it has the color, and
            curves of one optimizer differ in their dashes. Where they do not, colors go in order.
    """
    if len(set(optimizers)) < 2:
        return [
            Look(
                COLORS[place % len(COLORS)],
                MARKERS[place % len(MARKERS)],
                DASHES[place // len(COLORS) % len(DASHES)],
            )
            for place in range(len(optimizers))
        ]
    own, seen, found = optimizer_looks(optimizers), dict.fromkeys(optimizers, 0), []
    for name in optimizers:
        turn, color, marker = seen[name], own[name].color, own[name].marker
        rounds = turn // len(DASHES)
        found.append(Look(color, marker, DASHES[turn % len(DASHES)], hollow=bool(rounds % 2)))
        seen[name] += 1
    return found


def optimizer_of(config: dict[str, Any]) -> str:
    """The optimizer that a config names, by its key paths; of a chain the one that is known."""
    names = [
        str(value) for key, value in config.items() if re.fullmatch(r"optimizer(\.\d+)?\.name", key)
    ]
    known = [name for name in names if name.removeprefix("optax.") in _OPTIMIZERS]
    return [*names, *known[-1:]][-1] if names else ""
