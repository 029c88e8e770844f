"""The page of an evaluation: one HTML file that needs nothing but itself; its template is `page.html`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beit.common.pages.charts import share_table
from beit.common.pages.html_page import render
from beit.common.pages.pictures import enlarged
from beit.finetune.evaluation.report import EvaluationReport, class_rows

_SHOWN_PX = 112


def evaluation_page(report: EvaluationReport, pictures: Sequence[NDArray[np.uint8]]) -> str:
    """Return the whole page, with pictures of `report.mistakes`, uint8 (H, W, 3) each."""
    shown = [enlarged(pixels, _SHOWN_PX) for pixels in pictures]
    return render(
        Path(__file__).with_name("page.html"),
        title=f"Evaluation of {report.model}",
        lead=f"{report.metrics.num_images:,} images of {report.data}, {len(report.class_names):,} classes",
        report=report,
        mistakes=list(zip(report.mistakes, shown, strict=True)),
        confusion=None if report.confusion is None else share_table(report.confusion, report.class_names),
        classes=class_rows(report),
        shares={"accuracy": "accuracy", "precision": "precision", "F1": "f1"}
        | ({"average precision": "average_precision"} if report.confusion is None else {}),
    )
