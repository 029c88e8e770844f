"""`beit doctor` as a command: lines or one JSON document, and an exit code that scripts can go by."""

import json
import sys

import pytest

from beit import cli
from beit.common.overview.doctor import examine
from beit.common.overview.doctor.findings import fault, warning, well

FOUND = {
    "well": [well("python", "3.12")],
    "warned": [well("python", "3.12"), warning("cores", "few threads", "unset OMP_NUM_THREADS")],
    "faulty": [fault("disk", "full", "df -h"), well("python", "3.12")],
}


@pytest.fixture
def asked(monkeypatch):
    """What was asked for; what is found is the test's."""
    calls = []

    def choose(found):
        def pretend(subjects, *, with_ranks):
            calls.append((tuple(subjects), with_ranks))
            return iter(found)

        monkeypatch.setattr(examine, "examine", pretend)
        return calls

    return choose


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["beit", "doctor", *words])
    return cli._run()


@pytest.mark.parametrize(
    ("name", "code", "last"), [("well", 0, "all is well"), ("warned", 0, "1 warning"), ("faulty", 1, "1 fault")]
)
def test_faults_alone_end_it_with_1(asked, monkeypatch, capsys, name, code, last):
    asked(FOUND[name])
    assert run(monkeypatch) == (code, "")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(FOUND[name]) + 1 and lines[-1] == last


def test_json_is_one_document_and_the_same_exit_code(asked, monkeypatch, capsys):
    asked(FOUND["faulty"])
    assert run(monkeypatch, "--json")[0] == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["format"], document["format_version"], document["is_well"]) == ("beit-doctor", 1, False)
    assert [entry["level"] for entry in document["findings"]] == ["fault", "ok"]


def test_what_is_named_is_handed_on_and_ranks_may_be_left_out(asked, monkeypatch):
    calls = asked(FOUND["well"])
    run(monkeypatch)
    run(monkeypatch, "store", "run", "--quick")
    assert calls == [((), True), (("store", "run"), False)]
