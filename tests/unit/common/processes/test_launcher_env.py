"""What launchers say, turned into one set of variables."""

from __future__ import annotations

import pytest

from beit.common.errors import InputError
from beit.common.processes.launcher_env import is_to_start_ranks, launched_rank, launcher_environment, under_launcher


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


SHELL_OF_SRUN = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
POD = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
DEEPSPEED = {"RANK": "1", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
INTEL_MPI = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize("variables", [{}, SHELL_OF_SRUN, POD, {"PMI_RANK": "0", "PMI_SIZE": "1"}])
def test_a_process_that_is_alone_starts_the_ranks_that_are_asked_for(variables: dict[str, str]) -> None:
    assert not under_launcher(variables)
    assert is_to_start_ranks(2, None, variables)
    assert is_to_start_ranks(None, "hosts", variables)
    assert not is_to_start_ranks(None, None, variables)


@pytest.mark.parametrize(
    ("variables", "here"), [(TORCHRUN, 4), (DEEPSPEED, 2), (SRUN, 2), (OPEN_MPI, 2), (INTEL_MPI, 2)]
)
def test_ranks_of_a_launcher_may_repeat_their_number_and_no_other(variables: dict[str, str], here: int) -> None:
    assert under_launcher(variables)
    assert not is_to_start_ranks(here, None, variables)
    assert not is_to_start_ranks(None, None, variables)
    for gpus, hostfile in ((here - 1, None), (here + 1, None), (None, "hosts")):
        with pytest.raises(InputError, match=f"asks for ranks, but .* has started .*{here} of them on this machine"):
            is_to_start_ranks(gpus, hostfile, variables)


def test_where_the_launcher_does_not_say_how_many_are_here_a_number_is_refused() -> None:
    with pytest.raises(InputError, match="--gpus 2 asks for ranks, but RANK and WORLD_SIZE say .* has started 2; "):
        is_to_start_ranks(2, None, POD | {"WORLD_SIZE": "2"})


def test_a_rank_of_ours_starts_no_others() -> None:
    assert not is_to_start_ranks(1, None, POD | {"BEIT_LAUNCHER_PID": "7"})
    assert not is_to_start_ranks(None, "hosts", TORCHRUN | {"BEIT_LAUNCHER_PID": "7"})


@pytest.mark.parametrize("variables", [OPEN_MPI, INTEL_MPI])
def test_launchers_of_mpi(variables: dict[str, str]) -> None:
    names = launcher_environment(variables)
    assert (names["RANK"], names["WORLD_SIZE"], names["MASTER_ADDR"]) == ("1", "2", "127.0.0.1")
    many = {name: "9" if name.endswith("_SIZE") and "LOCAL" not in name else value for name, value in variables.items()}
    with pytest.raises(InputError, match="started 9 ranks on several machines; set MASTER_ADDR"):
        launcher_environment(many)
    assert launcher_environment(many | {"MASTER_ADDR": "node1"})["MASTER_ADDR"] == "node1"


@pytest.mark.parametrize(
    ("change", "message"), [({"RANK": "8"}, "RANK .8. must be below WORLD_SIZE .8."), ({"RANK": "x"}, "RANK .'x'.")]
)
def test_contradictions_are_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        launcher_environment({"RANK": "0", "WORLD_SIZE": "8"} | change)


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({"RANK": "1"}, None),
        ({"SLURM_PROCID": "1"}, None),
        ({"RANK": "1", "WORLD_SIZE": "2"}, 1),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}, 3),
    ],
)
def test_a_rank_alone_is_no_second_one_that_would_be_silent(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], rank: int | None
) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched_rank() == rank
