"""`--tokenizer dall-e` in processes of its own: stopped, killed, two at once. The network is small, the rest real."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from beit.common.tokenizers.dalle import DalleDecoder, DalleEncoder
from beit.tests.dall_e_files import use_small_network, write_pickle
from beit.tests.file_server import FileServer, serve
from beit.tests.support import write_images

pytestmark = [pytest.mark.launch, pytest.mark.fault, pytest.mark.timeout(900)]

BEIT = """
import sys
from beit.common.tokenizers import dalle
from beit.common.storage import remote_place
from beit.tests.dall_e_files import SMALL
remote_place.PIECE_BYTES = 2000
vars(dalle).update(SMALL)
from beit.cli import main
main()
"""
DEAD_PROXY = "http://127.0.0.1:9"  # whatever network the machine has, the official address is not reached


@pytest.fixture
def server(tmp_path, monkeypatch):
    use_small_network(monkeypatch)
    write_pickle(DalleEncoder(), tmp_path / "published/encoder.pkl")
    write_pickle(DalleDecoder(), tmp_path / "published/decoder.pkl")
    write_images(tmp_path / "photos", 4)
    files = {f"/{path.name}": path.read_bytes() for path in (tmp_path / "published").iterdir()}
    with serve(FileServer(files)) as server:
        yield server


def start(folder: Path, server: FileServer, store: str = "store") -> subprocess.Popen[str]:
    environment = os.environ | {
        "BEIT_CACHE": str(folder / "cache"),
        "BEIT_DALLE_MIRRORS": server.url,
        "https_proxy": DEAD_PROXY,
        "no_proxy": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    words = ["tokenize", "photos", store, "--tokenizer", "dall-e", "--img-size", "32", "--views", "1", "--workers", "1"]
    return subprocess.Popen(
        [sys.executable, "-c", BEIT, *words],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_a_stopped_download_is_continued_by_the_same_command(tmp_path, server, signum):
    # Six pieces, then silence. Several are on their way at once, and arrive in any order.
    server.silent_from, server.stall = 6 * 2000, threading.Event()
    process = start(tmp_path, server)
    cache = tmp_path / "cache/dall-e"
    part = cache / "encoder.pkl.part"
    deadline = time.monotonic() + 200
    while not part.exists() or part.stat().st_size < 3 * 2000:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signum)
    _, told = process.communicate(timeout=60)
    if signum == signal.SIGINT:
        assert process.returncode == 75 and told.endswith("beit: interrupted; run the same command again to go on\n")
    assert not (cache / "encoder.pkl").exists() and not (tmp_path / "store").exists()
    kept = part.stat().st_size
    server.silent_from = None
    server.stall.set()
    asked = len(server.requests)
    process = start(tmp_path, server)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    encoder = [wanted for path, wanted in zip(server.paths, server.ranges, strict=True) if path == "/encoder.pkl"]
    assert encoder[asked] == "bytes=0-0" and encoder[asked + 1] == f"bytes={kept}-{kept + 1999}"
    assert (cache / "encoder.pkl").read_bytes() == server.files["/encoder.pkl"]
    assert not list(cache.glob("*.part*")) and (tmp_path / "store/index.parquet").exists()


def test_two_processes_at_once_download_once(tmp_path, server):
    processes = [start(tmp_path, server, store) for store in ("one", "two")]
    for process in processes:
        _, told = process.communicate(timeout=250)
        assert process.returncode == 0, told
    assert server.bytes_sent < 1.2 * sum(map(len, server.files.values()))
    assert (tmp_path / "one/store.json").read_bytes() == (tmp_path / "two/store.json").read_bytes()


def test_without_network_there_is_one_line_and_nothing_is_written(tmp_path, server):
    server.files.clear()
    process = start(tmp_path, server)
    _, told = process.communicate(timeout=200)
    lines = [line for line in told.splitlines() if line.startswith("beit: ")]
    assert process.returncode == 2 and len(lines) == 1
    assert "put encoder.pkl there by hand" in lines[0] and "Traceback" not in told
    assert not (tmp_path / "store").exists()
