"""Memory that a process frees stays with it, where torch computes on a CPU.

glibc returns every large block to the system when it is freed and asks for it anew a moment later; the kernel then
fills it with zeros, page by page. On a GPU torch has a cache of its own against that, on a CPU it has none.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3)
_OF_THE_USER = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Have the C library reuse what was freed instead of returning it; to be called before computing on a CPU.

    The kernel took 37 % of the time of DALL-E's first layers, 2 to 7 % of a small training step (docs/results.md).
    Cost: the process keeps the most it ever needed.

    Returns:
        Whether it does so now. Not where the C library is not glibc, or where the user's environment has a say in
        allocation: MALLOC_*, GLIBC_TUNABLES, or another allocator by LD_PRELOAD.
    """
    if any(name.startswith(_OF_THE_USER) for name in os.environ):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - another C library may have a mallopt that means something else
        return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1))
    except (OSError, TypeError, AttributeError):
        return False
