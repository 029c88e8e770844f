"""Weights that are fetched first: an address, or a model of the Hugging Face hub as hf://OWNER/NAME[@REVISION].

What is fetched lies in the folder of beit's cache, by address and version, so that an interruption goes on where it was
and a second import fetches nothing. Of a model only what `import_files.py` reads is fetched: config.json, the image
processor, and the weights, safetensors before pickles. The hub's address and a token come from where its own library
takes them: huggingface_hub where it is installed, HF_ENDPOINT, HF_TOKEN and the file that `hf auth login` writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from beit.common.errors import InputError, require
from beit.common.storage.answers import MissingFile
from beit.common.storage.documents import read_json, write_json
from beit.common.storage.download import complete_file, discard_begun
from beit.common.storage.files import default_cache_dir, sha256_file
from beit.common.storage.locks import exclusive_lock
from beit.common.storage.object_store import send_headers
from beit.common.storage.paths import normalise, remember_query, split_query
from beit.common.storage.remote_place import RemotePlace
from beit.finetune.weights.import_exported import OFFICIAL_FILE, ONNX_FILE

HUB = "hf://"
_NAME = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[^@\s?#]+))?")
_DESCRIPTIONS = ("config.json", "preprocessor_config.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""In the order in which `import_files.py` prefers them."""
_INDEX = ".index.json"
_MB = 1_000_000
_DIGEST_LENGTH = 16
_PAGE_BYTES = 100
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """What lies on this machine now."""

    path: Path
    """A file, or a folder of Hugging Face."""
    origin: str
    """Its address, without what may be secret."""
    revision: str | None
    """Commit of the hub; None elsewhere."""


def is_address(source: str) -> bool:
    """Tell an address from a path."""
    return "://" in source


def fetch(source: str) -> Fetched:
    """Bring what stands behind an address onto this machine.

    Raises:
        RemoteError: the server went away in the midst; the same command goes on.
    """
    if source.startswith(HUB):
        return _fetch_model(source)
    require(
        not source.startswith(("file://", "hf:")),
        f"{source} must be a path, an address of http, https, s3 or gs, or hf://OWNER/NAME",
    )
    address, query = split_query(normalise(source))
    if query:
        remember_query(address, query)
    name = unquote(urlsplit(address).path.rsplit("/", 1)[-1])
    require(bool(name) and name not in (".", ".."), f"{address} must name a file; give the address of the weights")
    folder = _folder(address)
    with exclusive_lock(folder / ".lock"):
        _fetch_file(address, folder / name)
    return Fetched(path=folder / name, origin=address, revision=None)


def require_sha256(path: Path, wanted: str) -> None:
    """Refuse a file that is not the one that is meant.

    Args:
        path: A file, or a folder with one file of weights.
        wanted: 64 hexadecimal digits, or the first eight or more of them.
    """
    wanted = wanted.lower().removeprefix("sha256:")
    require(
        re.fullmatch(r"[0-9a-f]{8,64}", wanted) is not None,
        f"--sha256 ({wanted}) must be 64 hexadecimal digits, or at least the first 8",
    )
    files = [path]
    if path.is_dir():
        wanted_names = [name for name in _WEIGHTS if not name.endswith(_INDEX)] + [OFFICIAL_FILE, ONNX_FILE]
        files = [path / name for name in wanted_names if (path / name).is_file()][:1]
    require(bool(files) and files[0].is_file(), f"{path} has no single file of weights whose --sha256 can be compared")
    found = sha256_file(files[0])
    require(
        found.startswith(wanted),
        f"{files[0]} has sha256 {found}, not {wanted}; it is another file than you mean, or damaged: "
        "remove it and fetch it again",
    )


