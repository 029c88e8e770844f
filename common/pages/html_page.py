"""Self-contained HTML pages from templates: the frame around them, escaping, and pictures inside them.

Every page extends `base.html`, which tells the browser to load nothing and run nothing, and has `page.css` for its
looks. What a template shows is escaped, because names, paths and sentences come from outside.
"""

from __future__ import annotations

import base64
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

from beit import __version__
from beit.common.pages.numbers import count, percent, short_name
from beit.common.pages.pictures import png_bytes

Html = Markup
"""Text that is HTML already; a template shows it as it is."""
_CODE = re.compile("`([^`<>]+)`([,.;:)]*)")
_AFTER = re.compile(r"(?<=[/_=.])(?=[A-Za-z])")
"""Where a name of a setting, or of what lies in folders, may be broken."""
_FILE = re.compile(r"(\S*?)([^\s/_-]{1,6}\.[A-Za-z][A-Za-z0-9]{1,4})(?!\S)")
"""A name with an ending, cut where it may be broken last."""


def render(template: Path, **values: Any) -> str:
    """Fill in the template of a page.

    Args:
        template: Its file. Beside jinja's own it may use the filters `prose`, `data_uri`, `photo_uri`, `percent`,
            `count`, `short` and `files`, what is in `parts.html`, and `version`.
        values: What it shows.
    """
    return _environment(template).get_template(template.name).render(version=__version__, **values)


def part(template: Path, macro: str, **values: Any) -> Html:
    """Fill in one part of a page, a macro of a template of such parts; another template shows it as it is."""
    found = getattr(_environment(template).get_template(template.name).module, macro)
    return Html(found(**values))


@cache
def _environment(template: Path) -> Environment:
    """Return where a template is filled in; files of the same name beside it go before those of this room."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_unbroken,
    )
    environment.filters |= {
        "prose": prose,
        "data_uri": data_uri,
        "photo_uri": photo_uri,
        "percent": percent,
        "count": count,
        "short": short_name,
        "files": files,
    }
    return environment


def prose(value: str) -> Markup:
    """Escape a text; what stands between backticks is set as code."""
    return Markup(_CODE.sub(lambda found: _code(found[1], found[2]), str(escape(value))))


def _code(escaped: str, behind: str) -> str:
    """Set a name, or the words of a command, each of which stays whole where a line has room for it.

    What stands `behind` it begins no line.
    """
    words = _AFTER.sub("<wbr>", escaped).split(" ")
    code = f"<code>{words[0]}</code>"
    if len(words) > 1:
        code = '<code class="line">' + " ".join(f"<span>{word}</span>" for word in words) + "</code>"
    return f'<span class="ending">{code}{behind}</span>' if behind else code


def files(value: str) -> Markup:
    """Escape a text with names of files in it, which are broken behind / _ - rather than anywhere, endings never."""
    parts, end = [], 0
    for found in _FILE.finditer(value):
        parts += [_breakable(value[end : found.start()]), _breakable(found[1])]
        parts.append(Markup('<span class="ending">{}</span>').format(found[2]))
        end = found.end()
    return Markup("").join([*parts, _breakable(value[end:])])


def _breakable(text: str) -> Markup:
    return Markup(re.sub("(?<=[/_-])(?=[^/_ -])", "<wbr>", str(escape(text))))


def data_uri(pixels: NDArray[np.uint8] | Image.Image) -> str:
    """Encode an image, or uint8 (H, W, 3), as a PNG data URI."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")


def photo_uri(image: Image.Image) -> str:
    """Encode a photo, or what is drawn on one, as a JPEG data URI: a quarter of a PNG, and colours keep their edges."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=86, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _unbroken(value: object) -> object:
    """Keep percent signs with their numbers."""
    return value.replace(" %", "\u00a0%") if isinstance(value, str) else value
