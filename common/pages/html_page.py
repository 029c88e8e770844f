"""Self-contained HTML pages: escaping, the document around the parts, and pictures inside it.

Everything that comes from outside (names, paths, sentences that quote them) passes through `text` or `attribute`. The
browser is told to load nothing and run nothing. The looks are `page.css`, one style for all reports.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_STYLE_FILE = Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_CODE = re.compile("`([^`<>]+)`")


def attribute(value: object) -> str:
    """Escape text for a quoted attribute, and keep percent signs with their numbers."""
    return escape(str(value), quote=True).replace(" %", "\u00a0%")


def text(value: object) -> str:
    """Escape text for the content of an element; what stands between backticks is set as code."""
    return _CODE.sub(r"<code>\1</code>", attribute(value))


def document(title: str, parts: Iterable[str]) -> str:
    """Return a whole page.

    Args:
        title: Plain text.
        parts: HTML, already escaped; empty ones are left out.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{text(title)}</title>\n<style>\n{_STYLE_FILE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def data_uri(pixels: NDArray[np.uint8] | Image.Image) -> str:
    """Encode an image, or uint8 (H, W, 3), as a PNG data URI."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
