"""A clock that is behind, or that the file system does not share, is told."""

import time

import pytest

from beit.common.overview.doctor.machine import clock
from beit.common.overview.doctor.machine.clock import check_clock


def test_a_clock_that_is_right_is_no_finding():
    assert [finding.level for finding in check_clock()] == ["ok"]


def test_a_clock_before_the_installation_is_a_fault(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 86_400.0)
    (finding,) = check_clock()
    assert finding.level == "fault" and "1970" in finding.what and "set-ntp" in finding.mend


@pytest.mark.parametrize("skew", [-400.0, 400.0])
def test_files_dated_otherwise_are_a_warning(monkeypatch, skew):
    monkeypatch.setattr(clock, "_skew", lambda _: skew)
    (finding,) = check_clock()
    assert finding.level == "warning" and "400 s off" in finding.what


def test_where_no_file_can_be_made_nothing_is_claimed(tmp_path):
    assert clock._skew(tmp_path / "gone") is None
    assert abs(clock._skew(tmp_path)) < 30
