"""Where the arrays of a run lie: on one device, or split over those of all processes."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gradkit import tree
from gradkit.processes import of_all
from gradkit.runner.errors import UserError
from gradkit.runner.peers import HEARTBEAT, Peers

PyTree = Any

PATIENCE = 120  # seconds to wait for the other processes at the start


@dataclasses.dataclass(frozen=True)
class Devices:
    """One axis of devices, over which examples are split; all else is on each of them.

    Attributes:
        mesh: of that axis; None for a single device, on which all of this does nothing.
    """

    mesh: jax.sharding.Mesh | None = None

    @property
    def count(self) -> int:
        """How many devices there are."""
        return 1 if self.mesh is None else self.mesh.size

    def on_each(self, arrays: PyTree) -> PyTree:
        """Returns a tree of which every device holds all."""
        if (everywhere := self.everywhere) is None:
            return arrays

        def leaf(x):
            if tree.is_key(x):
                data = leaf(jax.random.key_data(x))
                return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, everywhere, lambda index: x[index])

        return jax.tree.map(leaf, arrays)

    @property
    def everywhere(self) -> NamedSharding | None:
        """The sharding of an array that every device holds."""
        return None if self.mesh is None else NamedSharding(self.mesh, P())

    def read(self, array: np.ndarray, rows: np.ndarray) -> jax.Array:
        """Returns `array[rows]`, split by the last axis of `rows`.

        Each process reads its own part of the array. Where the rows cannot be split evenly, some
        come twice: `exactly` leaves those out.
        """
        if self.mesh is None:
            return jax.device_put(array[rows])
        axes = rows.ndim
        more = [(0, 0)] * (axes - 1) + [(0, -rows.shape[-1] % self.mesh.size)]
        rows = np.pad(rows, more, mode="wrap")
        sharding = NamedSharding(self.mesh, P(*[None] * (axes - 1), *self.mesh.axis_names))
        shape = rows.shape + array.shape[1:]

        def part(index):
            return array[rows[(index or ())[:axes]]]

        return jax.make_array_from_callback(shape, sharding, part)

    def exactly(self, arrays: PyTree, examples: int) -> PyTree:
        """Returns the first so many examples, within compiled code.

        They stay split, unevenly if need be: XLA pads them, and leaves the padding out of sums.
        """
        if self.mesh is None:
            return arrays
        split = NamedSharding(self.mesh, P(*self.mesh.axis_names))

        def cut(x):
            return jax.lax.with_sharding_constraint(x[:examples], split)

        return jax.tree.map(cut, arrays)


ONE = Devices()


def joined(peers: Peers) -> Devices:
    """Joins the processes of a job, and returns the devices of all of them.

    Raises:
        UserError: they do not meet.
    """
    if peers.count is None:
        return ONE
    if peers.several:
        jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
        try:
            with _said_to_stderr():
                jax.distributed.initialize(
                    peers.address,
                    peers.count,
                    peers.number,
                    cluster_detection_method="deactivate",
                    initialization_timeout=PATIENCE,
                    heartbeat_timeout_seconds=HEARTBEAT,
                )
                of_all(0)  # connects them
        except RuntimeError as error:
            raise UserError(
                f"process {peers.number} of {peers.count} did not meet the others at "
                f"{peers.address} within {PATIENCE} s ({str(error).splitlines()[0]}). Start all of "
                "them together, with the same --coordinator: a host that all reach, a free port"
            ) from error
    return Devices(jax.make_mesh((jax.device_count(),), ("examples",), (AxisType.Auto,)))


@contextlib.contextmanager
def _said_to_stderr() -> Iterator[None]:
    """Sends there what libraries print, so that standard output has our results alone."""
    sys.stdout.flush()
    usual = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(usual, 1)
        os.close(usual)
