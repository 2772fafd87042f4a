"""What an optimizer's state holds besides its trees: hyperparameters, metrics, names, shardings."""

from __future__ import annotations

import collections
import difflib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import DictKey, GetAttrKey, KeyPath

from gradkit import tree

PyTree = Any

FORMAT = 1
"""Version of what `to_flat_dict` returns."""

_TRANSPARENT = {"memory", "inner", "inner_state"}  # fields that only wrap: no part of a name


class Driven(NamedTuple):
    """The present value of a hyperparameter that follows a schedule or an array."""

    present: jax.Array


class Work(NamedTuple):
    """What the updates so far have asked of the loss: a field of a state, summed up by `work`.

    Attributes:
        evaluations: of the loss, those with a gradient included.
        gradients: of the loss.
        products: with a curvature operator.
    """

    evaluations: jax.Array
    gradients: jax.Array
    products: jax.Array

    @classmethod
    def none(cls) -> Work:
        """Returns no work."""
        return cls(*(jnp.zeros((), jnp.int32) for _ in cls._fields))

    def plus(self, evaluations: Any = 0, gradients: Any = 0, products: Any = 0) -> Work:
        """Returns the work with so much more."""
        more = evaluations, gradients, products
        return Work(*(jnp.asarray(a + b, jnp.int32) for a, b in zip(self, more, strict=True)))


def work(state: PyTree) -> Work:
    """Returns the sum over all members of a state."""

    def counts(node):
        return isinstance(node, Work)

    nodes = [node for node in jax.tree.leaves(state, is_leaf=counts) if counts(node)]
    return functools.reduce(lambda a, b: a.plus(*b), nodes, Work.none())


class LinkState(NamedTuple):
    """One link's hyperparameters in force, and what it remembers. The fields of both are its own.

    Attributes:
        hyperparams: name -> scalar, in float32 at least; a `Driven` one for a schedule.
        memory: whatever the link remembers of the updates before, a NamedTuple or nothing.
    """

    hyperparams: dict[str, Any]
    memory: Any

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            if name in self.hyperparams:
                value = self.hyperparams[name]
                return value.present if isinstance(value, Driven) else value
            if hasattr(self.memory, name):
                return getattr(self.memory, name)
        raise AttributeError(f"this state has no {name!r}: {self}")

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes the present value of each hyperparameter that follows a schedule."""
        return {k: v.present for k, v in self.hyperparams.items() if isinstance(v, Driven)}


def hyperparams(state: PyTree) -> dict[str, jax.Array]:
    """Returns every hyperparameter of an optimizer by name, with its present value.

    Those of `optax.inject_hyperparams` are found too. A name that occurs once stands alone; one
    that occurs more often is preceded by the members it is nested in, joined by dots.

    Args:
        state: an optimizer state, however nested.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> state = gk.chain(clip=gk.clip_by_global_norm(1.0), sgd=gk.sgd(0.5)).init(jnp.zeros(2))
        >>> {name: float(value) for name, value in gk.hyperparams(state).items()}
        {'max_norm': 1.0, 'learning_rate': 0.5}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    found = [(names, leaf) for path, leaf in leaves if (names := _hyperparam(path))]
    often = collections.Counter(names[-1] for names, _ in found)
    return {".".join(n) if often[n[-1]] > 1 else n[-1]: leaf for n, leaf in found}


