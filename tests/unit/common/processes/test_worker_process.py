import subprocess
import sys
from importlib.util import find_spec

import pytest

from beit.common.processes.worker_process import PRELOADED


@pytest.mark.parametrize("name", PRELOADED)
def test_what_the_fork_server_imports_exists(name: str) -> None:
    assert find_spec(name) is not None  # the server says nothing of a name that it cannot import; workers start slowly


CTRL_C_WHILE_IT_IMPORTS = """
import os, signal, time
from multiprocessing import forkserver
from beit.common.processes.worker_process import start_worker_server

start_worker_server()
server = forkserver._forkserver._forkserver_pid
for moment in range(40):  # from before Python has begun until workers could be had
    os.kill(server, signal.SIGINT)
    time.sleep(0.05)
assert os.waitpid(server, os.WNOHANG) == (0, 0), "the fork server died of the signal"
assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, []), "this process hears no more"
"""


def test_a_ctrl_c_leaves_the_fork_server_alone_from_its_first_moment_on() -> None:
    """A terminal sends it to every process of the command."""
    result = subprocess.run([sys.executable, "-c", CTRL_C_WHILE_IT_IMPORTS], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


LEAVING_WHILE_IT_IMPORTS = """
import os, signal
from multiprocessing import forkserver
from beit.common.processes.worker_process import start_worker_server

start_worker_server()
os.kill(forkserver._forkserver._forkserver_pid, signal.SIGSTOP)  # it will not have imported all for a long time
"""


def test_a_command_that_ends_does_not_wait_for_the_fork_server() -> None:
    subprocess.run([sys.executable, "-c", LEAVING_WHILE_IT_IMPORTS], check=True, timeout=30)
