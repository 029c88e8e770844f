"""What commands take besides their work."""

import pytest

from beit.common.forecast import starting
from beit.common.forecast.hardware import named, this_machine
from beit.common.forecast.starting import import_seconds, training_start


def test_a_busy_processor_takes_longer_to_begin(monkeypatch):
    monkeypatch.setattr(starting, "spare_share", lambda: 0.25)
    here, elsewhere = this_machine(may_use_gpu=False), named("A100")
    assert import_seconds(here) == pytest.approx(4 * import_seconds(elsewhere))


def test_what_was_measured_counts_unless_torch_was_there_already():
    assert import_seconds(named("A100"), 50.0) == 50.0
    assert 0 < import_seconds(named("A100"), 0.01) < import_seconds(named("A100"))
    assert training_start(4.0) > 4.0
