"""JSON documents: schema instances to JSON and back, with format and version.

Not here: which documents there are (`common/shards/schema.py` and others).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from beit.common.config import config_from_dict
from beit.common.errors import InputError
from beit.common.storage.files import read_json

FORMAT_VERSION = 1
Schema = TypeVar("Schema")


def to_json(document: Any) -> dict[str, Any]:
    """Return a schema instance as plain JSON values."""
    return asdict(document)


def from_json(schema: type[Schema], path: Path | str, document: Any) -> Schema:
    """Build a schema instance from parsed JSON; `path` is named in errors."""
    expected = next(field.default for field in fields(schema) if field.name == "format")  # type: ignore[arg-type]
    if not isinstance(document, dict) or document.get("format") != expected:
        raise InputError(f"{path} is not a {expected} file")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format_version {version}, this beit reads version {FORMAT_VERSION}; "
            "use the beit that wrote it, or write the store again"
        )
    _refuse_control_characters(document, path)
    try:
        return config_from_dict(schema, document, origin=str(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except TypeError as error:  # a required field is missing
        raise InputError(f"{path} is incomplete ({error}); run beit tokenize again") from None


_UNFIT = re.compile("[\x00-\x1f\ud800-\udfff]")


def _refuse_control_characters(value: Any, path: Path | str) -> None:
    """Check all texts of a document, since names in it become paths and lines of a terminal."""
    if isinstance(value, str):
        if _UNFIT.search(value):
            raise InputError(f"{path} holds a text with control characters or not in UTF-8 ({value[:80]!a})")
    elif isinstance(value, dict):
        for name, entry in value.items():
            _refuse_control_characters(name, path)
            _refuse_control_characters(entry, path)
    elif isinstance(value, list):
        for entry in value:
            _refuse_control_characters(entry, path)


def read_document(schema: type[Schema], path: Path) -> Schema:
    """Read and check a local JSON document."""
    return from_json(schema, path, read_json(path))


def canonical_sha256(value: Any) -> str:
    """Return the sha256 of `value` as compact JSON with sorted keys."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """Return `value` as compact JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
