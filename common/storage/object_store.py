"""Object stores and web servers, through obstore: S3, Google's storage, Azure, HTTP.

Here: how each is opened, from the environment variables that its users know, and the few calls that `RemotePlace` is
made of. Retries, back-off, connections and uploads in parts are obstore's. What obstore lacks is by hand: the links
that a web server makes of a folder, the region of a bucket, the files under ~/.aws.
"""

from __future__ import annotations

import functools
import html
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from beit.common.errors import InputError
from beit.common.storage.answers import FileStat, Judge, status_of
from beit.common.storage.paths import WEB_SCHEMES

if TYPE_CHECKING:
    from obstore.store import RetryConfig

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "http", "https")
HEADERS_VARIABLE = "BEIT_HTTP_HEADERS"
"""Environment variable: JSON of headers that are sent to web servers."""

SILENCE_SECONDS = 30.0
"""Longest wait for the next bytes. All attempts together stay below `reader.timeout_seconds`, so that what the user
reads names the URL, not a hung worker."""
_LONGEST = timedelta(minutes=5)
"""Of one request; none asks for more than some megabytes, apart from small files as a whole."""

_LINK = re.compile(r"""<a\s+(?:[^>]*?\s+)?href=["']([^"'?#]+)["']""", re.IGNORECASE)
_EPOCH_SECONDS = 0.0  # obstore's time of what has none
_CHUNK_BYTES = 1 << 20
_OUT_OF_RANGE = 416
_HEADERS_OF: dict[str, dict[str, str]] = {}
"""By root; not in the environment, which processes started later inherit and show."""


def retries(
    count: int, first_seconds: float, longest_seconds: float, in_all: timedelta = timedelta(minutes=3)
) -> RetryConfig:
    """Return obstore's setting for `count` further attempts with random pauses that grow to `longest_seconds`.

    After the time `in_all` no attempt is begun: those at a server that takes a connection and says nothing are long.
    """
    return {
        "max_retries": count,
        "backoff": {
            "init_backoff": timedelta(seconds=first_seconds),
            "max_backoff": timedelta(seconds=longest_seconds),
            "base": 3,
        },
        "retry_timeout": in_all,
    }


PATIENT = retries(10, 0.5, 4.0)
"""About 16 seconds. Arbitrary; rides out the restart of a server, not an outage."""
QUICK = retries(4, 0.1, 1.0, timedelta(seconds=20))
"""Where a user just named a place: a server that is not there is more likely a wrong address."""


