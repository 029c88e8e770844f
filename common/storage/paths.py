"""Paths and URLs as text: joined, taken apart, braces expanded. What lies there is a `Place`.

The query of a web address, such as the signature of a presigned URL, expires and is a secret: no key, digest or store
may depend on it or hold it. So a source is listed, named and stored without its query, which is added where a file is
opened. Processes started later know it, too.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import posixpath
import re
import socket
import urllib.parse

from beit.common.errors import InputError

WEB_SCHEMES = ("http://", "https://")
_QUERY = re.compile(r"\?[^/?=]*=")  # other question marks are wildcards
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_WEB = re.compile(r"https?://", re.IGNORECASE)
QUERIES_VARIABLE = "BEIT_URL_QUERIES"
"""JSON of address -> query; in the environment, because worker processes inherit that."""
_LOCAL_NAMES = (".localhost", ".local", ".internal", ".intranet", ".lan", ".home", ".corp")
_BRACES = re.compile(r"\{([^{}]*)\}")
_BRACE_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_remote(path: str) -> bool:
    """Tell whether `path` has a scheme other than file://."""
    return "://" in path and not path.startswith("file://")


def require_local(path: str | os.PathLike[str], named: str) -> None:
    """Refuse an address where a file or folder of this machine is written; a `Path` has lost one of its slashes.

    Args:
        path: As the user gave it.
        named: The option and the path, for the message.
    """
    if _ADDRESS.match(os.fspath(path)):
        raise InputError(f"{named} is an address, and this is written on this machine only; name a local path")


def normalise(path: str) -> str:
    """Return a URL as it is, and a local path absolute, with `~` expanded and `file://` removed."""
    if is_remote(path):
        return path.rstrip("/")
    return os.path.abspath(os.path.expanduser(path.removeprefix("file://")))


def join(root: str, relative: str) -> str:
    """Join a folder or URL and a relative path with slashes; an absolute local path wins over a local root.

    The relative path is a file's name as people write it; in a web address it is percent-escaped.
    """
    if root.startswith(WEB_SCHEMES):
        relative = urllib.parse.quote(relative)
    return f"{root.rstrip('/')}/{relative}" if is_remote(root) else os.path.join(root, relative)


def relative_to(root: str, path: str) -> str:
    """Return a path or URL below `root` as the relative path that `join` takes."""
    relative = path[len(root.rstrip("/")) :].lstrip("/")
    return urllib.parse.unquote(relative) if root.startswith(WEB_SCHEMES) else relative


def resolve_location(root: str, name: str) -> str:
    """Return the location of `name` seen from the folder `root`; a URL or an absolute path stands for itself."""
    if is_remote(name) or os.path.isabs(name):
        return name
    scheme, separator, path = root.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(path, name))


def resolve_reference(root: str, name: str) -> str:
    """Return the location of `name` as `resolve_location` does, where a document found at `root` says so, not a user.

    What was fetched from elsewhere must not make this machine ask servers of its own network. A link-local address, at
    which clouds keep credentials, is never what is meant; others of the local network are refused to a remote document,
    unless it comes from the same server.
    """
    if not name.startswith(WEB_SCHEMES):
        return resolve_location(root, name)
    host, own_host = (urllib.parse.urlsplit(url).hostname or "" for url in (name, root if is_remote(root) else ""))
    if _is_link_local(host) or (is_remote(root) and host != own_host and _is_in_local_network(host)):
        raise InputError(
            f"{root} refers to {name}, an address of the local network, which only a user may name; copy what lies "
            "there beside it, or to a place outside"
        )
    return name


def _is_in_local_network(host: str) -> bool:
    address = _address(host)
    if address is not None:
        return not address.is_global
    return "." not in host or host.lower().rstrip(".").endswith(_LOCAL_NAMES)


def _is_link_local(host: str) -> bool:
    address = _address(host)
    return host.lower() == "metadata.google.internal" or (address is not None and address.is_link_local)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        # As the system reads it: 127.1, 0x7f000001 and 2130706433 are addresses, too.
        found = ipaddress.ip_address(socket.inet_ntoa(socket.inet_aton(host)) if ":" not in host else host)
    except (OSError, ValueError):
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def has_braces(text: str) -> bool:
    """Tell whether `expand_braces` has something to look at."""
    return _BRACES.search(text) is not None


def expand_braces(text: str) -> list[str]:
    """Expand every `{a,b}` and `{000..012}` of a text; a range keeps the zero padding of its start."""
    pieces = _BRACES.split(text)  # text, content, text, content, ..., text
    options = [[piece] if index % 2 == 0 else _brace_options(piece) for index, piece in enumerate(pieces)]
    return ["".join(choice) for choice in itertools.product(*options)]


def _brace_options(content: str) -> list[str]:
    match = _BRACE_RANGE.fullmatch(content)
    if match is None:
        return content.split(",") if "," in content else [f"{{{content}}}"]
    start, stop = match.groups()
    numbers = range(int(start), int(stop) + 1) if int(start) <= int(stop) else range(int(start), int(stop) - 1, -1)
    return [f"{number:0{len(start)}d}" for number in numbers]


def split_query(url: str) -> tuple[str, str]:
    """Return a web address without its query, and the query; of anything else, all of it and nothing."""
    found = _QUERY.search(url) if _WEB.match(url) else None
    return (url[: found.start()], url[found.start() + 1 :]) if found else (url, "")


def remember_query(url: str, query: str) -> None:
    """Let `query_of` know the query of an address, in this process and those it starts."""
    queries = json.loads(os.environ.get(QUERIES_VARIABLE, "{}"))
    os.environ[QUERIES_VARIABLE] = json.dumps(queries | {_canonical(url): query})


def query_of(url: str) -> str:
    """Return the query that was remembered of an address, or nothing."""
    if QUERIES_VARIABLE not in os.environ or not _WEB.match(url):
        return ""
    return str(json.loads(os.environ[QUERIES_VARIABLE]).get(_canonical(url), ""))


def _canonical(url: str) -> str:
    # Names are unescaped and escaped again on their way, which may change how they are escaped.
    return urllib.parse.unquote(url)
