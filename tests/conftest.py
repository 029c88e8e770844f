"""What holds for all tests."""

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
