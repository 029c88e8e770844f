import pytest

from beit.common.errors import InputError
from beit.common.sources.labels import (
    ClassMatcher,
    as_label,
    in_order,
    meant_number,
    number_of,
    require_distinct,
    stored_label,
    unknown_classes,
)


@pytest.mark.parametrize(
    ("text", "number", "meant", "label"),
    [
        ("7", 7, 7, 7),
        ("-7", -7, -7, -7),
        ("007", 7, 7, "007"),
        ("-0", 0, 0, "-0"),
        ("3.0", None, 3, "3.0"),
        ("3.5", None, None, "3.5"),
        ("\u0667", None, None, "\u0667"),
        ("1_000", None, None, "1_000"),
        ("cat", None, None, "cat"),
        (str(10**30), 10**30, 10**30, 10**30),
        ("9" * 5000, None, None, "9" * 5000),
    ],
)
def test_what_a_text_says(text, number, meant, label):
    assert (number_of(text), meant_number(text), as_label(text)) == (number, meant, label)


@pytest.mark.parametrize(
    ("label", "stored"),
    [(3, 3), ("007", 7), (None, None), (-2, None), (2**63 - 1, 2**63 - 1), (2**63, None), ("1|2", None)],
)
def test_a_store_keeps_class_numbers(label, stored):
    assert stored_label(label) == stored


def test_numbers_are_sorted_as_such_and_names_as_text():
    assert in_order(["10", "9", "-2"]) == ["-2", "9", "10"]
    assert in_order(["10", "9", "x"]) == ["10", "9", "x"]


def test_classes_are_found_by_name_form_and_number():
    matcher = ClassMatcher(["cafe\u0301", "7", "08", "1", "01"])
    found = [matcher.find(name) for name in ("caf\u00e9", "07", "8", "1", "01", "001", "dog")]
    assert found == [0, 1, 2, 3, 4, None, None]  # 001 could be either of two


def test_a_file_of_names_leads_to_numbered_classes():
    matcher = ClassMatcher(["5", "3"], {3: "cat", 5: "dog", 9: "emu"})
    assert [matcher.find(name) for name in ("cat", "dog", "emu", "3")] == [1, 0, None, 1]


def test_one_number_in_two_spellings_is_refused():
    require_distinct(["1", "2", "one"], "data")
    with pytest.raises(InputError, match="data has the classes 01 and 1, which are one number"):
        require_distinct(["1", "2", "01"], "data")


def test_unknown_classes_lead_to_the_way_out():
    assert "does not know (emu); it knows cat, dog" in unknown_classes("d", ["emu"], ["cat", "dog"])
    assert "does not know (7); it knows 0, 1, 2, 3, 4, ..." in unknown_classes("d", ["7"], list("0123456"))
    for text in (unknown_classes("d", ["0"], ["cat"]), unknown_classes("d", ["cat"], ["0"])):
        assert "--class-names FILE" in text and "data.class_names=FILE" in text
