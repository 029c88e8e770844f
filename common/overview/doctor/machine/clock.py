"""The clock: certificates, signatures of object stores and what counts as abandoned go by it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from beit.common.overview.doctor.findings import Finding, fault, warning, well
from beit.common.overview.doctor.machine.software import ROOT

_SLACK_SECONDS, _SKEW_SECONDS = 3600.0, 30.0
"""What is no fault: of this package, whose files may come from a machine whose clock goes otherwise, and of a file
server, whose caches alone hide some seconds."""
_SET_CLOCK = "timedatectl set-ntp true, or date -s as root"


def check_clock() -> Iterator[Finding]:
    """Is it later than when beit was installed, and does the file system here agree?"""
    now = time.time()
    installed = max(file.stat().st_mtime for file in ROOT.glob("*.py"))
    said = _written(now)
    if now < installed - _SLACK_SECONDS:
        yield fault("clock", f"it says {said}, before beit was installed ({_written(installed)})", _SET_CLOCK)
        return
    skew = _skew(Path.cwd())
    if skew is not None and abs(skew) > _SKEW_SECONDS:
        yield warning("clock", f"files made here are dated {abs(skew):.0f} s off this machine's clock", _SET_CLOCK)
        return
    yield well("clock", said)


def _skew(folder: Path) -> float | None:
    """Return how far the time of a file made now lies from now; None where none can be made."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".beit-doctor-") as file:
            return os.fstat(file.fileno()).st_mtime - time.time()
    except OSError:
        return None


def _written(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))
