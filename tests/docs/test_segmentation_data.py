"""Every command of docs/segmentation-data.md runs on small data under the names it uses, and prints what is shown."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from beit.finetune.masks.class_table import USUAL_FILES
from beit.finetune.masks.settings import MaskDataConfig
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.unit.finetune.masks.trees import ids, photo, write

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "segmentation-data.md").read_text()
SIZE = (60, 48)
INDENTED = re.findall(r"^    (beit .*)$", TEXT, re.MULTILINE)


def make_data(folder):
    mask = np.repeat(ids(0, 0, 1, 1, 2, 255, size=(6, 1)), 10, axis=1).repeat(48, axis=0)
    for part, count in (("train", 12), ("val", 4)):
        files = {f"images/{n}.jpg": photo(n, SIZE) for n in range(count)} | {
            f"masks/{n}.png": mask for n in range(count)
        }
        write(folder / "streets" / part, files)
    write(folder / "streets", {"classes.json": '["road", "tree", "car"]'})
    write(folder / "binary", {"images/1.jpg": None, "masks/1.png": ids(0, 255)})
    write(folder, {"two.json": '{"0": "background", "255": "object"}'})


@pytest.mark.docs
@pytest.mark.timeout(600)
def test_commands_run_and_print_what_is_shown(tmp_path):
    make_data(tmp_path)
    (shown,) = re.findall(r"^```text\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    printed = run_commands(list(shown_commands(TEXT)), tmp_path, lambda words: "")
    assert printed.replace(f"{tmp_path}/", "").strip() == shown.strip()
    assert len(INDENTED) == 1 and "object" in run_commands(INDENTED, tmp_path, lambda words: "")


def test_settings_files_and_examples_are_what_there_is():
    assert set(re.findall(r"data\.(\w+)", TEXT)) <= set(MaskDataConfig.__dataclass_fields__)
    assert all(f"`{name}`" in TEXT for name in USUAL_FILES)
    for example in re.findall(r"`([\[{]\".*?[\]}])`", TEXT):
        json.loads(example)
