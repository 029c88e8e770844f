"""In processes of their own: what is said to the C library holds for the rest of a process."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told anything")

PAGES = """
import resource, torch
from beit.common.processes.cores import keep_freed_memory
kept = keep_freed_memory() if {is_told} else False
def work():
    torch.ones(64 << 20, dtype=torch.uint8).add_(1)
for _ in range(10):  # the heap grows until blocks of this size have a place
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_asked_for(*, is_told: bool, **variables: str) -> tuple[bool, int]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD"))}
    command = [sys.executable, "-c", PAGES.format(is_told=is_told)]
    answer = subprocess.run(command, env=own | variables, check=True, capture_output=True, text=True).stdout.split()
    return answer[0] == "True", int(answer[1])


def test_what_was_freed_is_used_again() -> None:
    _, without = pages_asked_for(is_told=False)
    kept, pages = pages_asked_for(is_told=True)
    assert kept
    assert pages < without / 10


@pytest.mark.parametrize("variable", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_who_chose_an_allocator_keeps_it(variable: str) -> None:
    value = {"MALLOC_ARENA_MAX": "2", "GLIBC_TUNABLES": "glibc.malloc.arena_max=2", "LD_PRELOAD": ""}[variable]
    kept, pages = pages_asked_for(is_told=True, **{variable: value})
    assert not kept and pages > 0


GAPS = """
import numpy as np
from beit.common.processes.cores import keep_freed_memory, return_freed_memory
assert keep_freed_memory()
def held():
    return 4096 * int(open("/proc/self/statm").read().split()[1])
blocks = [np.ones(1 << 20, dtype=np.uint8) for _ in range(200)]
full, last = held(), blocks[-1]  # the last one keeps what is below it from going back by itself
del blocks
kept = held()
return_freed_memory()
print(full, kept, held())
"""


def test_gaps_go_back_where_one_part_of_a_command_ends() -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD"))}
    answer = subprocess.run([sys.executable, "-c", GAPS], env=own, check=True, capture_output=True, text=True).stdout
    full, kept, left = map(int, answer.split())
    assert kept > full - 20e6, "as it is meant while a part of a command computes"
    assert left < full - 150e6
