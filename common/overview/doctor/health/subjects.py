"""What a user named: a store, a run, an encoder or a tokenizer, told by the files that are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from beit.common.errors import InputError, require
from beit.common.overview.doctor.findings import Finding
from beit.common.overview.doctor.health.runs import look_at_run
from beit.common.overview.doctor.health.stores import look_at_store
from beit.common.overview.doctor.health.tokenizers import look_at_tokenizer
from beit.common.overview.doctor.health.weights import look_at_encoder
from beit.common.runs.layout import CONFIG, ENCODER, MODEL
from beit.common.shards.schema import INDEX_FILE, STORE_FILE
from beit.common.storage.documents import read_json
from beit.common.storage.paths import is_remote
from beit.common.vit.description import CONFIG_FILE, WEIGHTS_FILE

_MEND = {
    "store": "restore it, or beit tokenize again into a new store",
    "run": "restore it from a copy of the run",
    "encoder": "copy the folder again, or write it again",
    "tokenizer": "copy the folder again, or beit tokenizer train again",
}
_SUGGESTED = 6
_ENTRIES = 1000
"""Of a folder that are looked through for something to suggest; arbitrary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One thing that was named."""

    kind: str
    """What it is."""
    check: Callable[[], Iterable[Finding]]
    """Looks at it."""
    mend: str
    """What to do where nothing better is known."""


def find_subject(named: str) -> Subject:
    """Tell what a path or URL is.

    Raises:
        InputError: it is nothing of the kind; the message names what is inside.
    """
    if is_remote(named):
        return Subject(kind="store", check=partial(look_at_store, named), mend=_MEND["store"])
    path = Path(named)
    require(path.exists(), f"{named} does not exist; name a store, a run, an encoder or a tokenizer")
    kind = _kind(path)
    if kind is None:
        raise InputError(f"{named} is no store, run, encoder or tokenizer; {_suggestion(path)}")
    looks: dict[str, Callable[[], Iterable[Finding]]] = {
        "store": partial(look_at_store, named),
        "run": partial(look_at_run, path),
        "encoder": partial(look_at_encoder, path),
        "tokenizer": partial(look_at_tokenizer, path),
    }
    return Subject(kind=kind, check=looks[kind], mend=_MEND[kind])


def _kind(path: Path) -> str | None:
    if not path.is_dir():
        return None
    if (path / STORE_FILE).is_file() or (path / INDEX_FILE).is_file():
        return "store"
    if (path / CONFIG).is_file():
        return "run"
    if (path / CONFIG_FILE).is_file():
        return "tokenizer" if _is_tokenizer(path / CONFIG_FILE) else "encoder"
    if (path / WEIGHTS_FILE).is_file() or any((path / name / CONFIG_FILE).is_file() for name in (ENCODER, MODEL)):
        return "encoder"
    if any((path / f"encoder{suffix}").is_file() for suffix in (".pkl", ".safetensors")):
        return "tokenizer"  # DALL-E's files
    return None


def _is_tokenizer(file: Path) -> bool:
    try:
        document = read_json(file)
    except (InputError, OSError):
        return False
    return isinstance(document, dict) and document.get("format") == "beit-tokenizer"


def _suggestion(path: Path) -> str:
    """Say what to name instead: what is inside, or beside where it is a file."""
    folder, found = path if path.is_dir() else path.parent, []
    if not path.is_dir() and _kind(folder) is not None:
        return f"name its folder, {folder}"
    for number, (parent, names, _) in enumerate(os.walk(folder)):
        place = Path(parent)
        if place != folder and _kind(place) is not None:
            found.append(str(place))
            names.clear()  # an encoder in a run belongs to it
        if len(found) == _SUGGESTED or number > _ENTRIES:
            break
    return f"in it are {', '.join(found)}" if found else "name the folder of one"
