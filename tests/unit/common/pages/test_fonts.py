"""Texts in pictures: cut in the middle, broken between words, and letters from elsewhere."""

from __future__ import annotations

import pytest

from beit.common.pages.fonts import ELLIPSIS, fitted, font, text_px, wrapped

KEY = "summer-holidays-2019-with-the-children-IMG_0123-9f33a0b2c1"


@pytest.mark.parametrize("text", [KEY, "лягушка " * 9, "山と海の写真" * 9, "e\u0301" * 60, "x" * 99])
@pytest.mark.parametrize("width_px", [10, 80, 200])
def test_a_text_is_cut_to_its_width_and_keeps_both_ends(text: str, width_px: int) -> None:
    shown = fitted(text, width_px, 12)
    assert text_px(shown, 12) <= width_px or shown == ELLIPSIS
    first, last = shown.split(ELLIPSIS)
    assert text.startswith(first) and text.endswith(last)
    assert width_px < 80 or (first and last)


def test_what_fits_stays_as_it_is() -> None:
    assert fitted("short", 200, 12) == "short" and fitted("", 0, 12) == ""
    assert wrapped("", 100, 12) == []


def test_lines_break_between_words_and_none_is_too_wide() -> None:
    lines = wrapped(f"it kept 12 % of {KEY} and of {'all that there was ' * 9}", 150, 12)
    assert all(text_px(line, 12) <= 160 for line in lines) and len(lines) > 5
    assert not any(line.startswith("%") for line in lines)
    assert sum(ELLIPSIS in line for line in lines) == 1


def test_greek_and_cyrillic_are_in_the_typeface_itself() -> None:
    assert font(12, "лягушка, ψάρι, über, žaba") is font(12)