def set_hyperparams(state: PyTree, **values: Any) -> PyTree:
    """Returns the state with some hyperparameters changed; nothing is compiled again.

    Args:
        state: an optimizer state, however nested.
        **values: name -> number or array, traced or not. A name that occurs more than once is
            preceded by enough of its members to be unique: `**{"hidden.learning_rate": 0.1}`.

    Raises:
        ValueError: a name is unknown, ambiguous, or follows a schedule or an array, which would
            overwrite it at the next update; the message has the names there are.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> tx = gk.sgd(0.5)
        >>> state = gk.set_hyperparams(tx.init(jnp.zeros(2)), learning_rate=0.25)
        >>> tx.update(jnp.ones(2), state)[0]
        Array([-0.25, -0.25], dtype=float32)
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(state, is_leaf=_driven)
    leaves = [leaf for _, leaf in paths]
    known = {index: names for index, (path, _) in enumerate(paths) if (names := _hyperparam(path))}
    for name, value in values.items():
        exact = [i for i, names in known.items() if ".".join(names) == name]
        fitting = exact or [i for i, names in known.items() if _means(name, names)]
        if len(fitting) != 1:
            raise ValueError(_not_one(name, [".".join(known[i]) for i in fitting], state))
        path, old = paths[fitting[0]]
        if _driven(old) or _scheduled_by_optax(path, [p for p, _ in paths]):
            raise ValueError(
                f"set_hyperparams: {name} follows a schedule or an array, which would overwrite it "
                "at the next update; build the optimizer with a number to set it"
            )
        if jnp.ndim(value) > jnp.ndim(old):
            raise ValueError(
                f"set_hyperparams: {name} expects a value of shape {jnp.shape(old)}, got "
                f"{jnp.shape(value)}; for one value a run, vmap set_hyperparams over the values"
            )
        new = jnp.broadcast_to(jnp.array(value, jnp.result_type(old)), jnp.shape(old))
        leaves[fitting[0]] = new
    return structure.unflatten(leaves)


def metrics(state: PyTree) -> dict[str, jax.Array]:
    """Returns the scalars that the members of a chain publish about their last update.

    A state publishes by having a method `metrics() -> dict[str, scalar]`; the scalars are fields it
    keeps anyway, so unread metrics cost nothing. Of two members that publish the same name, the
    second appears as `name_2`. What they have asked of the loss and its curvature in all, their
    `Work`, is summed up as `evaluations`, `gradients` and `products`.

    Args:
        state: an optimizer state, however nested.
    """
    collected: dict[str, jax.Array] = {}
    seen: collections.Counter[str] = collections.Counter()
    for node in _nodes(state):
        if not callable(getattr(type(node), "metrics", None)):
            continue
        for name, value in node.metrics().items():
            seen[name] += 1
            (scalar,) = jax.tree.leaves(value)  # out of flax's variables too
            collected[name if seen[name] == 1 else f"{name}_{seen[name]}"] = scalar
    works = [node for node in _nodes(state) if isinstance(node, Work)]
    return collected | (work(works)._asdict() if works else {})


def to_flat_dict(state: PyTree) -> dict[str, np.ndarray]:
    """Returns a state as a flat dictionary of NumPy arrays, as `numpy.savez` takes it.

    Beside one entry a leaf, named by its path, it has the version of the format and a fingerprint
    of the names, shapes and dtypes, by which `from_flat_dict` refuses what does not fit.

    Args:
        state: an optimizer state, or any tree of arrays and random keys.
    """
    flat = {name: _as_numpy(leaf) for name, leaf in _named_leaves(state).items()}
    return flat | {
        "gradkit.format": np.asarray(FORMAT),
        "gradkit.fingerprint": np.asarray(_fingerprint(state)),
    }


def from_flat_dict(flat: Mapping[str, Any], like: PyTree) -> PyTree:
    """Returns the state that `to_flat_dict` made flat.

    Args:
        flat: the dictionary, or what `numpy.load` made of the file.
        like: a state of the same optimizer on the same parameters, as its `init` returns it.

    Raises:
        ValueError: the dictionary is of another optimizer, other parameters or a later version of
            gradkit; the message names the leaves that differ.
    """
    version = int(flat["gradkit.format"]) if "gradkit.format" in flat else None
    if version != FORMAT:
        raise ValueError(
            f"from_flat_dict: expected a dictionary of format {FORMAT}, made by gk.to_flat_dict; "
            f"got {'none' if version is None else f'format {version}'}"
        )
    wanted = _named_leaves(like)
    if str(flat["gradkit.fingerprint"]) != _fingerprint(like):
        saved = {name: _described(np.asarray(flat[name])) for name in flat}
        expected = {name: _described(_as_numpy(leaf)) for name, leaf in wanted.items()}
        names = [n for n in {**expected, **saved} if not n.startswith("gradkit.")]
        lines = [
            f"  {name}: expected {expected.get(name, 'nothing')}, got {saved.get(name, 'nothing')}"
            for name in names
            if expected.get(name) != saved.get(name)
        ]
        raise ValueError(
            "from_flat_dict: the state is of another optimizer or other parameters:\n"
            + "\n".join(lines[:8] + ["  ..."] * (len(lines) > 8))
        )
    leaves = [_as_leaf(flat[name], leaf) for name, leaf in wanted.items()]
    return jax.tree.structure(like).unflatten(leaves)


def state_shardings(tx: optax.GradientTransformation, params: PyTree) -> PyTree:
    """Returns the sharding of each leaf of `tx.init(params)`, before anything is allocated.

    What a transformation keeps for a parameter is sharded like it, and so is each of several that
    are stacked along a first axis; everything else is replicated:
    `jax.jit(tx.init, out_shardings=gk.state_shardings(tx, params))(params)`.

    Args:
        tx: a gradient transformation of gradkit or optax.
        params: tree of arrays, or of `jax.ShapeDtypeStruct` with shardings.

    Raises:
        ValueError: a parameter has no sharding.
    """
    anywhere = None
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        anywhere = getattr(leaf, "sharding", None)
        if anywhere is None:
            raise ValueError(
                f"state_shardings: {tree.path_name(path) or 'the parameter'} has no sharding; "
                "expected arrays, or jax.ShapeDtypeStruct(shape, dtype, sharding=...)"
            )
    if isinstance(anywhere, jax.sharding.NamedSharding):
        anywhere = jax.sharding.NamedSharding(anywhere.mesh, jax.sharding.PartitionSpec())

    of = parameter_of(params)

    def sharding(path, leaf):
        field = path[:-1] if path and isinstance(path[-1], GetAttrKey) else path
        for p, whole in ((of(path), True), (of(field), False)):
            if p is None:
                continue
            if leaf.shape == p.shape:
                return p.sharding
            if not isinstance(p.sharding, jax.sharding.NamedSharding):
                continue
            spec = (*p.sharding.spec, *[None] * (p.ndim - len(p.sharding.spec)))
            if whole and leaf.shape[1:] == p.shape:
                return _named(p, None, *spec)
            if not whole and leaf.ndim and leaf.shape[:-1] == p.shape[:-1]:
                return _named(p, *spec[:-1], None)  # the scales of blocks of the last axis
        return anywhere

    return jax.tree_util.tree_map_with_path(sharding, jax.eval_shape(tx.init, params))


def _named(p: Any, *spec: Any) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(p.sharding.mesh, jax.sharding.PartitionSpec(*spec))


def parameter_of(params: PyTree) -> Callable[[KeyPath], Any]:
    """Returns the function of the path of a state's leaf -> the parameter in whose path it ends.

    The longest such, or None.
    """
    known = dict(jax.tree_util.tree_leaves_with_path(params))

    def parameter(path):
        found = (known.get(path[start:]) for start in range(len(path) + 1))
        return next((leaf for leaf in found if leaf is not None), None)

    return parameter


def did_you_mean(name: str, names: Any) -> str:
    """Returns 'did you mean x? ' with the nearest of the names; empty when none is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {near[0]}? " if near else ""


