"""What a fine-tuning draws for its report when it is over, beside what its evaluations drew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from beit.common.pages.numbers import count, percent, short_names
from beit.common.pages.pictures import picture_table, sheet
from beit.common.runs.layout import MODEL, PICTURES
from beit.common.sources.index import LabelledIndex
from beit.common.storage.documents import write_json
from beit.finetune.evaluation.mistakes import mistake_pictures
from beit.finetune.evaluation.outcomes import Outcomes
from beit.finetune.evaluation.report import EvaluationReport, build_report

_ATTENTION_IMAGES, _MISTAKES, _COLUMNS, _CELL_PX = 4, 12, 6, 120
_CONFUSION = "confusion.json"
"""In RUN/pictures; what reads it is the report (`beit.common.overview.report.pictures`)."""


class Measured(NamedTuple):
    """What a classifier said of its validation images."""

    step: int
    outcomes: Outcomes
    images: LabelledIndex
    class_names: tuple[str, ...]
    img_size: int
    crop_pct: float


def attention_of(run: Path, images: LabelledIndex) -> Callable[[], Image.Image | None]:
    """Return what draws where the model that a run keeps looks."""

    def draw() -> Image.Image:
        from beit.finetune.attention import attention_sheet  # charts take half a second of imports

        drawn = attention_sheet(run / MODEL, images, num_images=_ATTENTION_IMAGES, block=None, queries=(), is_mean=True)
        return drawn.image

    return draw


def mistakes_of(run: Path, measured: Measured) -> Callable[[], Image.Image | None]:
    """Return what draws the mistakes a classifier was most certain of, and notes what it takes for what."""

    def draw() -> Image.Image | None:
        report = build_report(
            measured.outcomes, measured.images, class_names=measured.class_names, model=str(run), data=""
        )
        _note_confusion(run, report)
        return _mistakes_sheet(report, measured)

    return draw


def _note_confusion(run: Path, report: EvaluationReport) -> None:
    if report.confusion is None:
        return
    from beit.finetune.evaluation.page import confusion_table

    (run / PICTURES).mkdir(exist_ok=True)
    write_json(run / PICTURES / _CONFUSION, confusion_table(report, report.confusion))


def _mistakes_sheet(report: EvaluationReport, measured: Measured) -> Image.Image | None:
    mistakes = report.mistakes[:_MISTAKES]
    if not mistakes:
        return None
    pixels = mistake_pictures(mistakes, measured.images, img_size=measured.img_size, crop_pct=measured.crop_pct)
    names = short_names(mistake.name for mistake in mistakes)
    captions = [f"{one.claim}, {percent(one.confidence)}\nis {one.truth}\n{names[one.name]}" for one in mistakes]
    columns = min(_COLUMNS, len(mistakes))
    blanks = -len(mistakes) % columns
    cells = [*pixels, *[None] * blanks]
    texts = [*captions, *[""] * blanks]
    starts = range(0, len(cells), columns)
    table = picture_table(
        [cells[start : start + columns] for start in starts],
        captions=[texts[start : start + columns] for start in starts],
        cell_px=_CELL_PX,
    )
    wrong = int(np.count_nonzero(measured.outcomes.top_classes[:, 0] != measured.outcomes.labels))
    number = "" if measured.outcomes.is_multi_label else f"{count(wrong)} of {count(len(measured.outcomes))} wrong; "
    return sheet(
        [table],
        heading="The most confident mistakes",
        facts=f"Validation images, {number}the model after {count(measured.step, 'step')}",
        legend="Below each: what the model says and how sure it is, what is right, and the image.",
    )
