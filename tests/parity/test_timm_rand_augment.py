"""RandAugment's operations do what timm 1.0.31 does (stored results, tests/golden/make_rand_augment.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit.finetune.augment.rand_augment import OPERATIONS, Canvas
from beit.tests.golden.make_rand_augment import FILL, golden_image, kept

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rand_augment.json").read_text())
NAMES = list(dict.fromkeys(row[0] for row in GOLDEN))


def test_operations_are_timms_in_its_order():
    ours = [name.replace("_", "") for name in OPERATIONS]
    theirs = [name.removesuffix("Increasing").removesuffix("Rel").lower() for name in NAMES]
    assert ours == theirs


@pytest.mark.parametrize(("name", "level", "sign", "raster", "total"), GOLDEN, ids=lambda value: str(value)[:20])
def test_pixels_are_timms(name, level, sign, raster, total):
    canvas = Canvas(FILL, Image.Resampling.BICUBIC)
    found, found_total = kept(list(OPERATIONS.values())[NAMES.index(name)](golden_image(), level / 10, sign, canvas))
    assert np.abs(np.array(found) - np.array(raster)).max() <= 1  # another build of Pillow may round otherwise
    assert found_total == pytest.approx(total, rel=1e-3)
