"""Tables of predictions: CSV, Parquet or JSON lines, by the ending of the file's name; written batch by batch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from beit.common.runs.outputs import check_outputs
from beit.common.storage.files import output_file


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What the model says about one image."""

    key: str
    """Path relative to the source's folder, or the sample's shard and name in its tar or Parquet file. From
    Python the path that was given, or the number of the image among those given."""
    labels: tuple[str, ...] = ()
    """Up to five classes, the most likely first; empty for a model without classes."""
    probabilities: tuple[float, ...] = ()
    """Of `labels`: from a softmax over all classes, or a sigmoid each where images may have several."""
    predicted: tuple[str, ...] | None = None
    """Where images may have several labels: the classes of probability 1/2 or more."""
    features: tuple[float, ...] | None = None
    """The pooled representation, if it was asked for."""
    tile: str | None = None
    """Where images are cut: which tile, such as "y0001x0003", or "" for the image as a whole."""
    box: tuple[int, int, int, int] | None = None
    """Where images are cut: left, top, right and bottom of the tile in px, right and bottom behind the last pixel."""

    @property
    def label(self) -> str:
        """The most likely class."""
        return self.labels[0]

    @property
    def probability(self) -> float:
        """Of the most likely class, in [0, 1]."""
        return self.probabilities[0]


Batches = Iterable[Sequence[Prediction]]


def check_prediction_file(path: Path | None, *, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse a file that cannot be written, or whose ending says no format, before the work is done."""
    check_outputs({"--out": path}, inputs=inputs, endings=_WRITERS)


def write_predictions(batches: Batches, path: Path) -> None:
    """Write predictions to a file that appears complete or not at all."""
    with output_file(path) as file:
        _WRITERS[path.suffix.lower()](batches, file)


def write_csv_text(batches: Batches, file: TextIO) -> None:
    """Write CSV; the header is as wide as the first row, and all rows are equally wide.

    Columns: key; where images are cut tile, left, top, right, bottom; label, probability, label_2, probability_2 and so
    on, predicted (classes joined by `|`, where images may have several), feature_0 and so on.
    """
    writer = csv.writer(file, lineterminator="\n")
    has_header = False
    for batch in batches:
        for prediction in batch:
            cells = _csv_cells(prediction)
            if not has_header:
                writer.writerow([name for name, _ in cells])
                has_header = True
            writer.writerow([value for _, value in cells])
        file.flush()


def _csv_cells(prediction: Prediction) -> list[tuple[str, str]]:
    cells = [("key", prediction.key)]
    if prediction.tile is not None and prediction.box is not None:
        cells += [("tile", prediction.tile), *zip(_BOX, map(str, prediction.box), strict=True)]
    for place, (label, chance) in enumerate(zip(prediction.labels, prediction.probabilities, strict=True), start=1):
        suffix = "" if place == 1 else f"_{place}"
        cells += [(f"label{suffix}", label), (f"probability{suffix}", f"{chance:.6f}")]
    if prediction.predicted is not None:
        cells.append(("predicted", "|".join(prediction.predicted)))
    return cells + [(f"feature_{place}", f"{value:.7g}") for place, value in enumerate(prediction.features or ())]


def _write_csv(batches: Batches, file: BinaryIO) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    write_csv_text(batches, text)
    text.detach()


def _write_json_lines(batches: Batches, file: BinaryIO) -> None:
    for batch in batches:
        for prediction in batch:
            file.write((json.dumps(_fields(prediction), ensure_ascii=False) + "\n").encode())


def _write_parquet(batches: Batches, file: BinaryIO) -> None:
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for batch in batches:
            rows = [_fields(prediction) for prediction in batch]
            if writer is None:
                schema = pa.schema([field for field in _SCHEMA if field.name in rows[0]])
                writer = stack.enter_context(pq.ParquetWriter(file, schema))
            writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema))


def _fields(prediction: Prediction) -> dict[str, object]:
    """Return the fields that this prediction has, lists kept as lists."""
    found: dict[str, object] = {"key": prediction.key}
    if prediction.tile is not None and prediction.box is not None:
        found |= {"tile": prediction.tile, **dict(zip(_BOX, prediction.box, strict=True))}
    if prediction.labels:
        found |= {"label": prediction.labels[0], "probability": prediction.probabilities[0]}
        found |= {"labels": list(prediction.labels), "probabilities": list(prediction.probabilities)}
    if prediction.predicted is not None:
        found["predicted"] = list(prediction.predicted)
    if prediction.features is not None:
        found["features"] = list(prediction.features)
    return found


_BOX = ("left", "top", "right", "bottom")
_SCHEMA = [
    pa.field("key", pa.string()),
    pa.field("tile", pa.string()),
    *(pa.field(name, pa.int32()) for name in _BOX),
    pa.field("label", pa.string()),
    pa.field("probability", pa.float32()),
    pa.field("labels", pa.list_(pa.string())),
    pa.field("probabilities", pa.list_(pa.float32())),
    pa.field("predicted", pa.list_(pa.string())),
    pa.field("features", pa.list_(pa.float32())),
]
_WRITERS: dict[str, Callable[[Batches, BinaryIO], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".jsonl": _write_json_lines,
}
TABLES = tuple(_WRITERS)
"""Endings of the files that are written."""
