"""Which columns of a Parquet file hold the images and the labels.

Images: the Hugging Face `image` feature (a struct of bytes and path) or a binary column. Labels: a ClassLabel feature,
whose names stand in the schema's metadata, a column of whole numbers, texts or truth values, or lists of the first two
where images have several. The rows are read in `parquet.py`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa

from beit.common.errors import InputError, require
from beit.common.sources.label_column import choose_label_column, plain
from beit.common.sources.labels import joined_label

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
"""What a column of images is called; the first that is there is taken."""
MASK_COLUMNS = (
    *("annotation", "mask", "label", "segmentation", "annotations", "masks", "labels", "segmentation_mask"),
    *("semantic_mask", "semantic_segmentation", "mask_image", "label_image", "seg", "gt", "target"),
)
"""What a column of masks is called, lower case: where another column holds images, too, that one is meant."""


@dataclass(frozen=True, slots=True)
class ParquetLayout:
    """Where images and labels stand in one Parquet file."""

    image_column: str
    """Name of the column with the encoded images."""
    is_struct: bool
    """The column is a struct with the field `bytes`, as the Hugging Face feature is, not plain binary."""
    has_path: bool
    """The struct has the field `path` too, and it is text."""
    label_column: str | None
    """Name of the column with the class, where there is one."""
    label_is_text: bool
    """The labels are class names, not numbers."""
    class_names: tuple[str, ...] | None
    """Name of each class id, where known."""
    label_is_list: bool = False
    """Every row lists several classes, which together are one text label (`joined_label`)."""
    listed_names: tuple[str, ...] | None = None
    """Names of the numbers in such lists, where known."""
    label_is_fraction: bool = False
    """The labels are stored as fractions, which are numbers of classes if they are whole (`label_of`)."""
    columns: tuple[str, ...] = ()
    """All columns, as messages name them."""
    label_notes: tuple[str, ...] = ()
    """As in `beit.common.sources.types.Source`."""

    def without_labels(self, note: str = "") -> ParquetLayout:
        """Return the layout of the images alone; `note` says why, if anybody is to know."""
        return ParquetLayout(
            image_column=self.image_column,
            is_struct=self.is_struct,
            has_path=self.has_path,
            label_column=None,
            label_is_text=False,
            class_names=None,
            columns=self.columns,
            label_notes=(note,) if note else (),
        )

    def label_of(self, value: Any, origin: str) -> Any:
        """Return the label in a cell: a number, a text, or None, also for a fraction that is not a number."""
        if isinstance(value, bool):
            return str(value)
        if isinstance(value, float | Decimal):
            return None if math.isnan(value) else int(value)
        if not self.label_is_list or value is None:
            return value.strip() if isinstance(value, str) else value
        names = self.listed_names
        if names is not None and any(isinstance(item, int) and not 0 <= item < len(names) for item in value):
            raise InputError(f"{origin} has labels {value}, but {len(names)} class names; repair the file")
        return joined_label((names[item] if names and isinstance(item, int) else item for item in value), origin)


def plain_type(column_type: pa.DataType) -> pa.DataType:
    """Return a type without views, which polars, DataFusion and arrow-rs write, at any depth of it; else itself.

    Large, because what is not addressed by 32-bit offsets may exceed them. Views of lists stay: they read as lists do,
    and pyarrow 26 makes invalid arrays of them where it is to change their type.
    """
    if column_type == pa.binary_view():
        return pa.large_binary()
    if column_type == pa.string_view():
        return pa.large_string()
    if pa.types.is_struct(column_type):
        return pa.struct([field.with_type(plain_type(field.type)) for field in column_type])
    if pa.types.is_dictionary(column_type):
        return pa.dictionary(column_type.index_type, plain_type(column_type.value_type), column_type.ordered)
    if pa.types.is_list(column_type) or pa.types.is_large_list(column_type):
        inner = column_type.value_field.with_type(plain_type(column_type.value_type))
        return pa.list_(inner) if pa.types.is_list(column_type) else pa.large_list(inner)
    return column_type


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return a schema with `plain_type` of every column."""
    return pa.schema([field.with_type(plain_type(field.type)) for field in schema], schema.metadata)


def read_layout(
    schema: pa.Schema, *, label: str, label_column: str | None = None, image_column: str | None = None
) -> ParquetLayout:
    """Find the image and label columns of a schema.

    Args:
        schema: The file's Arrow schema, see `plain_schema`.
        label: What to call the file in errors, its path or URL.
        label_column: Column of the classes; left out, the one that is called so.
        image_column: Column of the images; left out, the one that is called so.
    """
    features = huggingface_features(schema)
    image_column = _find_image_column(label, schema, features, image_column)
    image_type = schema.field(image_column).type
    is_struct = pa.types.is_struct(image_type)
    has_path = is_struct and _has_text(image_type, "path")
    columns = tuple(_described(field, features) for field in schema)
    usable = [field.name for field in schema if field.name != image_column and _can_be_label(field.type)]
    declared = [name for name in usable if features.get(name, {}).get("_type") == "ClassLabel"]
    label_column, notes = choose_label_column(label, columns, usable=usable, declared=declared, wanted=label_column)
    masks = [name for name in image_columns(schema) if name != image_column and plain(name) in MASK_COLUMNS]
    if label_column is None and masks:
        notes = (*notes, f"its column {masks[0]} holds masks, from which beit finetune segmentation learns")
    label_type = schema.field(label_column).type if label_column is not None else pa.null()
    feature = features.get(label_column, {}) if label_column else {}
    is_list, is_fraction = is_list_type(label_type), _is_fraction(label_type)
    inner = feature.get("feature")
    names = (inner if isinstance(inner, dict) else {}).get("names") if is_list else feature.get("names")
    known = tuple(str(name) for name in names) if isinstance(names, list) else None
    return ParquetLayout(
        image_column=image_column,
        has_path=has_path,
        is_struct=is_struct,
        label_column=label_column,
        class_names=None if is_list else known,
        label_is_text=label_column is not None and not _is_number(label_type) and not is_fraction,
        label_is_list=is_list,
        listed_names=known if is_list else None,
        label_is_fraction=is_fraction,
        columns=columns,
        label_notes=notes,
    )


