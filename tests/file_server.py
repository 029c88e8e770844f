"""A web server for one file on this machine, well behaved or not, for tests of downloading."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FileServer:
    """What is served, how, and what was asked for."""

    files: dict[str, bytes]
    """Content by path, such as "/encoder.pkl"."""
    etag: str | None = '"v1"'
    """Sent with every file."""
    has_ranges: bool = True
    """Whether Range is honoured."""
    obeys_if_range: bool = True
    """Whether a Range for another version gets the whole file, as it should."""
    is_chunked: bool = False
    """Whether the length is kept secret."""
    content_type: str = "application/octet-stream"
    breaks: list[int] = field(default_factory=list)
    """Bytes after which the next answers break off, one entry per answer."""
    statuses: list[int] = field(default_factory=list)
    """Errors that the next requests get, one entry per request."""
    stall: threading.Event | None = None
    """Waited for where an answer breaks off, so that a client can be stopped there."""
    requests: list[dict[str, str]] = field(default_factory=list)
    """Headers of every request."""
    url: str = ""
    """Of the folder."""

    @property
    def ranges(self) -> list[str | None]:
        """The Range of every request."""
        return [headers.get("Range") for headers in self.requests]


@contextmanager
def serve(server: FileServer) -> Iterator[FileServer]:
    """Serve inside the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(server, self)

        def log_message(self, *arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield server
    finally:
        if server.stall is not None:
            server.stall.set()
        http.shutdown()
        http.server_close()


def answer(server: FileServer, request: BaseHTTPRequestHandler) -> None:
    """Answer one GET."""
    server.requests.append(dict(request.headers))
    request.close_connection = True
    content = server.files.get(request.path)
    status = server.statuses.pop(0) if server.statuses else 200 if content is not None else 404
    if status != 200 or content is None:
        request.send_response(status)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    start = 0
    wanted = request.headers.get("Range")
    is_current = request.headers.get("If-Range") in (None, server.etag) or not server.obeys_if_range
    if server.has_ranges and wanted and is_current:
        start = int(wanted.removeprefix("bytes=").partition("-")[0])
        request.send_response(206)
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    else:
        request.send_response(200)
    if server.etag:
        request.send_header("ETag", server.etag)
    request.send_header("Content-Type", server.content_type)
    if not server.is_chunked:
        request.send_header("Content-Length", str(len(content) - start))
    request.end_headers()
    end = len(content)
    if server.breaks:
        end = min(end, start + server.breaks.pop(0))
    request.wfile.write(content[start:end])
    request.wfile.flush()
    if end < len(content) and server.stall is not None:
        server.stall.wait(60)
