import os
import signal
import subprocess
import sys
import time

import pytest

from beit.common.errors import InputError
from beit.tests.support import write_images, write_tokenizer
from beit.tests.tiny_store import tiny_config, tree_bytes
from beit.tokenize.run import run_tokenize, tokenize_with_ranks

pytestmark = pytest.mark.launch


def config(tmp_path, **changes):
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    return tiny_config(tokenizer=str(tokenizer), **changes)


def test_two_processes_write_what_one_writes(tmp_path):
    source, settings = write_images(tmp_path / "images", 20), config(tmp_path)
    run_tokenize(settings, str(source), tmp_path / "one")
    summary = tokenize_with_ranks(settings, str(source), tmp_path / "two", ranks=2)
    assert summary.is_complete and summary.num_images_done == 20 and len(summary.reports) == 2
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "two")


def test_bad_input_of_a_rank_is_bad_input_of_the_whole(tmp_path):
    settings = config(tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        tokenize_with_ranks(settings, str(tmp_path / "nowhere"), tmp_path / "store", ranks=2)


SCRIPT = """
import sys
from pathlib import Path
from beit.common.errors import ResumableStop
from beit.tests.tiny_store import tiny_config
from beit.tokenize.run import tokenize_with_ranks
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    settings = tiny_config(tokenizer=str(folder / "tokenizer"), views=200)
    try:
        tokenize_with_ranks(settings, str(folder / "images"), folder / "store", ranks=2)
    except ResumableStop:
        sys.exit(75)
    except ChildProcessError:
        sys.exit(9)
"""


def start(tmp_path, count):
    write_images(tmp_path / "images", count)
    write_tokenizer(tmp_path / "tokenizer")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "store/tokens").glob("*.tmp.*"))) < 2:  # both ranks are at work
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


def ranks_of(store):
    return [int((store / f".lock.rank{rank}").read_text()) for rank in range(2)]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_signal_to_the_command_stops_all_ranks(tmp_path):
    process = start(tmp_path, 400)
    pids = ranks_of(tmp_path / "store")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert not any(map(is_alive, pids))


def test_a_lost_rank_leaves_the_other_finishing(tmp_path):
    process = start(tmp_path, 60)
    os.kill(ranks_of(tmp_path / "store")[1], signal.SIGKILL)
    assert process.wait(timeout=120) == 9
    finished = {path.name[:6] for path in (tmp_path / "store/tokens").glob("*.manifest.json")}
    assert finished >= {f"{number:06d}" for number in range(0, 15, 2)}


def test_ranks_end_with_the_command(tmp_path):
    process = start(tmp_path, 400)
    pids = ranks_of(tmp_path / "store")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
