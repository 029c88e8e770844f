"""Reading a token store: settings, shard table, samples on demand, and single records by (shard, row, view).

    >>> store = beit.open_store("store/")
    >>> store[0]["token_ids"].shape  # views, and tokens per side
    (3, 4, 4)

Here: everything that turns the files of a store into arrays and bytes. Not here: the order samples are read in
(`common/reading/order.py`), rendering a view (`views.py`), whether files are what they were
(`common/shards/checks.py`), how remote bytes are fetched and kept (`common/shards/ahead.py`), writing
(`beit.tokenize`). Every byte is described in docs/store-format.md.

K views per image, g tokens per side.
"""

from __future__ import annotations

import os
from pathlib import Path

from beit.common.errors import InputError, require
from beit.common.shards.checks import check_files
from beit.common.shards.schema import INDEX_FILE, STORE_FILE, StoreInfo
from beit.common.shards.tables import ShardTable
from beit.common.shards.token_store import TokenStore
from beit.common.storage.documents import but_is, read_document
from beit.common.storage.paths import is_remote, normalise, resolve_location
from beit.common.storage.place import place_of


def open_store(path: str | Path, *, check_images: bool = True) -> TokenStore:
    """Open a finished token store for reading.

    Args:
        path: Folder or URL.
        check_images: Also check that image and token tars are there and unchanged, by size and time. Loader workers,
            which receive a checked store, do not come here.
    Returns:
        The store; nothing but settings and shard table is read yet. It has a length, is iterated in store order, and
        `store[i]` is a dict: key (str); image (PIL, RGB, turned as its EXIF data say; of a materialised store the first
        crop, and all K of them as crops); token_ids (K, g, g) uint16 in [0, vocab_size), K views of g x g tokens, rows
        from the top; views (K,), the records that `render_view` takes: a box (left, top, w, h) in pixels of the image,
        flip 0 or 1, colour factors in units of 1/16384; label (int, or None).
        `store.info` has the settings, with `img_size` and `patch_size` in pixels, `grid_size` g in tokens, `views` K.

    Example:
        >>> store = beit.open_store("store/")
        >>> len(store), store.info.views
        (20, 3)
        >>> sample = store[0]
        >>> sample["token_ids"].shape, sample["token_ids"].dtype
        ((3, 4, 4), dtype('uint16'))
        >>> beit.render_view(sample["image"], sample["views"][0], img_size=16).shape
        (16, 16, 3)
    """
    # Links are resolved first: image_root is relative to where the store really lies.
    location = normalise(str(path))
    location = location if is_remote(location) else os.path.realpath(location)
    info, index = read_store_info(location), place_of(resolve_location(location, INDEX_FILE))
    require(
        info.held_out.threshold is not None and index.exists(),
        f"{path} is unfinished: it has no {INDEX_FILE}; run beit tokenize again to finish it",
    )
    shards = ShardTable.decode(index.read(), label=index.location)
    require(
        len(shards) == info.source.num_shards,
        f"{index} has {len(shards)} shards, {STORE_FILE} says {info.source.num_shards}; "
        "run beit tokenize again to mend it",
    )
    store = TokenStore(location, info, shards)
    if check_images:
        check_files(store)
    return store


def read_store_info(location: str) -> StoreInfo:
    """Read store.json of a finished or unfinished store."""
    path = resolve_location(location, STORE_FILE)
    if not place_of(path, is_first_contact=True).exists():
        raise InputError(
            f"{location} is not a token store{but_is(location)}: it has no {STORE_FILE}; make one with beit tokenize"
        )
    return read_document(StoreInfo, place_of(path))
