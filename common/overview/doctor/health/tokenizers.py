"""Tokenizers: DALL-E's files in the cache, and the directory of any tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from beit.common.errors import InputError
from beit.common.overview.doctor.findings import Finding, refused, well

_SHOWN = 12
"""Characters of a hash."""


def check_dalle() -> Iterator[Finding]:
    """Are the files of BEiT's own tokenizer here, and are they whole? Nothing is downloaded."""
    from beit.common.tokenizers.dalle_cache import (
        MIRRORS_VARIABLE,
        check_sources,
        dalle_folder,
        has_decoder,
        has_encoder,
        mirrors,
    )
    from beit.common.tokenizers.directory import CONFIG_FILE, load_model

    folder, others = dalle_folder(), []
    try:
        others = mirrors()
    except InputError as error:
        yield refused("dall-e", error, f"unset {MIRRORS_VARIABLE}, or correct it")
    if not has_encoder():
        also = f", or from {len(others)} mirrors" if others else ""
        yield well("dall-e", f"not in {folder}; fetched (390 MB) when --tokenizer dall-e first asks for it{also}")
        return
    if (folder / CONFIG_FILE).is_file():
        check_sources(folder)
    loaded = load_model(
        folder, need_decoder=has_decoder()
    )  # proves every tensor by the fingerprint, where there is one
    parts = "encoder and decoder" if loaded.can_decode else "the encoder; no decoder, which only pictures need"
    yield well("dall-e", f"in {folder}: {parts} (fingerprint {loaded.fingerprint[:_SHOWN]})")


def look_at_tokenizer(folder: Path) -> Iterator[Finding]:
    """Are its weights there, and those of its description?"""
    from beit.common.tokenizers.directory import load_model

    loaded = load_model(folder)
    can = "paints" if loaded.can_decode else "cannot paint"
    yield well(
        "tokenizer",
        f"{folder}: {loaded.model.vocab_size} words of {loaded.model.downsampling} px, {can}, as it was written "
        f"(fingerprint {loaded.fingerprint[:_SHOWN]})",
    )
