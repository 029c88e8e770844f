"""Every command and the Python of the page on using segmentation models run, on small things of its names."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.support import write_images
from beit.tests.unit.finetune.probe.test_segmentation import write_scenes
from beit.tests.workplace import write_workplace

PAGE = Path(__file__).resolve().parents[2] / "docs/segmentation-use.md"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    folder = write_workplace(tmp_path / "place")
    write_images(folder / "new-photos", 3, size=40)
    for part, count in (("train", 6), ("val", 3)):
        write_scenes(folder / "streets" / part, count, start=count)
    (folder / "streets/classes.json").write_text(json.dumps(["road", "sky"]))
    return folder


@pytest.mark.docs
def test_the_commands_run(workplace):
    commands = list(shown_commands(PAGE.read_text()))
    assert len(commands) == 4
    run_commands(commands, workplace, lambda words: "")
    assert len(list((workplace / "masks/masks").glob("*.png"))) == 3
    assert len(list((workplace / "masks/overlays").glob("*.jpg"))) == 3
    with Image.open(workplace / "predictions.png") as drawn:
        assert drawn.width > 1000
    found = json.loads((workplace / "runs/probe/segmentation-probe.json").read_text())
    assert found["class_names"] == ["road", "sky"] and 0 <= found["best_block"] < 2


def test_the_python_runs(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    names = {}
    exec(block, names)
    assert names["found"].ids.shape == (48, 64) and Image.open("street.png").mode == "P"
