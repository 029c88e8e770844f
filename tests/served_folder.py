"""A folder behind a web server or an S3 server on this machine, for tests of remote stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beit.tests.file_server import FileServer, serve
from beit.tests.s3_server import serve_s3

SCHEMES = ("http", "s3")


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file of a folder by its path below it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def web_server(folder: Path) -> FileServer:
    """A web server for the files of a folder, to be started with `serve`."""
    return FileServer({f"/{name}": data for name, data in files_of(folder).items()})


@contextmanager
def serve_folder(folder: Path, scheme: str) -> Iterator[str]:
    """Serve a folder inside the block; gives its URL."""
    if scheme == "http":
        with serve(web_server(folder)) as server:
            yield server.url
    else:
        with serve_s3(files_of(folder)) as url:
            yield url