class ObjectStore:
    """One bucket, container or web server.

    Args:
        root: Its URL.
        query: Of a web address, added to each request.
        is_first_contact: Whether to give up soon.
    """

    def __init__(self, root: str, query: str, *, is_first_contact: bool) -> None:
        self._root, self._query = root, query
        self._is_web = root.startswith(WEB_SCHEMES)
        self._store = _open(root, query, QUICK if is_first_contact else PATIENT)

    def get(
        self, key: str, start: int | None = None, end: int | None = None, *, e_tag: str = "", limit: int | None = None
    ) -> tuple[bytes, FileStat]:
        """Return the bytes from `start` to `end`, or all, but at most `limit`; fewer where the file ends.

        Args:
            key: Name in the store.
            start: First byte; None for all.
            end: Behind the last byte.
            e_tag: Of the version that is wanted; empty for any.
            limit: Most bytes to return.
        """
        options: dict[str, Any] = {} if start is None else {"range": (start, end)}
        if e_tag.startswith('"'):  # a weak one never matches, and a time is none
            options["if_match"] = e_tag
        try:
            result = self._store.get(key, options=options)
            stat = _stat(key, result.meta)
            if limit is None or stat.size <= limit:
                return bytes(result.bytes()), stat
            parts = bytearray()
            for part in result.stream(min_chunk_size=_CHUNK_BYTES):
                parts += part
                if len(parts) >= limit:
                    break
            return bytes(parts[:limit]), stat
        except Exception as error:
            if start is not None and status_of(error)[0] == _OUT_OF_RANGE:
                return b"", FileStat(key, 0, "")
            if start is None and self._is_web and "Content-Length Header missing" in str(error):
                data = self._page(key)
                return data[:limit], FileStat(key, len(data), "")
            raise

    def begin(self, key: str, start: int, end: int) -> tuple[bytes, FileStat]:
        """Return bytes as `get` does, with size and version of the whole file."""
        return self.get(key, start, end)

    def head(self, key: str, *, at_offsets: bool = False) -> FileStat:
        """Return size and version of a file.

        Args:
            key: Name in the store.
            at_offsets: Whether it is an error that it cannot be read at offsets.
        """
        if not self._is_web:
            return _stat(key, self._store.head(key))
        # A signed address answers GET only; and some servers know no ranges, which this finds out.
        try:
            return self.get(key, 0, 1)[1]
        except Exception as error:
            is_unknown = "Content-Length Header missing" in str(error)
            if at_offsets or not (is_unknown or "Range request not supported" in str(error)):
                raise
            return FileStat(key, 0, "") if is_unknown else _stat(key, self._store.head(key))

    def level(self, folder: str) -> tuple[list[FileStat], list[str]]:
        """Return the files and the names of the folders that lie directly in a folder."""
        if self._is_web:
            return self._linked(folder)
        found = self._store.list_with_delimiter(folder or None)
        return [_stat(meta["path"], meta) for meta in found["objects"]], list(found["common_prefixes"])

    def walk(self, folder: str) -> list[FileStat]:
        """Return all files below a folder."""
        if self._is_web:
            files, folders = self._linked(folder)
            return files + [file for inner in folders for file in self.walk(inner)]
        return [
            _stat(meta["path"], meta) for part in self._store.list(folder or None, chunk_size=1000) for meta in part
        ]

    def put(self, key: str, data: bytes | IO[bytes]) -> None:
        """Write a file as a whole, over an older one; an open file is read from its position."""
        self._store.put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Write a small file unless there is one; return whether it was done."""
        return self._put_if(key, data, "create")

    def swap(self, key: str, data: bytes, is_old: Judge) -> bool:
        """Write a small file over another if `is_old` says that it is the one; return whether it was done."""
        try:
            found = self._store.get(key)
        except FileNotFoundError:
            return False
        # Google's storage goes by the version, the others by the ETag.
        mode = {name: value for name in ("e_tag", "version") if (value := found.meta[name])}
        return is_old(bytes(found.bytes())) and self._put_if(key, data, mode)

    def _put_if(self, key: str, data: bytes, mode: Any) -> bool:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            self._store.put(key, data, mode=mode)
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    def delete(self, key: str) -> None:
        """Remove a file, if it is there."""
        try:
            self._store.delete(key)
        except FileNotFoundError:
            return

    def _linked(self, folder: str) -> tuple[list[FileStat], list[str]]:
        """Read the page of links that web servers make of a folder."""
        address = self._address(folder).rstrip("/") + "/"
        links = _LINK.findall(self._page(folder).decode("utf-8", "replace"))
        found = (urllib.parse.urljoin(address, html.unescape(link)) for link in links)
        names = {urllib.parse.unquote(link[len(address) :]) for link in found if link.startswith(address)}
        prefix = f"{folder}/" if folder else ""
        files = [FileStat(prefix + name, 0, "") for name in sorted(names) if name and "/" not in name]
        folders = {name.split("/")[0] for name in names if "/" in name}
        return files, [prefix + name for name in sorted(folders)]

    def _page(self, key: str) -> bytes:
        """Fetch what may have no length, which obstore refuses."""
        address = f"{self._address(key)}?{self._query}" if self._query else self._address(key)
        request = urllib.request.Request(address, headers=web_headers(self._root))
        try:
            with urllib.request.urlopen(request, timeout=SILENCE_SECONDS) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as error:
            raise error.reason if isinstance(error.reason, Exception) else error from None

    def _address(self, key: str) -> str:
        return f"{self._root}/{urllib.parse.quote(key)}"


def split_url(url: str) -> tuple[str, str]:
    """Return the root of a URL, its bucket or server, and the key behind it."""
    scheme, _, rest = url.partition("://")
    root, _, key = rest.partition("/")
    key = key.strip("/")
    return f"{scheme}://{root}", urllib.parse.unquote(key) if url.startswith(WEB_SCHEMES) else key


def send_headers(root: str, headers: dict[str, str]) -> None:
    """Send further headers, such as a token, to one web server: what `split_url` calls its root."""
    _HEADERS_OF[root] = headers


def web_headers(root: str) -> dict[str, str]:
    """Return the headers that the user wants to be sent to web servers, and what only this one gets."""
    text = os.environ.get(HEADERS_VARIABLE, "{}")
    try:
        return {str(name): str(value) for name, value in json.loads(text).items()} | _HEADERS_OF.get(root, {})
    except (ValueError, AttributeError):
        raise InputError(f'{HEADERS_VARIABLE} must be JSON such as {{"Authorization": "Bearer ..."}}') from None


def _open(root: str, query: str, retry_config: RetryConfig) -> Any:
    from obstore.store import AzureStore, GCSStore, HTTPStore, from_url

    options: dict[str, Any] = {
        # Where the address says so.
        "client_options": {"allow_http": True, "timeout": _LONGEST, "read_timeout": timedelta(seconds=SILENCE_SECONDS)},
        "retry_config": retry_config,
    }
    scheme, _, name = root.partition("://")
    if scheme in ("http", "https"):
        options["client_options"]["default_headers"] = web_headers(root)
        return HTTPStore.from_url(f"{root}?{query}" if query else root, **options)
    if scheme in ("s3", "s3a"):
        return _open_s3(name, options)
    if scheme in ("gs", "gcs"):
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        if emulator:
            base_url = emulator if "://" in emulator else f"http://{emulator}"
            options |= {"base_url": base_url.removesuffix("/storage/v1").rstrip("/"), "skip_signature": True}
        return GCSStore(name, **options)
    return from_url(root, **options) if "@" in name or scheme == "adl" else AzureStore(name, **options)


def _open_s3(bucket: str, options: dict[str, Any]) -> Any:
    from obstore.store import S3Store

    has_endpoint = any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"))
    is_public = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes")
    if not is_public and not os.environ.get("AWS_ACCESS_KEY_ID"):
        options |= _of_profile(bucket, has_endpoint=has_endpoint)
    if not has_endpoint and "endpoint" not in options and (region := _region_of(bucket)):
        options["region"] = region
    return S3Store(bucket, **options)


def _of_profile(bucket: str, *, has_endpoint: bool) -> dict[str, Any]:
    """Return credentials and endpoint of ~/.aws, of single sign-on or of a machine's role, as boto3 finds them."""
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        files = (os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), "~/.aws/config")
        if "AWS_PROFILE" in os.environ or any(Path(file).expanduser().is_file() for file in files):
            raise InputError(
                f"s3://{bucket} needs boto3 to read the credentials under ~/.aws: pip install boto3, or set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        return {}  # obstore knows the roles of machines and containers
    session = boto3.Session()
    try:
        found: dict[str, Any] = {"credential_provider": Boto3CredentialProvider(session)}
    except ValueError:
        raise NoCredentialsError from None
    endpoint = None if has_endpoint else session.client("s3", region_name=session.region_name).meta.endpoint_url
    return found | ({"endpoint": endpoint} if endpoint and "amazonaws.com" not in endpoint else {})


class NoCredentialsError(Exception):
    """boto3 has looked everywhere."""


@functools.lru_cache
def _region_of(bucket: str) -> str | None:
    """Ask where a bucket is: obstore must be told, and AWS says it to anybody; None where it cannot be asked."""
    request = urllib.request.Request(f"https://s3.amazonaws.com/{bucket}", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:  # a redirection or a refusal names it, too
        headers = error.headers
    except OSError:
        return None
    region: str | None = headers.get("x-amz-bucket-region")
    return region


def _stat(key: str, meta: Any) -> FileStat:
    seconds = meta["last_modified"].timestamp()
    time = "" if seconds == _EPOCH_SECONDS else meta["last_modified"].isoformat()
    return FileStat(key, int(meta["size"]), meta["e_tag"] or time, int(seconds * 1e9) if time else None)
