"""Which columns of a Parquet file hold the images and the labels.

Images: the Hugging Face `image` feature (a struct of bytes and path) or a binary column. Labels: a ClassLabel feature,
whose names stand in the schema's metadata, or an integer or text column. The rows are read in `source_parquet.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from beit.common.errors import InputError

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


def read_layout(schema: pa.Schema, *, label: str) -> ParquetLayout:
    """Find the image and label columns of a schema.

    Args:
        schema: The file's Arrow schema.
        label: What to call the file in errors, its path or URL.
    Raises:
        InputError: no column, or more than one, can hold the images.
    """
    features = _huggingface_features(schema)
    image_column = _find_image_column(label, schema, features)
    image_type = schema.field(image_column).type
    is_struct = pa.types.is_struct(image_type)
    has_path = is_struct and image_type.get_field_index("path") >= 0
    label_column = _find_label_column(schema, features)
    names = features.get(label_column, {}).get("names") if label_column else None
    return ParquetLayout(
        image_column=image_column,
        has_path=has_path,
        is_struct=is_struct,
        label_column=label_column,
        class_names=tuple(str(name) for name in names) if isinstance(names, list) else None,
        label_is_text=label_column is not None and not pa.types.is_integer(schema.field(label_column).type),
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
    raise InputError(
        f"{label} has {'no' if not candidates else 'more than one possible'} image column "
        f'(columns: {", ".join(schema.names)}); call the one with the encoded images "image"'
    )


def _can_hold_images(column_type: pa.DataType) -> bool:
    if pa.types.is_struct(column_type):
        index = column_type.get_field_index("bytes")
        return index >= 0 and _is_binary(column_type.field(index).type)
    return _is_binary(column_type)


def _is_binary(column_type: pa.DataType) -> bool:
    return bool(pa.types.is_binary(column_type) or pa.types.is_large_binary(column_type))


def _find_label_column(schema: pa.Schema, features: dict[str, dict[str, Any]]) -> str | None:
    usable = [field.name for field in schema if pa.types.is_integer(field.type) or _is_text(field.type)]
    declared = [name for name in usable if features.get(name, {}).get("_type") == "ClassLabel"]
    for name in _LABEL_COLUMNS:
        if name in usable:
            return name
    return declared[0] if len(declared) == 1 else None


def _is_text(column_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(column_type):  # pandas' categories
        return _is_text(column_type.value_type)
    return bool(pa.types.is_string(column_type) or pa.types.is_large_string(column_type))
