"""Where the numbers of a page come from, in the words of a reader: model, encoder, data, date, version, command."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit.common.pages.numbers import count
from beit.common.runs.environment import environment
from beit.common.runs.starts import command_text, last_start, named, when
from beit.common.vit.description import EncoderConfig, find_encoder
from beit.finetune.config import RANDOM_ENCODER


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
