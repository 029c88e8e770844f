"""docs/images.md: every command runs, its numbers are those of the benchmark, its warnings those that are given."""

import io
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit.common.images.decoding import Decoding
from beit.common.sources.glance.transparency import warn_of_hidden_colours
from beit.common.sources.opening import open_source
from beit.common.store import open_store
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.unit.common.images.test_alpha import encoded, icon
from beit.tests.unit.common.sources.test_glance import photo

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/images.md").read_text()
DEPTH = PAGE.partition("\n## Depth\n")[2].partition("\n## ")[0]
TRANSPARENCY = PAGE.partition("\n## Transparency\n")[2].partition("\n## ")[0]
pytestmark = [pytest.mark.docs, pytest.mark.timeout(600)]


def test_commands_about_depth_run(tmp_path):
    (tmp_path / "scans").mkdir()
    for number in range(4):
        values = np.random.default_rng(number).integers(100, 1100, (64, 64)).astype(np.uint16)
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "PNG")
        (tmp_path / f"scans/{number}.png").write_bytes(buffer.getvalue())
    commands = list(shown_commands(DEPTH))
    assert commands
    run_commands(commands, tmp_path, lambda _: "--views 1 --img-size 32 --patch-size 16")


def test_the_table_of_ranges_is_what_the_benchmark_prints():
    command = [sys.executable, ROOT / "benchmarks/value_ranges.py"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert re.findall(r"^\| `(?:dtype|\[|perc).*\|$", printed, re.MULTILINE)
    assert printed.strip() in DEPTH


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
    commands = [command for command in shown_commands(TRANSPARENCY) if "source.alpha" in command]
    assert commands
    run_commands(commands, tmp_path, lambda words: LESS)
    assert open_store(tmp_path / "stores/icons").info.source.alpha == "white"


def test_the_shown_warning_is_given(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    warn_of_hidden_colours(open_source(make_icons(tmp_path / "icons")), Decoding())
    (shown,) = (line[2:] for line in TRANSPARENCY.splitlines() if line.startswith("> of "))
    assert caplog.messages == [f"{tmp_path / 'icons'}: {shown}"]
