"""A few views of a token store as pixels and words, for pictures of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from beit.common.images.channels import in_colour
from beit.common.shards.token_store import TokenStore
from beit.common.storage.samples import spread_evenly
from beit.common.views import render_view


def sample_views(store: TokenStore, count: int) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    """Return one view of each of at most `count` samples, spread evenly over a store that has tokens.

    Returns:
        Pixels (img_size, img_size, 3) of each, and tokens (samples, grid_size, grid_size).

    Raises:
        BadSample: an image or its tokens are damaged.
    """
    pixels, token_ids, info = [], [], store.info
    for number, position in enumerate(spread_evenly(len(store), count).tolist()):
        record = store.read_record(*store.locate(position), number % info.views)
        assert record.view is not None and record.token_ids is not None
        image = record.decode_image()
        scope = info.augment.jitter_scope
        shown = render_view(image, record.view, img_size=info.img_size, jitter_scope=scope, check_crop=True)
        pixels.append(in_colour(shown))
        token_ids.append(record.token_ids.astype(np.int64))
    return pixels, np.stack(token_ids)
