"""Open whatever a user calls their images: a folder, tars, Parquet files, a text list or a CSV table, local or remote.

Here: which kind a path or URL is, and the list of its samples. The kinds are in `loose_files.py`, `tars.py` and
`parquet.py`; what they have in common is in `types.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from typing import NamedTuple

from beit.common.errors import InputError, require
from beit.common.images.formats import is_array_path, is_image_path
from beit.common.progress import Progress
from beit.common.sources.lists import csv_listing, text_listing
from beit.common.sources.loose_files import folder_listing, open_files
from beit.common.sources.splits import refuse_splits_as_classes, warn_of_split_containers, warn_of_split_folders
from beit.common.sources.tars import open_tars
from beit.common.sources.types import SampleRef, Source, SourceKind
from beit.common.storage.matching import is_folder, list_folder, match_files, measure_files
from beit.common.storage.paths import (
    expand_braces,
    is_remote,
    join,
    normalise,
    relative_to,
    remember_query,
    split_query,
)
from beit.common.storage.place import FileStat
from beit.common.storage.threads import threads

_COMPRESSED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class _Listing(NamedTuple):
    """Files that a user names, all of one kind."""

    root: str
    files: list[FileStat]
    """By paths relative to the root."""
    kind: SourceKind


def open_source(
    spec: str | Path,
    *,
    label_column: str | None = None,
    for_classes: bool = False,
    image_member: str | None = None,
) -> Source:
    """Open a source of images.

    Args:
        spec: A folder (images at any depth, or tars, or Parquet files), a `.tar` or `.parquet` path or URL, a pattern
            with wildcards or braces over such files or over images, a `.txt` list of image paths, or a `.csv` table
            with the columns path and label. The query of a web address, such as a signature, is no part of any name.
        label_column: Column of the classes in Parquet and CSV tables; left out, the one that is called so.
        for_classes: Whether the classes are wanted, so that folders which cannot be classes are refused.
        image_member: Which member of a tar's sample, or column of a Parquet file, is the image, as
            `beit.common.sources.config.SourceConfig` says.
    Returns:
        The shards and class names; images are read later, shard by shard.
    """
    found = _listed(spec)
    if isinstance(found, str):
        _refuse_member(image_member, found)
        return open_files(
            text_listing(found) if found.lower().endswith(".txt") else csv_listing(found, label_column=label_column)
        )
    root, files, kind = found
    if kind != "files":
        warn_of_split_containers(root, [file.path for file in files if file.path.lower().endswith(f".{kind}")])
    else:
        _refuse_member(image_member, root)
    if kind == "tar":
        return open_tars(_located(root, files, ".tar"), root, image_member=image_member)
    if kind == "parquet":
        from beit.common.sources.parquet import open_parquet_files  # the other kinds work without loading pyarrow

        located = _located(root, files, ".parquet")
        return open_parquet_files(located, root, label_column=label_column, image_column=image_member)
    listing = folder_listing(root, files)
    paths = [file.path for file in listing.files]
    if for_classes and any(listing.labels):
        refuse_splits_as_classes(root, paths)
    warn_of_split_folders(root, paths)
    return open_files(listing)


def table_files(spec: str) -> tuple[list[FileStat], str]:
    """Return the Parquet files that a user names, as `open_source` takes them, and the folder or URL above them."""
    found = _listed(spec)
    require(
        not isinstance(found, str) and found.kind == "parquet",
        f"{spec} holds no Parquet files; name some, or a folder of them",
    )
    assert not isinstance(found, str)
    located = _located(found.root, found.files, ".parquet")
    warn_of_split_containers(found.root, [relative_to(found.root, file.path) for file in located])
    return located, found.root


def _listed(spec: str | Path) -> _Listing | str:
    """Return the files that a user names, or the path of a list or table of files."""
    text = os.fspath(spec)
    if not text:
        raise InputError("source ('') must be a folder, a file, a pattern or a URL")
    text, query = split_query(text)
    path = normalise(text)
    if query:
        for url in expand_braces(path):
            remember_query(url, query)
    lower = path.lower()
    if lower.endswith((".txt", ".csv")):
        return path
    # A remote name is judged by its ending: asking a web server whether it is a folder would download the file.
    is_listed = is_folder(path) if not is_remote(path) else not _is_usable(path) and is_folder(path)
    if is_listed:
        root, files = path, list_folder(path)
    else:
        matched = match_files(text)
        root = _common_folder(matched)
        files = [replace(file, path=relative_to(root, file.path)) for file in matched]
    return _Listing(root, files, _check_listing(root, files, is_pattern=not is_listed))


def _refuse_member(image_member: str | None, location: str) -> None:
    require(
        image_member is None,
        f"source.image_member ({image_member}) is for tars and Parquet, and {location} names single image files; "
        "leave it out",
    )


def list_samples(source: Source) -> Iterator[list[SampleRef]]:
    """Yield the samples of every shard in order, showing progress where that takes long."""
    listed: Iterable[list[SampleRef]] = map(methodcaller("refs"), source.shards)
    if source.kind == "files":
        yield from listed
        return
    with Progress(len(source.shards), unit="shards", description="indexing") as progress:
        # Of a server, each is a chain of small requests. Here, tars are limited by the interpreter, and threads would
        # take turns at one Parquet reader.
        if is_remote(source.root):
            listed = threads().imap(methodcaller("refs"), source.shards)
        for refs in listed:
            yield refs
            progress.update(1)


def _located(root: str, files: Sequence[FileStat], suffix: str) -> list[FileStat]:
    """Give containers their full paths, and their sizes where the listing of a web server does not tell them."""
    chosen = (file for file in files if file.path.lower().endswith(suffix))
    located = (replace(file, path=join(root, file.path)) for file in chosen)
    return measure_files({file.path: file for file in located})


def _check_listing(root: str, files: Sequence[FileStat], *, is_pattern: bool) -> SourceKind:
    """Return the one kind of images that some files are."""
    lower = [file.path.lower() for file in files]
    num_tars, num_tables = (sum(path.endswith(suffix) for path in lower) for suffix in (".tar", ".parquet"))
    # Arrays are images where nothing else is there to be meant.
    is_image = is_image_path if num_tars or num_tables or any(map(is_image_path, lower)) else is_array_path
    num_images = sum(map(is_image, lower))
    counts = [num_tars, num_tables, num_images]
    if any(file.path == "store.json" for file in files):
        raise InputError(f"{root} is a token store, not a source of images; give the images it was made from")
    if not files:
        raise InputError(f"{root} is empty; a source needs images, tars or Parquet files")
    if sum(count > 0 for count in counts) > 1:
        raise InputError(
            f"{root} mixes {num_images} images, {num_tars} tars and {num_tables} Parquet files; "
            "say which with a pattern, such as '*.tar'"
        )
    if not any(counts) and any(file.path.lower().endswith(_COMPRESSED_TAR) for file in files):
        raise InputError(f"{root} holds compressed tars, which cannot be read at offsets; unpack them to .tar first")
    if is_pattern and sum(counts) < len(files):
        odd = next(file.path for file in files if not (_is_container(file.path) or is_image(file.path)))
        raise InputError(
            f"{join(root, odd)} is no image, tar, Parquet, text or CSV file by its name; rename or leave it out"
        )
    return "tar" if num_tars else "parquet" if num_tables else "files"


def _is_usable(path: str) -> bool:
    return _is_container(path) or is_image_path(path) or is_array_path(path)


def _is_container(path: str) -> bool:
    return path.lower().endswith((".tar", ".parquet"))


def _common_folder(files: Sequence[FileStat]) -> str:
    folders = [file.path.rsplit("/", 1)[0] for file in files]
    common = folders[0]
    while not all(folder == common or folder.startswith(f"{common}/") for folder in folders):
        common = common.rsplit("/", 1)[0]
    return common or "/"
