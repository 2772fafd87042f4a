"""Figures about the updates that pass, for the log."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradkit import tree
from gradkit.core import needs_params
from gradkit.transforms.link import Link, link, transformation
from gradkit.transforms.norms import scaled_norm


class MonitorState(NamedTuple):
    """Norms over all leaves: of the updates, and of the parameters before them."""

    update_norm: jax.Array
    param_norm: jax.Array

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes both and their ratio."""
        ratio = self.update_norm / jnp.where(self.param_norm == 0, 1, self.param_norm)
        return {**self._asdict(), "update_to_weight": ratio}


@transformation
def monitor() -> Link:
    """Publishes the norm of the updates and their ratio to the parameters; they pass as they are.

    At the end of a chain these are the steps: a ratio near 1e-3 is usual, one near 1 a rate that is
    too high. Other members publish what they know anyway; this one costs, and only where it is.

    Cost: one pass over the updates and one over the parameters.

    Raises:
        ValueError: `update` was called without the parameters.
    """

    def init(params, step):
        dtype = tree.scalar_dtype(params)
        return MonitorState(jnp.zeros((), dtype), jnp.zeros((), dtype))

    def update(updates, state, params, h, **_):
        needs_params(params, member="monitor")
        dtype = state.update_norm.dtype
        norms = (scaled_norm(a).value.astype(dtype) for a in (updates, params))
        return updates, MonitorState(*norms)

    return link(init, update)
