"""From the ranks' reports to one exit code and the lines that explain it; starting ranks is tested in tests/launch."""

from __future__ import annotations

from pathlib import Path

import pytest

from beit.common.processes import rank_reports
from beit.common.processes.rank_reports import OutputFollower, judge, output_file, record_exit
from beit.common.storage.documents import write_json

KILLED = 256 - 9
"""How DeepSpeed's launcher exits after a rank was killed."""


def report(directory: Path, rank: int, code: int, message: str = "", time: float = 0.0) -> None:
    write_json(directory / f"{rank}.json", {"code": code, "message": message, "time": time})


@pytest.mark.parametrize(
    ("codes", "asked_to_stop", "expected"),
    [
        ([0, 0], False, 0),
        ([75, 75], True, 75),
        ([75, 75], False, 75),
        ([0, 75], True, 75),
        ([2, 1], False, 2),
        ([1, 2], False, 2),
        ([0, None], False, 1),
        ([75, None], True, 75),
        ([None, None], True, 75),
        ([1, None], True, 1),
        ([75, 1], True, 1),
        ([0, 1], False, 1),
    ],
)
def test_exit_code_is_the_worst(tmp_path: Path, codes: list[int | None], asked_to_stop: bool, expected: int) -> None:
    for rank, code in enumerate(codes):
        if code is not None:
            report(tmp_path, rank, code)
    code = judge(tmp_path, range(len(codes)), asked_to_stop=asked_to_stop, launcher_code=0)
    assert code == expected


def test_what_all_ranks_say_is_shown_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for rank in range(3):
        report(tmp_path, rank, 2, "store is missing")
    judge(tmp_path, range(3), asked_to_stop=False, launcher_code=0)
    assert caplog.messages == ["beit: store is missing"]


def test_a_killed_rank_is_named_last_with_its_last_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output_file(tmp_path, 5).write_text("".join(f"line {number}\n" for number in range(50)))
    report(tmp_path, 4, 1, "connection lost")
    assert judge(tmp_path, range(4, 6), asked_to_stop=False, launcher_code=KILLED) == 1
    first, lines, last = caplog.messages
    assert first == "beit: rank 4: connection lost"
    assert lines.startswith("beit: last lines of rank 5:\n  line 30\n") and lines.endswith("  line 49")
    assert last == "beit: rank 5 ended without a word (killed by SIGKILL, by somebody or for lack of memory)"


def test_the_first_to_fail_is_named_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output_file(tmp_path, 2).write_text("Traceback\nZeroDivisionError\n")
    report(tmp_path, 0, 1, "lost rank 2", time=20.0)
    report(tmp_path, 2, 1, "ZeroDivisionError", time=10.0)
    report(tmp_path, 1, 75, "stopped", time=5.0)
    judge(tmp_path, range(3), asked_to_stop=False, launcher_code=1)
    assert caplog.messages == [
        "beit: lost rank 2",
        "beit: rank 2: ZeroDivisionError",
        "beit: last lines of rank 2:\n  Traceback\n  ZeroDivisionError",
        "beit: rank 2 failed first",
    ]


def test_where_all_ranks_fail_alike_none_is_blamed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for rank in range(2):
        report(tmp_path, rank, 1, "stopped at step 7: more than 3 in a row", time=rank)
    assert judge(tmp_path, range(2), asked_to_stop=False, launcher_code=1) == 1
    assert caplog.messages == ["beit: stopped at step 7: more than 3 in a row"]


def test_where_ranks_stop_for_different_reasons_all_are_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report(tmp_path, 0, 75, "another rank left")
    report(tmp_path, 1, 75, "stopped while waiting for data worker 0")
    assert judge(tmp_path, range(2), asked_to_stop=True, launcher_code=75) == 75
    assert caplog.messages == [
        "beit: another rank left",
        "beit: rank 1: stopped while waiting for data worker 0",
    ]


def test_output_is_followed_by_whole_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    follower, file = OutputFollower(tmp_path, range(2)), output_file(tmp_path, 1)
    follower.show()
    file.write_bytes(b"one\ntw")
    follower.show()
    assert capsys.readouterr().err == "[rank 1] one\n"
    file.write_bytes(b"one\ntwo\nthr\xff")
    follower.show()
    follower.show(is_end=True)
    assert capsys.readouterr().err == "[rank 1] two\n[rank 1] thr\ufffd\n"


def test_rank_reports_to_the_launching_command_or_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(rank_reports.REPORTS_VARIABLE, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert record_exit(2, "x") == "x"
    monkeypatch.setenv("RANK", "1")
    assert record_exit(75, "x") == ""
    assert record_exit(2, "x") == "rank 1: x"
    monkeypatch.setenv(rank_reports.REPORTS_VARIABLE, str(tmp_path))
    assert record_exit(2, "x") == ""
    assert (tmp_path / "1.json").exists()
