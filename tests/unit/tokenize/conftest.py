import os

import pytest

from beit.common.views import compute_canary

CANARY = compute_canary()


@pytest.fixture(autouse=True)
def stores_are_written_fast(monkeypatch):
    """Durability cannot be seen in a test, and fsync costs most of the time; the canary is the same every time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr("beit.tokenize.setup.compute_canary", lambda: CANARY)
