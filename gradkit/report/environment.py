"""Where and with what runs were made."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape
from typing import Any

from gradkit.report.markup import scroll, section
from gradkit.report.quantities import number
from gradkit.runner.record import ENV, Record


def environment(record: Record) -> str:
    """The section with all that `env.json` says."""
    return section("Environment", environment_table(record))


def environment_table(record: Record) -> str:
    """The table of all that `env.json` says."""
    if not record.env:
        return f"<p>{ENV} is missing.</p>\n"
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{_cell(name, value)}</td></tr>\n'
        for name, value in record.env.items()
    )
    return scroll(
        "Environment",
        f"<table><caption>Where and with what this was made</caption>\n<tbody>\n"
        f"{rows}</tbody></table>",
    )


def _cell(name: str, value: Any) -> str:
    if name == "command" and isinstance(value, list):
        return f"<code>{escape(shlex.join(map(str, value)))}</code>"
    if isinstance(value, dict):
        return "<br>".join(f"{escape(str(key))} {_inline(item)}" for key, item in value.items())
    return _inline(value)


def _inline(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = escape("not known" if value is None else str(value))
        return f"<code>{text}</code>" if len(text) > 30 else text
    return escape(number(value, 6))


def differences(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """What runs do not have in common but for their commands: of how many runs each value is."""
    flat = [_flat(record.env) for record in records]
    found = {}
    for name in dict.fromkeys(name for one in flat for name in one):
        values = [_text(one.get(name)) for one in flat]
        if len(set(values)) > 1:
            found[name] = {value: values.count(value) for value in dict.fromkeys(values)}
    return found


def _flat(env: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in env.items():
        if isinstance(value, dict):
            found |= {f"{name}.{key}": item for key, item in value.items()}
        elif name != "command":
            found[name] = value
    return found


def _text(value: Any) -> str:
    return "not known" if value is None else str(value)
