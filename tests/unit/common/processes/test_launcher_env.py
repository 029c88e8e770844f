"""What launchers say, turned into one set of variables."""

from __future__ import annotations

import pytest

from beit.common.errors import InputError
from beit.common.processes.launcher_env import launcher_environment, under_launcher


def test_no_launcher_is_one_rank() -> None:
    assert not under_launcher({})
    names = launcher_environment({})
    assert (names["RANK"], names["WORLD_SIZE"], names["LOCAL_RANK"]) == ("0", "1", "0")


def test_variables_of_a_launcher_are_taken_as_they_are() -> None:
    given = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "1234"}
    assert under_launcher(given)
    assert launcher_environment(given) == given


@pytest.mark.parametrize(
    ("nodes", "first"), [("gpu[003-007,9],x", "gpu003"), ("alpha,beta", "alpha"), ("solo", "solo")]
)
def test_slurm_step(nodes: str, first: str) -> None:
    given = {
        "SLURM_PROCID": "5",
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_JOB_ID": "123456",
    }
    assert under_launcher(given)
    names = launcher_environment(given)
    assert (names["RANK"], names["WORLD_SIZE"], names["LOCAL_RANK"]) == ("5", "16", "1")
    assert names["MASTER_ADDR"] == first
    assert names["MASTER_PORT"] == launcher_environment(given | {"SLURM_PROCID": "0"})["MASTER_PORT"]


def test_slurm_batch_script_itself_is_not_a_rank() -> None:
    assert not under_launcher({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "1"})


@pytest.mark.parametrize(
    ("change", "message"), [({"RANK": "8"}, "RANK .8. must be below WORLD_SIZE .8."), ({"RANK": "x"}, "RANK .'x'.")]
)
def test_contradictions_are_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        launcher_environment({"RANK": "0", "WORLD_SIZE": "8"} | change)
