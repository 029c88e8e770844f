"""A page as its reader meets it: elements, texts and tables, for tests of what pages are made of."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = {"meta", "img", "br"}
_HIDDEN = {"style", "title"}


class PageParts(HTMLParser):
    """What is in a page.

    Args:
        html: The page; its elements must be closed in order.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.loose_tables = 0
        self.text = ""
        self.feed(_without_breaks(html))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take an element in."""
        found = (tag, dict(attrs))
        self.elements.append(found)
        if tag == "table" and not any(values.get("class") == "scroll" for _, values in self.open):
            self.loose_tables += 1
        if tag not in _VOID:
            self.open.append(found)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take an element in that is closed at once, as in SVG."""
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close the element that was opened last."""
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        """Take a text in."""
        if not any(tag in _HIDDEN for tag, _ in self.open):
            self.text += f"{data} "

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element of a kind."""
        return [values for name, values in self.elements if name == tag]

    def check(self, *, hidden: str = "") -> None:
        """Hold what holds for every page; `hidden` is a folder that it must not name."""
        assert not self.loose_tables, "a table that is wider than a phone can be moved and says so"
        regions = [values for values in self.of("div") if values.get("class") == "scroll"]
        assert all(values["role"] == "region" and values["tabindex"] == "0" for values in regions)
        assert all(values["aria-label"] for values in regions)
        assert all(values.get("alt") for values in self.of("img"))
        assert all(values.get("aria-label") for values in self.of("svg"))
        assert all(values.get("scope") for values in self.of("th"))
        assert [values["lang"] for values in self.of("html")] == ["en"]
        assert not re.search(r"\d%", self.text), "a percent sign stands apart from its number"
        assert " %" not in self.text.replace("\u00a0%", ""), "and never at the beginning of a line"
        assert not hidden or hidden not in self.text


def _without_breaks(html: str) -> str:
    """Take out what only says where a line may be broken, which no reader sees."""
    html = html.replace("<wbr>", "")
    html = re.sub(r'<code class="line">(.*?)</code>', lambda found: re.sub("</?span>", "", found[0]), html)
    return re.sub('<span class="ending">(.*?)</span>', r"\1", html)
