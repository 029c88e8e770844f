"""What a pre-training draws for its report when it is over, beside what its evaluations drew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from beit.common.shards.token_store import TokenStore
from beit.pretrain.config import PretrainConfig

_IMAGES, _EPOCHS = 4, 4


def report_pictures(
    run: Path, store: TokenStore, config: PretrainConfig
) -> dict[str, Callable[[], Image.Image | None]]:
    """Return by name what draws masks, attention and words."""

    def masks() -> Image.Image | None:
        from beit.pretrain.pictures.masks import masks_sheet  # charts take half a second of imports

        return (
            None if config.mask.mode == "none" else masks_sheet(store, config, num_images=_IMAGES, num_epochs=_EPOCHS)
        )

    def attention() -> Image.Image | None:
        from beit.pretrain.pictures.attention import attention_sheet

        return attention_sheet(run, store, config, num_images=_IMAGES)

    def words() -> Image.Image | None:
        from beit.pretrain.pictures.words import words_sheet

        is_learned = config.objective.needs_tokens and config.tokenizer.online is None
        return words_sheet(store) if is_learned else None

    return {"masks": masks, "attention": attention, "words": words}
