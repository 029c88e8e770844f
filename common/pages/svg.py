"""A drawn figure as an SVG element that stands in a page and follows its light and dark colours."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape

from matplotlib.figure import Figure

from beit.common.pages.pictures import FAINT, INK, PALETTE, PAPER

GRID = (228, 231, 235)


def hex_colour(colour: tuple[int, int, int]) -> str:
    """Write RGB as matplotlib and pages take it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


_PAGE_COLOURS = {INK: "ink", FAINT: "soft", GRID: "rule", PAPER: "paper"} | {
    colour: f"line{number}" for number, colour in enumerate(PALETTE)
}
"""What colours are called in `page.css`, where each has a light and a dark one."""


def svg_element(figure: Figure, size_px: tuple[int, int], description: str, series: Sequence[str] = ()) -> str:
    """Return a figure as an element in the colours of pages; `series` are names of lines, shown on hovering."""
    file = io.StringIO()
    with silent_about_letters():
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    head = f'<svg class="chart" viewBox="0 0 {size_px[0]} {size_px[1]}" role="img" aria-label="{escape(description)}">'
    svg = re.sub("^.*?<svg.*?>", lambda _: head, svg, count=1, flags=re.DOTALL)
    for number, name in enumerate(series):
        svg = svg.replace(f'<g id="series{number}">', f"<g><title>{escape(name)}</title>")
    # A page may hold several elements, whose ids must not meet, and is to refer to nothing.
    svg = re.sub('<metadata>.*?</metadata>|<defs>.*?</defs>| id="[^"]*"| clip-path="[^"]*"', "", svg, flags=re.DOTALL)
    for colour, name in _PAGE_COLOURS.items():
        svg = svg.replace(hex_colour(colour), f"var(--{name})")
    return svg


@contextmanager
def silent_about_letters() -> Iterator[None]:
    """Say nothing of letters that no font has; they are boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
