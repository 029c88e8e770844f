import pytest

from beit.common.errors import InputError
from beit.common.overview.plan.amounts import large, parse_count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("150", 150),
        ("1_281_167", 1_281_167),
        ("1,281,167", 1_281_167),
        ("14M", 14_000_000),
        ("1.28m", 1_280_000),
        ("50k", 50_000),
    ],
)
def test_a_number_of_images(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize(
    "text", ["photos", "./150", "150/", "photos-0000.tar", "s3://bucket/150", "14 GB", "", "-3", "1e6"]
)
def test_anything_else_is_a_source(text):
    assert parse_count(text) is None


@pytest.mark.parametrize("text", ["0", "0.5", "1.5", "2000000M"])
def test_a_number_that_cannot_be_one_is_refused(text):
    with pytest.raises(InputError, match=rf"{text} is no number of images.*\./{text}"):
        parse_count(text)


def test_large_numbers_are_short():
    assert [large(n) for n in (1, 2400, 1_281_167, 4_018_000_000)] == ["1", "2,400", "1.28 million", "4.02 billion"]
