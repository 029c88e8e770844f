"""What torch says of itself and its devices, as one line of JSON; run as a module by `device.py`."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from typing import Any

import torch

from beit.common.processes.signals import die_with_parent
from beit.common.training.engine import has_native_bf16

_SIDE = 64


def main() -> None:
    """Print what was found."""
    die_with_parent()
    with warnings.catch_warnings(record=True) as said:  # torch warns of a driver it cannot use, and finds no GPU then
        warnings.simplefilter("always")
        is_there = torch.cuda.is_available()
    gpus = [_gpu(number) for number in range(torch.cuda.device_count())] if is_there else []
    cpu = _outcome(torch.device("cpu"))
    reason = " ".join(str(said[-1].message).split()) if said else ""
    print(
        json.dumps(
            {
                "version": torch.__version__,
                "cuda": torch.version.cuda and f"CUDA {torch.version.cuda}",
                "hip": torch.version.hip and f"ROCm {torch.version.hip}",
                "capability": torch.backends.cpu.get_cpu_capability(),
                **cpu,
                "error": cpu["error"] or reason,
                "gpus": gpus,
            }
        )
    )


def _gpu(number: int) -> dict[str, Any]:
    device = torch.device("cuda", number)
    facts: dict[str, Any] = {"name": torch.cuda.get_device_name(number), "free": 0, "total": 0}
    with suppress(RuntimeError):
        facts["free"], facts["total"] = torch.cuda.mem_get_info(device)
    return facts | _outcome(device)


def _outcome(device: torch.device) -> dict[str, Any]:
    """Return whether a device multiplies matrices rightly, or the error, and what a training would compute in."""
    try:
        numbers = torch.arange(_SIDE * _SIDE, dtype=torch.float32, device=device).remainder(7).view(_SIDE, _SIDE)
        product = (numbers @ numbers).cpu()
        host = numbers.cpu().double()
        is_right = bool(torch.equal(product.double(), host @ host))  # small whole numbers: exact in any order
        return {"is_right": is_right, "error": "", "precision": "bf16" if has_native_bf16(device) else "fp32"}
    except RuntimeError as error:
        return {"is_right": False, "error": str(error).partition("\n")[0], "precision": ""}


if __name__ == "__main__":
    main()
