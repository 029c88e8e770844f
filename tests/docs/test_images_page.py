"""Every command of docs/images.md runs, and the warning it shows is the one that is given."""

import logging
from pathlib import Path

import pytest

from beit.common.images.decoding import Decoding
from beit.common.sources.glance.transparency import warn_of_hidden_colours
from beit.common.sources.opening import open_source
from beit.common.store import open_store
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.unit.common.images.test_alpha import encoded, icon
from beit.tests.unit.common.sources.test_glance import photo

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "images.md").read_text()
pytestmark = [pytest.mark.docs, pytest.mark.timeout(600)]
LESS = "--views 2 --img-size 32 --patch-size 4"


def make_icons(folder):
    folder.mkdir()
    for name in "abcdef":
        (folder / f"{name}.png").write_bytes(encoded(icon((0, 0, 0))))
    for name in "gh":
        (folder / f"{name}.png").write_bytes(photo(ord(name)))
    return folder


def test_commands_of_transparency_run(tmp_path):
    make_icons(tmp_path / "icons")
    commands = [command for command in shown_commands(TEXT) if "source.alpha" in command]
    assert commands
    run_commands(commands, tmp_path, lambda words: LESS)
    assert open_store(tmp_path / "stores/icons").info.source.alpha == "white"


def test_the_shown_warning_is_given(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    warn_of_hidden_colours(open_source(make_icons(tmp_path / "icons")), Decoding())
    (shown,) = (line[2:] for line in TEXT.splitlines() if line.startswith("> of "))
    assert caplog.messages == [f"{tmp_path / 'icons'}: {shown}"]