def _fetch_model(source: str) -> Fetched:
    match = _NAME.fullmatch(source.rstrip("/"))
    if match is None:
        raise InputError(f"{source} must be hf://OWNER/NAME, or hf://OWNER/NAME@REVISION with a branch, tag or commit")
    name, revision = match["name"], match["revision"] or "main"
    endpoint, token = _hub()
    parts = urlsplit(endpoint)
    send_headers(f"{parts.scheme}://{parts.netloc}", {"Authorization": f"Bearer {token}"} if token else {})
    commit = _commit(endpoint, name, revision)
    base = f"{endpoint}/{name}/resolve/{quote(commit or revision, safe='')}"
    folder = _folder(base)
    with exclusive_lock(folder / ".lock"):
        for description in _DESCRIPTIONS:
            with suppress(MissingFile):
                _fetch_file(f"{base}/{description}", folder / description)
        weights = _first_of(base, folder, _WEIGHTS)
        if weights is None:
            raise InputError(
                f"{source} has none of {', '.join(_WEIGHTS)}, or there is no such model"
                + ("" if token else "; a private one needs HF_TOKEN")
            )
        if weights.name.endswith(_INDEX):
            for part in _parts(weights):
                _fetch_file(f"{base}/{part}", folder / part)
    return Fetched(path=folder, origin=f"{HUB}{name}@{commit or revision}", revision=commit)


def _hub() -> tuple[str, str | None]:
    """Return the address of the hub and a token, as its own library says; neither is asked for over the network."""
    endpoint = os.environ.get("HF_ENDPOINT", "")
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    with suppress(ImportError):
        from huggingface_hub import constants, get_token

        endpoint, token = endpoint or constants.ENDPOINT, token or get_token()
    endpoint = endpoint.rstrip("/")
    require(
        endpoint.startswith(("http://", "https://")),
        "hf:// needs the address of the hub: pip install huggingface_hub, or set HF_ENDPOINT; a folder fetched by "
        "other means works, too",
    )
    return endpoint, token


def _commit(endpoint: str, name: str, revision: str) -> str | None:
    """Return the commit that a branch or tag stands for, so that all files are of one; None where nobody tells."""
    if _COMMIT.fullmatch(revision):
        return revision
    address = f"{endpoint}/api/models/{name}/revision/{quote(revision, safe='')}"
    try:
        found = json.loads(RemotePlace(address, is_first_contact=True).read())
        commit = found.get("sha") if isinstance(found, dict) else None
    except (MissingFile, ValueError):
        return None
    return commit if isinstance(commit, str) and _COMMIT.fullmatch(commit) else None


def _first_of(base: str, folder: Path, names: tuple[str, ...]) -> Path | None:
    for name in names:
        with suppress(MissingFile):
            _fetch_file(f"{base}/{name}", folder / name)
            return folder / name
    return None


def _parts(index: Path) -> list[str]:
    listed = read_json(index)
    weight_map = listed.get("weight_map") if isinstance(listed, dict) else None
    parts = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not parts or any(Path(part).name != part for part in parts):
        raise InputError(f"{index} does not list weight files of its own folder; the model cannot be read")
    return parts


def _folder(address: str) -> Path:
    """Return where an address is kept, which may be begun."""
    digest = hashlib.sha256(address.encode()).hexdigest()[:_DIGEST_LENGTH]
    folder = default_cache_dir() / "weights" / digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot keep weights in {folder} ({error}); point BEIT_CACHE at a folder with space"
        ) from None
    return folder


def _fetch_file(address: str, file: Path) -> None:
    """Complete a file from an address; one that is there is kept where the server has the same version."""
    unfinished, record = file.with_name(f"{file.name}.part"), file.with_name(f"{file.name}.version")
    try:
        found = RemotePlace(address, is_first_contact=True).stat()
    except MissingFile:
        raise
    except InputError as error:
        before = f"; give {file} instead, as it was fetched before" if file.is_file() else ""
        raise InputError(f"{error}{before}") from None
    if found.version and file.is_file() and record.is_file():
        with suppress(InputError):  # a damaged record: once more
            if read_json(record) == asdict(found):
                return
    size, free = found.size // _MB, shutil.disk_usage(file.parent).free // _MB
    require(size <= free, f"{address} has {size} MB, and {file.parent} has {free} MB left; point BEIT_CACHE elsewhere")
    fetched, size = complete_file(address, unfinished), unfinished.stat().st_size
    with unfinished.open("rb") as opened:
        is_page = opened.read(_PAGE_BYTES).lstrip().lower().startswith((b"<!doctype", b"<html"))
    if is_page or (fetched.size and size != fetched.size):
        discard_begun(unfinished)
        what = "a web page; a proxy or a log-in page may be in between"
        announced = f"{size} bytes, not the {fetched.size} that it announced; run the command again"
        raise InputError(f"{address} gave {what if is_page else announced}")
    os.replace(unfinished, file)
    write_json(record, asdict(fetched))
    discard_begun(unfinished)