def _has_text(struct: pa.StructType, name: str) -> bool:
    place = struct.get_field_index(name)
    kind = struct.field(place).type if place >= 0 else pa.null()
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def huggingface_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return what `datasets` wrote of each column: `_type`, and of some the names of classes."""
    raw = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(raw)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}  # not written by `datasets`; the column types then tell
    if not isinstance(features, dict):
        return {}
    # Versions before 4 of `datasets` may write a list of one feature for a column of lists.
    features = {
        name: {"_type": "List", "feature": feature[0]} if isinstance(feature, list) and len(feature) == 1 else feature
        for name, feature in features.items()
    }
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def image_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that may hold an encoded image in each row."""
    return [field.name for field in schema if _can_hold_images(field.type)]


def _find_image_column(label: str, schema: pa.Schema, features: dict[str, dict[str, Any]], wanted: str | None) -> str:
    candidates = image_columns(schema)
    if wanted is not None:
        require(
            wanted in candidates,
            f"{label} has no column {wanted} with images (source.image_member); those with images are "
            f"{', '.join(candidates) or 'none'}",
        )
        return wanted
    declared = [name for name in candidates if features.get(name, {}).get("_type") == "Image"]
    for name in IMAGE_COLUMNS:
        if name in (declared or candidates):
            return name
    if len(declared or candidates) == 1:
        return (declared or candidates)[0]
    pictures = [name for name in declared or candidates if plain(name) not in MASK_COLUMNS]
    if len(pictures) == 1:
        return pictures[0]
    if not candidates and (listed := other_images(schema)):
        raise InputError(
            f"{label} has lists of images in the column {listed[0]}; write one row for each image, in a column "
            '"image", or name another file'
        )
    unusable = [f"{field.name} is {field.type}" for field in schema if field.name in IMAGE_COLUMNS]
    raise InputError(
        f"{label} has {'no' if not candidates else 'more than one possible'} image column "
        f"(columns: {', '.join(schema.names)}){''.join(f', {text}' for text in unusable if not candidates)}; "
        'call the one with the encoded images "image", or name it with source.image_member'
    )


def other_images(schema: pa.Schema, image_column: str | None = None) -> list[str]:
    """Return the columns beside the image column that hold images, too, alone or in lists."""
    names = []
    for field in schema:
        inner = field.type.value_type if is_list_type(field.type) else field.type
        is_image = pa.types.is_struct(inner) and _can_hold_images(inner)
        if field.name != image_column and (is_image or (is_list_type(field.type) and _can_hold_images(inner))):
            names.append(field.name)
    return names


def _can_hold_images(column_type: pa.DataType) -> bool:
    if pa.types.is_struct(column_type):
        index = column_type.get_field_index("bytes")
        return index >= 0 and _is_binary(column_type.field(index).type)
    return _is_binary(column_type)


def _is_binary(column_type: pa.DataType) -> bool:
    return bool(pa.types.is_binary(column_type) or pa.types.is_large_binary(column_type))


def _can_be_label(column_type: pa.DataType) -> bool:
    if is_list_type(column_type):
        return _is_number(column_type.value_type) or _is_text(column_type.value_type)
    return (
        _is_number(column_type)
        or _is_text(column_type)
        or pa.types.is_boolean(column_type)
        or _is_fraction(column_type)
    )


def is_list_type(column_type: pa.DataType) -> bool:
    """Tell whether the values of a type are lists."""
    views = (pa.types.is_list_view, pa.types.is_large_list_view)
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, *views)
    return any(is_kind(column_type) for is_kind in kinds)


def _is_number(column_type: pa.DataType) -> bool:
    return bool(pa.types.is_integer(_plain(column_type)))


def _is_text(column_type: pa.DataType) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_kind(_plain(column_type)) for is_kind in kinds)


def _is_fraction(column_type: pa.DataType) -> bool:
    return bool(pa.types.is_floating(column_type) or pa.types.is_decimal(column_type))


def _plain(column_type: pa.DataType) -> pa.DataType:
    """Return the type of the values; pandas' categories have them in a dictionary."""
    return column_type.value_type if pa.types.is_dictionary(column_type) else column_type


def _described(field: pa.Field, features: dict[str, dict[str, Any]]) -> str:
    """Name a column and what it holds, for messages."""
    kind = str(field.type).partition("<")[0]
    declared = features.get(field.name, {}).get("_type")
    return f"{field.name} ({f'{declared}, ' if declared == 'ClassLabel' else ''}{kind})"
