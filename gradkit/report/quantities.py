"""Numbers as text: rounded to what is known, with a true minus sign and thousands apart."""

from __future__ import annotations

import math
from typing import Any

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def finite(value: Any) -> float | None:
    """The value as a float, or None when it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def number(value: Any, digits: int = 3) -> str:
    """A number to so many significant digits; an integer in full; `–` when it is not finite."""
    known = finite(value)
    if known is None:
        return "–"
    if isinstance(value, int) and abs(value) < 10**9:
        return _minus(f"{value:,}")
    if known == 0:
        return "0"
    exponent = math.floor(math.log10(abs(known)))
    if -4 <= exponent < 6:
        return _minus(_trimmed(f"{known:,.{max(0, digits - 1 - exponent)}f}"))
    mantissa, _, power = f"{known:.{digits - 1}e}".partition("e")
    return _minus(f"{_trimmed(mantissa)}×10{superscript(int(power))}")


def percent(value: Any, digits: int = 3) -> str:
    """A share of one, in percent."""
    known = finite(value)
    return "–" if known is None else f"{number(100 * known, digits)} %"


def seconds(value: Any) -> str:
    """A duration in seconds, minutes or hours."""
    known = finite(value)
    if known is None:
        return "–"
    if known < 120:
        return f"{number(known, 2 if known < 10 else 3)} s"
    minutes, rest = divmod(round(known), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def with_error(value: Any, error: Any, digits: int = 2) -> str:
    """A value and its error, both to so many digits of the error."""
    known, spread = finite(value), finite(error)
    if known is None or spread is None:
        return f"{number(value, 6)} (error not known)"
    if spread == 0:
        return f"{number(known, 9)} ± 0"
    decimals = digits - 1 - math.floor(math.log10(spread))
    size = math.floor(math.log10(abs(known))) if known else 0
    if decimals < 0 or decimals > 10 or size > 9:
        return f"{number(known, max(2, min(12, size + decimals + 1)))} ± {number(spread, digits)}"
    return _minus(f"{known:,.{decimals}f} ± {spread:,.{decimals}f}")


def tick(value: float) -> str:
    """A tick label: plain from 0.0001 up to a million, a power of ten elsewhere."""
    if value == 0:
        return "0"
    if 1e4 <= abs(value) <= 1e6:
        return _minus(f"{value:,.10g}")
    if 0.99e-4 < abs(value) < 1e4:
        return _minus(f"{value:.10g}")
    mantissa, _, power = f"{value:.10e}".partition("e")
    digits = _trimmed(mantissa)
    sign = "-" if digits.startswith("-") else ""
    front = sign if digits.lstrip("-") == "1" else f"{digits}×"
    return _minus(f"{front}10{superscript(int(power))}")


def superscript(power: int) -> str:
    """An exponent, raised."""
    return str(power).translate(_SUPERSCRIPTS)


def _trimmed(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _minus(text: str) -> str:
    return text.replace("-", "−")
