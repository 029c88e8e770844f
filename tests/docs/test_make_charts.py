"""Charts of docs/results.md are those of its tables: the script finds them, and draws in the size that is there."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", ["few_labels", "few_masks", "unlabelled_images"])
def test_the_tables_give_the_charts(name):
    drawn = runpy.run_path(str(DOCS / "make_charts.py"))[name]()
    with Image.open(DOCS / f"{name}.png") as kept:
        assert drawn.size == kept.size
        # Another version of a font may move a letter; a point of a table that was changed moves a dot and a line.
        differs = np.any(np.asarray(drawn.convert("RGB")) != np.asarray(kept.convert("RGB")), axis=2)
    assert differs.mean() < 0.002, "python docs/make_charts.py"
