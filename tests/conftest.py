"""What holds for all tests: a cache of their own, no reports unless they ask for them, and ears for Ctrl-C."""

import signal
from collections.abc import Iterator

import pytest

from beit.common.overview.report import automatic

WRITE = automatic._write


def pytest_configure() -> None:
    """Hear Ctrl-C, and let what tests start hear it: shells start background jobs, such as a test run, deaf to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_reports() -> Iterator[None]:
    """Let trainings in this process write no reports, each of which takes a second or two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(automatic, "_write", lambda run, draw: None)
        yield


@pytest.fixture
def with_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let them, for one test."""
    monkeypatch.setattr(automatic, "_write", WRITE)


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory):
    """Give all tests of a process a cache of their own; a test that needs an empty one sets another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("beit-cache")))
        yield
