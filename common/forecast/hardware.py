"""What a run is to happen on: this machine, or one of which only the name is known.

Here: data sheets of GPUs and how much of them trainings reach, cores and memory of this machine, and how fast it
multiplies. Not here: free memory at a moment (`processes`), the speed of a training that runs (`training`).
"""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from beit.common.errors import InputError, did_you_mean
from beit.common.forecast.words import percent
from beit.common.processes.cores import available_cores
from beit.common.processes.memory import machine_memory_bytes

Precision = Literal["fp32", "bf16", "fp16"]


class DataSheet(NamedTuple):
    """A GPU as its maker describes it, dense."""

    half: float
    """TFLOPS in bf16 or fp16."""
    fp32: float
    """TFLOPS without TF32, which no training here switches on."""
    gigabytes: float
    """Memory, of its usual form."""
    reached: float = 0.3
    """Share of `half` that a training of a base model reaches; assumed, see `docs/plan.md`."""
    has_bf16: bool = True
    """Whether it computes in bf16 itself."""


GPUS: dict[str, DataSheet] = {
    # The first name that is part of the device's name counts.
    "B200": DataSheet(2250.0, 75.0, 180, 0.2),
    "H200": DataSheet(989.0, 67.0, 141, 0.25),
    "H100 PCIe": DataSheet(756.0, 51.0, 80, 0.25),
    "H100 NVL": DataSheet(835.0, 60.0, 94, 0.25),
    "H100": DataSheet(989.0, 67.0, 80, 0.25),
    "A100": DataSheet(312.0, 19.5, 80),
    "A10G": DataSheet(70.0, 35.0, 24),
    "L40S": DataSheet(362.0, 91.6, 48),
    "L4": DataSheet(121.0, 30.3, 24),
    "RTX 4090": DataSheet(165.2, 82.6, 24, 0.4),
    "RTX 3090": DataSheet(71.0, 35.6, 24, 0.4),
    "V100": DataSheet(125.0, 15.7, 32, 0.2, has_bf16=False),
    "T4": DataSheet(65.0, 8.1, 16, 0.25, has_bf16=False),
}
_REACHED_FP32 = 0.6
"""Of a GPU's `fp32`; assumed."""
_REACHED_CPU = 0.6
"""Of the speed of matrix products on a CPU, what a training reaches: 0.55 at a width of 128, 0.78 at 384; measured."""
_CORES_PER_GPU = 8
"""Of a machine of which nothing else is known; assumed."""
_BF16_UNITS = {"amx_bf16", "bf16", "svebf16"}
"""As Linux names them, on x86 and Arm."""
_PROBE_SIDE, _PROBE_PRODUCTS = 64, 8
"""Of the matrices that are multiplied to see how fast a core is, and how many at a time."""
_PROBE_SECONDS = 0.05
_BUSY = 0.8
"""Of a processor, a smaller share that is left is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """What a run is to happen on; all machines and devices alike."""

    device: Literal["cpu", "cuda"]
    """Kind of the devices that compute."""
    name: str
    """Of one, for people."""
    num_devices: int
    """Ranks on all machines together: GPUs, or processes on CPUs."""
    num_machines: int
    """They stand in."""
    memory_bytes: int | None
    """Of one GPU, or of a machine whose CPU computes; None where nobody knows."""
    cores: int
    """CPU cores of a machine."""
    flops: float | None
    """Multiplications and additions per device and second that a training reaches in `precision`; None: unknown."""
    flops_source: str
    """Where that number comes from, in words."""
    spare: float = 1.0
    """Share of the CPU cores that others leave; `flops` of a CPU is what they leave already."""
    precision: Precision = "fp32"
    """Number format that `train.precision = "auto"` takes there."""

    def __post_init__(self) -> None:
        if self.num_devices % self.num_machines:
            raise InputError(
                f"{self.num_devices} devices cannot be shared evenly by {self.num_machines} machines; name a multiple"
            )

    @property
    def devices_per_machine(self) -> int:
        """Ranks of a machine."""
        return self.num_devices // self.num_machines

    @property
    def cores_per_device(self) -> float:
        """CPU cores that a rank has for itself."""
        return self.cores / self.devices_per_machine

    def in_precision(self, precision: Precision) -> Hardware:
        """Return the same where trainings compute in another number format."""
        if precision == self.precision:
            return self
        sheet = data_sheet(self.name) if self.device == "cuda" else None
        if sheet is None:
            return replace(self, precision=precision)
        flops, source = _of_sheet(sheet, precision)
        return replace(self, precision=precision, flops=flops, flops_source=source)


def this_machine(*, num_devices: int | None = None, may_use_gpu: bool = True) -> Hardware:
    """Return what a run on this machine computes with: its GPUs, else its processor, on so many ranks if given.

    A processor's speed is measured on a product of matrices, in a twentieth of a second; that of a GPU is assumed.
    """
    if may_use_gpu and _may_have_gpu():
        import torch

        if torch.cuda.is_available():
            found = named(torch.cuda.get_device_name(0), num_devices=num_devices or torch.cuda.device_count())
            return replace(
                found, memory_bytes=torch.cuda.get_device_properties(0).total_memory, cores=available_cores()
            )
    ranks, cores, spare = num_devices or 1, available_cores(), spare_share()
    busy = f", and {percent(1 - spare)} of it busy" if spare < _BUSY else ""
    return Hardware(
        device="cpu",
        name=_processor_name(),
        num_devices=ranks,
        num_machines=1,
        memory_bytes=machine_memory_bytes(),
        cores=cores,
        flops=spare * _REACHED_CPU * product_flops() * _computing_cores(ranks) / ranks,
        flops_source=f"assumed: {percent(_REACHED_CPU)} of the speed of matrix products here{busy}",
        spare=spare,
        precision="bf16" if _has_bf16_units() else "fp32",
    )


def named(
    gpu: str, *, num_devices: int = 1, num_machines: int = 1, memory_bytes: int | None = None, cores: int | None = None
) -> Hardware:
    """Return machines with GPUs of a name such as "A100", "V100-16GB" or "NVIDIA H100 80GB HBM3".

    Args:
        gpu: Name, in which one of `GPUS` must be found for its speed to be known.
        num_devices: On all machines together.
        num_machines: They stand in.
        memory_bytes: Of one; left out, what the name or the data sheet says.
        cores: Of a machine; left out, 8 per GPU.
    """
    sheet = data_sheet(gpu)
    precision: Precision = "bf16" if sheet is None or sheet.has_bf16 else "fp32"
    flops, source = (None, f"unknown: no data sheet of {gpu}") if sheet is None else _of_sheet(sheet, precision)
    if memory_bytes is None:
        said = re.search(r"(\d+) ?GB", gpu, re.IGNORECASE)
        gigabytes = float(said[1]) if said else (sheet.gigabytes if sheet else None)
        memory_bytes = None if gigabytes is None else round(gigabytes * 1e9)
    return Hardware(
        device="cuda",
        name=gpu,
        num_devices=num_devices,
        num_machines=num_machines,
        memory_bytes=memory_bytes,
        cores=cores or _CORES_PER_GPU * num_devices // num_machines,
        flops=flops,
        flops_source=source,
        precision=precision,
    )


def check_name(gpu: str) -> None:
    """Refuse the name of a GPU whose data sheet is not known here."""
    if data_sheet(gpu) is None:
        raise InputError(f"--gpu ({gpu}) must contain {', '.join(GPUS)}{did_you_mean(gpu, list(GPUS))}")


def data_sheet(name: str) -> DataSheet | None:
    """Return the data sheet of a GPU by its name; None where there is none."""
    words = f" {_plain(name)}"
    return next((sheet for part, sheet in GPUS.items() if f" {_plain(part)}" in words), None)


def known_peak_flops(name: str, precision: Precision) -> float | None:
    """Return the data sheet's operations per second of a GPU by its name, such as "NVIDIA H100 80GB HBM3"."""
    sheet = data_sheet(name)
    return None if sheet is None else (sheet.fp32 if precision == "fp32" else sheet.half) * 1e12


