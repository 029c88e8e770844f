"""Two ranks on this machine, as `--gpus 2` starts them: do they find each other, and does DeepSpeed train with them?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

from beit.common.errors import RunFailed
from beit.common.overview.doctor.child import Child, SlowAnswer, child
from beit.common.overview.doctor.findings import Finding, fault, slow, well

_MODULE = "beit.common.overview.doctor.machine.two_ranks"
_TIMEOUT_SECONDS = 90.0
"""Some ten times what it takes on two cores that nobody else uses: 12 s of a processor in all."""


def ranks_child() -> AbstractContextManager[Child]:
    """Start them."""
    return child(_MODULE, timeout_seconds=_TIMEOUT_SECONDS)


def check_ranks(ranks: Child) -> Iterator[Finding]:
    """Did they meet, talk and train?"""
    try:
        found = ranks.result()
    except SlowAnswer as error:
        yield slow("ranks", error, f"see what they say: python -m {_MODULE}")
        return
    except RunFailed as error:
        yield fault(
            "ranks",
            f"two ranks did not train together: {error}",
            f"see what they say: python -m {_MODULE}; work without --gpus meanwhile",
        )
        return
    yield well(
        "ranks",
        f"two on {found['device']} met, talked ({found['backend']}) and took a step with DeepSpeed "
        f"{found['deepspeed']}, {found['seconds']:.1f} s after they began",
    )
