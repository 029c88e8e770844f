"""Pictures of a report: the sheets in RUN and RUN/pictures, set anew for a page, and how they came about over time.

What draws them are the trainings and `beit show` (`drawing.py`). A sheet says itself what it consists of
(`beit.common.pages.cells`); one of before, which does not, is shown as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from beit.common.errors import InputError
from beit.common.overview.report.run_files import RunFiles
from beit.common.overview.report.section import Section, heading
from beit.common.pages.cells import Box, Grid, described, read_sheet
from beit.common.pages.html_page import Html, data_uri, part, photo_uri
from beit.common.runs.layout import PICTURES
from beit.common.runs.over_time import moments
from beit.common.storage.documents import read_json

SLOTS = ("reconstruction", "predictions", "mistakes", "words", "attention", "masks")
"""Sheets by the names of their files, in the order in which they are shown."""
CONFUSION = "confusion.json"
"""In RUN/pictures: a table of what is taken for what, as `parts.html` shows it."""
_TEMPLATE = Path(__file__).with_name("pictures.html")
_SWATCH_PX = 32
"""Pictures at most as high are the colours of a legend."""
_MOST_ROWS, _MOST_FLOWING = 8, 24
"""Of pictures over time, which are many; of a sheet whose pictures stand for themselves. Arbitrary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A picture of a page."""

    uri: str
    """Its bytes."""
    name: str
    """For those who do not see it."""
    width: int
    height: int
    caption: str = ""
    """Below it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Pictures beside each other."""

    cells: Sequence[Cell | None]
    label: str = ""
    """On their left."""


def picture_section(runs: Sequence[RunFiles], drawn: Mapping[Path, Mapping[str, Path]] | None = None) -> Section:
    """Return the section of all pictures that there are.

    Args:
        runs: Of the page.
        drawn: Files of sheets by run and name, where others than those in the run are to be shown.
    """
    parts: list[Html] = []
    for run in runs:
        own = [*_pictures_of(run.path, (drawn or {}).get(run.path, {}))]
        if own and len(runs) > 1:
            parts.append(heading(run.name))
        parts += own
    return Section(title="Pictures", anchor="pictures", parts=tuple(parts))


def sheet_files(run: Path) -> dict[str, Path]:
    """Return the sheets that a run has, by name; the newest where it draws them again and again."""
    files = {name: (run / f"{name}.png", run / PICTURES / f"{name}.png") for name in SLOTS}
    return {
        name: next(file for file in both if file.is_file())
        for name, both in files.items()
        if any(map(Path.is_file, both))
    }


def _pictures_of(run: Path, drawn: Mapping[str, Path]) -> Iterator[Html]:
    kept, files = moments(run), {**sheet_files(run), **drawn}
    for name in SLOTS:
        shown = _over_time(kept.get(name, {}))
        if shown is None and name in files:
            shown = _shown(files[name])
        if shown is not None:
            yield shown
        table = _confusion(run / PICTURES / CONFUSION) if name == "mistakes" else None
        if table is not None:
            yield table


def _shown(file: Path) -> Html | None:
    """Set a sheet anew; None where the file is no picture."""
    image = _read(file)
    if image is None:
        return None
    what = described(image)
    whole = what.heading or file.stem.capitalize()
    bodies = [_body(image, body, whole, is_known=bool(what.heading)) for body in what.bodies]
    return part(_TEMPLATE, "sheet", heading=whole, facts=what.facts, legend=what.legend, bodies=bodies)


def _read(file: Path) -> Image.Image | None:
    try:
        return read_sheet(file)
    except (OSError, ValueError, SyntaxError):  # what Pillow says of files that are none
        return None


def _body(image: Image.Image, body: Grid, name: str, *, is_known: bool) -> Html:
    first = body.boxes[0][0]
    if len(body.boxes) == len(body.boxes[0]) == 1 and not body.titles and not body.captions and first is not None:
        # A chart on paper; of a sheet that says nothing of itself nobody knows what it is.
        return part(_TEMPLATE, "drawing", cell=_drawn(image, first, name), kind="drawn chart" if is_known else "drawn")
    rows = _rows(image, body)
    if body.titles or body.labels:
        return part(_TEMPLATE, "grid", name=name, titles=body.titles, rows=rows)
    cells = [cell for row in rows for cell in row.cells if cell is not None]
    if all(cell.height <= _SWATCH_PX for cell in cells):
        return part(_TEMPLATE, "colours", cells=cells)
    return part(_TEMPLATE, "flow", cells=cells[:_MOST_FLOWING])


def _rows(image: Image.Image, body: Grid) -> list[Row]:
    rows = []
    for number, boxes in enumerate(body.boxes):
        label = body.labels[number] if body.labels else ""
        cells = [
            None if box is None else _cell(image, box, _name(body, number, column), _caption(body, number, column))
            for column, box in enumerate(boxes)
        ]
        rows.append(Row(cells=cells, label=label))
    return rows


def _caption(body: Grid, row: int, column: int) -> str:
    return body.captions[row][column] if row < len(body.captions) and column < len(body.captions[row]) else ""


def _name(body: Grid, row: int, column: int) -> str:
    """Say what a picture is, for those who do not see it."""
    title = body.titles[column] if column < len(body.titles) else "picture"
    return f"{title}, row {row + 1}"


def _cell(image: Image.Image, box: Box, name: str, caption: str = "") -> Cell:
    cut = image.crop(box)
    cut.info.clear()
    return Cell(uri=photo_uri(cut), name=name, width=cut.width, height=cut.height, caption=caption)


def _drawn(image: Image.Image, box: Box, name: str) -> Cell:
    """Return a chart, whose letters a JPEG would blur."""
    cut = image.crop(box)
    cut.info.clear()
    return Cell(uri=data_uri(cut), name=name, width=cut.width, height=cut.height)


# Over time


def _over_time(files: Mapping[int, Path]) -> Html | None:
    """Set beside each other what changed from moment to moment; None where there are not two that can be compared."""
    read = {step: image for step, file in files.items() if (image := _read(file)) is not None}
    if not read:
        return None
    newest = max(read)
    what = described(read[newest])
    boxes = [body.boxes for body in what.bodies]
    alike = {
        step: image for step, image in sorted(read.items()) if [body.boxes for body in described(image).bodies] == boxes
    }
    grid = next((body for body in what.bodies if body.titles or len(body.boxes[0]) > 1), None)
    if len(alike) < 2 or grid is None or not what.heading:
        return None
    strips = [*_strips(grid, alike)]
    if not strips:
        return None
    chosen = np.unique(np.linspace(0, len(strips) - 1, _MOST_ROWS).round().astype(int)).tolist()
    titles = strips[0][0] if grid.titles else [""] * strips[0][1] + [f"step {step:,}" for step in alike]
    rows = [strips[number][2] for number in chosen]
    body = part(_TEMPLATE, "grid", name=f"{what.heading}, over time", titles=titles, rows=rows)
    return part(
        _TEMPLATE,
        "sheet",
        heading=f"{what.heading}, over time",
        facts=f"The same pictures after {_steps_in_words(list(alike))} steps.",
        legend=what.legend,
        bodies=[body],
    )


def _steps_in_words(steps: Sequence[int]) -> str:
    *others, last = [f"{step:,}" for step in steps]
    return f"{', '.join(others)} and {last}"


def _strips(grid: Grid, images: Mapping[int, Image.Image]) -> Iterator[tuple[list[str], int, Row]]:
    """Yield, for each place whose picture changes, what stands beside it and how it came about.

    Beside it: what stands still on its left, and, of the last such place of a row, on its right.

    Yields:
        Titles, how many pictures stand on the left, and the pictures.
    """
    newest = images[max(images)]
    for number, boxes in enumerate(grid.boxes):
        moving = [column for column, box in enumerate(boxes) if box is not None and _moves(images, box)]
        start = 0
        for column in moving:
            end = len(boxes) if column == moving[-1] else column + 1
            still = [place for place in range(start, end) if place != column and boxes[place] is not None]
            left, right = [p for p in still if p < column], [p for p in still if p > column]
            titles = [
                *(_title(grid, place) for place in left),
                *(f"step {step:,}" for step in images),
                *(_title(grid, place) for place in right),
            ]
            cells = [_still(newest, grid, number, place) for place in left]
            cells += [
                _cell(image, boxes[column], f"{_name(grid, number, column)}, step {step}")  # type: ignore[arg-type]
                for step, image in images.items()
            ]
            cells += [_still(newest, grid, number, place) for place in right]
            yield titles, len(left), Row(cells=cells, label=grid.labels[number] if grid.labels else "")
            start = column + 1


def _still(image: Image.Image, grid: Grid, row: int, column: int) -> Cell:
    box = grid.boxes[row][column]
    assert box is not None
    return _cell(image, box, _name(grid, row, column))


def _title(grid: Grid, column: int) -> str:
    return grid.titles[column] if column < len(grid.titles) else ""


def _moves(images: Mapping[int, Image.Image], box: Box) -> bool:
    first, *others = (np.asarray(image.crop(box)) for image in images.values())
    return any(not np.array_equal(first, other) for other in others)


def _confusion(file: Path) -> Html | None:
    """Show what is taken for what, as a training wrote it; None where there is nothing, or nothing sound."""
    if not file.is_file():
        return None
    try:
        found: Any = read_json(file)
        rows = [(str(name), [(int(number), float(share)) for number, share in cells]) for name, cells in found["rows"]]
        texts = {name: str(found[name]) for name in ("caption", "corner")}
        table = {**texts, "columns": [str(name) for name in found["columns"]], "rows": rows}
    except (InputError, TypeError, ValueError, KeyError):
        return None
    return part(_TEMPLATE, "confusion", table=table)
