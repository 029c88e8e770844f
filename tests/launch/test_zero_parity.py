"""Every ZeRO stage and plain PyTorch train alike, with accumulation, too; NaN on one rank is skipped by all."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from beit.common.shards.token_store import TokenStore
from beit.tests.support import write_store
from beit.tests.zero_parity import BAD_STEP, CASES, STEPS, Case, train_plainly

pytestmark = [pytest.mark.launch, pytest.mark.fault, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def found(store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks did; started where neither compiler nor ninja, numactl, mpi4py or pdsh can be found."""
    folder = tmp_path_factory.mktemp("bare")
    environment = {"PATH": str(folder), "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "beit.tests.zero_parity", str(store.location), str(folder / "found.json")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert not (folder / ".cache/torch_extensions").exists()
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_losses_are_those_of_plain_pytorch(store: TokenStore, found: dict[str, Any], case: Case) -> None:
    _, precision, accumulation, setting = case
    expected = train_plainly(store, precision, accumulation, setting)
    assert len(expected) == STEPS and expected[0] != expected[-1]
    assert found[repr(case)]["losses"] == pytest.approx(expected, rel=1e-5 if precision == "fp32" else 2e-3)


def test_accumulation_changes_nothing(found: dict[str, Any]) -> None:
    assert found[repr((0, "fp32", 1, "all"))]["losses"] == pytest.approx(
        found[repr((0, "fp32", 2, "all"))]["losses"], rel=1e-5
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nan_on_one_rank_is_skipped_by_all_and_changes_nothing(found: dict[str, Any], case: Case) -> None:
    result = found[repr(case)]
    skipped = 2.0 if case[1] == "fp16" else 1.0  # where a lower loss scale may help, that is tried first
    assert result["verdicts"] == [skipped if step == BAD_STEP else 0.0 for step in range(STEPS)]
    assert result["changed"] == (["loss_scale"] if case[1] == "fp16" else [])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_state_moves_to_another_stage(found: dict[str, Any], case: Case) -> None:
    result = found[repr(case)]
    assert result["moved"] == pytest.approx(result["losses"][BAD_STEP + 1], rel=1e-6)
