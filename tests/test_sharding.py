"""Sharded parameters, in both of JAX's modes, on eight virtual devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("sharded.py")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["optimizers", "transforms", "spectra", "networks", "curvatures"])
@pytest.mark.parametrize("mode", ["Auto", "Explicit"])
def test_it_is_as_on_one_device(mode, part):
    """Devices must be asked for before JAX is imported."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    virtual = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), mode, part],
        env={**os.environ, **virtual},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "done\n", done.stdout + done.stderr[-3000:]
