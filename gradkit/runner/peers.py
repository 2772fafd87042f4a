"""The processes of a job: what a command line says of them, and who looks after each.

Where another process has died, JAX may end this one from within its runtime, in which no Python can
speak. So a process of several is the child of one that outlives it, and says what happened.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from gradkit.runner import endings
from gradkit.runner.errors import UserError

HEARTBEAT = 30  # seconds of silence after which a process counts as dead
_LOOKED_AFTER = "GRADKIT_LOOKED_AFTER"  # the pipe that ends with the parent

VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "id": "JAX_PROCESS_ID",
}


@dataclasses.dataclass(frozen=True)
class Peers:
    """The processes of a job.

    Attributes:
        address: HOST:PORT at which the first of them listens; None for one alone.
        count: how many there are; None where none were asked for, and one device is enough.
        number: of this one.
    """

    address: str | None = None
    count: int | None = None
    number: int = 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return (self.count or 1) > 1


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which processes there are."""
    group = parser.add_argument_group("several processes or devices")
    group.add_argument(
        "--processes", metavar="N", help="how many there are; 1 for all devices of this machine"
    )
    group.add_argument("--id", metavar="I", help="the number of this one, from 0")
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where the first one listens for the others"
    )


def asked_for(parsed: argparse.Namespace) -> Peers:
    """Returns what the options say, or the environment where they do not.

    Raises:
        UserError: they do not say which processes there are.
    """
    at, address = _given(parsed, "coordinator")
    many, count = _given(parsed, "processes")
    which, number = _given(parsed, "id")
    if count is None:
        if address is not None or number is not None:
            name = which if address is None else at
            raise UserError(f"{name} is of one of several processes: say how many by --processes N")
        return Peers()
    n = _whole(many, count, least=1)
    if n > 1 and (address is None or number is None):
        missing = "--coordinator HOST:PORT" if address is None else f"--id, 0 to {n - 1},"
        raise UserError(f"{many} {n}: expected {missing} as well, for the processes to meet")
    i = 0 if number is None else _whole(which, number, least=0)
    if i >= n:
        raise UserError(f"{which}: expected 0 to {n - 1}, the number of this process, got {i}")
    if n > 1:
        host, _, port = str(address).rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise UserError(f"{at}: expected HOST:PORT, such as localhost:7000, got {address!r}")
    return Peers(address, n, i)


def _given(parsed: argparse.Namespace, option: str) -> tuple[str, Any]:
    value = getattr(parsed, option)
    variable = VARIABLES[option]
    return (variable, os.environ.get(variable)) if value is None else (f"--{option}", value)


def _whole(name: str, value: str, *, least: int) -> int:
    if not value.isdecimal() or int(value) < least:
        raise UserError(f"{name}: expected a whole number >= {least}, got {value!r}")
    return int(value)


def alone() -> bool:
    """Whether nobody looks after this process."""
    return _LOOKED_AFTER not in os.environ


def look_after(arguments: Sequence[str], peers: Peers) -> int:
    """Runs the command in a child, tells of an end that it cannot tell of, returns its status."""
    ends, held = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "gradkit.runner.cli", *arguments],
        env=os.environ | {_LOOKED_AFTER: str(ends)},
        pass_fds=(ends,),
        start_new_session=True,  # a Ctrl-C comes here, and is handed on once
    ) as child:
        os.close(ends)
        before = {
            number: signal.signal(number, lambda number, _: child.send_signal(number))
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        status = child.wait()
        for number, usual in before.items():
            signal.signal(number, usual)
    os.close(held)
    if status >= 0:
        return status
    who = f"process {peers.number} of {peers.count}"
    if -status == signal.SIGABRT:
        why = f"another process has died, or was not heard of for {HEARTBEAT} s"
        return endings.fail(f"{who} was ended by JAX: {why}; {GO_ON}")
    return endings.fail(f"{who} was ended by {signal.Signals(-status).name}; {GO_ON}", 128 - status)


GO_ON = (
    "start all of them again: `gradkit run --resume RUN` goes on from the last checkpoint, and "
    "`gradkit spectrum` from what was saved"
)


def end_with_parent() -> None:
    """Lets this process end when the one that looks after it does."""

    def wait(pipe: int) -> None:
        os.read(pipe, 1)
        os._exit(128 + signal.SIGKILL)

    pipe = int(os.environ[_LOOKED_AFTER])
    threading.Thread(target=wait, args=(pipe,), daemon=True).start()
