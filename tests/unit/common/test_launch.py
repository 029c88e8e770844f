"""From the ranks' reports to one exit code; starting ranks is tested in tests/launch."""

from __future__ import annotations

from pathlib import Path

import pytest

from beit.common import launch
from beit.common.errors import InputError
from beit.common.files import write_json
from beit.common.launch import launch_ranks, record_exit


def report(directory: Path, rank: int, code: int, message: str = "") -> None:
    write_json(directory / f"{rank}.json", {"code": code, "message": message})


@pytest.mark.parametrize(
    ("codes", "asked_to_stop", "expected"),
    [
        ([0, 0], False, 0),
        ([75, 75], True, 75),
        ([75, 75], False, 75),
        ([2, 1], False, 2),
        ([1, 2], False, 2),
        ([0, None], False, 1),
        ([75, None], True, 75),
        ([None, None], True, 75),
        ([1, None], True, 1),
        ([0, 1], False, 1),
    ],
)
def test_exit_code_of_the_whole(tmp_path: Path, codes: list[int | None], asked_to_stop: bool, expected: int) -> None:
    for rank, code in enumerate(codes):
        if code is not None:
            report(tmp_path, rank, code)
    assert launch._judge(tmp_path, num_ranks=len(codes), asked_to_stop=asked_to_stop) == expected


def test_equal_messages_are_shown_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for rank in range(3):
        report(tmp_path, rank, 2, "store is missing")
    launch._judge(tmp_path, num_ranks=3, asked_to_stop=False)
    assert caplog.messages == ["beit: store is missing"]


def test_rank_reports_to_the_launching_command_or_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(launch.REPORTS_VARIABLE, raising=False)
    monkeypatch.setenv("RANK", "0")
    assert record_exit(2, "x")
    monkeypatch.setenv("RANK", "1")
    assert not record_exit(2, "x")
    monkeypatch.setenv(launch.REPORTS_VARIABLE, str(tmp_path))
    assert not record_exit(2, "x")
    assert (tmp_path / "1.json").exists()


def test_missing_hostfile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        launch_ranks(hostfile=str(tmp_path / "hosts"))


def test_hostfile_without_pdsh_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hosts").write_text("a slots=1\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="needs pdsh"):
        launch_ranks(hostfile=str(tmp_path / "hosts"))
