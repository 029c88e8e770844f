"""A section of a report, and the parts it is made of, which the templates in `sections.html` draw.

What stands in them is `sections.py` and what it calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit.common.overview.report.run_files import RunFiles
from beit.common.pages.html_page import Html, part

_TEMPLATE = Path(__file__).with_name("sections.html")


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """What stands under one heading of a report."""

    title: str
    """Heading, and entry in the list of contents."""
    anchor: str
    """What links name it by; one word, or several with hyphens."""
    parts: tuple[Html, ...]
    """One below the other; a section without any is left out."""


def text(value: str) -> Html:
    """Return a paragraph; what stands between backticks is set as code."""
    return part(_TEMPLATE, "text", value=value)


def heading(value: str) -> Html:
    """Return a heading inside a section."""
    return part(_TEMPLATE, "heading", value=value)


def keys(runs: Sequence[RunFiles]) -> tuple[Html, ...]:
    """Say which run has which colour; nothing where there is one run."""
    return (part(_TEMPLATE, "keys", runs=runs),) if len(runs) > 1 else ()


def charts(figures: Sequence[tuple[str, str, str]]) -> Html:
    """Return charts beside and below each other: title, SVG element and what is to be said of it."""
    return part(_TEMPLATE, "charts", figures=figures)


def table(
    name: str,
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    kind: str = "stack",
    caption: str = "",
) -> Html:
    """Return a table; the first cell of a row is its heading.

    Args:
        name: For those who do not see it.
        titles: Of the columns.
        rows: Cells; what stands between backticks is set as code.
        numbers: Titles of columns of numbers.
        kind: Class of its style: "stack" becomes a list on a phone, "many" is moved sideways.
        caption: Above it.
    """
    values: dict[str, Any] = {"name": name, "titles": titles, "rows": rows, "numbers": numbers}
    return part(_TEMPLATE, "table", **values, kind=kind, caption=caption)


def fact_list(rows: Sequence[tuple[str, str]]) -> Html:
    """Return names and values below each other."""
    return part(_TEMPLATE, "fact_list", rows=rows)


def folded(summary: str, parts: Sequence[Html]) -> Html:
    """Return parts that are shown when their summary is clicked on."""
    return part(_TEMPLATE, "folded", summary=summary, parts=parts)


def chain(steps: Sequence[Any]) -> Html:
    """Return the steps from images to model, as `provenance.py` makes them."""
    return part(_TEMPLATE, "chain", steps=steps)
