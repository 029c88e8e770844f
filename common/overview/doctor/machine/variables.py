"""Environment variables: those of beit that are misspelt or forgotten, and others that spoil a training unnoticed."""

from __future__ import annotations

import os
from collections.abc import Iterator

from beit.common.errors import did_you_mean
from beit.common.overview.doctor.findings import Finding, fault, warning, well
from beit.common.processes.rank_reports import REPORTS_VARIABLE
from beit.common.processes.signals import LAUNCHER_PID_VARIABLE
from beit.common.storage.files import CACHE_VARIABLE, FAULT_VARIABLE
from beit.common.storage.object_store import HEADERS_VARIABLE
from beit.common.storage.paths import QUERIES_VARIABLE

_OF_BEIT = (FAULT_VARIABLE, QUERIES_VARIABLE, REPORTS_VARIABLE, LAUNCHER_PID_VARIABLE)
"""Which nobody sets by hand."""
_PREFIX = "BEIT_"
_OF_TESTS = ("BEIT_FUZZ_", "BEIT_TEST_")
_SLOW = {"CUDA_LAUNCH_BLOCKING": "1", "TORCH_DISTRIBUTED_DEBUG": "DETAIL", "PYTHONMALLOC": "debug"}
"""Settings for debugging."""


def check_variables() -> Iterator[Finding]:
    """Does the environment say something that nobody wants?"""
    found = [*_own(), *_slow()]
    yield from found
    if not found:
        told = [name for name in _of_users() if os.environ.get(name)]
        yield well("variables", f"{', '.join(told)} as beit knows them" if told else "none of beit's is set")


def _of_users() -> tuple[str, ...]:
    from beit.common.tokenizers.dalle_cache import MIRRORS_VARIABLE  # imports torch

    return CACHE_VARIABLE, MIRRORS_VARIABLE, HEADERS_VARIABLE


def _own() -> Iterator[Finding]:
    mine = _of_users()
    if os.environ.get(FAULT_VARIABLE):
        value = os.environ[FAULT_VARIABLE]
        yield fault(
            "variables", f"{FAULT_VARIABLE}={value} kills beit on purpose, for tests", f"unset {FAULT_VARIABLE}"
        )
    for name in sorted(os.environ):
        if name.startswith(_PREFIX) and name not in (*mine, *_OF_BEIT) and not name.startswith(_OF_TESTS):
            yield warning("variables", f"{name} is no variable of beit{did_you_mean(name, mine)}", f"unset {name}")


def _slow() -> Iterator[Finding]:
    for name, value in _SLOW.items():
        if os.environ.get(name) == value:
            yield warning("variables", f"{name}={value} is for debugging and makes trainings slow", f"unset {name}")
