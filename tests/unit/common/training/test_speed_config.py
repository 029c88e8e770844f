"""Settings of speed and profiling: ranges and the form of the window."""

import pytest

from beit.common.errors import InputError
from beit.common.training.config import ProfileConfig, SpeedConfig


def test_window_is_half_open():
    assert list(ProfileConfig(steps="10:13").window) == [10, 11, 12]
    assert not ProfileConfig().window


@pytest.mark.parametrize("steps", ["10", "13:10", "5:5", "a:b", "1:2:3", "-1:2", ""])
def test_other_windows_are_refused(steps):
    with pytest.raises(InputError, match="profile.steps"):
        ProfileConfig(steps=steps)


def test_peak_must_be_positive():
    with pytest.raises(InputError, match="peak_tflops"):
        SpeedConfig(peak_tflops=0.0)
