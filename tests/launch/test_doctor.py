"""`beit doctor` really starts two ranks, tells why they fail, and leaves nothing behind when it is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from beit.tests.support import write_tokenizer

COMMAND = [sys.executable, "-m", "beit.cli", "doctor"]


def environment(tmp_path, **more):
    return {**os.environ, "BEIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", **more}


def started(tmp_path):
    """Return the words of every process that has the environment of this test's doctor, whoever its parent is now."""
    cache = str(tmp_path / "cache")
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("BEIT_CACHE") == cache and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.cmdline())
    return found


@pytest.mark.launch
@pytest.mark.timeout(600)
def test_two_ranks_train_and_every_topic_is_told(tmp_path):
    write_tokenizer(tmp_path / "mine")
    command = [*COMMAND, "mine", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    document = json.loads(done.stdout)
    found = {finding["topic"]: finding for finding in document["findings"]}
    assert found["ranks"]["level"] == "ok", found["ranks"]
    assert {"python", "packages", "torch", "ports", "disk", "dall-e", "tokenizer"} <= found.keys()
    assert done.returncode == (0 if document["is_well"] else 1)


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_a_deepspeed_that_cannot_be_imported_is_named(tmp_path):
    (tmp_path / "broken/deepspeed").mkdir(parents=True)
    (tmp_path / "broken/deepspeed/__init__.py").write_text("raise ImportError('libaio.so.1: cannot open')")
    variables = environment(tmp_path, PYTHONPATH=str(tmp_path / "broken"))
    done = subprocess.run(COMMAND, cwd=tmp_path, env=variables, capture_output=True, text=True)
    (line,) = (line for line in done.stdout.splitlines() if line.split()[1] == "ranks")
    assert line.startswith("fault") and "ImportError: libaio.so.1" in line and "mend:" in line
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr


@pytest.mark.fault
@pytest.mark.timeout(300)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_doctor_that_is_stopped_leaves_no_process(tmp_path, signum):
    doctor = subprocess.Popen(COMMAND, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.DEVNULL)
    while not any("two_ranks" in word for words in started(tmp_path) for word in words):
        assert doctor.poll() is None
        time.sleep(0.1)
    time.sleep(3.0)  # somewhere in their start
    doctor.send_signal(signum)
    assert doctor.wait(60) == (-signal.SIGKILL if signum == signal.SIGKILL else 75)
    deadline = time.monotonic() + 60
    while started(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not started(tmp_path)