def _hyperparam(path: KeyPath) -> tuple[str, ...] | None:
    """The members a hyperparameter's path leads through, and its name; None for other paths."""
    for index in range(len(path) - 1):
        field, key = path[index : index + 2]
        inside = isinstance(field, GetAttrKey) and field.name == "hyperparams"
        if inside and isinstance(key, DictKey):
            return *_members(path[:index]), str(key.key)
    return None


def _means(name: str, names: tuple[str, ...]) -> bool:
    """Whether the dotted name ends where `names` does and leaves out only members."""
    parts, rest = name.split("."), iter(names)
    return parts[-1] == names[-1] and all(part in rest for part in parts)


def _not_one(name: str, fitting: list[str], state: PyTree) -> str:
    known = hyperparams(state)
    if fitting:
        return f"set_hyperparams: {name} is ambiguous: it means any of {', '.join(fitting)}"
    return (
        f"set_hyperparams: unknown hyperparameter {name!r}; {did_you_mean(name, known)}"
        f"there are {', '.join(known) or 'none'}"
    )


def _scheduled_by_optax(path: KeyPath, paths: list[KeyPath]) -> bool:
    """Whether `optax.inject_hyperparams` computes the hyperparameter from a schedule."""
    stateful = tuple(
        GetAttrKey("hyperparams_states") if key == GetAttrKey("hyperparams") else key
        for key in path
    )
    return any(other[: len(stateful)] == stateful for other in paths)


def _nodes(node: PyTree) -> Iterator[PyTree]:
    """Every inner node of a tree, the outer ones first."""
    children = jax.tree_util.default_registry.flatten_one_level(node)
    if children is not None:
        yield node
        for child in children[0]:
            yield from _nodes(child)


def _named_leaves(state: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        jax.tree.map(lambda x: x.present if _driven(x) else x, state, is_leaf=_driven)
    )
    named = {".".join(_members(path)): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        seen = collections.Counter(".".join(_members(path)) for path, _ in leaves)
        twice = ", ".join(name for name, count in seen.items() if count > 1)
        raise ValueError(f"to_flat_dict: two leaves have the same dotted path: {twice}")
    return named


def _members(path: KeyPath) -> list[str]:
    """The keys of a path as text, without the fields that only wrap."""
    wrapping = [isinstance(key, GetAttrKey) and key.name in _TRANSPARENT for key in path]
    return [tree.path_name((key,)) for key, no in zip(path, wrapping, strict=True) if not no]


def _driven(node: Any) -> bool:
    return isinstance(node, Driven)


def _as_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if tree.is_key(leaf) else leaf)


def _as_leaf(saved: Any, like: Any) -> jax.Array:
    saved = np.asarray(saved)
    if tree.is_key(like):
        return jax.random.wrap_key_data(jnp.array(saved), impl=jax.random.key_impl(like))
    dtype = jnp.result_type(like)
    return jnp.array(saved.view(dtype) if saved.dtype.kind == "V" else saved, dtype)  # bfloat16


def _described(array: np.ndarray) -> str:
    kind = f"{8 * array.dtype.itemsize}-bit" if array.dtype.kind == "V" else str(array.dtype)
    return f"{kind}{list(array.shape)}"


def _fingerprint(state: PyTree) -> str:
    leaves = [
        (name, str(jnp.result_type(leaf)), jnp.shape(leaf))
        for name, leaf in _named_leaves(state).items()
    ]
    return hashlib.sha256(json.dumps(sorted(leaves)).encode()).hexdigest()
