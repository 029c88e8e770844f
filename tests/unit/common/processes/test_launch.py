"""What is asked for and what the machine has; starting ranks is tested in tests/launch."""

from __future__ import annotations

import pytest

from beit.common.errors import InputError
from beit.common.processes import launch
from beit.common.processes.launch import check_ranks


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes this a machine of so many GPUs and cores, with CUDA_VISIBLE_DEVICES or without."""

    def make(*, gpus: int, cores: int = 8, named: str | None = None) -> None:
        monkeypatch.setattr(launch, "_visible_gpus", lambda: gpus)
        monkeypatch.setattr(launch, "available_cores", lambda: cores)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if named is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)

    return make


@pytest.mark.parametrize("gpus", [0, 1])
def test_more_ranks_than_named_gpus_are_refused(machine, gpus: int) -> None:
    machine(gpus=gpus, named="3")
    with pytest.raises(InputError, match=r"--gpus 2 is more than CUDA_VISIBLE_DEVICES \(3\) names"):
        check_ranks(2)


def test_more_ranks_than_gpus_are_refused(machine) -> None:
    machine(gpus=2)
    with pytest.raises(InputError, match="--gpus 3 is more than the 2 GPUs of this machine"):
        check_ranks(3)
    assert launch._local_devices(2) == [0, 1]


def test_named_gpus_are_used_in_their_order(machine) -> None:
    machine(gpus=3, named="7, 5,1")
    assert launch._local_devices(2) == ["7", "5"]


@pytest.mark.parametrize("named", [None, "", "-1"])
def test_without_gpus_more_ranks_than_cores_are_one_warning(machine, named: str | None, caplog) -> None:
    machine(gpus=0, cores=2, named=named)
    assert launch._local_devices(2) == [0, 1]
    assert not caplog.messages
    assert launch._local_devices(4) == [0, 1, 2, 3]
    assert caplog.messages == [
        "--gpus 4: there is no GPU here that torch sees, so 4 ranks share the 2 cores of this machine"
    ]
