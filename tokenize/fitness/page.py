"""The page of a fitness report: one HTML file that needs nothing but itself; its template is `page.html`."""

from __future__ import annotations

from pathlib import Path

from beit.common.pages.html_page import render
from beit.common.pages.pictures import PALETTE
from beit.tokenize.fitness.figures import MAP_COLOURS, map_pixels, map_range, usage_curve
from beit.tokenize.fitness.report import FitnessReport
from beit.tokenize.fitness.rows import shown_rows
from beit.tokenize.fitness.sheet import GROUPS
from beit.tokenize.fitness.verdicts import LEVEL_NAMES

_NAMES_SHOWN = 100


def page(report: FitnessReport) -> str:
    """Return the whole page."""
    is_single = len(report.fitness) == 1
    by_title = [{verdict.title: verdict for verdict in verdicts} for verdicts in report.verdicts]
    titles = dict.fromkeys(title for found in by_title for title in found)
    verdicts = [report.images_verdict, *(verdict for found in by_title for verdict in found.values())]
    grids = [fitness.tokens.positions for fitness in report.fitness]
    low, high = map_range([grid.bits for grid in grids])
    strips = {group: [row for row in report.sheet if row.group == group] for group in GROUPS}
    return render(
        Path(__file__).with_name("page.html"),
        title=f"Tokenizer report: {report.labels[0]}" if is_single else "Tokenizers compared",
        report=report,
        is_single=is_single,
        level_names=LEVEL_NAMES,
        levels={title: [found[title].level if title in found else None for found in by_title] for title in titles},
        doubts=[
            (label, [verdict for verdict in found if verdict.level != "good"])
            for label, found in zip(report.labels, report.verdicts, strict=True)
        ],
        rules={verdict.title: verdict.rule for verdict in verdicts},
        strips={group: rows for group, rows in strips.items() if rows},
        curve=usage_curve(
            [fitness.tokens.words for fitness in report.fitness],
            [fitness.tokenizer.vocab_size for fitness in report.fitness],
            report.labels,
        ),
        num_colours=len(PALETTE),
        maps=[
            (label, grid, map_pixels(grid.bits, low, high)) for label, grid in zip(report.labels, grids, strict=True)
        ],
        map_range=(low, high),
        map_colours=MAP_COLOURS,
        rows=shown_rows(report.fitness),
        names_shown=_NAMES_SHOWN,
        speed=report.fitness[0].speed,
    )
