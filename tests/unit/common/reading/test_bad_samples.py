import pytest

from beit.common.errors import InputError
from beit.common.reading.bad_samples import BadSampleLog, BadSampleReport


def reports(*names, reason="truncated"):
    return [BadSampleReport(name, reason, "") for name in names]


def test_a_sample_counts_once_however_often_it_is_met():
    log = BadSampleLog(3000, 0.001)
    log.add(reports("s/a", "s/a", "s/b"))
    log.add(reports("s/a", reason="empty"))
    log.add(reports("s/c", reason="empty"))
    assert len(log) == 3
    assert log.counts == {"truncated": 2, "empty": 1}


def test_the_message_names_count_budget_and_first_samples():
    log = BadSampleLog(2000, 0.001)
    match = (
        r"3 of 2000 samples .* reader.bad_sample_budget \(0.001\) allows 2; first: s/a \(truncated\), s/b \(truncated\)"
    )
    with pytest.raises(InputError, match=match):
        log.add(reports("s/a", "s/b", "s/c"))


def test_a_small_set_may_have_one_bad_sample():
    log = BadSampleLog(10, 0.001)
    log.add(reports("s/a"))
    with pytest.raises(InputError):
        log.add(reports("s/b"))


def test_zero_budget_stops_at_the_first():
    with pytest.raises(InputError, match="allows 0"):
        BadSampleLog(10, 0.0).add(reports("s/a"))
