"""Draw charts of docs/results.md from the tables beside which they stand: few labels, few masks, unlabelled images.

python docs/make_charts.py
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from beit.common.pages.charts import Line, LineChart, line_charts
from beit.common.pages.pictures import PALETTE, save_png, sheet

DOCS = Path(__file__).parent
PRE_TRAINED, RANDOM = "pre-trained without labels", "random weights"
LEGEND = "Dots are means over seeds, strokes their 95 % intervals (Student's t){}."
Value = tuple[float, float | None]
"""Mean and half the width of its interval, if there is one; shares."""


def table_below(picture: str) -> list[list[str]]:
    """Return the rows of the first table after a picture of docs/results.md, without its head."""
    _, after = _around(picture)
    return _rows(itertools.dropwhile(lambda line: not line.startswith("|"), after))


def table_above(picture: str) -> list[list[str]]:
    """Return the rows of the last table before a picture of docs/results.md, without its head."""
    before, _ = _around(picture)
    return _rows(itertools.dropwhile(lambda line: not line.startswith("|"), reversed(before)))[::-1]


def _around(picture: str) -> tuple[list[str], list[str]]:
    before, _, after = (DOCS / "results.md").read_text(encoding="utf-8").partition(f"]({picture})")
    return before.splitlines()[:-1], after.splitlines()


def _rows(lines: Iterable[str]) -> list[list[str]]:
    """Return the cells of the lines that belong to a table, its title and the line below that left out."""
    found = [line.strip("|").split("|") for line in itertools.takewhile(lambda line: line.startswith("|"), lines)]
    rule = next(place for place, cells in enumerate(found) if set("".join(cells)) <= set(" -:"))
    rows = found[rule + 1 :] if rule == 1 else found[:rule]
    return [[cell.strip(" *") for cell in cells] for cells in rows]


def value_of(cell: str) -> Value:
    """Read "40.9 ± 1.5 %"."""
    found = re.fullmatch(r"([\d.]+)(?: ± ([\d.]+))? %", cell)
    if found is None:
        raise ValueError(f"{cell!r} is no share")
    return float(found[1]) / 100, float(found[2]) / 100 if found[2] else None


def number_of(cell: str) -> int:
    """Read the number that a cell begins with: "50 000 (100 %)", "150 (16), 30 of them held out"."""
    found = re.match(r"[\d ]*\d", cell)
    if found is None:
        raise ValueError(f"{cell!r} begins with no number")
    return int(found[0].replace(" ", ""))


def line(name: str, values: Sequence[tuple[float, Value]], place: int) -> Line:
    """Return a line with its intervals, moved aside a little so that those of two lines do not lie on each other."""
    aside = (2 * place - 1) * 0.008 * (values[-1][0] - values[0][0])
    return Line(
        name=name,
        points=[(x + aside, mean) for x, (mean, _) in values],
        half_widths=[half for _, (_, half) in values],
        colour=PALETTE[place],
    )


def picture(
    charts: Sequence[tuple[str, Sequence[Line]]],
    numbers: Sequence[int],
    *,
    counted: str,
    heading: str,
    measure: str = "top-1",
    besides: str = "",
    unit: str = "",
) -> Image.Image:
    """Draw charts over one logarithmic scale of numbers, all with the same upright scale."""
    ends = [
        mean + sign * (half or 0.0)
        for _, lines in charts
        for each in lines
        for (_, mean), half in zip(each.points, each.half_widths, strict=True)
        for sign in (-1, 1)
    ]
    drawn = [
        LineChart(
            lines=lines,
            title=f"{name}, {measure}",
            x_name=counted,
            x_ticks={math.log10(number): f"{number:,}".replace(",", "\u2009") + unit for number in numbers},
            y_range=(min(ends) - 0.02, max(ends) + 0.02),
            percent=True,
        )
        for name, lines in charts
    ]
    shown = line_charts(drawn, chart_px=(400, 300), columns=len(drawn), key=True)
    return sheet([shown], heading=heading, legend=LEGEND.format(besides))


def by_measure(rows: Sequence[tuple[int, str, Sequence[str]]]) -> list[tuple[str, list[Line]]]:
    """Return a chart per measure: over numbers, what both starts came to."""
    charts = []
    for measure in dict.fromkeys(name for _, name, _ in rows):
        lines = [
            line(name, [(math.log10(n), value_of(cells[place])) for n, found, cells in rows if found == measure], place)
            for place, name in enumerate((PRE_TRAINED, RANDOM))
        ]
        charts.append((measure, lines))
    return charts


def few_labels() -> Image.Image:
    """Draw what pre-training is worth over the number of labels."""
    rows = [(number_of(row[0]), row[1].partition(",")[0], row[2:4]) for row in table_below("few_labels.png")]
    return picture(
        by_measure(rows),
        list(dict.fromkeys(n for n, _, _ in rows)),
        counted="labels",
        heading="What pre-training is worth",
        besides="; of all labels there is one run",
    )


def few_masks() -> Image.Image:
    """Draw what pre-training is worth to segmentation over the share of masks."""
    rows = [
        (number_of(row[0]), row[1].partition(",")[0], row[2:4])
        for row in table_above("few_masks.png")
        if "800" not in row[1]
    ]
    return picture(
        by_measure(rows),
        list(dict.fromkeys(n for n, _, _ in rows)),
        counted="of the masks",
        heading="What pre-training is worth to segmentation",
        measure="mIoU",
        unit="\u00a0%",
    )


def unlabelled_images() -> Image.Image:
    """Draw what pre-training is worth over the number of images without labels."""
    (_, *_, knn, _, linear, _), *rows = table_below("unlabelled_images.png")
    numbers = [number_of(row[0]) for row in rows]
    charts = []
    for measure, column, random in (("k-NN", 3, knn), ("linear probe", 5, linear)):
        found = [(math.log10(number), value_of(row[column])) for number, row in zip(numbers, rows, strict=True)]
        level = [(x, value_of(random)) for x, _ in found]
        charts.append((measure, [line(PRE_TRAINED, found, 0), line(RANDOM, level, 1)]))
    heading = "From how many images on pre-training helps (300 labels)"
    return picture(charts, numbers, counted="unlabelled images", heading=heading)


if __name__ == "__main__":
    for draw in (few_labels, few_masks, unlabelled_images):
        save_png(draw(), DOCS / f"{draw.__name__}.png")
