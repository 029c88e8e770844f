"""What runs beside the examination may print, fail, crash, hang or be left alone, and nothing of it stays."""

import os
import time

import psutil
import pytest

from beit.common.errors import RunFailed
from beit.common.overview.doctor.child import SlowAnswer, child, crowd


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


def test_on_a_crowded_machine_everything_may_take_longer(monkeypatch):
    monkeypatch.setattr("beit.common.overview.doctor.child.available_cores", lambda: 2)
    assert crowd() == 1.0
    monkeypatch.setattr(os, "getloadavg", lambda: (5.0, 0.0, 0.0))
    assert crowd() == 2.5
    monkeypatch.setattr(os, "getloadavg", lambda: (500.0, 0.0, 0.0))
    assert crowd() == 4.0


@pytest.fixture
def beside(tmp_path):
    """Start some code as a module."""

    def start(code, timeout_seconds=30.0):
        (tmp_path / "beside.py").write_text(code)
        return child("beside", timeout_seconds=timeout_seconds, variables={"PYTHONPATH": str(tmp_path)})

    return start


def test_its_last_line_is_the_result(beside):
    with beside("print('said before'); print('{\"a\": 1}')") as started:
        assert started.result() == started.result() == {"a": 1}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('beit: port 1 is taken')", "^port 1 is taken$"),
        ("import nonsense_of_nobody", "^ModuleNotFoundError: No module named 'nonsense_of_nobody'$"),
        (
            "import sys; print('ImportError: libaio.so', 'rank 0 ended', sep='\\n', file=sys.stderr); sys.exit(1)",
            "^ImportError: libaio.so: rank 0 ended$",
        ),
        ("import sys; sys.exit(3)", "^ended with code 3$"),
        ("import os; os.kill(os.getpid(), 4)", "^killed by SIGILL"),
    ],
)
def test_how_it_ended_is_one_line(beside, code, said):
    with beside(code) as started, pytest.raises(RunFailed, match=said):
        started.result()


def test_what_hangs_is_given_up_with_all_that_it_started(beside):
    code = "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])\n"
    with beside(code + "time.sleep(99)", timeout_seconds=3.0) as started:
        with pytest.raises(SlowAnswer, match=r"no answer in [23] s"):
            started.result()
        below = psutil.Process(started._process.pid).children()
        assert len(below) == 1
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in below)
    assert started._process.poll() is not None


def test_a_load_that_came_meanwhile_gives_it_more_time(beside, monkeypatch):
    monkeypatch.setattr("beit.common.overview.doctor.child.available_cores", lambda: 1)
    with beside("import time; time.sleep(2); print('{}')", timeout_seconds=1.0) as started:
        monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
        monkeypatch.setattr("beit.common.overview.doctor.child._MOST_CROWDED", 100.0)
        assert started.result() == {}


def test_what_nobody_waits_for_is_ended(beside):
    began = time.monotonic()
    with beside("import time; time.sleep(99)") as started:
        pass
    assert started._process.poll() is not None and time.monotonic() - began < 30


def test_it_imports_nothing_from_the_current_folder(beside, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/json.py").write_text("raise SystemExit('somebody else is run')")
    monkeypatch.chdir(tmp_path / "here")
    before = os.environ.get("PYTHONSAFEPATH")
    with beside("import json; print(json.dumps({}))") as started:
        assert started.result() == {}
    assert os.environ.get("PYTHONSAFEPATH") == before
