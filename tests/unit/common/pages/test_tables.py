"""Tables of text: columns are as wide as their widest cell."""

from beit.common.pages.tables import aligned, columns, shortened


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


def test_wide_letters_take_two_columns_and_accents_none() -> None:
    rows = [["飛行機", "1"], ["e\u0301te\u0301", "22"], ["ship", "333"]]
    lines = aligned(rows).splitlines()
    assert {columns(line) for line in lines} == {6 + 2 + 3}
    assert columns("飛行機") == 6 and columns("e\u0301") == 1


def test_long_names_are_cut_to_columns() -> None:
    assert shortened("folder/name.png", 10) == "fold...png"
    assert shortened("name", 4) == "name"
    assert columns(shortened("山と海の写真" * 4, 11)) <= 11
