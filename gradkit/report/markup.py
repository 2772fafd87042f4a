"""The parts that a page is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from gradkit.report.style import STYLE
from gradkit.runner.record import Record

# The page can load nothing, whatever a record holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def document(
    title: str, parts: Sequence[str], about: str = "gradkit", *, style: str = "", policy: str = ""
) -> str:
    """A page of parts, which are HTML; empty ones are left out.

    Args:
        title: of the page, as text.
        parts: in order.
        about: what made it, for programs to read.
        style: CSS of its own.
        policy: what it may load besides: a policy for its own script.
    """
    policies = "; ".join(filter(None, (_POLICY, policy)))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" content="{about}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policies}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n{style}</style>\n</head>\n"
        "<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def footer(record: Record) -> str:
    """What made a record, and that the page is all there is."""
    version = record.env.get("gradkit")
    made = f"gradkit {version}" if version else "gradkit"
    return f"<footer>Made with {escape(made)}; this page holds all of its figures.</footer>"


def section(title: str, content: str) -> str:
    """A section under its title; `content` is HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}</section>"


def figure(
    drawn: Mapping[str, str], name: str, words: str, caption: str, *, wide: bool = False
) -> str:
    """A figure of the record; empty when there is none of that name.

    Args:
        drawn: figures as `<svg>` elements by name.
        name: which.
        words: what it shows, for those who do not see it.
        caption: beneath it.
        wide: whether it scrolls on a narrow page instead of shrinking.
    """
    if name not in drawn:
        return ""
    label = escape(words, quote=True)
    svg = drawn[name].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    inner = scroll(f"{name.capitalize()} figure", svg, wide=True) if wide else svg
    return f"<figure>\n{inner}<figcaption>{escape(caption)}</figcaption>\n</figure>\n"


def scroll(label: str, content: str, *, wide: bool = False) -> str:
    """A box that scrolls by itself when its content is wider than the page, by keyboard too."""
    kind = "scroll wide" if wide else "scroll"
    return (
        f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(label)}">\n'
        f"{content}\n</div>\n"
    )


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table of texts; its first column names the rows, and after `words` columns come numbers."""

    def cells(row: Sequence[str], tag: str, left: range) -> str:
        return "".join(
            f"<{tag}>{escape(text)}</{tag}>"
            if column in left
            else f'<{tag} class="number">{escape(text)}</{tag}>'
            for column, text in enumerate(row)
        )

    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{cells(rest, "td", range(words - 1))}</tr>\n'
        for first, *rest in rows
    )
    return scroll(
        caption,
        f"<table><caption>{escape(caption)}</caption>\n"
        f"<thead><tr>{cells(head, 'th', range(words))}</tr></thead>\n"
        f"<tbody>\n{body}</tbody></table>",
    )
