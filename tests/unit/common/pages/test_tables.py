"""Tables of text: columns are as wide as their widest cell."""

from beit.common.pages.tables import aligned


def test_the_first_column_is_left_and_the_others_right_unless_said_otherwise() -> None:
    rows = [["name", "a", "long title"], ["a long name", "12.5", "1"]]
    assert aligned(rows) == "name            a  long title\na long name  12.5           1"
    assert aligned(rows, align="><") == "       name  a     long title\na long name  12.5  1"


def test_rows_may_be_short_and_end_where_their_text_does() -> None:
    assert aligned([["Section"], ["  one", "1", ""], ["  two", "22", "best"]], align="<><").splitlines() == [
        "Section",
        "  one     1",
        "  two    22  best",
    ]
