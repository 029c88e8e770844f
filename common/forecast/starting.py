"""What a command takes besides its work: imports, data workers, and at the end of a training its report."""

from __future__ import annotations

from beit.common.forecast.hardware import Hardware, spare_share

_IMPORT_SECONDS = 3.0
"""Of the imports of a command that computes, torch above all, on a processor with nothing else to do; assumed."""
_TRAINING = 3.9
"""Times the imports that a training takes to begin and to end, in seconds of the processor: imports of its own, what
DeepSpeed brings along, which is as much again, and at the end pictures and the page. Measured, 8.9 s against 2.3 s."""


def import_seconds(hardware: Hardware, measured: float | None = None) -> float:
    """Return what imports take: as measured, unless torch was there already; longer on a busy processor."""
    assumed = _IMPORT_SECONDS / (spare_share() if hardware.device == "cpu" else 1.0)
    return assumed if measured is None else max(measured, assumed / 2)


def training_start(imports: float) -> float:
    """Return the seconds of a training that are neither steps nor evaluations, by those of its imports."""
    return _TRAINING * imports
