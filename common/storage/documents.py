"""JSON documents: read with one clear error, written in one form, checked for what they are and in which version.

Here: plain JSON in files, documents whose first fields are `format` and `format_version`, and dataclasses as documents.
Not here: what a document says; its schema stands where the thing is that it describes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from beit.common.config import config_from_dict
from beit.common.errors import LFS_ADVICE, InputError, is_lfs_pointer, require
from beit.common.storage.files import write_atomic
from beit.common.storage.place import Place

Schema = TypeVar("Schema")

_DETAIL_CHARS = 100
_DESCRIBED = {
    "beit-encoder": (
        "an encoder or a model",
        "give the folder `encoder` of a run, or `model` of a fine-tuned one, or a run with one of them",
    ),
    "beit-tokenizer": ("a tokenizer", "give what beit tokenizer train or convert wrote"),
}
"""What a folder is whose config.json is of a format, and where to find one."""
_OTHER_FOLDERS = {"store.json": "a token store", "config.toml": "a run"}
"""What a folder is that has such a file."""
_UNFIT = re.compile("[\x00-\x1f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of document, as its first two fields say it."""

    name: str
    """`format`, such as "beit-encoder"."""
    version: int
    """`format_version`; raised by one when an older reader would misread the document."""

    def header(self) -> dict[str, Any]:
        """Return the two fields."""
        return {"format": self.name, "format_version": self.version}

    def check(self, document: Any, path: Path | str) -> dict[str, Any]:
        """Return the document if it is one of this format and version; `path` is named in errors."""
        if not isinstance(document, dict) or document.get("format") != self.name:
            found = document.get("format") if isinstance(document, dict) else None
            if isinstance(found, str) and {found, self.name} <= _DESCRIBED.keys():
                held, wanted = _DESCRIBED[found], _DESCRIBED[self.name]
                raise InputError(f"{Path(path).parent} is {held[0]}, not {wanted[0]}; {wanted[1]}")
            raise InputError(f"{path} is not a {self.name} file")
        version = document.get("format_version")
        require(
            version == self.version,
            f"{path} has format_version {version}, this beit reads version {self.version}; use the beit that wrote it, "
            "or make it again",
        )
        return document


def but_is(folder: Path | str) -> str:
    """Say what a folder of this machine is, after that it is not what was wanted: " but a tokenizer", or nothing."""
    place = Path(folder)
    try:
        found = json.loads((place / "config.json").read_text(encoding="utf-8")).get("format")
    except (OSError, ValueError, AttributeError):
        found = None
    if isinstance(found, str) and found in _DESCRIBED:
        return f" but {_DESCRIBED[found][0]}"
    there = [words for name, words in _OTHER_FOLDERS.items() if (place / name).is_file()]
    return f" but {there[0]}" if there else ""


def not_for_transformers(loader: str) -> dict[str, str]:
    """Return the field by which Hugging Face's transformers refuses a folder of ours, and says what loads it.

    It looks for config.json and model.safetensors, ignores fields and tensors that it does not know, and would hand out
    random weights of its default shape. It takes the value for the name of a weight file that cannot be one.
    """
    return {"transformers_weights": f"none: this is no model of transformers; load it with {loader}"}


def json_bytes(value: Any) -> bytes:
    """Encode `value` as indented JSON with sorted keys, so that equal values give equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    write_atomic(path, json_bytes(value))


def read_json(path: Path) -> Any:
    """Read JSON from `path`."""
    try:
        return parse_json(path.read_bytes(), label=str(path))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None


def parse_json(data: bytes, *, label: str) -> Any:
    """Decode JSON; `label` is named in errors."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # also of text that is not UTF-8, and of numbers with 5000 digits
        require(not is_lfs_pointer(data), f"{label} {LFS_ADVICE}")
        raise InputError(
            f"{label} is not valid JSON ({error}); restore the file or remove what it belongs to"
        ) from None


@contextmanager
def reading(label: Path | str, *, way_out: str = "restore the file, or delete it") -> Iterator[None]:
    """Turn what a document of the wrong shape does to the code inside into one line.

    Such as a key that is not there, a list where there should be an object, a text instead of a number.

    Args:
        label: Path of the document.
        way_out: What its user can do.
    """
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        detail = " ".join(str(error).split())[:_DETAIL_CHARS]
        raise InputError(f"{label} is damaged ({type(error).__name__}: {detail}); {way_out}") from None


def parse_document(schema: type[Schema], data: bytes, *, label: str) -> Schema:
    """Decode and check a JSON document.

    Args:
        schema: A dataclass whose fields `format` and `format_version` have the values that are expected as defaults.
        data: The document.
        label: Its path or URL, for errors.
    """
    document = parse_json(data, label=label)
    defaults: dict[str, Any] = {field.name: field.default for field in fields(schema)}  # type: ignore[arg-type]
    Format(defaults["format"], defaults["format_version"]).check(document, label)
    refuse_control_characters(document, label, way_out="remove what it belongs to and make it again")
    try:
        return config_from_dict(schema, document, origin=label)
    except InputError as error:
        raise InputError(f"{label}: {error}") from None
    except TypeError as error:  # a required field is missing
        raise InputError(f"{label} is incomplete ({error}); run beit tokenize again") from None


def read_document(schema: type[Schema], place: Place) -> Schema:
    """Read and check a JSON document, local or remote."""
    return parse_document(schema, place.read(), label=place.location)


def write_document(place: Place, document: Any) -> None:
    """Write a schema instance as a JSON document, unless it would be refused when it is read."""
    content = asdict(document)
    refuse_control_characters(content, place.location)
    place.write(json_bytes(content))


def canonical_sha256(value: Any) -> str:
    """Return the sha256 of `value` as compact JSON with sorted keys."""
    # JSON can spell half a character, which is no UTF-8: what a damaged file says must be told from what was written.
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def canonical_json(value: Any) -> str:
    """Return `value` as compact JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def refuse_control_characters(value: Any, label: str, *, way_out: str = "rename what is called so") -> None:
    """Check all texts of a document, since names in it become paths and lines of a terminal.

    Args:
        value: Dictionaries, lists and tuples of anything.
        label: What they are or come from, for the message.
        way_out: What to do, for the message.
    """
    if isinstance(value, str) and _UNFIT.search(value):
        raise InputError(f"{label} holds a text with control characters or not in UTF-8 ({value[:80]!a}); {way_out}")
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for entry in value:
            refuse_control_characters(entry, label, way_out=way_out)
