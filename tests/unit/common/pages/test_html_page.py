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
from beit.common.pages.html_page import data_uri, files, prose, render
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
    assert prose("see `name`") == "see <code>name</code>"
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


def test_names_of_files_are_broken_behind_their_parts_and_never_in_their_endings() -> None:
    assert files("of/0001TP_006690.png") == 'of/<wbr>0001TP_<span class="ending">006690.png</span>'
    assert files("cat, 95.0 %\n<a>.jpeg") == 'cat, 95.0 %\n<span class="ending">&lt;a&gt;.jpeg</span>'
    assert files("") == "" and files("no_name of one") == "no_<wbr>name of one"


def test_code_is_broken_between_words_first_and_what_is_behind_it_begins_no_line() -> None:
    assert prose("`beit show`") == '<code class="line"><span>beit</span> <span>show</span></code>'
    assert prose("`train.steps=5`, and") == '<span class="ending"><code>train.<wbr>steps=5</code>,</span> and'
    assert prose("`1e-3.5`") == "<code>1e-3.5</code>"


def test_paper_is_light_and_shows_what_is_folded_and_what_is_moved_sideways() -> None:
    style = Path(html_page.__file__).with_name("page.css").read_text()
    on_paper = style[style.index("@media print") :]
    assert "details::details-content { content-visibility: visible" in on_paper
    assert not [line for line in on_paper.splitlines() if "details" in line and "display: none" in line]
    assert ".scroll { overflow: visible" in on_paper and "color-scheme: light;" in on_paper
    looks = re.findall("@media [^{]*prefers-color-scheme: dark[^{]*", style)
    assert looks and all("screen and" in look for look in looks)
