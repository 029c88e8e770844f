"""Every `beit` command shown in the README runs, in order, on small data under the names it uses."""

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit.tests.docs.run_commands import run_commands, shown_commands, write_public_weights
from beit.tests.support import write_images
from beit.tests.unit.finetune.segmentation.scenes import write_scenes
from beit.tests.workplace import write_workplace

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.docs, pytest.mark.timeout(1800)]

# Appended to the shown commands: the same code, less of it.
LESS = {
    "tokenize": "",
    "pretrain": "--set train.steps=2 --set train.global_batch_size=8 --set reader.num_workers=1 --set model.depth=2",
    "finetune": "--set train.steps=2 --set train.global_batch_size=8 --set reader.num_workers=1",
}


def test_readme_shows_the_two_make_commands_and_they_exist():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target} " in readme
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def less(words):
    warmup = " --set optimizer.warmup_steps=0" if words[:2] == ["finetune", "segmentation"] else ""
    return LESS.get(words[0], "") + warmup


def write_scans(folder, count):
    """Write grey images of 12 bits in 16, as detectors do."""
    folder.mkdir()
    for number in range(count):
        values = np.random.default_rng(number).normal(600, 40, (64, 64)).clip(0, 4095).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{number}.png")


def test_readme_commands_run_in_order(tmp_path):
    write_scans(tmp_path / "scans", 6)
    write_images(tmp_path / "slides", 2, size=1100)
    write_images(tmp_path / "photos", 80, size=64)
    write_images(tmp_path / "new-photos", 3, size=64)
    for name in ("train", "val", "test"):
        write_images(tmp_path / "labelled" / name, 16, size=64, classes=("rose", "tulip"))
    write_scenes(tmp_path / "streets/train", 8)
    write_scenes(tmp_path / "streets/val", 3, start=50)
    write_public_weights(tmp_path / "dino_vitbase16_pretrain.pth")
    commands = list(shown_commands((ROOT / "README.md").read_text()))
    assert len(commands) >= 6
    run_commands(commands, tmp_path, less)
    assert (tmp_path / "labels.csv").read_text().count("\n") == 4
    assert len(list((tmp_path / "masks/masks").glob("*.png"))) == 3
    assert (tmp_path / "reconstruction.png").stat().st_size > 1000
    scans = json.loads((tmp_path / "stores/scans/store.json").read_text())["source"]
    assert scans["channels"] == "grey" and scans["range_found"]
    tars = [tarfile.open(file) for file in (tmp_path / "stores/slides/images").glob("*.tar")]
    assert sum("~y" in name and name.endswith(".png") for tar in tars for name in tar.getnames()) == 2 * 4


def test_readme_snippets_run(tmp_path):
    write_workplace(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(snippets) == 4
    run_commands(["beit export runs/pretrain/encoder exported/encoder --to hf"], tmp_path, less)  # as shown further up
    for snippet in snippets:
        subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, check=True)
