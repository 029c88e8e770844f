import pytest

from beit.common.errors import InputError
from beit.common.sources.class_names import read_class_names


@pytest.mark.parametrize(
    "text",
    [
        "cat\r\ndog\r\n\r\n",
        '["cat", "dog"]',
        '{"1": "dog", "0": " cat "}',
        '{"format": "beit-encoder", "class_names": ["cat", "dog"]}',
        '{"model_type": "vit", "id2label": {"0": "cat", "1": "dog"}}',
    ],
)
def test_every_form_names_the_same_numbers(tmp_path, text):
    (tmp_path / "names").write_text(text, encoding="utf-8-sig")
    names = read_class_names(str(tmp_path / "names"))
    assert (names.of, names.file) == ({0: "cat", 1: "dog"}, str(tmp_path / "names"))


def test_numbers_may_be_any_and_names_have_one_unicode_form(tmp_path):
    (tmp_path / "names").write_text(f'{{"{10**30}": "cafe\u0301", "-7": "dog"}}', encoding="utf-8")
    assert read_class_names(str(tmp_path / "names")).of == {10**30: "caf\u00e9", -7: "dog"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no names"),
        ("[]", "holds no names"),
        ("cat\n\ndog", "line 2 is empty"),
        ("cat\ndog\ncat", "calls both 0 and 2 'cat'"),
        ('["cat", 3]', "calls number 1 3; names must be texts"),
        ('["cat", "a|b"]', r"calls number 1 'a\|b'"),
        ('{"cat": 0, "dog": 1}', "has the key 'cat', which is no number"),
        ('{"1": "cat", "01": "dog"}', "two names for number 1"),
        ("0 cat\n1 dog", r"has a number before every name \(line 1: '0 cat'\); write the names alone"),
        ("2,cat\n1,dog", "has a number before every name"),
        ("[1, ", "is not JSON"),
        ("[" * 100000, "is not JSON"),
    ],
)
def test_what_names_no_numbers_is_one_clear_line(tmp_path, text, complaint):
    (tmp_path / "names").write_text(text)
    with pytest.raises(InputError, match=complaint) as caught:
        read_class_names(str(tmp_path / "names"))
    assert "\n" not in str(caught.value) and str(tmp_path / "names") in str(caught.value)


def test_names_may_begin_with_numbers(tmp_path):
    (tmp_path / "names").write_text("0 degrees\n90 degrees\n7\n")
    assert read_class_names(str(tmp_path / "names")).of == {0: "0 degrees", 1: "90 degrees", 2: "7"}


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="gone.json"):
        read_class_names(str(tmp_path / "gone.json"))
