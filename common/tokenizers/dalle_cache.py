"""The tokenizer called "dall-e": fetched once from its public address, converted once, then read from the cache folder.

    $BEIT_CACHE/dall-e/encoder.pkl, decoder.pkl     as published, downloaded or copied there by hand
                       config.json, ...safetensors  what is used: the format of `beit.common.tokenizers.directory`

With the files there, no network is touched. The pickles may be removed once they are converted; while they are there,
they must stay what they were.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from urllib.parse import urlsplit

from beit.common.errors import InputError, require
from beit.common.storage.download import complete_file, discard_begun
from beit.common.storage.files import default_cache_dir, fsync_directory
from beit.common.storage.locks import exclusive_lock
from beit.common.storage.place import RemoteError
from beit.common.tokenizers.dalle_files import Part, find_part, read_part
from beit.common.tokenizers.directory import CONFIG_FILE, describe_source, recorded_sources, save_dalle

logger = logging.getLogger(__name__)

OFFICIAL_URL = "https://cdn.openai.com/dall-e"
"""Folder of encoder.pkl (215 MB) and decoder.pkl (175 MB)."""
MIRRORS_VARIABLE = "BEIT_DALLE_MIRRORS"
"""Environment variable: further http(s) folders with the two files, separated by spaces, tried in order."""


def dalle_folder() -> Path:
    """Return where the name "dall-e" is looked up: $BEIT_CACHE/dall-e, or ~/.cache/beit/dall-e."""
    return default_cache_dir() / "dall-e"


def prepare_dalle(*, need_decoder: bool = False) -> Path:
    """Return the folder of DALL-E's tokenizer, after fetching and converting what is missing.

    Several processes may call this at once; one works, the others wait for it.

    Args:
        need_decoder: Whether it is worth a download, and an error if it cannot be had. Without it, the decoder comes
            with the first download of the encoder, if it can.
    """
    folder = dalle_folder()
    if _missing_parts(folder, need_decoder):
        if folder.is_dir() and not os.access(folder, os.W_OK) and find_part(folder, "encoder"):
            return folder  # of an administrator, say: the bare files serve too
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(folder / ".lock"):
                _complete(folder, need_decoder)
        except OSError as error:
            raise InputError(
                f"cannot keep the DALL-E tokenizer in {folder} ({error}); point BEIT_CACHE at a folder with 800 MB of "
                "space"
            ) from None
    check_sources(folder)
    return folder


def has_encoder() -> bool:
    """Tell whether the encoder is on this machine, without asking any other."""
    folder = dalle_folder()
    return (folder / CONFIG_FILE).is_file() or find_part(folder, "encoder") is not None


def has_decoder() -> bool:
    """Tell whether the decoder is on this machine, without asking any other."""
    folder = dalle_folder()
    is_converted = (folder / CONFIG_FILE).is_file()
    if is_converted and "decoder" in recorded_sources(folder):
        return True
    return bool((is_converted or find_part(folder, "encoder")) and find_part(folder, "decoder"))


def _missing_parts(folder: Path, need_decoder: bool) -> list[Part]:
    """Say what is to be converted: the decoder if it is asked for, lies there, or the encoder is downloaded anyway."""
    is_converted = (folder / CONFIG_FILE).is_file()
    if is_converted and "decoder" in recorded_sources(folder):
        return []
    is_new = not is_converted and find_part(folder, "encoder") is None
    missing: list[Part] = [] if is_converted else ["encoder"]
    return [*missing, "decoder"] if is_new or need_decoder or find_part(folder, "decoder") else missing


def _complete(folder: Path, need_decoder: bool) -> None:
    """Do what is missing; called under the lock."""
    for part in _missing_parts(folder, need_decoder):
        try:
            _add_part(folder, part)
        except (InputError, OSError) as error:
            if need_decoder or part == "encoder":
                raise
            logger.warning("tokens need no decoder, so this goes on without: %s", error)


def _add_part(folder: Path, part: Part) -> None:
    """Convert one pickle in `folder`, after fetching it where it is missing."""
    url = _download(folder, part) if find_part(folder, part) is None else ""
    file = find_part(folder, part)
    assert file is not None, "was found or downloaded just before, under the lock"
    source = describe_source(file, url=url)
    save_dalle(folder, part, read_part(file, part)[1], source)
    logger.info("DALL-E's %s (sha256 %s) is ready in %s", part, source.sha256[:12], folder)


def _download(folder: Path, part: Part) -> str:
    """Fetch one pickle into `folder`, and return where it came from."""
    name = f"{part}.pkl"
    urls = [f"{base}/{name}" for base in (OFFICIAL_URL, *mirrors())]
    unfinished = folder / f"{name}.part"
    logger.info("DALL-E's %s is not in %s: downloading %s", part, folder, urls[0])
    reasons: list[str] = []
    for url in urls:
        if reasons:
            logger.info("%s; trying %s", reasons[-1], url)
        try:
            complete_file(url, unfinished)
        except (InputError, RemoteError) as error:
            reasons.append(str(error))
            continue
        try:
            _require_part(unfinished, part)
        except InputError as error:
            discard_begun(unfinished)
            reasons.append(f"{url}: what it gave is not the file: {error}")
            continue
        os.replace(unfinished, folder / name)
        fsync_directory(folder)
        discard_begun(unfinished)
        return url
    what = "tokenizer" if part == "encoder" else "decoder, which pictures need,"
    instead = ", or use --tokenizer mini, which comes with beit" if part == "encoder" else ""
    raise InputError(
        f"DALL-E's {what} is not in {folder} and cannot be downloaded ({'; '.join(reasons)}); put {name} there by hand "
        f"(from {OFFICIAL_URL}/{name}), name a mirror in {MIRRORS_VARIABLE}{instead}"
    )


def _require_part(file: Path, part: Part) -> None:
    with file.open("rb") as opened:
        is_page = opened.read(100).lstrip().startswith(b"<")
    require(not is_page, "it is a web page; a proxy or log-in page may be in between")
    read_part(file, part)


def mirrors() -> list[str]:
    """Return the further folders that the environment names."""
    urls = [url.rstrip("/") for url in os.environ.get(MIRRORS_VARIABLE, "").split()]
    for url in urls:
        require(
            urlsplit(url).scheme in ("http", "https") and bool(urlsplit(url).netloc),
            f"{MIRRORS_VARIABLE} ({url}) must list http or https addresses of folders, separated by spaces",
        )
    return urls


def check_sources(folder: Path) -> None:
    """Refuse replaced source files; using what was made of the old ones would surprise whoever replaced them."""
    for source in recorded_sources(folder).values():
        file = folder / source.name
        if file.is_file() and (now := describe_source(file)).sha256 != source.sha256:
            raise InputError(
                f"{file} (sha256 {now.sha256[:12]}) is not the file the tokenizer there was converted from "
                f"({source.sha256[:12]}); put that one back, or remove {folder / CONFIG_FILE} to convert this one"
            )
