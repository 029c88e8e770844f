"""Remote reads that give up soon, so that tests of failures do not wait."""

from __future__ import annotations

import pytest

from beit.common.storage import object_store
from beit.common.storage.remote_place import forget_stores


def hurry(monkeypatch: pytest.MonkeyPatch, *, retries: int = 5) -> None:
    """Try as often as asked, without the pauses."""
    monkeypatch.setattr(object_store, "PATIENT", object_store.retries(retries, 0.001, 0.002))
    forget_stores()
