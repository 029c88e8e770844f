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

from beit.benchmarks.science import CELLS, CHESTS, DARK_COUNTS, write_chest, write_field
from beit.common.images.decoding import Decoding
from beit.common.sources.glance.transparency import warn_of_hidden_colours
from beit.common.sources.opening import open_source
from beit.common.storage.documents import read_json
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


EXAMPLE = PAGE.partition("\n## An example: microscopy and X-ray\n")[2].partition("\n## ")[0]
TINY = "--set model.embed_dim=16 --set model.depth=1 --set model.num_heads=2"
OF_EXAMPLE = {
    "tokenizer": "--images 8",
    "tokenize": "--views 1",
    "pretrain": f"{TINY} --set train.steps=2 --set train.eval_interval_steps=2 --set optimizer.warmup_steps=0",
    "finetune": f"{TINY} --set probe.ks=[1]",
}


def test_the_example_of_science_runs(tmp_path):
    for folder, count in (("cells", 4), ("new-cells", 1), ("cells-labelled", 2), ("cells-test", 1)):
        for number, kind in enumerate(CELLS):
            inside = tmp_path / folder / (kind if folder in ("cells-labelled", "cells-test") else "")
            inside.mkdir(parents=True, exist_ok=True)
            for of in range(count):
                write_field(inside / f"{kind}-{of}.ome.tif", np.random.default_rng([number, of]), kind)
    (tmp_path / "chests").mkdir()
    for number in range(8):
        write_chest(tmp_path / f"chests/{number}.dcm", np.random.default_rng(number), CHESTS[number % 3])
    commands = list(shown_commands(EXAMPLE))
    assert len(commands) == 9
    run_commands(commands, tmp_path, lambda words: OF_EXAMPLE.get(words[0], ""))
    low, high = open_store(tmp_path / "stores/cells").info.source.range_found
    assert DARK_COUNTS <= low < 260 and 1000 < high < 1700
    assert open_store(tmp_path / "stores/chests").info.source.range == "window"
    model = read_json(tmp_path / "runs/cells-probe/model/config.json")["decoding"]
    assert model["frame"] == "middle" and model["channels"] == "grey"
    assert len((tmp_path / "new-cells.csv").read_text().splitlines()) == 1 + len(CELLS)
