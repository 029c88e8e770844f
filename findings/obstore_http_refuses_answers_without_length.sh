#!/usr/bin/env bash
# obstore 0.12.1: `HTTPStore` refuses a file whose answer has no Content-Length, although HTTP/1.1 allows that (RFC 9112,
# section 6.3: chunked transfer coding) and pages that a server makes as it goes are sent so.
#
# Expected: `get("page").bytes()` returns the content, as urllib, curl and browsers do.
# Seen: GenericError "... Content-Length Header missing ..."; there is no option to accept it.
# Ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check obstore==0.12.1 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from obstore.store import HTTPStore


class Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\nhello\r\n0\r\n\r\n")

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
threading.Thread(target=server.serve_forever, daemon=True).start()
root = f"http://127.0.0.1:{server.server_port}"
print("urllib:", urllib.request.urlopen(f"{root}/page").read())
try:
    content = bytes(HTTPStore.from_url(root, client_options={"allow_http": True}).get("page").bytes())
except Exception as error:
    print("obstore:", type(error).__name__, str(error).splitlines()[0])
    sys.exit("Content-Length Header missing" not in str(error))
print("obstore:", content)
sys.exit(1)
PYTHON
