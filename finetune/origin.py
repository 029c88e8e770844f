"""Where the numbers of a page come from, in the words of a reader: model, encoder, data, date, version, command."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beit.common.errors import InputError
from beit.common.pages.numbers import count, short_name
from beit.common.runs.environment import STARTS, environment, read_environment, redact
from beit.common.runs.layout import ENVIRONMENT
from beit.common.vit.description import EncoderConfig, find_encoder
from beit.finetune.config import RANDOM_ENCODER

_ABSOLUTE = re.compile(r"^((?:[^/\s]*=)?)(/.+)$")


def last_start(run: Path) -> dict[str, Any]:
    """Return what a run recorded of its last start; empty where there is no such record, or none that can be read."""
    try:
        starts = read_environment(run / ENVIRONMENT).get(STARTS, [])
    except (InputError, OSError):
        return {}
    return dict(starts[-1]) if starts else {}


def evaluation_origin(
    model: str | Path, stored: EncoderConfig, *, data: str, num_images: int, data_sha256: str
) -> list[tuple[str, str]]:
    """Return what the page of an evaluation says of its numbers, name by name; what nothing records is left out."""
    origin, now = stored.provenance, environment()
    folder = find_encoder(model)
    trained = last_start(folder.parent)
    rows = [
        ("model", f"{named(str(folder))}, {stored.architecture.name}{_step(origin)}"),
        ("encoder", encoder_text(origin.get("encoder"))),
        ("trained on", _trained_on(origin)),
        ("trained", when(trained)),
        ("training command", command_text(trained.get("command", ()))),
        ("measured on", f"{named(data)}, {count(num_images, 'image')}, identity {data_sha256[:12]}"),
        ("measured", when(now)),
        ("command", command_text([*sys.argv[:1], *now["command"][1:]])),
    ]
    return [(name, text) for name, text in rows if text]


def encoder_text(encoder: Any) -> str:
    """Name what a training started from; empty where it is not known."""
    if not encoder:
        return ""
    return "random weights" if encoder == RANDOM_ENCODER else named(str(encoder))


def named(path: str) -> str:
    """Name a place without the folders before it and without what may be secret."""
    return short_name(redact(path))


def command_text(words: Sequence[str]) -> str:
    """Write a command as it was typed, except that absolute paths lose all but their ends; as code. Empty for none."""
    if not words:
        return ""
    program = Path(words[0]).stem
    shown = ["beit" if program == "cli" else program, *map(_shortened_word, words[1:])]
    return f"`{' '.join(shown)}`".replace("\n", " ")


def _shortened_word(word: str) -> str:
    found = _ABSOLUTE.match(word)
    if found is None:
        return shlex.quote(word)
    short = short_name(found[2])
    # Nobody is to take it for a path that can be typed again.
    return f"{found[1]}…/{short}" if f"/{short}" != found[2] else shlex.quote(word)


def _step(origin: Mapping[str, Any]) -> str:
    if origin.get("step") is None:
        return "" if origin.get("block") is None else f", a probe of block {origin['block']}"
    return f", kept at step {origin['step']:,} of {origin.get('total_steps', origin['step']):,}"


def _trained_on(origin: Mapping[str, Any]) -> str:
    if not origin.get("data"):
        return ""
    labels = "" if origin.get("num_labels") is None else f", {count(origin['num_labels'], 'labelled image')}"
    identity = origin.get("source_sha256") or origin.get("data_sha256")
    return f"{named(str(origin['data']))}{labels}" + (f", identity {identity[:12]}" if identity else "")


def when(start: Mapping[str, Any]) -> str:
    """Write date and version."""
    parts = [str(start.get("time", ""))[:16].replace("T", " ")]
    parts += [f"beit {start['beit']}"] if start.get("beit") else []
    parts += [f"commit {str(start['git_commit'])[:12]}"] if start.get("git_commit") else []
    return ", ".join(part for part in parts if part)
