"""Which columns of a Parquet file hold the images and the labels.

Images: the Hugging Face `image` feature (a struct of bytes and path) or a binary column. Labels: a ClassLabel feature,
whose names stand in the schema's metadata, an integer or text column, or lists of those where images have several. The
rows are read in `parquet.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from beit.common.errors import InputError
from beit.common.sources.types import joined_label

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
_LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "cls")


@dataclass(frozen=True, slots=True)
class ParquetLayout:
    """Where images and labels stand in one Parquet file."""

    image_column: str
    """Name of the column with the encoded images."""
    is_struct: bool
    """The column is a struct with the field `bytes`, as the Hugging Face feature is, not plain binary."""
    has_path: bool
    """The struct has the field `path` too."""
    label_column: str | None
    """Name of the column with the class, where there is one."""
    label_is_text: bool
    """The labels are class names, not numbers."""
    class_names: tuple[str, ...] | None
    """Name of each class id, where known."""
    label_is_list: bool = False
    """Every row lists several classes, which together are one text label (`beit.common.sources.types.joined_label`)."""
    listed_names: tuple[str, ...] | None = None
    """Names of the numbers in such lists, where known."""

    def label_of(self, value: Any, origin: str) -> Any:
        """Return the label in a cell: a number, a text, or None."""
        if not self.label_is_list or value is None:
            return value
        names = self.listed_names
        if names is not None and any(isinstance(item, int) and not 0 <= item < len(names) for item in value):
            raise InputError(f"{origin} has labels {value}, but {len(names)} class names; repair the file")
        return joined_label((names[item] if names and isinstance(item, int) else item for item in value), origin)


def plain_type(column_type: pa.DataType) -> pa.DataType:
    """Return a type without views, which polars, DataFusion and arrow-rs write, at any depth of it; else itself.

    Large, because what is not addressed by 32-bit offsets may exceed them.
    """
    if column_type == pa.binary_view():
        return pa.large_binary()
    if column_type == pa.string_view():
        return pa.large_string()
    if pa.types.is_struct(column_type):
        return pa.struct([field.with_type(plain_type(field.type)) for field in column_type])
    if pa.types.is_dictionary(column_type):
        return pa.dictionary(column_type.index_type, plain_type(column_type.value_type), column_type.ordered)
    if _is_list(column_type) or pa.types.is_list_view(column_type) or pa.types.is_large_list_view(column_type):
        is_short = pa.types.is_list(column_type) or pa.types.is_list_view(column_type)
        inner = column_type.value_field.with_type(plain_type(column_type.value_type))
        return pa.list_(inner) if is_short else pa.large_list(inner)
    return column_type


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return a schema with `plain_type` of every column."""
    return pa.schema([field.with_type(plain_type(field.type)) for field in schema], schema.metadata)


def read_layout(schema: pa.Schema, *, label: str) -> ParquetLayout:
    """Find the image and label columns of a schema.

    Args:
        schema: The file's Arrow schema, see `plain_schema`.
        label: What to call the file in errors, its path or URL.
    """
    features = _huggingface_features(schema)
    image_column = _find_image_column(label, schema, features)
    image_type = schema.field(image_column).type
    is_struct = pa.types.is_struct(image_type)
    has_path = is_struct and image_type.get_field_index("path") >= 0
    label_column = _find_label_column(schema, features)
    feature = features.get(label_column, {}) if label_column else {}
    is_list = label_column is not None and _is_list(schema.field(label_column).type)
    inner = feature.get("feature")
    names = (inner if isinstance(inner, dict) else {}).get("names") if is_list else feature.get("names")
    known = tuple(str(name) for name in names) if isinstance(names, list) else None
    return ParquetLayout(
        image_column=image_column,
        has_path=has_path,
        is_struct=is_struct,
        label_column=label_column,
        class_names=None if is_list else known,
        label_is_text=label_column is not None and not pa.types.is_integer(schema.field(label_column).type),
        label_is_list=is_list,
        listed_names=known if is_list else None,
    )


def _huggingface_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    raw = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(raw)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}  # not written by `datasets`; the column types then tell
    if not isinstance(features, dict):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _find_image_column(label: str, schema: pa.Schema, features: dict[str, dict[str, Any]]) -> str:
    candidates: list[str] = [field.name for field in schema if _can_hold_images(field.type)]
    declared = [name for name in candidates if features.get(name, {}).get("_type") == "Image"]
    for name in _IMAGE_COLUMNS:
        if name in (declared or candidates):
            return name
    if len(declared or candidates) == 1:
        return (declared or candidates)[0]
    if not candidates and (listed := other_images(schema)):
        raise InputError(
            f"{label} has lists of images in the column {listed[0]}; write one row for each image, in a column "
            '"image", or name another file'
        )
    unusable = [f"{field.name} is {field.type}" for field in schema if field.name in _IMAGE_COLUMNS]
    raise InputError(
        f"{label} has {'no' if not candidates else 'more than one possible'} image column "
        f"(columns: {', '.join(schema.names)}){''.join(f', {text}' for text in unusable if not candidates)}; "
        'call the one with the encoded images "image"'
    )


def other_images(schema: pa.Schema, image_column: str | None = None) -> list[str]:
    """Return the columns beside the image column that hold images, too, alone or in lists."""
    names = []
    for field in schema:
        inner = field.type.value_type if _is_list(field.type) else field.type
        is_image = pa.types.is_struct(inner) and _can_hold_images(inner)
        if field.name != image_column and (is_image or (_is_list(field.type) and _can_hold_images(inner))):
            names.append(field.name)
    return names


def _can_hold_images(column_type: pa.DataType) -> bool:
    if pa.types.is_struct(column_type):
        index = column_type.get_field_index("bytes")
        return index >= 0 and _is_binary(column_type.field(index).type)
    return _is_binary(column_type)


def _is_binary(column_type: pa.DataType) -> bool:
    return bool(pa.types.is_binary(column_type) or pa.types.is_large_binary(column_type))


def _find_label_column(schema: pa.Schema, features: dict[str, dict[str, Any]]) -> str | None:
    usable = [field.name for field in schema if _can_be_label(field.type)]
    declared = [name for name in usable if features.get(name, {}).get("_type") == "ClassLabel"]
    for name in _LABEL_COLUMNS:
        if name in usable:
            return name
    return declared[0] if len(declared) == 1 else None


def _can_be_label(column_type: pa.DataType) -> bool:
    if _is_list(column_type):
        return _can_be_label(column_type.value_type) and not _is_list(column_type.value_type)
    return bool(pa.types.is_integer(column_type)) or _is_text(column_type)


def _is_list(column_type: pa.DataType) -> bool:
    return bool(pa.types.is_list(column_type) or pa.types.is_large_list(column_type))


def _is_text(column_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(column_type):  # pandas' categories
        return _is_text(column_type.value_type)
    return bool(pa.types.is_string(column_type) or pa.types.is_large_string(column_type))
