"""What two ranks said becomes one line. That they really train is tested in tests/launch/test_doctor.py."""

import pytest

from beit.common.errors import RunFailed
from beit.common.overview.doctor.child import SlowAnswer
from beit.common.overview.doctor.machine.ranks import check_ranks


class Told:
    def __init__(self, found):
        self.found = found

    def result(self):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def test_ranks_that_trained_are_well():
    found = {"device": "the CPU", "backend": "gloo", "deepspeed": "0.19.8", "seconds": 3.21}
    (finding,) = check_ranks(Told(found))
    assert finding.level == "ok" and "3.2 s" in finding.what and "0.19.8" in finding.what


def test_ranks_that_are_slow_are_a_warning():
    (finding,) = check_ranks(Told(SlowAnswer("no answer in 180 s")))
    assert finding.level == "warning" and "slow" in finding.what and "no answer in 180 s" in finding.what


@pytest.mark.parametrize("reason", ["not all ranks came", "ImportError: libaio.so: rank 0 ended without a word"])
def test_ranks_that_did_not_are_a_fault(reason):
    (finding,) = check_ranks(Told(RunFailed(reason)))
    assert finding.level == "fault" and reason in finding.what
    assert "python -m beit.common.overview.doctor.machine.two_ranks" in finding.mend
