"""Self-contained pages: nothing from outside becomes markup, nothing is loaded."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from beit.common.pages import html_page
from beit.common.pages.html_page import data_uri, prose, render
from beit.common.pages.pictures import contrast

EVIL = "<script>alert(1)</script>\"'&"


def filled(folder: Path, body: str, **values: object) -> str:
    template = folder / "page.html"
    template.write_text(f'{{% extends "base.html" %}}{{% block body %}}{body}{{% endblock %}}')
    return render(template, **values)


def test_text_and_attributes_are_escaped(tmp_path: Path) -> None:
    page = filled(tmp_path, '[[<p title="{{ value }}">{{ value | prose }}]]', title="", value=EVIL)
    shown = page.split("[[")[1].split("]]")[0]
    assert shown.count("<") == 1 and shown.count('"') == 2 and "'" not in shown
    assert prose("run `beit verify`") == "run <code>beit verify</code>"
    assert "<b>" not in prose("`<b>`")
    assert "5\u00a0%, <code>beit</code>" in filled(tmp_path, "{{ value | prose }}", title="", value="5 %, `beit`")


def test_a_page_has_its_frame_and_forbids_everything_else(tmp_path: Path) -> None:
    page = filled(tmp_path, "<p>one</p>", title=EVIL)
    assert page.startswith("<!DOCTYPE html>")
    assert "<p>one</p>" in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page  # the style is inside


def test_a_value_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UndefinedError):
        filled(tmp_path, "{{ nothing }}", title="")


def test_pictures_survive() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for picture in (pixels, Image.fromarray(pixels)):
        uri = data_uri(picture)
        assert uri.startswith("data:image/png;base64,")
        decoded = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
        assert np.array_equal(np.asarray(decoded), pixels)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_of_pages_have_the_contrast_that_wcag_wants(scheme: int) -> None:
    style = Path(html_page.__file__).with_name("page.css").read_text()
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme]
    colours = {
        name: tuple(int(digits[place : place + 2], 16) for place in (0, 2, 4))
        for name, digits in re.findall(r"--([\w-]+): #(\w{6})", block)
    }
    pairs = [("ink", "paper"), ("ink", "track"), ("soft", "paper"), ("soft", "card"), ("good", "paper")]
    pairs += [(level, f"{level}-bg") for level in ("good", "look", "bad")]
    assert all(contrast(colours[text], colours[ground]) >= 4.5 for text, ground in pairs)
    assert all(contrast(colours[f"line{number}"], colours["paper"]) >= 3.0 for number in range(8))
