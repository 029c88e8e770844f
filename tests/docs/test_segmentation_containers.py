"""Every command of docs/segmentation-containers.md runs on small data under the names it uses."""

import json
import re
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.masks.tar_pairs import MASK_MEMBERS
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.unit.finetune.masks.paired import mask, photo

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "segmentation-containers.md").read_text()


def make_data(folder):
    for part, count in (("train", 5), ("val", 2)):
        (folder / "pets-coco" / "annotations").mkdir(parents=True, exist_ok=True)
        images, pairs = folder / "pets-coco" / "images" / part, folder / part
        for place in (images, pairs, folder / "pets-tables", folder / "pets-tars"):
            place.mkdir(parents=True, exist_ok=True)
        listed, rows = [], []
        for number in range(count):
            (images / f"{number}.jpg").write_bytes(photo(number))
            (pairs / f"{number}.jpg").write_bytes(photo(number))
            (pairs / f"{number}.seg.png").write_bytes(mask(1))
            listed.append({"id": number, "file_name": f"{number}.jpg", "width": 12, "height": 8})
            rows.append((photo(number), mask(1)))
        shapes = [[[0, 0, 6, 0, 6, 8]], [[6, 2, 9, 2, 9, 8, 6, 8]]]
        annotations = [
            {"id": 2 * image["id"] + place, "image_id": image["id"], "category_id": place + 1, "segmentation": shape}
            for image in listed
            for place, shape in enumerate(shapes)
        ]
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        document = {"images": listed, "annotations": annotations, "categories": categories}
        (folder / f"pets-coco/annotations/instances_{part}.json").write_text(json.dumps(document))
        table = pa.table({"image": [row[0] for row in rows], "annotation": [row[1] for row in rows]})
        pq.write_table(table, folder / f"pets-tables/{part}.parquet")
        (shown,) = re.findall(r"^    (tar --sort.*)$", TEXT, re.MULTILINE)
        words = shown.replace("train-0000.tar", f"pets-tars/{part}-0000.tar").replace("pairs", part)
        subprocess.run(words.split(), cwd=folder, check=True)


@pytest.mark.docs
@pytest.mark.timeout(600)
def test_commands_run(tmp_path):
    make_data(tmp_path)
    commands = list(shown_commands(TEXT))
    assert len(commands) == 5
    for command in commands:
        printed = run_commands([command], tmp_path, lambda words: "")
        has_background = "coco" in command and "false" not in command
        assert f"  {3 if has_background else 2} classes" in printed
        assert re.search(r"images with a mask +5", printed)


def test_settings_and_names_are_what_there_is():
    assert set(re.findall(r"(?<![\w-])data\.(\w+)", TEXT)) <= set(MaskDataConfig.__dataclass_fields__)
    assert all(f"`0001.{suffix}`" in TEXT for suffix in MASK_MEMBERS.split(";"))
