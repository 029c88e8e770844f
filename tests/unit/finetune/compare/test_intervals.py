import math

import pytest
import scipy.stats

from beit.finetune.compare.intervals import mean_interval, t_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 30, 101])
@pytest.mark.parametrize("probability", [0.6, 0.95, 0.975, 0.995])
def test_quantiles_are_those_of_student_t(degrees, probability):
    assert t_quantile(probability, degrees) == pytest.approx(scipy.stats.t.ppf(probability, degrees), rel=1e-9)


def test_the_interval_of_a_mean_is_the_published_one():
    values = [0.31, 0.35, 0.30, 0.36, 0.33]
    interval = mean_interval(values)
    low, high = scipy.stats.t.interval(0.95, 4, loc=interval.mean, scale=scipy.stats.sem(values))
    assert interval.mean - interval.half_width == pytest.approx(low)
    assert interval.mean + interval.half_width == pytest.approx(high)


def test_one_value_has_no_interval_and_equal_values_a_narrow_one():
    assert mean_interval([0.5]).half_width is None
    assert mean_interval([0.5, 0.5]).half_width == 0
    assert math.isclose(mean_interval([1.0, 1.0, 1.3]).mean, 1.1)
    with pytest.raises(ValueError):
        mean_interval([])
