"""What a command says at its end, and its exit status."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOST = "another process of this job has died or was stopped"


def fail(message: str, status: int = 2) -> int:
    """Says what went wrong and returns the exit status."""
    print(f"gradkit: {message}", file=sys.stderr)
    return status


def resumable(folder: Path, work: Callable[[], int]) -> int:
    """Does some work on a run; where it is cut short, tells how to go on."""
    try:
        return work()
    except KeyboardInterrupt as error:
        message, status = "interrupted", signaled(error)
    except OSError as error:  # a full disk
        message, status = refusal(error), 2
    except Exception as error:
        if not lost(error):
            raise
        message, status = LOST, 2
    begun = (folder / "config.yaml").is_file()  # without the imports that may have been cut
    words = f"; go on by gradkit run --resume {shlex.quote(str(folder))}" if begun else ""
    return fail(f"{message}{words}", status)


def lost(error: Exception) -> bool:
    """Whether an error of JAX says that another process is gone."""
    return any(word in str(error) for word in ("Gloo", "NCCL", "CoordinationService"))


def signaled(error: KeyboardInterrupt) -> int:
    """The exit status of a command that a signal has ended."""
    return 128 + (error.args or (signal.SIGINT,))[0]


def refusal(error: OSError) -> str:
    """What the system would not do."""
    return f"{error.filename or 'the system refuses'}: {error.strerror or error}"


def status(summary: dict[str, Any]) -> int:
    """The exit status of a run that has ended."""
    return 1 if summary["status"] == "diverged" else 0


def tell(page: Path, summary: dict[str, Any]) -> int:
    """Says how a run has ended and returns the exit status."""
    if status(summary):
        return fail(
            f"the loss became NaN or infinite by step {summary['steps']}. Lower "
            f"optimizer.learning_rate or clip the gradient; what happened is in {page}",
            status(summary),
        )
    names = [key for key, end in summary.items() if key.startswith("test_") and end is not None]
    names.sort(key=lambda name: "accuracy" not in name)
    ends = ", ".join(f"{name.replace('_', ' ')} {summary[name]:.4g}" for name in names)
    spent = f"{summary['steps']} steps in {summary['seconds']:.1f} s"
    print(f"{ends or 'finished'} after {spent}\n{page}")
    if best := summary.get("best"):
        figures = {best["metric"]: best["value"], **best}
        words = [
            f"{name.replace('_', ' ')} {value:.4g}"
            for name, value in figures.items()
            if name not in ("metric", "value", "step") and value is not None
        ]
        print(f"best, kept in best/: {', '.join(words)} at step {best['step']}")
    return 0
