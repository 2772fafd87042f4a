"""Some leaves one way, some another: labels of leaves, and transformations of part of a tree."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import tree
from gradkit.core import needs_params
from gradkit.states import did_you_mean
from gradkit.transforms.foreign import as_link
from gradkit.transforms.link import Link, Now, link, state_type, transformation
from gradkit.transforms.views import seen_from_inside

PyTree = Any
Labels = Any
"""A tree of labels, a prefix of one, a function that makes one of the parameters, or patterns."""


def by_path(
    rule: Mapping[str, Hashable] | Callable[[str, Any], Hashable], default: Hashable = None
) -> Callable[[PyTree], PyTree]:
    """Returns a function that labels the leaves of a tree by their paths.

    A path is the keys that lead to a leaf, joined by dots: `encoder.layers.0.kernel`. In a pattern
    `*` is any text, dots included, and `?` any character; `\\*` and `\\?` are those characters.
    Everything else is itself, brackets too.

    Args:
        rule: a mapping of patterns to labels, each leaf to be matched by patterns of one label
            alone; or a function (path, leaf) -> label, None for `default`.
        default: label of the leaves that nothing matches; without one, there may be none.

    Raises:
        ValueError: from the function returned, where a leaf has no label or two, or where a pattern
            matches no leaf; the message lists them.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> params = {"dense": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}}
        >>> gk.by_path({"*.kernel": "decayed"}, default="free")(params)
        {'dense': {'bias': 'free', 'kernel': 'decayed'}}
    """
    if not (isinstance(rule, Mapping) or callable(rule)):
        raise TypeError(
            "by_path: expected a mapping of patterns to labels, or a function (path, leaf) -> "
            f"label; got {type(rule).__name__}"
        )

    def labels_of(params):
        leaves, structure = jax.tree_util.tree_flatten_with_path(params)
        paths = [tree.leaf_name(path) for path, _ in leaves]
        if isinstance(rule, Mapping):
            labels = _matched(rule, paths)
        else:
            labels = [rule(path, leaf) for path, (_, leaf) in zip(paths, leaves, strict=True)]
        labels = [default if label is None else label for label in labels]
        without = [path for path, label in zip(paths, labels, strict=True) if label is None]
        if without:
            raise ValueError(
                f"by_path: no label for {', '.join(without)}; add a pattern, or a default"
            )
        return structure.unflatten(labels)

    return labels_of


@transformation
def masked(
    inner: optax.GradientTransformation,
    mask: Labels,
    *,
    unselected: Literal["zero", "keep"] | None = None,
) -> Link:
    """Applies a transformation to the leaves that a mask selects.

    The inner transformation sees trees with None for the other leaves. The extra arguments of
    `update` are restricted with them: a member that calls the loss gets it as a function of the
    selected leaves, with the others where they are, and curvature as its block.

    The updates of the other leaves pass as they are, for other members of the chain. Where none of
    them makes steps of those, and the inner transformation is a whole optimizer, they would be raw
    gradients, which lead up the loss: `init` refuses that unless `unselected` says what is meant.

    Differs: from optax in that refusal and in `unselected`, and in that members that call the loss
    work, without `mask_compatible_extra_args`.

    Args:
        inner: the transformation.
        mask: tree of booleans like the parameters or a prefix of it, a function that makes one from
            the parameters (such as `gk.by_path`), or a pattern of paths or several: `"*.kernel"`.
        unselected: "zero": the other leaves stay where they are. "keep": their updates pass, raw
            gradients or not. None (default): they pass, unless they would leave as raw gradients.

    Raises:
        ValueError: from `init`, the mask does not fit the parameters, or leaves would get their raw
            gradients for updates.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> decay = gk.masked(gk.add_decayed_weights(0.1), "*.kernel")
        >>> tx = gk.chain(decay, gk.sgd(1.0))
        >>> params = {"dense": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}}
        >>> tx.update(params, tx.init(params), params)[0]["dense"]
        {'bias': Array([-1.], dtype=float32), 'kernel': Array([-1.1], dtype=float32)}
    """
    if unselected not in ("zero", "keep", None):
        raise ValueError(f"masked: unselected must be 'zero' or 'keep', got {unselected!r}")
    part = as_link(inner)
    state_of = state_type((part.name,))

    def init(params, step):
        kept = selected(mask, params, member="masked")
        return state_of(part.start(_select(params, kept), step))

    def update(updates, state, params, h, **extra):
        kept = selected(mask, updates if params is None else params, member="masked")
        changed, inner_state = _within(part, kept, updates, state[0], params, h.now, extra)
        others = jax.tree.map(jnp.zeros_like, updates) if unselected == "zero" else updates
        return _merged(changed, others, kept), state_of(inner_state)

    def steps(params):
        kept = selected(mask, params, member="masked")
        inside = iter(part.traits.steps(_select(params, kept)))
        others = None if unselected else False
        return [next(inside) if keep else others for keep in kept]

    traits = {"steps": steps, "passes_on": "masked"} if unselected is None else {"steps": steps}
    return link(init, update, leafwise=True, compiles=False, traits=traits)


@transformation
def partition(
    transforms: Mapping[Hashable, optax.GradientTransformation], param_labels: Labels
) -> Link:
    """Applies to each leaf the transformation that has its label.

    Each transformation sees its own leaves as in `gk.masked`; members that call the loss work.

    Differs: from optax in the labels, which may be patterns and are checked at `init`, and in that
    `mask_compatible_extra_args` is not needed.

    Args:
        transforms: label -> transformation.
        param_labels: tree of labels like the parameters or a prefix of it, or a function that makes
            one from the parameters, such as `gk.by_path({"*.kernel": "hidden"}, default="other")`.

    Raises:
        ValueError: a leaf has no label or an unknown one, or the labels do not fit the parameters;
            the message lists the paths.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> rule = gk.by_path({"w": "fast", "b": "slow"})
        >>> tx = gk.partition({"fast": gk.sgd(1.0), "slow": gk.sgd(0.1)}, rule)
        >>> params = {"w": jnp.ones(1), "b": jnp.ones(1)}
        >>> tx.update(params, tx.init(params))[0]
        {'b': Array([-0.1], dtype=float32), 'w': Array([-1.], dtype=float32)}
    """
    parts = {label: as_link(tx) for label, tx in transforms.items()}

    def kept_by(params):
        labels = _labels(param_labels, params, list(parts))
        return {label: tuple(given == label for given in labels) for label in parts}

    def init(params, step):
        kept = kept_by(params)
        return {
            label: part.start(_select(params, kept[label]), step) for label, part in parts.items()
        }

    def update(updates, state, params, h, **extra):
        following, merged = {}, updates
        for label, kept in kept_by(updates if params is None else params).items():
            changed, following[label] = _within(
                parts[label], kept, updates, state[label], params, h.now, extra
            )
            merged = _merged(changed, merged, kept)
        return merged, following

    def steps(params):
        found: list[bool | None] = [None] * len(jax.tree.leaves(params))
        for label, kept in kept_by(params).items():
            part = parts[label]
            inside = iter(part.traits.steps(_select(params, kept)))
            meant = not part.traits.passes_on  # a gradient there is what the label says
            for index in (i for i, keep in enumerate(kept) if keep):
                flag = next(inside)
                found[index] = None if meant and flag is False else flag
        return found

    inner = (part.traits.passes_on for part in parts.values())
    traits = {"steps": steps, "passes_on": next(filter(None, inner), None)}
    return link(init, update, leafwise=True, compiles=False, traits=traits)


def selected(mask: Labels, params: PyTree, *, member: str) -> tuple[bool, ...]:
    """Returns whether the mask selects each leaf of the parameters, in `jax.tree` order.

    Raises:
        ValueError: the mask does not fit the parameters, or holds something else than booleans.
    """
    if isinstance(mask, str) or (
        isinstance(mask, Sequence) and mask and all(isinstance(item, str) for item in mask)
    ):
        patterns = [mask] if isinstance(mask, str) else mask
        mask = by_path(dict.fromkeys(patterns, True), default=False)
    flags = _broadcast(mask, params, _is_boolean, member=member)
    wrong = {repr(flag) for flag in flags if not _is_boolean(flag)}
    if wrong:
        raise ValueError(
            f"{member}: the mask must hold True and False, got {', '.join(sorted(wrong))}"
        )
    return tuple(map(bool, flags))


def mask_checked(mask: Labels | None, member: str) -> Callable:
    """Returns the `init` of a link that remembers nothing and checks its mask."""

    def init(params, step):
        if mask is not None:
            selected(mask, params, member=member)
        return ()

    return init


def traits_of(mask: Labels | None) -> dict[str, Any]:
    """Returns what `link` is told of a rule with a mask.

    One that is a function is called at each update, as it may read what changes.
    """
    return {"leafwise": mask is not None, "compiles": not callable(mask)}


def on_params(
    rule: Callable, updates: PyTree, params: PyTree, mask: Labels | None, member: str
) -> PyTree:
    """Maps rule(parameter, update, selected) over the leaves; without a mask all are selected."""
    needs_params(params, member=member)
    leaves, structure = jax.tree.flatten(updates)
    flags = [True] * len(leaves) if mask is None else selected(mask, params, member=member)
    old = jax.tree.leaves(params)
    return structure.unflatten([rule(*item) for item in zip(old, leaves, flags, strict=True)])


def _labels(labels: Labels, params: PyTree, known: list) -> list:
    def is_label(leaf):
        return isinstance(leaf, Hashable) and leaf in known

    given = _broadcast(labels, params, is_label, member="partition")
    paths = [tree.leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    unknown = [
        f"{path}: {label!r}"
        for path, label in zip(paths, given, strict=True)
        if not is_label(label)
    ]
    if unknown:
        first = next(label for label in given if not is_label(label))
        hint = did_you_mean(str(first), map(str, known))
        raise ValueError(
            f"partition: every leaf needs a label from {known}; {hint}got\n  "
            + "\n  ".join(unknown)
        )
    return given


def _broadcast(
    labels: Labels, params: PyTree, is_label: Callable[[Any], bool], *, member: str
) -> list:
    """The label of each leaf of the parameters, from a tree of labels or a function that makes one.

    A tree that can be called, such as an `equinox.Module`, is a tree if its leaves are labels.
    """
    if not jax.tree.leaves(params):  # or what stands for any, in `optax.tree.map_params`
        return []
    leaves, structure = jax.tree.flatten(labels)
    leaf = jax.tree_util.treedef_is_leaf(structure)
    is_tree = bool(leaves) and not leaf and all(map(is_label, leaves))
    full = labels(params) if callable(labels) and not is_tree else labels
    return broadcast_prefix(full, params, f"{member}: the labels must form")


def broadcast_prefix(
    prefix: PyTree, params: PyTree, must: str, is_leaf: Callable[[Any], bool] | None = None
) -> list:
    """Returns for each leaf of the parameters what a tree like them, or a prefix of one, says.

    Raises:
        ValueError: it is no such tree; the message begins with `must`.
    """
    try:
        return jax.tree.leaves(jax.tree.broadcast(prefix, params, is_leaf=is_leaf), is_leaf=is_leaf)
    except ValueError as error:
        raise ValueError(
            f"{must} a tree like the parameters or a prefix of it:\n  "
            f"expected {jax.tree.structure(params)}\n  got {jax.tree.structure(prefix)}"
        ) from error


def _matched(rule: Mapping[str, Hashable], paths: list[str]) -> list:
    found = [
        {pattern: label for pattern, label in rule.items() if _matches(path, pattern)}
        for path in paths
    ]
    idle = [pattern for pattern in rule if not any(pattern in match for match in found)]
    if idle:
        raise ValueError(
            f"by_path: no leaf matches {', '.join(map(repr, idle))}; the paths are "
            f"{', '.join(paths)}. '*' is any text and '?' any character; escape them as "
            "r'\\*' and r'\\?'; brackets are themselves"
        )
    twice = [
        f"{path}: {', '.join(f'{pattern!r} says {label!r}' for pattern, label in match.items())}"
        for path, match in zip(paths, found, strict=True)
        if len(set(match.values())) > 1
    ]
    if twice:
        raise ValueError("by_path: a leaf can have one label only:\n  " + "\n  ".join(twice))
    return [next(iter(match.values()), None) for match in found]


def _matches(path: str, pattern: str) -> bool:
    """Whether a path is what the pattern says: its stars, question marks and escapes."""
    wild = {"*": ".*", "?": "."}
    parts = re.findall(r"\\[*?\\]|.", pattern, re.DOTALL)
    text = "".join(wild.get(part) or re.escape(part[-1]) for part in parts)
    return re.fullmatch(text, path, re.DOTALL) is not None


def _is_boolean(leaf: Any) -> bool:
    """Whether this is True or False, be it in an array that is not traced."""
    array = isinstance(leaf, np.ndarray | jax.Array) and not tree.traced(leaf)
    return isinstance(leaf, bool | np.bool_) or (array and leaf.shape == () and leaf.dtype == bool)


def _within(
    part: Link,
    kept: tuple[bool, ...],
    updates: PyTree,
    state: PyTree,
    params: PyTree,
    now: Now,
    extra: dict[str, Any],
) -> tuple[PyTree, PyTree]:
    """What a link makes of the kept leaves: a shorter list of updates, and its state."""

    def inward(whole):
        return _select(whole, kept)

    def outward(leaves):  # the loss sees the other leaves where they are
        return _merged(leaves, params, kept)

    def tangent(leaves):
        return _merged(leaves, jax.tree.map(jnp.zeros_like, params), kept)

    inner_params = None if params is None else inward(params)
    inner_extra = seen_from_inside(extra, inward, outward, tangent)
    inner_now = now._replace(dtypes=inward(now.dtypes))
    return part.advance(inward(updates), state, inner_params, inner_now, inner_extra)


def _select(whole: PyTree, kept: tuple[bool, ...]) -> PyTree:
    """The tree with None in place of the leaves that are not kept; () if that is all of it."""
    leaves, structure = jax.tree.flatten(whole)
    part = structure.unflatten(
        [leaf if keep else None for leaf, keep in zip(leaves, kept, strict=True)]
    )
    return () if part is None else part  # None would be no parameters


def _merged(part: PyTree, whole: PyTree, kept: tuple[bool, ...]) -> PyTree:
    """The whole tree with its kept leaves replaced by those of the part, in order."""
    leaves, structure = jax.tree.flatten(whole)
    new = iter(jax.tree.leaves(part))
    return structure.unflatten(
        [next(new) if keep else leaf for leaf, keep in zip(leaves, kept, strict=True)]
    )
