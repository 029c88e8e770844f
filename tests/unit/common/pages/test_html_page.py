"""Self-contained pages: nothing from outside becomes markup, nothing is loaded."""

import base64
import io

import numpy as np
from PIL import Image

from beit.common.pages.html_page import attribute, data_uri, document, text

EVIL = "<script>alert(1)</script>\"'&"


def test_text_and_attributes_are_escaped() -> None:
    for escaped in (text(EVIL), attribute(EVIL)):
        assert not set(escaped) & set("<>\"'")
    assert text("run `beit verify`") == "run <code>beit verify</code>"
    assert "<b>" not in text("`<b>`")
    assert attribute("5 %") == "5\u00a0%"


def test_document_holds_its_parts_and_forbids_everything_else() -> None:
    page = document(EVIL, ["<p>one</p>", "", "<p>two</p>"])
    assert page.startswith("<!DOCTYPE html>")
    assert "<p>one</p>\n<p>two</p>" in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "url(" not in page


def test_pictures_survive() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for picture in (pixels, Image.fromarray(pixels)):
        uri = data_uri(picture)
        assert uri.startswith("data:image/png;base64,")
        decoded = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
        assert np.array_equal(np.asarray(decoded), pixels)
