"""All checks in their order: the machine, then what the user named. The slow ones run beside the others."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial

from beit.common.overview.doctor.findings import Check, Finding, guarded, warning
from beit.common.overview.doctor.health.subjects import Subject, find_subject
from beit.common.overview.doctor.health.tokenizers import check_dalle
from beit.common.overview.doctor.machine.clock import check_clock
from beit.common.overview.doctor.machine.device import check_device, device_child, is_usable
from beit.common.overview.doctor.machine.limits import (
    check_open_files,
    check_processes,
    check_shared_memory,
    check_sizes,
)
from beit.common.overview.doctor.machine.network import check_launcher, check_ports, check_proxies
from beit.common.overview.doctor.machine.processor import check_cores, check_memory
from beit.common.overview.doctor.machine.ranks import check_ranks, ranks_child
from beit.common.overview.doctor.machine.software import check_compiler, check_extras, check_packages, check_python
from beit.common.overview.doctor.machine.space import check_caches, check_disk
from beit.common.overview.doctor.machine.variables import check_variables
from beit.common.overview.quiet import saying_only

_SYSTEM: tuple[tuple[str, Check], ...] = (
    ("python", check_python),
    ("packages", check_packages),
    ("extras", check_extras),
    ("variables", check_variables),
    ("launcher", check_launcher),
    ("clock", check_clock),
    ("cores", check_cores),
    ("memory", check_memory),
    ("shared memory", check_shared_memory),
    ("open files", check_open_files),
    ("processes", check_processes),
    ("file size", check_sizes),
    ("disk", check_disk),
    ("caches", check_caches),
    ("ports", check_ports),
    ("proxies", check_proxies),
)
"""By topic; none of them needs torch."""


def examine(subjects: Iterable[str], *, with_ranks: bool) -> Iterator[Finding]:
    """Yield what is found, as it is found.

    Args:
        subjects: Stores, runs, encoders and tokenizers, by path or URL.
        with_ranks: Whether to start two ranks and let them talk.
    """
    named: list[Subject] = [find_subject(name) for name in subjects]  # before anything is started
    with ExitStack() as children:
        device = children.enter_context(device_child())
        ranks = children.enter_context(ranks_child()) if with_ranks else None
        for topic, check in _SYSTEM:
            yield from guarded(topic, check)
        yield from guarded("device", partial(check_device, device))
        if not is_usable(device):
            for subject in named:  # all else would say the same, in other words
                what = f"{subject.name} was not looked at, for lack of an answer of torch"
                yield warning(subject.kind, what, "do first what is said of torch")
            return
        yield from guarded("compiler", partial(check_compiler, device))
        yield from guarded("dall-e", check_dalle)
        if ranks is not None:
            yield from guarded("ranks", partial(check_ranks, ranks))
    with saying_only(logging.WARNING):
        for subject in named:
            yield from guarded(subject.kind, subject.check, subject.mend)
