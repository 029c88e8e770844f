"""Draw docs/few_labels.png and docs/unlabelled_images.png from the tables of docs/results.md that they stand above.

python docs/make_charts.py
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from beit.common.pages.charts import Line, LineChart, line_charts
from beit.common.pages.pictures import PALETTE, save_png, sheet

DOCS = Path(__file__).parent
PRE_TRAINED, RANDOM = "pre-trained without labels", "random weights"
LEGEND = "Dots are means over seeds, strokes their 95 % intervals (Student's t){}."
Value = tuple[float, float | None]
"""Mean and half the width of its interval, if there is one; shares."""


def table_below(picture: str) -> Iterator[list[str]]:
    """Yield the rows of the first table after a picture of docs/results.md, without its head."""
    _, _, rest = (DOCS / "results.md").read_text(encoding="utf-8").partition(f"]({picture})")
    lines = rest.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("| --"))
    for line in lines[first + 1 :]:
        if not line.startswith("|"):
            return
        yield [cell.strip(" *") for cell in line.strip("|").split("|")]


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
    """Return a line with its intervals."""
    return Line(
        name=name,
        points=[(x, mean) for x, (mean, _) in values],
        half_widths=[half for _, (_, half) in values],
        colour=PALETTE[place],
    )


def picture(
    charts: Sequence[tuple[str, Sequence[Line]]],
    numbers: Sequence[int],
    *,
    counted: str,
    heading: str,
    besides: str = "",
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
            title=f"{name}, top-1",
            x_name=counted,
            x_ticks={math.log10(number): f"{number:,}".replace(",", "\u2009") for number in numbers},
            y_range=(min(ends) - 0.02, max(ends) + 0.02),
            percent=True,
        )
        for name, lines in charts
    ]
    shown = line_charts(drawn, chart_px=(400, 300), columns=len(drawn), key=True)
    return sheet([shown], heading=heading, legend=LEGEND.format(besides))


def few_labels() -> Image.Image:
    """Draw what pre-training is worth over the number of labels."""
    rows = [(number_of(row[0]), row[1].partition(",")[0], row[2:4]) for row in table_below("few_labels.png")]
    charts = []
    for measure in dict.fromkeys(name for _, name, _ in rows):
        lines = [
            line(name, [(math.log10(n), value_of(cells[place])) for n, found, cells in rows if found == measure], place)
            for place, name in enumerate((PRE_TRAINED, RANDOM))
        ]
        charts.append((measure, lines))
    numbers = list(dict.fromkeys(n for n, _, _ in rows))
    heading = "What pre-training is worth"
    return picture(charts, numbers, counted="labels", heading=heading, besides="; of all labels there is one run")


def unlabelled_images() -> Image.Image:
    """Draw what pre-training is worth over the number of images without labels."""
    (_, *_, knn, _, linear, _), *rows = list(table_below("unlabelled_images.png"))
    numbers = [number_of(row[0]) for row in rows]
    charts = []
    for measure, column, random in (("k-NN", 3, knn), ("linear probe", 5, linear)):
        found = [(math.log10(number), value_of(row[column])) for number, row in zip(numbers, rows, strict=True)]
        level = [(x, value_of(random)) for x, _ in found]
        charts.append((measure, [line(PRE_TRAINED, found, 0), line(RANDOM, level, 1)]))
    heading = "From how many images on pre-training helps (300 labels)"
    return picture(charts, numbers, counted="unlabelled images", heading=heading)


if __name__ == "__main__":
    for name, draw in (("few_labels", few_labels), ("unlabelled_images", unlabelled_images)):
        save_png(draw(), DOCS / f"{name}.png")
