"""The visual words that a run learns from, for its report."""

from __future__ import annotations

from PIL import Image

from beit.common.pages.words import SAMPLES
from beit.common.pages.words import words_sheet as drawn
from beit.common.shards.sample_views import sample_views
from beit.common.shards.token_store import TokenStore


def words_sheet(store: TokenStore) -> Image.Image | None:
    """Draw the commonest words of a store.

    None where it holds none, or is remote: samples spread over it would be shards to fetch.
    """
    info = store.info
    if info.tokenizer is None or not info.views or store.is_remote:
        return None
    return drawn(
        *sample_views(store, SAMPLES),
        patch_size=info.patch_size,
        tokenizer=info.tokenizer.name,
        vocab_size=info.tokenizer.vocab_size,
        name=store.location.rstrip("/").rpartition("/")[2],
    )
