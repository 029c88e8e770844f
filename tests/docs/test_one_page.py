"""The code of docs/beit-in-one-page.md runs as one script, and does what the page says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beit.common.rng import CounterRng
from beit.tokenize.synthetic import render_scene

PAGE = (Path(__file__).resolve().parents[2] / "docs/beit-in-one-page.md").read_text()
pytestmark = pytest.mark.docs
SCRIPT = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Run the page on generated images and return its variables."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "photos").mkdir()
    for number in range(64):
        Image.fromarray(render_scene(CounterRng(number, "one page"), 48)).save(folder / f"photos/{number}.png")
    variables, threads = {}, torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(SCRIPT, "beit-in-one-page.md", "exec"), variables)
    torch.set_num_threads(threads)
    return variables


def test_the_page_is_one_page():
    lines = [line for line in SCRIPT.splitlines() if line.strip()]
    assert 150 <= len(lines) <= 250
    assert all(len(line) <= 120 for line in lines)


def test_the_loss_falls_below_what_knowing_nothing_costs(page):
    first, last = page["losses"][0], np.mean(page["losses"][-5:])
    assert first == pytest.approx(page["uniform_nats"], abs=0.5)
    assert last < first - 0.5
    assert len(page["losses"]) == page["TOTAL_STEPS"]
    assert last < page["held_out_nats"] < first - 0.2
    assert len(page["held_out_ids"]) == 8 * page["NUM_VIEWS"]


def test_masks_are_blocks_of_the_released_size(page):
    counts = page["mask_counts"].numpy()
    assert page["num_masked"] == round(75 * 64 / 196)
    assert counts.max() == page["num_masked"]
    assert 0.7 * page["num_masked"] < counts.mean() <= page["num_masked"]


def test_the_painted_words_resemble_the_image(page):
    assert page["error"] < 40


def test_the_page_leaves_an_encoder(page):
    assert page["features"].shape == (2, 64)
