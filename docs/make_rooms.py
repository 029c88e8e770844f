"""Draw docs/rooms.svg: the rooms of common/, the doors beside them, the stages above, and who may import whom.

    python docs/make_rooms.py > docs/rooms.svg

Boxes are placed by hand; arrows come from the import table in tests/test_layout.py. Everything may import the loose
ground, and every room storage: those lie under all, without arrows. Overview may import everything below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from xml.sax.saxutils import escape

from beit.tests.test_layout import DOORS, GROUND, GROUND_ROOMS, ONE_NAME, ROOMS

WIDTH, HEIGHT, MARGIN, COLUMN, GAP, BOX_HEIGHT = 1116, 674, 20, 140, 16, 58
ROW = {
    "cli": 20,
    "stages": 88,
    "overview": 168,
    "training": 252,
    "doors": 354,
    "rooms": 468,
    "storage": 544,
    "ground": 610,
}
FLAT = ("cli", "overview", "storage", "ground")


class Box(NamedTuple):
    """A box in the grid of the picture."""

    row: str
    column: float
    columns: float
    title: str
    text: str


BOXES = {
    "cli": Box("cli", 0, 7, "cli.py", "a table of names; each stage's commands.py is imported when it runs"),
    "tokenize": Box("stages", 0, 2.3, "tokenize/", "survey, cutting, packing, store; tokenizers"),
    "pretrain": Box("stages", 2.3, 2.35, "pretrain/", "masks, objective, learning signal"),
    "finetune": Box("stages", 4.65, 2.35, "finetune/", "classifiers, probes, evaluation"),
    "overview": Box(
        "overview", 0, 7, "overview", "doctor, plan, report: commands that look at every room and door below"
    ),
    "training": Box("training", 3, 3.2, "training", "the loop, engine, optimizer"),
    "store": Box("doors", 0, 1, "store.py", "open_store"),
    "tokenizer": Box("doors", 1, 1, "tokenizer.py", "load_tokenizer"),
    "encoder": Box("doors", 2, 1, "encoder.py", "load_encoder"),
    "forecast": Box("doors", 3.55, 1, "forecast", "what a run takes"),
    "reading": Box("doors", 4.6, 1, "reading", "samples in order"),
    "runs": Box("doors", 5.85, 1, "runs", "a run's folder"),
    "shards": Box("rooms", 0, 1, "shards", "parts of a store"),
    "tokenizers": Box("rooms", 1, 1, "tokenizers", "pixels to words"),
    "vit": Box("rooms", 2, 1, "vit", "the transformer"),
    "sources": Box("rooms", 5, 1, "sources", "images; glance/"),
    "processes": Box("rooms", 4, 1, "processes", "ranks, workers"),
    "pages": Box("rooms", 6, 1, "pages", "charts, pages"),
    "storage": Box("storage", 0, 7, "storage", "files, places, locks, tars, documents: under every room"),
    "ground": Box("ground", 0, 3.4, "loose ground", ", ".join(sorted(GROUND - GROUND_ROOMS)) + ": under everything"),
    "images": Box(
        "ground",
        3.4,
        3.6,
        "images: under everything, too",
        "bytes to pixels: decode, range, channels, alpha; readers/, large/",
    ),
}
FILL = {"cli": "#e8eaee", "stages": "#d6e6f5", "doors": "#fdf3d7", "room": "#ffffff", "floor": "#eceff2"}

LEGEND = (
    "Below the stages: common/. An arrow: may import. Dashed: one name only.",
    "Stages may import all of common/, and never each other.",
    "Yellow: doors, the modules for code outside; views is the fourth.",
)


def position(box: Box) -> tuple[float, float, float, float]:
    """Return left, top, width and height in pixels."""
    left = MARGIN + box.column * (COLUMN + GAP)
    height = 44 if box.row in FLAT else BOX_HEIGHT
    return left, ROW[box.row], box.columns * (COLUMN + GAP) - GAP, height


def fill(name: str, box: Box) -> str:
    """Return the colour of a box by what it is."""
    if name in DOORS:
        return FILL["doors"]
    return FILL["room"] if name in ROOMS and name != "storage" else FILL.get(box.row, FILL["floor"])


def drawn(name: str, box: Box) -> Iterator[str]:
    """Yield the box and its words."""
    left, top, width, height = position(box)
    yield f'<rect x="{left:g}" y="{top}" width="{width:g}" height="{height}" rx="6" fill="{fill(name, box)}"/>'
    middle = left + width / 2
    baseline = top + height / 2
    yield f'<text x="{middle:g}" y="{baseline - 4:g}" class="name">{escape(box.title)}</text>'
    yield f'<text x="{middle:g}" y="{baseline + 13:g}" class="what">{escape(box.text)}</text>'


def arrow(start: str, end: str) -> str:
    """Return a line from the lower edge of a box to the upper edge of another, or to its right neighbour."""
    left, top, width, height = position(BOXES[start])
    end_left, end_top, end_width, _ = position(BOXES[end])
    if top == end_top:
        return f'<path d="M{left + width:g} {top + height / 2:g}L{end_left - 2:g} {top + height / 2:g}"/>'
    x, end_x = left + width / 2, end_left + end_width / 2
    # Arrows of one box leave and arrive a little apart, in the order of their other ends.
    lean = max(-1.0, min(1.0, (end_x - x) / (COLUMN + GAP)))
    x, end_x = x + lean * width / 4, end_x - lean * end_width / 4
    kind = ' class="one"' if (start, end) in ONE_NAME else ""
    return f'<path d="M{x:g} {top + height}L{end_x:g} {end_top - 2}"{kind}/>'


def main() -> Iterator[str]:
    """Yield the lines of the picture."""
    arrows = [
        (start, end)
        for start, ends in sorted((ROOMS | DOORS).items())
        for end in sorted(ends)
        if start != "overview" and end != "storage"
    ]
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif">'
    yield "<title>The rooms of beit, from above: cli, stages, overview, training, doors, rooms, storage, ground</title>"
    yield "<style>.name{font-size:14px;font-weight:600;fill:#1d2733}.what{font-size:12px;fill:#46525f}"
    yield "text{text-anchor:middle}rect{stroke:#9aa5b1}.one{stroke-dasharray:5 4}</style>"
    yield '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    yield '<path d="M0 0 10 5 0 10z" fill="#5b6672"/></marker></defs>'
    yield f'<path d="M0 0h{WIDTH}v{HEIGHT}H0z" fill="#fff"/>'
    yield '<g stroke="#5b6672" stroke-width="1.6" fill="none" marker-end="url(#a)">'
    yield from (arrow(start, end) for start, end in arrows)
    yield "</g>"
    for name, box in BOXES.items():
        yield from drawn(name, box)
    for line, text in enumerate(LEGEND):
        top = ROW["training"] + 4 + 18 * line
        yield f'<text x="{MARGIN}" y="{top}" class="what" style="text-anchor:start">{escape(text)}</text>'
    yield "</svg>"


if __name__ == "__main__":
    print("\n".join(main()))
