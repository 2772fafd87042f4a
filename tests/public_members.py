"""Every public transformation, made from the index: a new name is enrolled by being there."""

from __future__ import annotations

import inspect

import gradkit as gk
from gradkit.transforms.link import Link

# What the arguments without a default are given, by name.
GIVEN = {
    "learning_rate": 0.1,
    "decay": 0.9,
    "max_norm": 1.0,
    "max_delta": 0.5,
    "clipping": 0.1,
    "eta": 0.01,
    "gamma": 0.5,
    "every": 2,
    "mask": {"w": True, "b": False},
    "param_labels": {"w": "fast", "b": "slow"},
    "members": (),
}


def inner():
    """What goes into a member that wraps another."""
    return gk.chain(gk.clip_by_global_norm(10.0), gk.adam(0.1))


def make(name: str, within=inner) -> Link:
    """Returns the public transformation with its defaults, on a tree with the leaves w and b."""
    factory = getattr(gk, name)
    given = GIVEN | {"inner": within(), "fast_optimizer": within()}
    given["transforms"] = {"fast": within(), "slow": gk.sgd(0.1)}
    parameters = inspect.signature(factory).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]
    arguments = {name: given[name] for name in needed}
    if name == "masked":
        arguments["unselected"] = "zero"
    if name == "chain":
        return factory(within(), gk.heavy_ball(0.9))
    return factory(**arguments)


def returns_link(name: str) -> bool:
    """Whether a public name is a factory of transformations."""
    rooms = ("gradkit.transforms.", "gradkit.optimizers.")
    if not gk._INDEX[name].startswith(rooms):
        return False
    return inspect.get_annotations(getattr(gk, name)).get("return") == "Link"


MEMBERS = [name for name in gk.__all__ if returns_link(name)]
WRAPPERS = [
    name
    for name in MEMBERS
    if {"inner", "fast_optimizer"} & inspect.signature(getattr(gk, name)).parameters.keys()
]
