"""What several tests of the runner need."""

import signal

import pytest


@pytest.fixture
def default_interrupts():
    """Ctrl-C as on a terminal, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
