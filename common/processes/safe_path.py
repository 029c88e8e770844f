"""No process imports from the folder it is started in: what lies there are data, and maybe somebody else's.

Python puts the current folder in front of the libraries for `python -m` and `python -c`, and it is by these that
multiprocessing, launchers and this package start processes. A folder called copy beside one's images would be run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""Variable by which Python leaves the current folder out, in all processes that inherit it."""


def leave_out_current_folder() -> None:
    """Import nothing from the current folder from now on, nor in any process that this one starts.

    Unless this package itself lies there, not installed.
    """
    here = os.getcwd()
    if os.path.dirname(os.path.dirname(sys.modules["beit"].__file__ or "")) == here:
        return
    os.environ.update(SAFE_PATH)
    if sys.path and sys.path[0] in ("", here):
        del sys.path[0]


@contextmanager
def safe_path() -> Iterator[None]:
    """Start processes inside the block that do not import from the current folder, whatever this one does."""
    before = {name: os.environ.get(name) for name in SAFE_PATH}
    os.environ.update(SAFE_PATH)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
