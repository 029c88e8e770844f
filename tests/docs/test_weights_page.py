"""Every command and the Python of the page on weights run, in order, on small things of its names."""

import re
from pathlib import Path

import pytest

import beit
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.workplace import write_workplace

PAGE = Path(__file__).resolve().parents[2] / "docs/weights.md"
pytestmark = pytest.mark.docs


def test_the_commands_and_the_python_run(tmp_path, monkeypatch):
    folder = write_workplace(tmp_path / "place")
    commands = list(shown_commands(PAGE.read_text()))
    assert len(commands) >= 2
    run_commands(commands, folder, lambda words: "")
    monkeypatch.chdir(folder)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE):
        exec(block, names)
    assert names["label"] in ("rose", "tulip")
    model = beit.load_model("runs/flowers/model")
    assert names["answers"] == [found.label for found in model.predict(["photo.jpg", "other.png"])]
