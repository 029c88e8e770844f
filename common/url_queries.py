"""Query strings of web addresses, such as the signatures of presigned URLs, kept apart from the names of files.

A signature expires and is a secret: no key, digest or store may depend on it or hold it. So a source is listed, named
and stored without its query, which is added where a file is opened. Processes started later know it, too.
"""

from __future__ import annotations

import json
import os
import re
import urllib.parse

_QUERY = re.compile(r"\?[^/?=]*=")  # other question marks are wildcards
_WEB = re.compile(r"https?://", re.IGNORECASE)
_VARIABLE = "BEIT_URL_QUERIES"
"""JSON of address -> query; in the environment, because worker processes inherit that."""


def split_query(url: str) -> tuple[str, str]:
    """Return a web address without its query, and the query; of anything else, all of it and nothing."""
    found = _QUERY.search(url) if _WEB.match(url) else None
    return (url[: found.start()], url[found.start() + 1 :]) if found else (url, "")


def remember_query(url: str, query: str) -> None:
    """Let `with_query` add a query to an address, in this process and those it starts."""
    queries = json.loads(os.environ.get(_VARIABLE, "{}"))
    os.environ[_VARIABLE] = json.dumps(queries | {_canonical(url): query})


def query_of(url: str) -> str:
    """Return the query that was remembered of an address, or nothing."""
    if _VARIABLE not in os.environ or not _WEB.match(url):
        return ""
    return str(json.loads(os.environ[_VARIABLE]).get(_canonical(url), ""))


def with_query(url: str) -> str:
    """Return an address as it is opened."""
    query = query_of(url)
    return f"{url}?{query}" if query else url


def _canonical(url: str) -> str:
    # Names are unescaped and escaped again on their way, which may change how they are escaped.
    return urllib.parse.unquote(url)
