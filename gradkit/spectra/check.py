"""Whether an operator is what every method here takes it for: linear, symmetric, the same twice."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.operators import Operator

PyTree = Any

SCALE = 64  # c, far from 1, so that a clip or a higher-order term shows
ROUNDINGS = 100  # relative to the result; products lose digits to cancellation inside

REMEDIES = {
    "repeatability": (
        "the same vector gives another product: fresh dropout keys, shuffled or advancing data, or "
        "Python state read while tracing. Fix the key and the batch"
    ),
    "linearity": (
        "the map is not linear: it adds a term that does not depend on v, clips, takes a norm or "
        "an absolute value, or is a difference quotient"
    ),
    "symmetry": (
        "A is not Aᵀ: a custom derivative that is not the function's own, as in train-mode batch "
        "normalization, a product that is not a Hessian's, or matrix products in reduced precision"
    ),
}
FOLLOWS = "too large as well, which the cause above may explain"


class OperatorCheck(NamedTuple):
    """`symmetry = √n |uᵀAv − vᵀAu| / (‖Au‖ + ‖Av‖)`, and likewise, for random unit u and v.

    Each is zero up to rounding for a linear symmetric operator; NaN if the products are.

    Attributes:
        symmetry: as above; typically a third of ‖A − Aᵀ‖ / ‖A‖ (Frobenius), whatever the dimension.
        linearity: ‖A(u + cv) − Au − cAv‖ / (‖A(u + cv)‖ + ‖Au‖ + ‖cAv‖), with c = 64.
        repeatability: ‖Au − (Au again)‖ / ‖Au‖.
        tolerance: what rounding is taken to explain.
        nan: tree like the domain: whether a product held NaN or infinity in that leaf.
    """

    symmetry: jax.Array
    linearity: jax.Array
    repeatability: jax.Array
    tolerance: jax.Array
    nan: PyTree

    @property
    def ok(self) -> jax.Array:
        """Whether every defect is at most the tolerance: a boolean."""
        defects = jnp.stack([self.symmetry, self.linearity, self.repeatability])
        return jnp.all(defects <= self.tolerance)

    def report(self) -> str:
        """Returns a line for each property: its defect and, where too large, the likely cause."""
        paths = jax.tree_util.tree_leaves_with_path(self.nan)
        bad = [tree.path_name(path) or "the only leaf" for path, nan in paths if nan]
        lines = [f"defects up to {float(self.tolerance):.1e} are rounding"]
        if bad:
            lines.append(f"NaN or infinity in the products, in {', '.join(bad)}")
        first = True
        for name, remedy in REMEDIES.items():
            defect = getattr(self, name)
            line = f"{name} {float(defect):.1e}"
            if defect > self.tolerance:
                line += f": {remedy if first else FOLLOWS}"
                first = False
            lines.append(line)
        return "\n".join(lines)


def check_operator(A: Operator, *, key: jax.Array) -> OperatorCheck:
    """Returns how far A is from a linear and symmetric map that gives the same product twice.

    Call it from the host, not inside `jit`: there the products would become one program, in which
    nothing can change between them. The repeated product is traced anew, as a solver would, which
    shows Python state that compiled code has frozen. A is not changed, and nothing raises.

    Cost: 4 products and 8 trees of memory; compiles the product twice.

    Args:
        A: operator, or anything with a `domain` and `A @ v`.
        key: random key of u and v.

    Returns:
        An `OperatorCheck`: `.ok`, and `.report()` for what is wrong and its likely cause.

    Example:
        >>> import jax, jax.numpy as jnp, gradkit as gk
        >>> A = gk.Operator(lambda v: jnp.array([[2.0, 1.0], [0.0, 3.0]]) @ v, jnp.zeros(2))
        >>> check = gk.check_operator(A, key=jax.random.key(0))
        >>> bool(check.ok), bool(check.symmetry > 0.01), bool(check.linearity < 1e-5)
        (False, True, True)
    """
    leaves, structure = jax.tree.flatten(A.domain)
    u, v, w = _probes(key, leaves=tuple(leaves), structure=structure)
    Au, Av, Aw = A @ u, A @ v, A @ w
    # A new function object is a new trace: `A @ u` would run what was compiled before.
    traceable = isinstance(A, Operator) and A.traceable
    again = jax.jit(lambda A, u: A.matvec(u))(A, u) if traceable else A @ u
    return _defects((u, v), Au, Av, Aw, again)


@functools.partial(jax.jit, static_argnames=("leaves", "structure"))
def _probes(key: jax.Array, *, leaves: tuple, structure: Any) -> tuple[PyTree, PyTree, PyTree]:
    u, v = (tree.random_unit(k, structure.unflatten(leaves)) for k in jax.random.split(key))
    return u, v, tree.add_scaled(u, SCALE, v)


@jax.jit
def _defects(probes, Au: PyTree, Av: PyTree, Aw: PyTree, again: PyTree) -> OperatorCheck:
    u, v = probes
    leaves = jax.tree.leaves(u)
    n = sum(leaf.size for leaf in leaves)
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in leaves)
    asymmetry = jnp.abs(tree.inner(u, Av) - tree.inner(v, Au))
    Au_norm, Av_norm, Aw_norm = tree.norm(Au), tree.norm(Av), tree.norm(Aw)
    nonlinear = tree.norm(tree.add_scaled(optax.tree.sub(Aw, Au), -SCALE, Av))
    return OperatorCheck(
        symmetry=_relative(n**0.5 * asymmetry, Au_norm + Av_norm),
        linearity=_relative(nonlinear, Aw_norm + Au_norm + SCALE * Av_norm),
        repeatability=_relative(tree.norm(optax.tree.sub(Au, again)), Au_norm),
        tolerance=jnp.asarray(eps * (ROUNDINGS + n**0.5), Au_norm.dtype),
        nan=jax.tree.map(
            lambda *x: jnp.any(jnp.stack([~jnp.all(jnp.isfinite(y)) for y in x])), Au, Av, Aw, again
        ),
    )


def _relative(defect: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns defect / scale, for the zero operator 0, for a scale of zero otherwise infinity."""
    return jnp.where(defect == 0, 0, defect / scale)
