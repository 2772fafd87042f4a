"""What the learning rate of a run says of the curvature it can bear."""

from __future__ import annotations

from typing import Any

from gradkit.runner.members import Member, Schedule
from gradkit.spectra.step_sizes import stability_limit

DESCENTS = {"sgd", "optax.sgd", "nesterov"}


def stability(members: tuple[Member, ...]) -> dict[str, Any]:
    """Returns the largest eigenvalue at which a run's gradient descent is stable, where one is.

    On a quadratic, descent on the full batch at a constant rate η diverges along eigenvectors whose
    eigenvalue exceeds 2/η; with momentum μ it is 2 (1 + μ) / η, with Nesterov momentum, whose
    modes follow r² − (1 + μ)(1 − η λ) r + μ (1 − η λ) = 0, it is 2 (1 + μ) / ((1 + 2 μ) η).

    Source: Polyak (1964); Cohen et al. (2021), "Gradient descent on neural networks typically
    occurs at the edge of stability", appendix B.

    Args:
        members: the optimizer of the config.

    Returns:
        `threshold` [loss/param²], None where the run has none, `formula` for it, and `words` that
        say how it comes about, or why there is none.
    """
    member, *others = members
    if others or member.name not in DESCENTS:
        names = ", ".join(m.name for m in members)
        return _none(
            f"{names} is not plain gradient descent: no single eigenvalue of the Hessian bounds "
            "its learning rate"
        )
    nesterov = member.name == "nesterov" or bool(member.arguments.get("nesterov"))
    rate = member.arguments.get("learning_rate", 1e-2)  # gradkit's default; optax has none
    momentum = member.arguments.get("momentum", 0.9 if member.name == "nesterov" else None) or 0.0
    if isinstance(rate, Schedule) or isinstance(momentum, Schedule):
        return _none("the learning rate or the momentum changes during the run")
    if not rate > 0 or not 0 <= momentum < 1:
        return _none(f"a learning rate of {rate:g} with momentum {momentum:g} has none")
    threshold, formula = float(stability_limit(rate, momentum=momentum)), "2/η"
    words = f"η = {rate:g}"
    if momentum:
        formula, words = "2(1 + μ)/η", f"{words}, μ = {momentum:g}"
    if momentum and nesterov:
        formula, threshold = "2(1 + μ)/((1 + 2μ)η)", threshold / (1 + 2 * momentum)
    return {"threshold": threshold, "formula": formula, "words": words}


def _none(why: str) -> dict[str, Any]:
    return {"threshold": None, "formula": None, "words": why}