@lru_cache(maxsize=1)
def product_flops() -> float:
    """Measure how many operations per second a core does in small products of float32 matrices.

    So small that one thread does them, and the quickest of many counts: on a busy machine threads that wait for each
    other would tell of their waiting.
    """
    left = np.full((_PROBE_SIDE, _PROBE_SIDE), 0.5, dtype=np.float32)
    product = left @ left
    quickest, until = float("inf"), time.perf_counter() + _PROBE_SECONDS
    while time.perf_counter() < until:
        began = time.perf_counter()
        for _ in range(_PROBE_PRODUCTS):
            np.matmul(left, left, out=product)
        quickest = min(quickest, time.perf_counter() - began)
    return 2 * _PROBE_SIDE**3 * _PROBE_PRODUCTS / quickest


def _computing_cores(ranks: int) -> int:
    """Return on how many cores that many ranks compute: all, unless the environment allows fewer threads."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return min(available_cores(), ranks * int(threads)) if threads.isdigit() and int(threads) else available_cores()


def spare_share() -> float:
    """Return the share of the processor that a new process would get beside what has been running for a minute."""
    try:
        load = os.getloadavg()[0]
    except (OSError, AttributeError):
        return 1.0
    cores = available_cores()
    return min(1.0, cores / max(load + 1, 1e-9))


def _of_sheet(sheet: DataSheet, precision: Precision) -> tuple[float, str]:
    peak, share = (sheet.fp32, _REACHED_FP32) if precision == "fp32" else (sheet.half, sheet.reached)
    return share * peak * 1e12, f"assumed: {percent(share)} of {peak:g} TFLOPS"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", name.lower())


def _may_have_gpu() -> bool:
    """Whether it is worth asking torch, whose import takes seconds, for GPUs."""
    return "torch" in sys.modules or any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"))


def _processor_name() -> str:
    return _cpuinfo("model name") or "CPU"


def _has_bf16_units() -> bool:
    """Whether the processor has units for bfloat16 products, for which `common/training/engine.py` asks torch."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    return bool(_BF16_UNITS & set(flags.split()))


def _cpuinfo(field: str) -> str:
    """Return what Linux says of the first core; empty where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")
