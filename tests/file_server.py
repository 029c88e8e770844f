"""A web server on this machine, well behaved or not, for tests of downloading and of remote sources."""

from __future__ import annotations

import threading
import urllib.parse
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
    signature: str = ""
    """Query that every GET must have; then nothing else is answered, as with a presigned URL."""
    breaks: list[int] = field(default_factory=list)
    """Bytes after which the next answers break off, one entry per answer."""
    statuses: list[int] = field(default_factory=list)
    """Errors that the next requests get, one entry per request."""
    stall: threading.Event | None = None
    """Waited for where an answer breaks off, so that a client can be stopped there."""
    silent_from: int | None = None
    """Byte of each file from which answers break off, in whatever order they are asked for."""
    requests: list[dict[str, str]] = field(default_factory=list)
    """Headers of every GET."""
    paths: list[str] = field(default_factory=list)
    """Path of every GET."""
    bytes_sent: int = 0
    """Content sent in answer to all GETs."""
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

        def do_HEAD(self) -> None:
            answer(server, self)

        def send_response(self, code: int, message: str | None = None) -> None:
            super().send_response(code, message)
            self.send_header("Connection", "close")  # else a client may take the closed connection for its next request

        def log_message(self, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # a client that tries again soon, from several threads, must not be turned away

    http = Server(("127.0.0.1", 0), Handler)
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
    """Answer one GET or HEAD."""
    is_get = request.command == "GET"
    if is_get:
        server.requests.append({name.title(): value for name, value in request.headers.items()})
        server.paths.append(request.path)
    request.close_connection = True
    path, _, query = request.path.partition("?")
    content = server.files.get(urllib.parse.unquote(path))
    listing = list_links(server, urllib.parse.unquote(path)) if content is None else None
    content = content if listing is None else listing
    status = server.statuses.pop(0) if server.statuses and is_get else 200 if content is not None else 404
    if status == 200 and content is not None and server.has_ranges and starts_behind(content, request):
        status = 416
    # Clients may escape it differently, as servers of signed addresses know.
    is_signed = is_get and urllib.parse.unquote(query) == urllib.parse.unquote(server.signature)
    if server.signature and not is_signed:
        status = 403
    if status != 200 or content is None:
        request.send_response(status)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    start, end = 0, len(content)
    wanted = request.headers.get("Range")
    is_current = request.headers.get("If-Range") in (None, server.etag) or not server.obeys_if_range
    if server.has_ranges and wanted and is_current:
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last) + 1, end) if last else end
        request.send_response(206)
        request.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
    else:
        request.send_response(200)
    if server.etag and listing is None:
        request.send_header("ETag", server.etag)
    request.send_header("Content-Type", server.content_type if listing is None else "text/html")
    if not server.is_chunked:
        request.send_header("Content-Length", str(end - start))
    request.end_headers()
    if is_get:
        send(server, request, content[start:end], start)


def starts_behind(content: bytes, request: BaseHTTPRequestHandler) -> bool:
    """Tell whether a Range begins behind the last byte."""
    wanted = request.headers.get("Range")
    return wanted is not None and int(wanted.removeprefix("bytes=").partition("-")[0]) >= len(content)


def send(server: FileServer, request: BaseHTTPRequestHandler, data: bytes, start: int) -> None:
    """Send a body, which begins at byte `start` of the file, or part of it where the server is to break off."""
    sent = data[: server.breaks.pop(0)] if server.breaks else data
    if server.silent_from is not None:
        sent = sent[: max(0, server.silent_from - start)]
    server.bytes_sent += len(sent)
    request.wfile.write(sent)
    request.wfile.flush()
    if len(sent) < len(data) and server.stall is not None:
        server.stall.wait(60)


def list_links(server: FileServer, path: str) -> bytes | None:
    """Return the page of links that web servers make of a folder, if there is one of that name."""
    folder = path.rstrip("/") + "/"
    names = sorted({name[len(folder) :].partition("/") for name in server.files if name.startswith(folder)})
    if not names:
        return None
    links = sorted({urllib.parse.quote(name + separator) for name, separator, _ in names})
    return "".join(f'<a href="{link}">{link}</a>\n' for link in ["../", *links]).encode()
