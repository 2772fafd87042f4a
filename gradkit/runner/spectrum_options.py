"""The options of `gradkit spectrum`, and which of them go together."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from gradkit.runner import peers
from gradkit.runner.errors import UserError


def add(commands: Any, action: Callable[..., int]) -> None:
    """Adds the command to those of a parser."""
    spectrum = commands.add_parser(
        "spectrum",
        help="Hessian spectrum of a trained model",
        usage="gradkit spectrum RUN [RUN ...] [--checkpoint STEP] [options]\n"
        "       gradkit spectrum --task FILE.py:FUNCTION [--params FILE] [--out FOLDER] [options]",
    )
    spectrum.add_argument("runs", nargs="*", metavar="RUN", help="run folders, or folders of them")
    add = spectrum.add_argument
    add(
        "--checkpoint",
        type=_step,
        metavar="STEP",
        help="a step, 0 the start; all, best; last by default",
    )
    add("--task", metavar="FILE.py:FUNCTION", help="returns (problem, params, batch)")
    add("--params", metavar="FILE", help="parameters: an .npz file, or a folder of orbax")
    add("--out", metavar="FOLDER", help="folder for --task; spectra/NAME by default")
    add("--operator", choices=_OPERATORS, default="hessian", help="the Hessian by default")
    add("--likelihood", choices=_LIKELIHOODS, help="of the outputs, for fisher with --task")
    add("--blocks", action="store_true", help="the diagonal block of each layer as well")
    add("--top", type=_count, metavar="K", help="largest eigenvalues to find")
    add("--bottom", type=_count, metavar="K", help="smallest eigenvalues to find")
    add("--density", action=argparse.BooleanOptionalAction, default=True, help="on by default")
    add("--data", type=_data, metavar="PART", help="train, test, training, or N examples, drawn")
    add("--micro-batch", type=_count, metavar="N", help="most examples in memory at a time")
    add("--memory-limit", type=_bytes, metavar="SIZE", help="of its vectors and products: 8GB")
    peers.add(spectrum)
    spectrum.set_defaults(action=action, parser=spectrum)


_OPERATORS = ("hessian", "gauss_newton", "fisher", "empirical_fisher")
_PARTS = ("train", "test", "training")
_LIKELIHOODS = ("categorical", "bernoulli", "normal")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)


def _bytes(text: str) -> float:
    size = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+) ?([kMGT]?)B", text)
    if size is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 8GB or 500MB, got {text!r}")
    return float(size[1]) * 1000.0 ** ("", *"kMGT").index(size[2])


def _step(text: str) -> str:
    if text not in ("last", "all", "best") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a step, all, best or last, got {text!r}")
    return text


def _data(text: str) -> str:
    if text not in _PARTS and not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"expected {', '.join(_PARTS)} or a number of examples, got {text!r}"
        )
    return text


def check(parsed: argparse.Namespace) -> None:
    """Refuses options that do not go together."""
    if len(parsed.runs) > 1 and peers.asked_for(parsed).count is not None:
        raise UserError(
            f"--processes: look at one RUN at a time, not at {len(parsed.runs)}: the runs of a "
            "sweep are faster one by one than split"
        )
    if bool(parsed.runs) == (parsed.task is not None):
        got = "both" if parsed.runs else "neither"
        raise UserError(
            f"spectrum: expected a RUN folder or --task FILE.py:FUNCTION, got {got}; name one"
        )
    if parsed.task is not None:
        if parsed.checkpoint is not None:
            raise UserError(
                "--checkpoint is for a RUN; a task's parameters are named by --params: drop "
                "--checkpoint"
            )
        if parsed.data in _PARTS:
            raise UserError(
                f"--data {parsed.data} is for a RUN: a task returns one batch, of which --data N "
                "draws N examples"
            )
        return
    for name in ("params", "out", "likelihood"):
        if getattr(parsed, name) is not None:
            raise UserError(f"--{name} goes with --task, not with a RUN: drop --{name}")
