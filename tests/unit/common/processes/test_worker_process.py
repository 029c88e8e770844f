from importlib.util import find_spec

import pytest

from beit.common.processes.worker_process import PRELOADED


@pytest.mark.parametrize("name", PRELOADED)
def test_what_the_fork_server_imports_exists(name: str) -> None:
    assert find_spec(name) is not None  # the server says nothing of a name that it cannot import; workers start slowly
