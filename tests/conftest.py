"""What holds for all tests: a cache of their own, and no reports unless they ask for them."""

from collections.abc import Iterator

import pytest

from beit.common.overview.report import automatic

WRITE = automatic._write


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
