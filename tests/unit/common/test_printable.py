import io
import logging

import pytest

from beit.common.errors import printable
from beit.common.progress import LogFormatter, Terminal


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain caf\u00e9 \u732b \U0001f408\u200d\u2b1b", "plain caf\u00e9 \u732b \U0001f408\u200d\u2b1b"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x7f\x9b", "\\x7f\\x9b"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_controls_a_terminal_is_shown_as_an_escape(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_characters_may_be_kept() -> None:
    assert printable("a\nb\rc", keep="\n") == "a\nb\\rc"


def test_log_lines_and_a_terminal_are_printable() -> None:
    record = logging.LogRecord("beit", logging.INFO, "", 0, "%s left out", ("\x1b[31m.jpg",), None)
    assert LogFormatter("%(message)s").format(record) == "\\x1b[31m.jpg left out"
    file = io.StringIO()
    Terminal(file).write("a\x07b\n")
    assert file.getvalue() == "a\\x07b\n"
    assert Terminal(file).getvalue() == file.getvalue()
