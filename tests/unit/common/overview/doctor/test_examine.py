"""All checks have their turn, the slow ones beside the others, and none of them stops the next."""

from contextlib import contextmanager

import pytest

from beit.common.errors import InputError, RunFailed
from beit.common.overview.doctor import examine
from beit.common.overview.doctor.findings import well
from beit.tests.support import write_tokenizer

PROBED = {"version": "2", "cuda": None, "hip": None, "capability": "AVX2", "is_right": True, "error": ""}
PROBED |= {"precision": "fp32", "gpus": []}


class Beside:
    def __init__(self, found):
        self.found = found

    def result(self):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def machine(monkeypatch):
    """A machine of which nothing is really looked at; what torch says of itself can be chosen."""
    state = {"torch": PROBED, "started": []}

    @contextmanager
    def child(name, found):
        state["started"].append(name)
        yield Beside(found())
        state["started"].append(f"{name} ended")

    monkeypatch.setattr(examine, "device_child", lambda: child("probe", lambda: state["torch"]))
    ranks = {"device": "the CPU", "backend": "gloo", "deepspeed": "0", "seconds": 1.0}
    monkeypatch.setattr(examine, "ranks_child", lambda: child("ranks", lambda: ranks))
    pretended = tuple((name, lambda name=name: [well(name, "")]) for name, _ in examine._SYSTEM)
    monkeypatch.setattr(examine, "_SYSTEM", pretended)
    monkeypatch.setattr(examine, "check_dalle", lambda: [well("dall-e", "")])
    return state


def topics(*subjects, with_ranks=True):
    return [finding.topic for finding in examine.examine(subjects, with_ranks=with_ranks)]


def test_all_checks_have_their_turn(machine):
    found = topics()
    assert found[0] == "python" and found[-1] == "ranks" and {"torch", "device", "compiler", "dall-e"} < set(found)
    assert machine["started"] == ["probe", "ranks", "ranks ended", "probe ended"]


def test_ranks_can_be_left_out(machine):
    assert "ranks" not in topics(with_ranks=False)
    assert machine["started"] == ["probe", "probe ended"]


def test_a_check_that_breaks_does_not_stop_the_next(machine, monkeypatch):
    def broken():
        raise RuntimeError("no such device")

    monkeypatch.setattr(examine, "_SYSTEM", (("clock", broken), ("disk", lambda: [well("disk", "")])))
    first, second, *_ = examine.examine((), with_ranks=False)
    assert first.level == "fault" and "RuntimeError: no such device" in first.what and second.topic == "disk"


def test_without_torch_what_needs_it_is_not_looked_at_and_that_is_said(machine, tmp_path):
    machine["torch"] = RunFailed("ImportError: libtorch.so")
    write_tokenizer(tmp_path / "mine")
    found = list(examine.examine([str(tmp_path / "mine")], with_ranks=True))
    assert [finding.topic for finding in found[-2:]] == ["torch", "tokenizer"]
    assert found[-1].level == "warning" and "was not looked at" in found[-1].what


def test_what_is_named_comes_last(machine, tmp_path):
    write_tokenizer(tmp_path / "mine")
    assert topics(str(tmp_path / "mine"))[-2:] == ["ranks", "tokenizer"]


def test_what_cannot_be_is_refused_before_anything_is_started(machine, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        topics(str(tmp_path / "gone"))
    assert not machine["started"]
