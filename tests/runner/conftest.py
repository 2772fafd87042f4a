"""What several tests of the runner need."""

import signal

import numpy as np
import pytest


@pytest.fixture
def default_interrupts():
    """Ctrl-C as on a terminal, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    """90 examples with 4 features in 3 classes, as a file."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(path, x=rng.normal(size=(90, 4)) + 2 * np.eye(4)[y], y=y)
    return str(path)
