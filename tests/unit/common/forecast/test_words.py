"""How numbers are written."""

import pytest

from beit.common.forecast.words import in_digits


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.03751, "0.0375"), (1, "1"), (9.374, "9.37"), (999.4, "999"), (999.6, "1,000"), (64_000, "64,000")],
)
def test_a_number_has_three_digits_and_no_exponent(number, text):
    assert in_digits(number) == text


def test_more_digits_where_they_are_asked_for():
    assert in_digits(19.733, 4) == "19.73" and in_digits(1234.4, 4) == "1234" and in_digits(64_000, 4) == "64,000"
