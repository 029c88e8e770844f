"""Variables that nobody means are told, with the command that removes them."""

import os

import pytest

from beit.common.overview.doctor.machine.variables import check_variables


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in list(os.environ):
        if name.startswith("BEIT_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("name", "value", "level", "said"),
    [
        ("BEIT_FAULT", "commit:1", "fault", "on purpose"),
        ("BEIT_CAHCE", "/tmp", "warning", "did you mean BEIT_CACHE?"),
        ("BEIT_XYZ", "1", "warning", "no variable of beit"),
        ("CUDA_LAUNCH_BLOCKING", "1", "warning", "slow"),
        ("TORCH_DISTRIBUTED_DEBUG", "DETAIL", "warning", "slow"),
    ],
)
def test_what_nobody_means_is_told(monkeypatch, name, value, level, said):
    monkeypatch.setenv(name, value)
    (finding,) = check_variables()
    assert finding.level == level and said in finding.what and finding.mend == f"unset {name}"


def test_what_beit_knows_is_well(monkeypatch):
    (finding,) = check_variables()
    assert finding.level == "ok"
    for name in ("BEIT_CACHE", "BEIT_DALLE_MIRRORS", "BEIT_HTTP_HEADERS", "BEIT_RANK_REPORTS", "BEIT_LAUNCHER_PID"):
        monkeypatch.setenv(name, "{}")
    (finding,) = check_variables()
    assert finding.level == "ok" and "BEIT_CACHE" in finding.what
