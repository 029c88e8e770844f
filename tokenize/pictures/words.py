"""What the visual words of a store look like: how common the commonest ones are, and patches that carry them."""

from __future__ import annotations

from PIL import Image

from beit.common.errors import InputError
from beit.common.pages import words as drawing
from beit.common.shards.sample_views import sample_views
from beit.common.shards.token_store import TokenStore


def words_sheet(store: TokenStore, *, num_words: int, num_examples: int, num_samples: int) -> Image.Image:
    """Draw the commonest visual words among samples spread evenly over a store, one row each, RGB.

    Of each sample one view is looked at; the examples of a word come from different samples.

    Raises:
        InputError: the store has no tokens.
        BadSample: an image or its tokens are damaged.
    """
    info = store.info
    if info.tokenizer is None:
        raise InputError(f"{store.location} holds no tokens (views = 0), so there are none to draw")
    return drawing.words_sheet(
        *sample_views(store, num_samples),
        patch_size=info.patch_size,
        tokenizer=info.tokenizer.name,
        vocab_size=info.tokenizer.vocab_size,
        name=store.location.rstrip("/").rpartition("/")[2],
        num_words=num_words,
        num_examples=num_examples,
    )
