"""Findings are one line each, whatever is in them; a check that fails is a finding itself."""

import pytest

from beit.common.errors import InputError, RunFailed
from beit.common.overview.doctor.findings import (
    are_faults,
    as_document,
    fault,
    guarded,
    refused,
    verdict,
    warning,
    well,
)


def test_a_finding_is_one_line_that_controls_no_terminal():
    line = fault("disk", "a\nname \x1b[2J", "rm 'a\tb'").as_text()
    assert line == "fault    disk           a name \\x1b[2J; mend: rm 'a b'"


def test_an_error_of_ours_is_parted_at_its_way_out():
    finding = refused("store", InputError("store.json (x) is bad; not good; restore it"))
    assert (finding.what, finding.mend) == ("store.json (x) is bad; not good", "restore it")
    assert refused("store", InputError("is bad"), "copy it").mend == "copy it"


@pytest.mark.parametrize("error", [InputError("a; b"), RunFailed("a; b"), OSError(5, "I/O error"), KeyError("x")])
def test_a_check_that_fails_is_a_fault_and_what_it_found_before_stays(error):
    def check():
        yield well("disk", "there")
        raise error

    before, finding = guarded("disk", check)
    assert before.level == "ok" and finding.level == "fault" and finding.mend


def test_only_faults_make_a_machine_unwell():
    found = [well("a", "b"), warning("c", "d", "e"), warning("c", "d", "e")]
    assert not are_faults(found) and verdict(found) == "2 warnings"
    assert verdict(found[:1]) == "all is well"
    found.append(fault("f", "g", "h"))
    assert are_faults(found) and verdict(found) == "1 fault, 2 warnings"
    document = as_document(found)
    assert (document["is_well"], document["num_faults"], document["num_warnings"]) == (False, 1, 2)
    assert document["findings"][-1] == {"topic": "f", "level": "fault", "what": "g", "mend": "h"}
