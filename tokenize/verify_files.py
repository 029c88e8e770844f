"""The files that `beit verify` reads: those of a local store as they are, those of a remote one copied to this machine.

A remote store is checked shard by shard, each in a temporary folder laid out like a store, so that the checks are the
same and no more than one shard takes disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beit.common.errors import BadSample, InputError
from beit.common.locations import is_remote, list_folder
from beit.common.remote import MissingFile, copy_file, fetch
from beit.common.shard_io import resolve_location
from beit.common.store_schema import IMAGES_DIR, TOKENS_DIR, ShardManifest, manifest_path, read_document


@contextmanager
def local_shard(location: str, stem: str) -> Iterator[str]:
    """Yield a folder in which tokens/ and images/ hold the files of one shard, image tars apart.

    Args:
        location: Folder or URL of the store.
        stem: Name of the shard.
    Raises:
        InputError: a file cannot be fetched; or as raised in the block, with the URL in place of the temporary folder.
    """
    if not is_remote(location):
        yield location
        return
    with tempfile.TemporaryDirectory(prefix="beit-verify-") as folder:
        try:
            _fetch_shard(location, stem, Path(folder))
            yield folder
        except (InputError, BadSample) as error:
            raise InputError(str(error).replace(folder, location)) from None


@contextmanager
def local_file(location: str) -> Iterator[Path]:
    """Yield the path of a file; of a remote one, of a copy that is gone afterwards.

    Raises:
        InputError: it cannot be fetched.
    """
    if not is_remote(location):
        yield Path(location)
        return
    with tempfile.NamedTemporaryFile(prefix="beit-verify-") as file:
        copy_file(location, file)
        yield Path(file.name)


def list_names(location: str, folder: str) -> list[str]:
    """List the files in tokens/ or images/, sorted; none where there is no such folder.

    Raises:
        InputError: the server lists no folders.
    """
    place = resolve_location(location, folder)
    if not is_remote(place):
        return sorted(path.name for path in Path(place).glob("*"))
    return [file.path for file in list_folder(place)]


def _fetch_shard(location: str, stem: str, folder: Path) -> None:
    for name in (TOKENS_DIR, IMAGES_DIR):
        (folder / name).mkdir()
        path = manifest_path(folder / name, stem)
        try:
            path.write_bytes(fetch(resolve_location(location, f"{name}/{path.name}")))
        except MissingFile:
            continue  # said by the check that needs it
    manifest = read_document(ShardManifest, manifest_path(folder / TOKENS_DIR, stem))
    for expected in (manifest.samples, manifest.tokens):
        if expected is not None:
            # Its schema lets through plain file names only, so a manifest cannot choose where something is written.
            with (folder / TOKENS_DIR / expected.name).open("wb") as file:
                copy_file(resolve_location(location, f"{TOKENS_DIR}/{expected.name}"), file)
