"""Which samples stand for a data set."""

import pytest

from beit.common.reading.dataset import spread_evenly


@pytest.mark.parametrize(
    ("total", "count", "places"),
    [(10, 3, [0, 3, 6]), (3, 3, [0, 1, 2]), (2, 5, [0, 1]), (5, 1, [0]), (5, 0, []), (0, 4, [])],
)
def test_samples_are_spread_evenly_and_never_more_than_there_are(total, count, places):
    assert spread_evenly(total, count).tolist() == places
