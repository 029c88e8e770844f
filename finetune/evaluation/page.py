"""The page of an evaluation: one HTML file that needs nothing but itself (`beit.common.pages.html_page`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from beit import __version__
from beit.common.pages.html_page import attribute, data_uri, document, text
from beit.finetune.evaluation.report import EvaluationReport, class_rows

_PICTURE_PX = 640
"""Side of the confusion matrix, about; arbitrary."""
_MIN_CELL_PX, _MAX_CELL_PX = 2, 40
_LABELLED_CLASSES = 40
"""Up to here rows and columns carry the names of the classes; more would not be readable."""
_COUNTED_CLASSES = 20
_NAME_CHARS, _CHAR_PX, _TEXT_PX = 18, 7, 12
_INK, _PAPER, _DEEP = (40, 40, 40), (255, 255, 255), (31, 111, 120)
_SHOWN_PX = 112


def evaluation_page(report: EvaluationReport, pictures: Sequence[NDArray[np.uint8]]) -> str:
    """Return the whole page.

    Args:
        report: The evaluation.
        pictures: Of `report.mistakes`, uint8 (H, W, 3) each.
    """
    title = f"Evaluation of {report.model}"
    lead = f"{report.metrics.num_images:,} images of {report.data}, {len(report.class_names):,} classes"
    return document(
        title,
        [
            f'<p class="eyebrow">beit {text(__version__)}</p><h1>{text(title)}</h1><p class="lead">{text(lead)}</p>',
            _headline(report),
            _mistakes(report, pictures),
            _confusions(report),
            _classes(report),
        ],
    )


def _headline(report: EvaluationReport) -> str:
    names, values = zip(*report.headline(), strict=True)
    head = "".join(f'<th class="number">{text(name)}</th>' for name in names)
    body = "".join(f'<td class="number">{text(value)}</td>' for value in values)
    return (
        f'<h2>Numbers</h2><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody><tr>{body}</tr></tbody>'
        '</table></div><p class="soft">Calibration error: by how much the model\'s confidence differs from its '
        "accuracy, on average over 15 bins of confidence. Macro-F1 gives every class the same weight.</p>"
    )


def _mistakes(report: EvaluationReport, pictures: Sequence[NDArray[np.uint8]]) -> str:
    if not report.mistakes:
        return "<h2>Most confident mistakes</h2><p>There is no mistake.</p>"
    strips = []
    for mistake, pixels in zip(report.mistakes, pictures, strict=True):
        claim = f"{mistake.claim}, {100 * mistake.confidence:.0f} %"
        strips.append(
            f'<div class="strip" style="align-content:start"><div><img src="{data_uri(_shown(pixels))}" '
            f'alt="{attribute(mistake.name)}"></div>'
            f'<div class="under" title="{attribute(claim)}">said {text(claim)}</div>'
            f'<div class="under" title="{attribute(mistake.truth)}">is {text(mistake.truth)}</div>'
            f'<div class="name" title="{attribute(mistake.name)}">{text(mistake.name)}</div></div>'
        )
    return (
        '<h2>Most confident mistakes</h2><div class="strips" '
        f'style="grid-template-columns:repeat(auto-fill, minmax(7rem, 1fr))">{"".join(strips)}</div>'
        '<p class="soft">Wrong labels show up here, too: look at them before blaming the model.</p>'
    )


def _shown(pixels: NDArray[np.uint8]) -> Image.Image:
    """Bring a picture to the size it is shown at; small ones are enlarged pixel by pixel."""
    image = Image.fromarray(pixels)
    is_large = image.width > _SHOWN_PX
    return image.resize((_SHOWN_PX, _SHOWN_PX), Image.Resampling.LANCZOS if is_large else Image.Resampling.NEAREST)


def _confusions(report: EvaluationReport) -> str:
    if report.confusion is None:
        return ""
    picture = confusion_picture(report.confusion, report.class_names)
    rows = "".join(
        f'<tr><td>{text(pair.truth)}</td><td>{text(pair.predicted)}</td><td class="number">{pair.num_images}</td></tr>'
        for pair in report.confused_pairs()
    )
    pairs = (
        '<h3>Most frequent confusions</h3><div class="scroll"><table><thead><tr><th>class</th><th>taken for</th>'
        f'<th class="number">images</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
    return (
        f'<h2>Confusion matrix</h2><figure><img src="{data_uri(picture)}" alt="Confusion matrix" '
        'style="max-width:100%"><figcaption>Rows: the true class. Columns: what the model says. The darker, the larger '
        f"the share of the row.</figcaption></figure>{pairs if rows else ''}"
    )


def _classes(report: EvaluationReport) -> str:
    is_multi_label = report.confusion is None
    titles = ["images", "accuracy", "precision", "F1", *(["average precision"] if is_multi_label else [])]
    head = "".join(f'<th class="number">{title}</th>' for title in titles)
    rows = []
    for name, score in class_rows(report):
        shares = [score.accuracy, score.precision, score.f1, *([score.average_precision] if is_multi_label else [])]
        cells = "".join(f'<td class="number">{_percent(share)}</td>' for share in shares)
        rows.append(f'<tr><th>{text(name)}</th><td class="number">{score.num_images}</td>{cells}</tr>')
    return (
        f'<h2>Classes</h2><div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}\u00a0%"


def confusion_picture(matrix: NDArray[np.int64], class_names: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix; few classes get names, and very few also counts.

    Args:
        matrix: (C, C) images by true (row) and predicted class.
        class_names: C names.
    Returns:
        RGB image.
    """
    num_classes = len(class_names)
    cell = min(_MAX_CELL_PX, max(_MIN_CELL_PX, _PICTURE_PX // num_classes))
    is_labelled = num_classes <= _LABELLED_CLASSES
    names = [_short(name) for name in class_names]
    margin = max(map(len, names)) * _CHAR_PX + 10 if is_labelled else 0
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)  # (C, C)
    colours = np.asarray(_PAPER) + share[..., None] * (np.asarray(_DEEP) - np.asarray(_PAPER))
    cells = Image.fromarray(colours.round().astype(np.uint8)).resize(
        (num_classes * cell,) * 2, Image.Resampling.NEAREST
    )
    picture = Image.new("RGB", (margin + cells.width + 1, margin + cells.height + 1), _PAPER)
    picture.paste(cells, (margin, margin))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((margin, margin, margin + cells.width, margin + cells.height), outline=(200, 200, 200))
    if is_labelled:
        _write_names(picture, names, cell=cell, margin=margin)
    if num_classes <= _COUNTED_CLASSES:
        _write_counts(draw, matrix, share, cell=cell, margin=margin)
    return picture


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CHARS else name[: _NAME_CHARS - 1] + "…"


def _write_names(picture: Image.Image, names: Sequence[str], *, cell: int, margin: int) -> None:
    font = ImageFont.load_default(min(_TEXT_PX, cell))
    draw = ImageDraw.Draw(picture)
    column = Image.new("RGB", (margin, len(names) * cell), _PAPER)  # stood up below, so that names read upwards
    sideways = ImageDraw.Draw(column)
    for place, name in enumerate(names):
        middle = place * cell + cell // 2
        draw.text((margin - 5, margin + middle), name, fill=_INK, font=font, anchor="rm")
        sideways.text((5, middle), name, fill=_INK, font=font, anchor="lm")
    picture.paste(column.transpose(Image.Transpose.ROTATE_90), (margin, 0))


def _write_counts(
    draw: ImageDraw.ImageDraw, matrix: NDArray[np.int64], share: NDArray[np.float64], *, cell: int, margin: int
) -> None:
    font = ImageFont.load_default(_TEXT_PX - 1)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        centre = (margin + column * cell + cell // 2, margin + row * cell + cell // 2)
        ink = _PAPER if share[row, column] > 0.5 else _INK
        draw.text(centre, str(matrix[row, column]), fill=ink, font=font, anchor="mm")
